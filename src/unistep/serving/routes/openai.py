"""OpenAI's images API: `/v1/images/generations`, `/v1/images/edits`, `/v1/models`."""

import base64
import json
import time
from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, File, Form, Request, Response, UploadFile
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import Field
from starlette.datastructures import UploadFile as StarletteFile

from unistep.errors import UserError
from unistep.serving.config import ServerConfig
from unistep.serving.errors import Refusal, body_of, refusal_of
from unistep.serving.pictures import FORMATS, check_results, encode, parse_size, read_upload
from unistep.serving.routes.common import (
    GuardedRoute,
    edit_stream,
    make_stream,
    most_results,
    parse_json,
    seconds_header,
    service_of,
)
from unistep.serving.routes.documents import EVENTS, IMAGE_FILE, WORK, ImagesBody, ModelBody, ModelsBody, refusals
from unistep.serving.routes.inputs import images_of, painted_mask, take_prompt, text_mask, validated
from unistep.serving.service import Service
from unistep.serving.work import EditOptions, MakeOptions, Stream

router = APIRouter(route_class=GuardedRoute, tags=["OpenAI"])

GENERATIONS = "/v1/images/generations"
"""Address of images from noise."""

Format = Literal["png", "jpeg", "webp"]


class Generation(MakeOptions):
    """Body of `/v1/images/generations`: OpenAI's fields, and those of consistency models."""

    model: Annotated[str | None, Field(max_length=200, description="name of the model; default: the first")] = None
    prompt: Annotated[str | None, Field(max_length=32_000, description="name or number of a class")] = None
    n: Annotated[int | None, Field(ge=1, le=100_000, description="number of images")] = 1
    size: Annotated[str | None, Field(max_length=20, description="auto, or as 256x256: enlarged")] = None
    response_format: Literal["b64_json", "url"] | None = "b64_json"
    output_format: Format | None = "png"
    stream: bool | None = False
    user: Annotated[str | None, Field(max_length=200)] = None
    quality: Annotated[str | None, Field(max_length=20, description="has no effect")] = None
    style: Annotated[str | None, Field(max_length=20, description="has no effect")] = None
    background: Annotated[str | None, Field(max_length=20, description="has no effect")] = None
    moderation: Annotated[str | None, Field(max_length=20, description="has no effect")] = None
    output_compression: Annotated[int | None, Field(ge=0, le=100, description="has no effect")] = None
    partial_images: Annotated[int | None, Field(ge=0, le=10, description="has no effect")] = None


@router.get("/v1/models", responses={200: {"model": ModelsBody}} | refusals())
async def models(request: Request) -> dict[str, Any]:
    """Lists the models, with their sizes, classes and noise ranges."""
    service = service_of(request)
    return {"object": "list", "data": [model.describe() for model in service.models.values()]}


@router.get("/v1/models/{name:path}", responses={200: {"model": ModelBody}} | refusals(404))
async def model(request: Request, name: str) -> dict[str, Any]:
    """Describes one model."""
    return service_of(request).model(name).describe()


@router.post(GENERATIONS, responses={200: {"model": ImagesBody, "content": EVENTS}} | WORK)
async def generations(request: Request, body: Generation) -> Response:
    """Makes images from noise."""
    service = service_of(request)
    model = service.model(body.model)
    size = parse_size(body.size, model.shape)
    chosen = {"class_labels": body.class_labels}
    note = take_prompt(model, chosen, body.prompt)
    options = body.model_copy(update=chosen)
    count = body.n or (len(body.seeds) if body.seeds else 1)
    if body.seeds is not None and "n" not in body.model_fields_set:
        count = len(body.seeds)
    check_results(count, size, service.config)
    stream = make_stream(service, model, options, count)
    kind = body.output_format or "png"
    base = _base(request, body.response_format)
    if body.stream:
        events = _events(service, stream, "image_generation", kind, size, base)
        return StreamingResponse(events, media_type="text/event-stream", headers={"Cache-Control": "no-store"})
    started = time.perf_counter()
    made: dict[int, bytes] = {}
    async with stream:
        async for image in stream.images():
            made[image.number] = await encode(image.pixels, kind, size)
    seconds = time.perf_counter() - started
    files = [made[i] for i in range(count)]
    return _answer(service, files, stream.labels, kind, base, note, seconds)


@router.post("/v1/images/edits", responses={200: {"model": ImagesBody}} | WORK)
async def edits(
    request: Request,
    image: Annotated[list[UploadFile] | None, File(description="picture, or several")] = None,
    mask: Annotated[
        UploadFile | str | None,
        File(description="picture that is transparent or white where to paint; or lower, upper, left, right, ..."),
    ] = None,
    options: Annotated[str | None, Form(max_length=20_000, description="fields of an edit, as JSON")] = None,
    prompt: Annotated[str | None, Form(max_length=32_000, description="name or number of a class")] = None,
    model: Annotated[str | None, Form(max_length=200)] = None,
    n: Annotated[int, Form(ge=1, le=256, description="candidates of each picture, best first")] = 1,
    size: Annotated[str | None, Form(max_length=20)] = None,
    response_format: Annotated[Literal["b64_json", "url"], Form()] = "b64_json",
    output_format: Annotated[Format, Form()] = "png",
) -> Response:
    """Edits pictures: the task and its options are in `options`, or are form fields of their own."""
    service = service_of(request)
    chosen = service.model(model)
    own = parse_size(size, chosen.shape)
    given = _options(options, service.config) | await _form_options(request)
    given.setdefault("task", "inpaint")
    given.setdefault("candidates", n)
    note = take_prompt(chosen, given, prompt)
    named = given.pop("mask", None)
    painted: Any = mask or named
    if isinstance(painted, StarletteFile):
        painted = painted_mask(await read_upload(await painted.read(), service.config, "mask"))
    elif painted is not None:
        painted = await text_mask(painted, service.config)
    parsed = validated(EditOptions, given)
    pictures = [await read_upload(await one.read(), service.config) for one in image or []]
    check_results(most_results(parsed, len(pictures)), own, service.config)
    stream = edit_stream(service, chosen, parsed, pictures, painted)
    started = time.perf_counter()
    async with stream:
        result = await stream.finished()
    seconds = time.perf_counter() - started
    labels: list[int | None] = []
    if result.frames is None:
        labels = [
            label for one in result for label in (one.class_labels.tolist() if one.class_labels is not None else ())
        ]
    files = [await encode(one, output_format, own) for one in images_of(result)]
    base = _base(request, response_format)
    return _answer(service, files, labels, output_format, base, note, seconds)


@router.get("/files/{name}", response_class=Response, responses={200: IMAGE_FILE} | refusals(404))
async def file(request: Request, name: str) -> Response:
    """Sends an image that was asked for by `response_format` url."""
    found = service_of(request).kept.get(name.partition(".")[0])
    if not isinstance(found, tuple):
        raise Refusal(404, "not_found", "there is no such file, or no longer")
    content, kind = found
    return Response(content, media_type=FORMATS[kind], headers={"Cache-Control": "private, max-age=600"})


def _answer(
    service: Service,
    files: list[bytes],
    labels: Sequence[int | None],
    kind: str,
    base: str | None,
    note: str,
    seconds: float,
) -> JSONResponse:
    data = [_datum(service, one, kind, base) for one in files]
    for datum, label in zip(data, labels, strict=False):
        datum["class_label"] = label
    body: dict[str, Any] = {"created": int(time.time()), "data": data, "output_format": kind, "seconds": seconds}
    if note:
        body["note"] = note
    return JSONResponse(body, headers=seconds_header(seconds) | ({"X-Unistep-Note": note} if note else {}))


def _base(request: Request, response_format: str | None) -> str | None:
    """The server's own address where images are answered by address; None where in the answer."""
    return str(request.base_url) if response_format == "url" else None


def _datum(service: Service, content: bytes, kind: str, base: str | None) -> dict[str, Any]:
    if base is not None:
        return {"url": f"{base}files/{service.kept.put((content, kind))}.{kind}", "b64_json": None}
    return {"b64_json": base64.b64encode(content).decode(), "url": None}


async def _events(
    service: Service, stream: Stream, name: str, kind: str, size: tuple[int, int] | None, base: str | None
) -> AsyncIterator[str]:
    """Yields each image as it is made, as server-sent events."""
    started = time.perf_counter()
    try:
        async with stream:
            async for image in stream.images():
                datum = _datum(service, await encode(image.pixels, kind, size), kind, base)
                event = {
                    "type": f"{name}.completed",
                    "index": image.number,
                    "class_label": stream.labels[image.number],
                    "created_at": int(time.time()),
                    "output_format": kind,
                    "seconds": time.perf_counter() - started,
                    **{key: value for key, value in datum.items() if value is not None},
                }
                yield f"event: {name}.completed\ndata: {json.dumps(event)}\n\n"
    except (Refusal, UserError) as error:
        yield f"event: error\ndata: {json.dumps(body_of(refusal_of(error)))}\n\n"


def _options(text: str | None, config: ServerConfig) -> dict[str, Any]:
    if not text:
        return {}
    value = parse_json(text.encode("utf-8", "surrogatepass"), config)
    if not isinstance(value, dict):
        raise UserError("is no JSON object", 'as {"task": "inpaint"}', field="options")
    return value


async def _form_options(request: Request) -> dict[str, Any]:
    """Fields of a form that are options of an edit; lists are separated by commas."""
    form = await request.form()
    given: dict[str, Any] = {}
    for name in EditOptions.model_fields:
        value = form.get(name)
        if not isinstance(value, str) or not value:
            continue
        parts = value.split(",") if name in ("timesteps", "sigmas", "seeds", "class_labels", "margin") else [value]
        given[name] = parts if len(parts) > 1 or name in ("timesteps", "sigmas", "seeds") else parts[0]
    return given
