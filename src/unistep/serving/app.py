"""The application: routes, their errors in one shape, the page, and the guard before all."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from unistep.errors import UserError
from unistep.serving.errors import Refusal, body_of, refusal_of
from unistep.serving.routes import huggingface, openai, predictions, status
from unistep.serving.routes.common import read_json
from unistep.serving.routes.documents import finished
from unistep.serving.security import Access, Guard, Receive, Scope, Send
from unistep.serving.service import Service

_SECONDS_TO_JOIN = 10
PAGE = Path(__file__).parent / "page"


def make_app(service: Service, access: Access) -> Guard:
    """Returns the ASGI application of a server.

    Args:
        service: models, engine and limits.
        access: tokens, hosts and origins that are admitted.
    """

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        service.engine.start()
        service.metrics.watch_queue(lambda: service.engine.queue_length)
        service.ready = True
        yield
        service.ready = False
        # What was accepted is answered: the engine ends its batches before the loop closes.
        await asyncio.to_thread(service.engine.stop, service.config.grace_seconds)
        await asyncio.to_thread(service.engine.join, _SECONDS_TO_JOIN)
        for task in [*service.tasks]:
            task.cancel()

    app = _Application(
        title="unistep",
        description="Images in one network evaluation.",
        version="1",
        docs_url=None,
        redoc_url=None,
        lifespan=life,
    )
    app.state.service = service
    for router in (openai.router, huggingface.router, predictions.router, status.router):
        app.include_router(router)

    @app.get("/", include_in_schema=False)
    async def index() -> FileResponse:
        return FileResponse(PAGE / "index.html", headers={"Cache-Control": "no-cache"})

    app.mount("/page", StaticFiles(directory=PAGE), name="page")
    for kind, handler in _ANSWERS.items():
        app.add_exception_handler(kind, handler)
    return Guard(app, access, service.config, service.metrics)


class _Application(FastAPI):
    """FastAPI with the document of what the server answers, and a short way to the address that is asked most."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request: small images are made in less time than FastAPI takes to find and to call a route."""
        if scope["type"] == "http" and scope["method"] == "POST" and scope["path"] == openai.GENERATIONS:
            scope["app"], scope["route"] = self, _GENERATIONS
            await (await _generations(Request(scope, receive)))(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)

    def openapi(self) -> dict[str, Any]:
        """Returns the API's document."""
        return finished(super().openapi())


_GENERATIONS = next(route for route in openai.router.routes if getattr(route, "path", "") == openai.GENERATIONS)


async def _generations(request: Request) -> Response:
    """The answer of the route of the same name, and of what FastAPI does around it."""
    service: Service = request.app.state.service
    try:
        body = openai.Generation.model_validate(await read_json(request, service))
        return await openai.generations(request, body)
    except ValidationError as error:
        return await _invalid(request, RequestValidationError(error.errors()))
    except tuple(_ANSWERS) as error:
        return await next(handler for kind, handler in _ANSWERS.items() if isinstance(error, kind))(request, error)


async def _refused(request: Request, error: Exception) -> JSONResponse:
    refusal = refusal_of(error)
    return JSONResponse(body_of(refusal), status_code=refusal.status, headers=refusal.headers)


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first: Any = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"] if part not in ("body", "query", "path"))
    message = f"{where}: {first['msg']}" if where else first["msg"]
    return await _refused(request, Refusal(400, "invalid_request_error", message[:500], where[:200]))


async def _gone(request: Request, error: Exception) -> Response:
    return Response(status_code=499)  # nobody reads it; it is counted


async def _http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    kinds = {404: "not_found", 405: "method_not_allowed"}
    message = {404: "there is nothing at this address; see /docs"}.get(error.status_code, str(error.detail))
    refusal = Refusal(error.status_code, kinds.get(error.status_code, "invalid_request_error"), message[:500])
    return JSONResponse(body_of(refusal), status_code=error.status_code, headers=dict(error.headers or {}))


_ANSWERS: Mapping[type[Exception], Callable[[Request, Exception], Awaitable[Response]]] = {
    RequestValidationError: _invalid,
    HTTPException: _http,
    Refusal: _refused,
    UserError: _refused,
    ClientDisconnect: _gone,
}
