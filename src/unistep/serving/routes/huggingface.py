"""Hugging Face's inference API: `POST /models/{id}` with `{"inputs", "parameters"}`, answered by the image itself."""

import time
from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from unistep.errors import UserError
from unistep.serving.model import ServedModel
from unistep.serving.pictures import FORMATS, encode, read_upload
from unistep.serving.routes.common import (
    GuardedRoute,
    edit_stream,
    make_stream,
    seconds_header,
    service_of,
)
from unistep.serving.routes.documents import IMAGE_FILE, WORK
from unistep.serving.routes.inputs import images_of, take_prompt, text_mask, validated
from unistep.serving.service import Service
from unistep.serving.work import EditOptions, MakeOptions, decoded_base64

router = APIRouter(route_class=GuardedRoute, tags=["Hugging Face"])

_IGNORED = ("guidance_scale", "negative_prompt", "scheduler", "width", "height", "target_size", "prompt")


class Inference(BaseModel):
    """Body of `/models/{id}`."""

    model_config = ConfigDict(extra="ignore")

    inputs: Annotated[
        str | int | None, Field(description="name or number of a class; or a picture in base64, with a task")
    ] = None
    parameters: Annotated[
        dict[str, Any] | None, Field(description="options of `unistep.sample`, or with `task` of `unistep.edit`")
    ] = None
    options: dict[str, Any] | None = None


@router.post(
    "/models/{name:path}",
    response_class=Response,
    responses={200: IMAGE_FILE} | WORK,
)
async def infer(request: Request, name: str, body: Inference) -> Response:
    """Makes one image, or edits one."""
    service = service_of(request)
    model = service.model(name.rstrip("/"), "model")
    accepted = request.headers.get("accept", "")
    kind = next((one for one, media in FORMATS.items() if media in accepted), "png")
    parameters = dict(body.parameters or {})
    if "num_inference_steps" in parameters:
        parameters["steps"] = parameters.pop("num_inference_steps")
    ignored = [one for one in _IGNORED if parameters.pop(one, None) is not None]
    started = time.perf_counter()
    if "task" in parameters:
        pixels, note = await _edited(service, model, body.inputs, parameters), ""
    else:
        pixels, note = await _made(service, model, body.inputs, parameters)
    if ignored:
        note = "; ".join(filter(None, [note, f"without effect: {', '.join(ignored)}"]))
    headers = seconds_header(time.perf_counter() - started) | ({"X-Unistep-Note": note} if note else {})
    return Response(await encode(pixels, kind), media_type=FORMATS[kind], headers=headers)


async def _made(service: Service, model: ServedModel, inputs: Any, parameters: dict[str, Any]) -> tuple[Any, str]:
    note = take_prompt(model, parameters, None if inputs is None else str(inputs))
    options = validated(MakeOptions, parameters)
    if options.seeds:
        raise UserError("one image is made", "give `seed`", field="seeds")
    stream = make_stream(service, model, options, 1)
    pixels = None
    async with stream:
        async for image in stream.images():
            pixels = image.pixels
    return pixels, note


async def _edited(service: Service, model: ServedModel, inputs: Any, parameters: dict[str, Any]) -> Any:
    mask = parameters.pop("mask", None)
    options = validated(EditOptions, parameters)
    pictures = []
    if inputs:
        pictures = [await read_upload(decoded_base64(str(inputs), "inputs"), service.config, "inputs")]
    painted = None if mask is None else await text_mask(mask, service.config)
    stream = edit_stream(service, model, options, pictures, painted)
    async with stream:
        result = await stream.finished()
    return images_of(result)[0]
