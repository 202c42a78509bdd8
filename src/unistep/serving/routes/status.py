"""Life, readiness, counters, and the page of the API."""

import html
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse

from unistep.serving.routes.common import service_of
from unistep.serving.routes.documents import ReadyBody, refusals

router = APIRouter(tags=["status"])
_READY: dict[int | str, dict[str, Any]] = {
    200: {"model": ReadyBody},
    503: {"model": ReadyBody, "description": "Models load, the worker is dead, or the server stops."},
}


@router.get("/livez", response_class=PlainTextResponse, responses=refusals())
async def livez() -> PlainTextResponse:
    """Answers as long as the process does."""
    return PlainTextResponse("ok")


@router.get("/readyz", responses=_READY | refusals())
async def readyz(request: Request) -> JSONResponse:
    """Says whether requests are answered."""
    service = service_of(request)
    ready = service.ready and service.engine.alive
    return JSONResponse({"ready": ready, "queue": service.engine.queue_length}, status_code=200 if ready else 503)


@router.get("/metrics", response_class=PlainTextResponse, responses=refusals())
async def metrics(request: Request) -> Response:
    """Counters, as Prometheus reads them."""
    return Response(service_of(request).metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


@router.get("/docs", include_in_schema=False)
async def docs(request: Request) -> HTMLResponse:
    """The API's document as a page, without anything from elsewhere."""
    document, rows = request.app.openapi(), []
    for path, methods in document["paths"].items():
        for method, about in methods.items():
            text = html.escape(about.get("description", about.get("summary", "")))
            rows.append(
                f"<tr><td><b>{method.upper()}</b></td><td><code>{html.escape(path)}</code></td><td>{text}</td></tr>"
            )
    return HTMLResponse(
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>unistep: API</title>'
        '<link rel="stylesheet" href="/page/style.css"><main><h1>API</h1>'
        f"<table>{''.join(rows)}</table>"
        '<p>The whole document: <a href="/openapi.json">/openapi.json</a></p></main></html>'
    )
