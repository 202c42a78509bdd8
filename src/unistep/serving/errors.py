"""Refusals of the server: a status, and the body `{"error": {"message", "type", "param"}}` that every error has."""

from typing import Any

from unistep.errors import UserError


class Refusal(Exception):
    """A request that is refused.

    Args:
        status: HTTP status.
        kind: type of the error, a word for programs.
        message: reason and remedy, one line.
        param: field of the request that is wrong; empty for none.
        headers: headers of the answer.
    """

    def __init__(
        self, status: int, kind: str, message: str, param: str = "", headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.kind, self.message, self.param, self.headers = status, kind, message, param, headers or {}


class Busy(Refusal):
    """The queue is full."""

    def __init__(self, retry_after: int) -> None:
        message = f"the server is busy; try again in {retry_after} s"
        super().__init__(429, "overloaded", message, headers={"Retry-After": str(retry_after)})


class Stopping(Refusal):
    """The server takes no more requests."""

    def __init__(self) -> None:
        super().__init__(503, "stopping", "the server is stopping", headers={"Retry-After": "5"})


class WorkerFailed(Refusal):
    """The worker died or hung while it computed the request."""

    def __init__(self) -> None:
        message = "the worker failed and was started anew; try again"
        super().__init__(503, "worker_failed", message, headers={"Retry-After": "1"})


def refusal_of(error: BaseException) -> Refusal:
    """Returns an error as a refusal: a user's mistake is status 400, whatever else happened is 500 without details."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, UserError):
        return Refusal(400, "invalid_request_error", str(error), error.field)
    if isinstance(error, MemoryError) or "allocate" in str(error):
        return Refusal(503, "out_of_memory", "the memory is not enough; ask for fewer or smaller images")
    return Refusal(500, "internal_error", "the server failed; its log has the reason")


def body_of(refusal: Refusal) -> dict[str, Any]:
    """Returns the body of a refusal."""
    return {"error": {"message": refusal.message, "type": refusal.kind, "param": refusal.param or None}}
