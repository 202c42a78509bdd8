"""Cog's and Replicate's API: predictions that a client waits for, polls, streams or cancels."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Header, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from unistep.errors import UserError
from unistep.serving.errors import Refusal, refusal_of
from unistep.serving.model import ServedModel
from unistep.serving.pictures import FORMATS, check_results, data_url, encode, parse_size, read_upload
from unistep.serving.routes.common import (
    GuardedRoute,
    edit_stream,
    make_stream,
    most_results,
    service_of,
)
from unistep.serving.routes.documents import EVENTS, WORK, PredictionBody, refusals
from unistep.serving.routes.inputs import images_of, take_prompt, text_mask, validated
from unistep.serving.service import Service
from unistep.serving.work import EditOptions, MakeOptions, Stream, decoded_base64

router = APIRouter(route_class=GuardedRoute, tags=["Replicate"])


class PredictionRequest(BaseModel):
    """Body of `/predictions`."""

    model_config = ConfigDict(extra="ignore")

    input: Annotated[dict[str, Any], Field(description="options; with `task` and `image` an edit")] = {}
    model: Annotated[str | None, Field(max_length=200)] = None
    version: Annotated[str | None, Field(max_length=200, description="name of the model")] = None
    stream: bool | None = None
    output_file_prefix: str | None = None
    webhook: Annotated[str | None, Field(max_length=2000, description="refused: nothing is fetched or sent")] = None


@dataclass(eq=False)
class Prediction:
    """One prediction, and what is seen of it so far."""

    model: str
    input: dict[str, Any]
    id: str = ""
    status: str = "starting"
    output: list[str] = field(default_factory=list)
    error: str | None = None
    logs: str = ""
    created: datetime = field(default_factory=lambda: datetime.now(UTC))
    started: datetime | None = None
    completed: datetime | None = None
    task: asyncio.Task[None] | None = None
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def ended(self) -> bool:
        """Whether nothing more will come."""
        return self.status in ("succeeded", "failed", "canceled")

    def note(self) -> None:
        """Wakes those who wait for a change."""
        self.changed.set()
        self.changed = asyncio.Event()

    def describe(self, base: str) -> dict[str, Any]:
        """Returns the prediction as clients have it."""
        at = f"{base}predictions/{self.id}"
        seconds = (self.completed - self.started).total_seconds() if self.completed and self.started else None
        return {
            "id": self.id,
            "model": self.model,
            "version": self.model,
            "input": {key: _short(value) for key, value in self.input.items()},
            "output": list(self.output) if self.output else None,
            "error": self.error,
            "logs": self.logs,
            "status": self.status,
            "created_at": _time(self.created),
            "started_at": _time(self.started),
            "completed_at": _time(self.completed),
            "metrics": {} if seconds is None else {"predict_time": seconds},
            "urls": {"get": at, "cancel": f"{at}/cancel", "stream": f"{at}/stream"},
        }


_MADE: dict[int | str, dict[str, Any]] = {
    201: {"model": PredictionBody, "description": "The prediction has ended, or `wait` is over."},
    202: {"model": PredictionBody, "description": "The prediction has begun."},
}
Prefer = Annotated[str | None, Header(max_length=200, description="respond-async, or wait=SECONDS")]


@router.post("/predictions", status_code=201, responses=_MADE | WORK)
@router.post("/v1/predictions", status_code=201, include_in_schema=False)
async def create(request: Request, body: PredictionRequest, prefer: Prefer = None) -> Response:
    """Makes or edits images; answers when they are there, or at once with `Prefer: respond-async`."""
    service = service_of(request)
    named = body.version or body.model
    name = named.rpartition(":")[2] if named and named not in service.models else named
    return await _create(request, service, service.model(name, "version"), body, prefer)


@router.post("/v1/models/{owner}/{name}/predictions", include_in_schema=False)
async def create_of_model(
    request: Request, owner: str, name: str, body: PredictionRequest, prefer: Prefer = None
) -> Response:
    """The same with the model in the address."""
    service = service_of(request)
    full = f"{owner}/{name}"
    return await _create(request, service, service.model(full if full in service.models else name), body, prefer)


async def _create(
    request: Request, service: Service, model: ServedModel, body: PredictionRequest, prefer: str | None
) -> Response:
    if body.webhook:
        raise UserError("is not called: the server asks nobody", "leave it out, and poll", field="webhook")
    stream, kind, size, note = await _stream_of(service, model, dict(body.input))
    prediction = Prediction(model.name, body.input, logs=f"{note}\n" if note else "")
    prediction.id = service.kept.put(prediction)
    as_files = prefer is not None and ("respond-async" in prefer or "wait" in prefer)
    base = str(request.base_url)
    prediction.task = asyncio.create_task(_run(service, prediction, stream, kind, size, base if as_files else ""))
    service.tasks.add(prediction.task)
    prediction.task.add_done_callback(service.tasks.discard)
    await asyncio.sleep(0)
    if prefer is not None and "respond-async" in prefer:
        return JSONResponse(prediction.describe(base), status_code=202)
    wait = re.search(r"wait=(\d{1,3})", prefer or "")
    try:
        await asyncio.wait_for(asyncio.shield(prediction.task), float(wait[1]) if wait else None)
    except TimeoutError:
        pass
    except asyncio.CancelledError:
        if not prediction.task.done():
            prediction.task.cancel()  # the client hung up
            raise
    return JSONResponse(prediction.describe(base), status_code=201)


@router.get("/predictions/{id}", responses={200: {"model": PredictionBody}} | refusals(404))
@router.get("/v1/predictions/{id}", include_in_schema=False)
async def read(request: Request, id: str) -> dict[str, Any]:
    """Describes a prediction."""
    return _found(request, id).describe(str(request.base_url))


@router.post("/predictions/{id}/cancel", responses={200: {"model": PredictionBody}} | WORK)
@router.post("/v1/predictions/{id}/cancel", include_in_schema=False)
async def cancel(request: Request, id: str) -> dict[str, Any]:
    """Ends a prediction that is not done."""
    prediction = _found(request, id)
    if not prediction.ended and prediction.task is not None:
        prediction.task.cancel()
        await asyncio.wait([prediction.task], timeout=1)
    return prediction.describe(str(request.base_url))


@router.get("/predictions/{id}/stream", response_class=Response, responses={200: {"content": EVENTS}} | refusals(404))
async def stream(request: Request, id: str) -> StreamingResponse:
    """Sends each image as it is made, as server-sent events."""
    prediction = _found(request, id)
    return StreamingResponse(_events(prediction), media_type="text/event-stream", headers={"Cache-Control": "no-store"})


async def _events(prediction: Prediction) -> AsyncIterator[str]:
    sent = 0
    while True:
        waiting = prediction.changed
        for one in prediction.output[sent:]:
            sent += 1
            yield f"event: output\nid: {sent}\ndata: {one}\n\n"
        if prediction.ended:
            if prediction.error:
                yield f"event: error\ndata: {json.dumps(prediction.error)}\n\n"
            yield "event: done\ndata: {}\n\n"
            return
        await waiting.wait()


def _found(request: Request, name: str) -> Prediction:
    found = service_of(request).kept.get(name)
    if not isinstance(found, Prediction):
        raise Refusal(404, "not_found", "there is no such prediction, or no longer", "id")
    return found


async def _stream_of(
    service: Service, model: ServedModel, given: dict[str, Any]
) -> tuple[Stream, str, tuple[int, int] | None, str]:
    """Returns the work of an input, the format and size of its images, and a note."""
    kind = str(given.pop("output_format", "png"))
    if kind not in FORMATS:
        raise UserError(f"{kind[:40]!r} is none of {', '.join(FORMATS)}", field="output_format")
    size = parse_size(None if given.get("size") is None else str(given["size"]), model.shape)
    given.pop("size", None)
    prompt = given.pop("prompt", None)
    note = take_prompt(model, given, None if prompt is None else str(prompt))
    if "num_inference_steps" in given:
        given["steps"] = given.pop("num_inference_steps")
    count = given.pop("num_outputs", None)
    if "task" in given:
        given.setdefault("candidates", count or 1)
        image, mask = given.pop("image", None), given.pop("mask", None)
        listed = image if isinstance(image, list) else [] if image is None else [image]
        pictures = [await read_upload(decoded_base64(str(one), "image"), service.config) for one in listed]
        painted = None if mask is None else await text_mask(mask, service.config)
        edited = validated(EditOptions, given)
        check_results(most_results(edited, len(pictures)), size, service.config)
        return edit_stream(service, model, edited, pictures, painted), kind, size, note
    options = validated(MakeOptions, given)
    count = len(options.seeds) if count is None and options.seeds else (1 if count is None else count)
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise UserError("is no positive number", "give how many images to make", field="num_outputs")
    check_results(count, size, service.config)
    return make_stream(service, model, options, count), kind, size, note


async def _run(
    service: Service, prediction: Prediction, stream: Stream, kind: str, size: tuple[int, int] | None, base: str
) -> None:
    """Follows a stream until its end; files are addresses where `base` is one, else `data:` URLs."""

    async def place(pixels: Any) -> str:
        content = await encode(pixels, kind, size)
        return f"{base}files/{service.kept.put((content, kind))}.{kind}" if base else data_url(content, kind)

    prediction.status, prediction.started = "processing", datetime.now(UTC)
    numbered: dict[int, str] = {}
    try:
        async with stream:
            async for image in stream.images():
                numbered[image.number] = await place(image.pixels)
                while len(prediction.output) in numbered:
                    prediction.output.append(numbered.pop(len(prediction.output)))
                prediction.note()
        result = stream.result
        if result is not None:
            prediction.output += [await place(one) for one in images_of(result)]
        prediction.status = "succeeded"
    except asyncio.CancelledError:
        prediction.status = "canceled"
    except Exception as error:
        prediction.status, prediction.error = "failed", refusal_of(error).message
    finally:
        prediction.completed = datetime.now(UTC)
        prediction.note()


def _time(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat().replace("+00:00", "Z")


def _short(value: Any) -> Any:
    """Returns an input as it is shown: without whole pictures."""
    return f"{value[:32]}..." if isinstance(value, str) and len(value) > 200 else value
