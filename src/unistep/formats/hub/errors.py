"""Errors of the Hugging Face Hub, in one line with the remedy.

`huggingface_hub` raises its own errors, those of the HTTP library below it (which differs between its versions), and
OSError of the disk; the cause is often inside another error.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from unistep.errors import UserError
from unistep.formats.hub.address import HubAddress
from unistep.formats.hub.transfer import AnswerError, SilentError, SizeError
from unistep.text import shown

OTHER_CACHE = "free space, or choose another place with `cache_dir` or the environment variable HF_HOME"
_GIVE_TOKEN = "give a `token` that may, or set the environment variable HF_TOKEN"


class Refused(UserError):
    """The Hub refuses the model."""


class Unreachable(Refused):
    """The Hub does not answer; a copy in the cache serves."""


class BrokenOff(UserError):
    """A download that was broken off; another attempt may succeed."""


class Damaged(BrokenOff):
    """A download of a wrong size or content; the next attempt must begin anew."""


@contextmanager
def explained(address: HubAddress, file: str | None = None, *, writing: bool = False) -> Iterator[None]:
    """Turns errors of the Hub, the network or the disk that the code inside raises into `UserError`.

    Args:
        address: address of the model.
        file: file that is being downloaded; None for other requests.
        writing: whether a model is being pushed; default: one is being read.

    Raises:
        UserError: an error of the Hub, the network or the disk, in words.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        failure = _explain(error, address, file, writing)
        if failure is None:
            raise
        raise failure from None


def _explain(error: Exception, address: HubAddress, file: str | None, writing: bool) -> UserError | None:
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    # The base of all errors of the HTTP library.
    http_error = next(c for c in reversed(HfHubHTTPError.__mro__) if c.__module__ != "builtins")
    failure = Unreachable if file is None else BrokenOff
    download = f"the download of {file} of {address}"
    if isinstance(error, SilentError):
        kind = Unreachable if file is None else UserError  # whoever was silent for long is not asked again
        return kind(f"{address.host} sends nothing, or hardly anything, of {file or address}; try again later")
    if isinstance(error, AnswerError):
        kind = Unreachable if file is None else UserError
        asked = f" (asked for {file})" if file else ""
        reasons = "a portal or proxy may be in between, or HF_ENDPOINT is wrong"
        return kind(f"{address.host} does not answer as the Hub does{asked}: {_line(error)}; {reasons}")
    if isinstance(error, SizeError):
        return Damaged(f"{download} failed ({_line(error)}); try again, whole files are kept")
    if writing and type(error) is ValueError:  # what the library checks: the metadata of the card
        return UserError(f"cannot push to {address}: {_line(error)}")
    for cause in _causes(error):
        response = getattr(cause, "response", None)
        if isinstance(cause, (HfHubHTTPError, http_error)) and response is not None:
            return _explain_status(cause, response.status_code, address, file, writing, failure)
        if isinstance(cause, LocalTokenNotFoundError):
            return UserError("`token` is True, and this machine keeps no token; run `hf auth login`, or set HF_TOKEN")
        if isinstance(cause, http_error):
            # The system's own words are the shortest; a protocol's fault has none.
            system = (c.strerror for c in _causes(cause) if isinstance(c, OSError) and c.strerror)
            reason = next(system, None) or _line(cause) or type(cause).__name__
            if file:
                return failure(f"{download} broke off ({reason}); try again, whole files are kept")
            return failure(f"cannot reach {address.host} for {address} ({reason}); check the network")
        if isinstance(cause, OSError) and cause.errno is not None:
            if writing:
                return UserError(f"cannot read the folder to push to {address} ({cause.strerror}); check it")
            return UserError(f"cannot use the cache {address.cache} for {address} ({cause.strerror}); {OTHER_CACHE}")
    if type(error).__module__.partition(".")[0] == http_error.__module__.partition(".")[0]:
        # Those that the library's base does not cover, as for an address that a server redirects to.
        return _explain(AnswerError(_line(error)), address, file, writing)
    if writing and isinstance(error, (OSError, RuntimeError, ValueError)):
        return UserError(f"cannot push to {address}: {_line(error)}")
    return None


def _explain_status(
    error: Any, status: int, address: HubAddress, file: str | None, writing: bool, failure: type[UserError]
) -> UserError:
    from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, RevisionNotFoundError

    host, code = address.host, f"HTTP {status}"
    if isinstance(error, GatedRepoError):
        page = f"{host}/{address.model_id}"
        return Refused(f"{address} is gated ({code}): ask for access at {page}, and {_GIVE_TOKEN}")
    if isinstance(error, RevisionNotFoundError):
        return Refused(f"{address.model_id} has no revision {address.revision!r}; give a branch, tag or commit of it")
    if isinstance(error, EntryNotFoundError):
        return Refused(f"{host} lists {file} of {address} and does not have it ({code}); tell the model's owner")
    if writing and status in (401, 403, 404):
        return Refused(f"no permission to write to {address} on {host} ({code}); {_GIVE_TOKEN}")
    if status in (401, 404):
        return Refused(
            f"{host} has no {address} or does not show it ({code}): check the name; if it is private, {_GIVE_TOKEN}"
        )
    if status == 403:
        return Refused(f"no permission to read {address} on {host} ({code}); {_GIVE_TOKEN}")
    if status in (408, 429) or status >= 500:
        return failure(f"{host} is busy or out of order ({code}, asked for {file or address}); try again later")
    reason = _line(getattr(error, "server_message", None)) or "no reason given"
    return Refused(f"{host} refuses {file or address} ({code}: {reason})")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error and its causes, outermost first."""
    seen = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _line(text: object) -> str:
    """The text of others in one line."""
    return shown(" ".join(str(text or "").split()))[:200]
