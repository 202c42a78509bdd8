"""Parts that the routes share: bodies, tickets, and the work of an edit."""

import json
import logging
import math
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response, params
from fastapi.routing import APIRoute
from PIL import Image

from unistep.editing.result import EditResult
from unistep.serving.config import ServerConfig
from unistep.serving.errors import Refusal
from unistep.serving.model import ServedModel
from unistep.serving.service import Service
from unistep.serving.waiting import Ticket
from unistep.serving.work import EditOptions, MakeOptions, Stream, check_evaluations, label_numbers, rows_of
from unistep.workflows.edit import edit

_log = logging.getLogger("unistep.serving")


class GuardedRoute(APIRoute):
    """A route whose JSON body is parsed within the limits of the server."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Returns the handler, preceded by the parser."""
        handler = super().get_route_handler()
        takes_form = any(isinstance(one.field_info, params.Form) for one in self.dependant.body_params)
        takes_body = bool(self.dependant.body_params)

        async def guarded(request: Request) -> Response:
            service: Service = request.app.state.service
            if request.method == "POST" and takes_form:
                _check_ready(service)
            elif request.method == "POST":
                # Whatever a client calls it: curl's -d says that it is a form.
                request = _as_json(request)
                request._json = await read_json(request, service, takes_body)
            return await handler(request)

        return guarded


async def read_json(request: Request, service: Service, needed: bool = True) -> Any:
    """Returns the value of a request's JSON body.

    Args:
        request: request.
        service: state of the server.
        needed: whether the body must be an object; else it may be anything, or empty.

    Raises:
        Refusal: the server is not ready, or the body is no JSON, no object, too large or nested too deep.
    """
    _check_ready(service)
    body = await request.body()
    value = parse_json(body, service.config)
    if needed and (not isinstance(value, dict) or not body.strip()):
        raise Refusal(400, "invalid_request_error", "the body must be a JSON object")
    return value


def _check_ready(service: Service) -> None:
    if not service.ready:
        raise Refusal(503, "not_ready", "the server is not ready", headers={"Retry-After": "2"})


def _as_json(request: Request) -> Request:
    headers = [pair for pair in request.scope["headers"] if pair[0] != b"content-type"]
    return Request({**request.scope, "headers": [*headers, (b"content-type", b"application/json")]}, request.receive)


def parse_json(body: bytes, config: ServerConfig) -> Any:
    """Returns the value of a JSON body.

    Raises:
        Refusal: it is no JSON, or nested too deep.
    """
    if not body.strip():
        return {}
    try:
        value = json.loads(body, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise Refusal(400, "invalid_request_error", "the body is no JSON, or nested too deep") from None
    level = [value]
    for _ in range(config.max_depth):
        if not all(map(_can_be_written, level)):
            raise Refusal(400, "invalid_request_error", "the body holds half a character, or a number too large")
        level = [inner for one in level for inner in _inside(one)]
        if not level:
            return value
    raise Refusal(400, "invalid_request_error", f"the body is nested deeper than {config.max_depth} levels")


def _no_constant(name: str) -> Any:
    raise ValueError(name)


def _can_be_written(value: Any) -> bool:
    """Whether an answer could hold a value: no infinity, and no half of a surrogate pair."""
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, str) and not value.isascii():
        return not any("\ud800" <= character <= "\udfff" for character in value)
    return True


def _inside(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [*value.keys(), *value.values()]
    return value if isinstance(value, list) else []


def service_of(request: Request) -> Service:
    """Returns the service of the application."""
    return request.app.state.service


def make_stream(service: Service, model: ServedModel, options: MakeOptions, count: int) -> Stream:
    """Returns the stream of a request for images from noise.

    Raises:
        UserError: options that contradict each other or the model.
        Refusal: more work than one request may ask for.
    """
    plan, rows = rows_of(model, options, count, service.config)
    return Stream(service.engine, Ticket(model, plan, rows, interactive=options.interactive), service.outbox)


def edit_stream(
    service: Service,
    model: ServedModel,
    options: EditOptions,
    images: list[Image.Image],
    mask: Image.Image | str | None = None,
) -> Stream:
    """Returns the stream of an edit, whose result is an `EditResult`.

    Raises:
        Refusal: more work than one request may ask for.
        UserError: classes that the model does not have.
    """
    count = max(1, len(images))
    steps = options.steps or len(options.timesteps or ()) or len(options.sigmas or ()) or 4
    check_evaluations(count * options.candidates * (steps + (options.settle or 0)), service.config)
    check_evaluations((options.stops or 1) * (options.frames or 1), service.config)
    labels = label_numbers(model, options.class_labels) or None
    given = options.model_dump(exclude={"task", "interactive", "class_labels"}, exclude_unset=True)
    given = {name: value for name, value in given.items() if value is not None}
    if labels:
        given["class_labels"] = labels
    if mask is not None:
        given["mask"] = mask

    def call() -> EditResult:
        return edit(model.loaded, images or None, options.task, progress=False, **given)

    return Stream(service.engine, Ticket(model, call=call, interactive=options.interactive), service.outbox)


def most_results(options: EditOptions, pictures: int) -> int:
    """Returns the number of images that an edit makes, at most."""
    stops = max(options.stops or 0, len(options.seeds or ()), pictures, 1)
    return max(stops * (options.frames or 1), stops * options.candidates)


def seconds_header(seconds: float) -> dict[str, str]:
    """Returns the header that browsers show as the time of the server."""
    return {"Server-Timing": f"model;dur={seconds * 1000:.1f}"}
