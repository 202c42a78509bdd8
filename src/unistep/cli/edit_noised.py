"""The tasks of `unistep edit` that begin with the image as it is, and noise: denoise, jpeg, strokes, vary."""

import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor

from unistep.cli.edit import EditConfig
from unistep.cli.edit_given import Given, note_of, size_of
from unistep.core.pixels import to_float, to_uint8
from unistep.core.random import DEGRADE, ImageRandom, image_seed
from unistep.data.prepare import decode, to_pixels
from unistep.editing.jpeg_level import jpeg_level
from unistep.editing.levels import sigma_of_strength
from unistep.editing.methods.guided import Guided, Noisy
from unistep.editing.methods.protocol import Method
from unistep.editing.noise_level import estimate_noise
from unistep.editing.tasks import TASKS
from unistep.errors import UserError
from unistep.images.grid import to_pil
from unistep.images.read import ImageFile, Picture, read_picture

if TYPE_CHECKING:
    from unistep.editing.model import EditModel

_NOISE, _QUALITY = 0.5, 15  # of --degrade, where nobody says
_LEVELS_OF_ERROR = 3.0  # the level at which an error of JPEG is taken away best, see `jpeg_level`
_LEAST = 12  # pixels that it takes


def prepare_noised(
    task: str,
    model: "EditModel",
    files: Sequence[ImageFile],
    degrade: bool,
    config: EditConfig,
    levels: Sequence[float] | None,
) -> tuple[Callable[[list[Given]], Method], list[Given]]:
    """How results are made of inputs, and the inputs."""
    info = model.info
    first = config.sigma
    if config.strength is not None:
        first = sigma_of_strength(config.strength, info.sigma_min, info.sigma_max, info.rho)
    if first is not None and not info.sigma_min < first <= info.sigma_max:
        flag = f"--strength {config.strength:g}" if config.strength is not None else f"--sigma {first:g}"
        raise UserError(f"{flag} must lie above the model's noise of {info.sigma_min:g} and up to {info.sigma_max:g}")
    given = [_read(task, model, file, i, degrade, first, config) for i, file in enumerate(files)]
    if levels is None and task in ("denoise", "jpeg"):
        steps = config.steps or TASKS[task].steps
        cut_off = task == "denoise" and not degrade
        if steps == 1 and config.candidates > 1 and not cut_off:
            raise UserError(f"--candidates {config.candidates}: one step draws nothing; give --steps 2 or more")
        noise = info.sigma_min, info.sigma_max, info.rho

        def noisy(part: list[Given]) -> Method:
            sigmas = torch.tensor([min(g.sigma, info.sigma_max) for g in part])
            return Noisy(torch.cat([g.y for g in part]), sigmas, steps, *noise, cut_off=cut_off)

        return noisy, given
    chosen = levels or TASKS[task].levels(config.steps, first=first, rho=info.rho)
    return lambda part: Guided(torch.cat([g.y for g in part]), chosen, info.sigma_min), given


def _read(
    task: str,
    model: "EditModel",
    file: ImageFile,
    number: int,
    degrade: bool,
    first: float | None,
    config: EditConfig,
) -> Given:
    picture = read_picture(file.path, model.shape, config.fit)
    pixels, clean = picture.pixels, picture.pixels if degrade else None
    x, sigma, found = to_float(pixels)[None], first or 0.0, ""
    if task == "jpeg":
        content = _compressed(picture, config.quality or _QUALITY) if degrade else file.path.read_bytes()
        if degrade:
            pixels = _pixels(content, len(pixels))
            x = to_float(pixels)[None]
        if first is None:
            whole = degrade or not picture.frame.resized
            estimate = _jpeg_level(content, len(pixels)) if whole else None
            sigma = TASKS[task].sigma_first if estimate is None else estimate
            found = "" if estimate is None else f"its artefacts are taken for noise of sigma {sigma:.3g}"
    elif task == "denoise" and degrade:
        sigma = first or _NOISE
        x = x + sigma * ImageRandom([image_seed(config.seed, number, DEGRADE)]).randn(*pixels.shape)
        pixels = to_uint8(x)[0]
    elif task == "denoise" and first is None:
        left, upper, right, lower = picture.frame.inside
        sigma = float(estimate_noise(x[..., upper:lower, left:right]))
        found = f"its noise is estimated at sigma {sigma:.3g}"
    note = note_of(picture)
    if found:
        note = f"{note}; {found}" if note else f"{picture.name}: {found}"
    inside = picture.frame.inside
    return Given(file.name, note, pixels, x.to(model.device), size_of(x), inside, sigma=sigma, clean=clean)


def _compressed(picture: Picture, quality: int) -> bytes:
    file = io.BytesIO()
    to_pil(picture.pixels).save(file, format="JPEG", quality=quality)
    return file.getvalue()


def _pixels(content: bytes, channels: int) -> Tensor:
    return torch.from_numpy(to_pixels(decode(content), channels).copy())


def _jpeg_level(content: bytes, channels: int) -> float | None:
    """The noise that the artefacts of a file are taken for; None where it is no JPEG, or too small to tell."""
    try:
        with Image.open(io.BytesIO(content), formats=("JPEG",)) as image:
            table = torch.tensor(image.quantization[0]).view(8, 8)  # pyright: ignore[reportAttributeAccessIssue]
            if min(image.size) < _LEAST:
                return None
    except (OSError, KeyError, RuntimeError):
        return None
    return _LEVELS_OF_ERROR * float(jpeg_level(to_float(_pixels(content, channels))[None], table))
