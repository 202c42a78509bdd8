"""Answers as the API's document describes them: the bodies of results, and of each refusal with its status."""

from typing import Any

from pydantic import BaseModel, Field


class ErrorDetail(BaseModel):
    """Fault of a request."""

    message: str = Field(description="reason and remedy, one line")
    type: str = Field(description="a word for programs, as invalid_request_error")
    param: str | None = Field(description="field of the request that is wrong")


class ErrorBody(BaseModel):
    """Body of every refusal."""

    error: ErrorDetail


class ImageDatum(BaseModel):
    """An image of an answer."""

    b64_json: str | None = Field(description="file in base64; null where `response_format` is url")
    url: str | None = Field(description="address of the file; null where `response_format` is b64_json")
    class_label: int | None = Field(default=None, description="class of the image; null for an unconditional model")


class ImagesBody(BaseModel):
    """Answer of `/v1/images/generations` and `/v1/images/edits`."""

    created: int = Field(description="time of the answer, in seconds since 1970")
    data: list[ImageDatum]
    output_format: str
    seconds: float = Field(description="seconds that the images took, with those in the queue")
    note: str | None = Field(default=None, description="what of the request had no effect")


class ModelBody(BaseModel):
    """A model that is served."""

    id: str = Field(description="name by which requests ask for it")
    object: str
    created: int = Field(description="time at which it was opened, in seconds since 1970")
    owned_by: str
    kind: str = Field(description="consistency or diffusion")
    channels: int
    height: int
    width: int
    classes: list[str] = Field(description="name of each class; empty for an unconditional model")
    noise_levels: int
    sigma_min: float
    sigma_max: float


class ModelsBody(BaseModel):
    """Answer of `/v1/models`."""

    object: str
    data: list[ModelBody]


class PredictionBody(BaseModel):
    """A prediction and what is made of it so far."""

    id: str
    model: str
    version: str
    input: dict[str, Any]
    output: list[str] | None = Field(description="addresses of the images, or `data:` URLs")
    error: str | None
    logs: str
    status: str = Field(description="starting, processing, succeeded, failed or canceled")
    created_at: str | None
    started_at: str | None
    completed_at: str | None
    metrics: dict[str, float]
    urls: dict[str, str]


class ReadyBody(BaseModel):
    """Answer of `/readyz`."""

    ready: bool
    queue: int = Field(description="images that wait")


IMAGE_FILE: dict[str, Any] = {
    "description": "An image.",
    "content": {
        f"image/{kind}": {"schema": {"type": "string", "format": "binary"}} for kind in ("png", "jpeg", "webp")
    },
}
"""An answer that is an image file."""

EVENTS: dict[str, Any] = {"text/event-stream": {}}
"""Content of an answer that is a stream of server-sent events."""

_REFUSALS = {
    400: "A field is wrong; `error.param` names it.",
    401: "A token is needed.",
    403: "A page of another origin asks.",
    404: "There is no such model, prediction or file.",
    405: "The address takes another method.",
    408: "The body came too slowly.",
    413: "The body is too large.",
    421: "The server is not called that.",
    429: "The queue is full, or a limit is reached; see `Retry-After`.",
    500: "The server failed.",
    503: "The server is loading, stopping, or its worker failed; see `Retry-After`.",
}
_ANY = (401, 405, 413, 421, 429)


def refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Returns the refusals of a route for the API's document: those of every route, and the given ones."""
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorBody"}}}
    return {one: {"description": _REFUSALS[one], "content": content} for one in sorted({*_ANY, *statuses})}


WORK = refusals(400, 403, 404, 408, 500, 503)
"""Refusals of a route that computes."""


def finished(document: dict[str, Any]) -> dict[str, Any]:
    """Returns the API's document with the body of refusals, and without FastAPI's own one: it is not answered here."""
    for methods in document["paths"].values():
        for operation in methods.values():
            operation["responses"].pop("422", None)
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    body = ErrorBody.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas.update(body.pop("$defs"), ErrorBody=body)
    return document
