"""Requests in the server's own words, and the tickets that they become.

`MakeRequest` and `EditRequest` hold the fields that every route shares: the options of `unistep.sample` and
`unistep.edit` by the same names. A route turns its client's body into one of them.
"""

import asyncio
import base64
import binascii
from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from unistep.core.random import image_seed
from unistep.errors import UserError
from unistep.generation.classes import class_numbers
from unistep.generation.labels import check_labels, random_label
from unistep.generation.plan import Plan
from unistep.serving.batch import Row
from unistep.serving.config import ServerConfig
from unistep.serving.engine import Engine
from unistep.serving.errors import Refusal, refusal_of
from unistep.serving.model import ServedModel
from unistep.serving.waiting import Ticket

Seed = Annotated[int, Field(ge=0, lt=2**64)]
Label = Annotated[int, Field(ge=0, lt=2**31)] | Annotated[str, Field(max_length=200)]
Solver = Annotated[str, Field(max_length=40)]


class Schedule(BaseModel):
    """Fields that say at which noise levels a model is evaluated."""

    model_config = ConfigDict(extra="forbid")

    steps: Annotated[int | None, Field(ge=1, le=10_000, description="network evaluations; default: 1")] = None
    timesteps: Annotated[
        list[Annotated[int, Field(ge=0, le=10**9)]] | None,
        Field(max_length=1000, description="indices of the noise grid, rising; instead of `steps`"),
    ] = None
    sigmas: Annotated[
        list[Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)]] | None,
        Field(max_length=1000, description="noise levels, falling; instead of `steps`"),
    ] = None


class MakeOptions(Schedule):
    """Options of images that are made from noise."""

    solver: Annotated[Solver | None, Field(description="ODE solver of a diffusion model")] = None
    class_labels: Annotated[
        Label | list[Label] | None,
        Field(description="class of all images by number or name, or a list that is repeated; default: drawn"),
    ] = None
    seed: Annotated[Seed, Field(description="seed of the run; image i uses the stream (seed, i)")] = 0
    seeds: Annotated[
        list[Seed] | None,
        Field(
            min_length=1, max_length=100_000, description="seed of each image instead of `seed`: image 0 of that run"
        ),
    ] = None
    first: Annotated[int, Field(ge=0, lt=2**40, description="number of the first image in its run")] = 0
    interactive: Annotated[bool, Field(description="go before bulk requests")] = False


class EditOptions(Schedule):
    """Options of edits, as `unistep.edit` has them."""

    task: Annotated[str, Field(max_length=40, description="inpaint, outpaint, colorize, upscale, deblur, denoise, ...")]
    margin: int | list[int] | None = None
    factor: int | None = None
    blur: float | None = None
    share: float | None = None
    sigma: float | None = None
    strength: float | None = None
    quality: int | None = None
    settle: int | None = None
    candidates: Annotated[int, Field(ge=1, le=256)] = 1
    class_labels: Label | list[Label] | None = None
    seed: Seed = 0
    seeds: Annotated[list[Seed] | None, Field(min_length=1, max_length=1000)] = None
    stops: int | None = None
    frames: Annotated[int | None, Field(ge=1, le=1000)] = None
    loop: bool = False
    fit: Literal["crop", "resize", "pad", "tiles"] = "crop"
    degrade: bool = False
    interactive: Annotated[bool, Field(description="go before bulk requests")] = True


@dataclass(frozen=True)
class Made:
    """One image of a request.

    Args:
        number: number of the image in the request.
        pixels: pixels uint8 [C, H, W].
    """

    number: int
    pixels: Tensor


def rows_of(model: ServedModel, options: MakeOptions, count: int, config: ServerConfig) -> tuple[Plan, list[Row]]:
    """Returns the plan and the rows of a request.

    Raises:
        UserError: options that contradict each other or the model.
        Refusal: more work than one request may ask for.
    """
    if count > config.max_images:
        raise Refusal(400, "invalid_request_error", f"n {count} must lie between 1 and {config.max_images}", "n")
    plan = model.plan(options.steps, options.timesteps, options.sigmas, options.solver)
    check_evaluations(count * plan.nfe, config)
    given = label_numbers(model, options.class_labels)
    if options.seeds is not None:
        if len(options.seeds) != count:
            raise UserError(f"{len(options.seeds)} seeds for {count} images", "give one an image", field="seeds")
        pairs = [(seed, options.first) for seed in options.seeds]
    else:
        pairs = [(options.seed, index) for index in range(options.first, options.first + count)]
    labels: Sequence[int | None] = [None] * count
    if given:
        check_labels(given, model.num_classes)
        labels = [given[i % len(given)] for i in range(count)]
    elif model.num_classes:
        labels = [random_label(*pair, model.num_classes) for pair in pairs]
    return plan, [Row(image_seed(*pair), pair[1], label) for pair, label in zip(pairs, labels, strict=True)]


def check_evaluations(evaluations: int, config: ServerConfig) -> None:
    """Refuses more network evaluations than one request may ask for.

    Raises:
        Refusal: they are too many.
    """
    if evaluations > config.max_evaluations:
        message = f"{evaluations} network evaluations are more than the {config.max_evaluations} of one request"
        raise Refusal(400, "invalid_request_error", f"{message}; ask for fewer images or steps", "steps")


def label_numbers(model: ServedModel, given: Label | list[Label] | None) -> list[int]:
    """Returns classes that are given by number or name as numbers; none is an empty list.

    Raises:
        UserError: the model has no such class.
    """
    if given is None:
        return []
    numbers = class_numbers(given, model.class_names)
    return numbers if isinstance(numbers, list) else [int(numbers or 0)]


class Outbox:
    """Results on their way from the worker to an event loop, which is woken once for all that come together.

    Waking it costs the worker a system call, after which the loop has the interpreter's lock: once an image, the next
    batch would begin when the last answer of this one is written.
    """

    def __init__(self) -> None:
        self._items: deque[tuple[asyncio.Queue[Any], Any]] = deque()
        self._woken = False

    def put(self, loop: asyncio.AbstractEventLoop, queue: asyncio.Queue[Any], item: Any) -> None:
        """Brings an item into a queue of the loop; called from the worker."""
        self._items.append((queue, item))
        if not self._woken:
            self._woken = True
            try:
                loop.call_soon_threadsafe(self._empty)
            except RuntimeError:  # the loop is closed
                self._woken = False
                raise

    def _empty(self) -> None:
        self._woken = False  # first: what is appended from now on wakes the loop again
        while self._items:
            queue, item = self._items.popleft()
            queue.put_nowait(item)


class Stream:
    """A ticket whose images an event loop receives; leaving the context cancels what is not done."""

    def __init__(self, engine: Engine, ticket: Ticket, outbox: Outbox) -> None:
        self._engine, self._ticket, self._outbox = engine, ticket, outbox
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[Made | tuple[Any, BaseException | None]] = asyncio.Queue()
        ticket.on_image = lambda number, pixels: self._put(Made(number, pixels))
        ticket.on_end = lambda result, error: self._put((result, error))
        self.result: Any = None

    @property
    def labels(self) -> list[int | None]:
        """Class of each image that is made from noise."""
        return [row.label for row in self._ticket.rows]

    def _put(self, item: Any) -> None:
        self._outbox.put(self._loop, self._queue, item)

    async def __aenter__(self) -> "Stream":
        self._engine.submit(self._ticket)
        return self

    async def __aexit__(self, *error: object) -> None:
        if not self._ticket.ended:
            self._engine.cancel(self._ticket)

    async def images(self) -> AsyncIterator[Made]:
        """Yields images as they are made; at the end `result` is that of the ticket's call.

        Raises:
            Refusal: the request failed.
        """
        while True:
            item = await self._queue.get()
            if isinstance(item, Made):
                yield item
                continue
            self.result, error = item
            if error is not None:
                raise error if isinstance(error, Refusal) else refusal_of(error) from error
            return

    async def finished(self) -> Any:
        """Waits for the end, and returns the result of the ticket's call."""
        async for _ in self.images():
            pass
        return self.result


def decoded_base64(text: str, field: str) -> bytes:
    """Returns the bytes of base64, also of a `data:` URL.

    Raises:
        UserError: it is none; or it is an address, from which nothing is fetched.
    """
    if text.startswith(("http://", "https://")):
        raise UserError("is an address; pictures are not fetched", "send the picture itself", field=field)
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise UserError("is no base64", "send the bytes of a PNG or JPEG in base64", field=field) from None
