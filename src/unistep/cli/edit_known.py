"""The tasks of `unistep edit` that keep a part of the image: what the flags mean for each."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from unistep.cli.edit import EditConfig
from unistep.cli.edit_given import Given, note_of, size_of
from unistep.core.pixels import to_float, to_uint8
from unistep.core.random import BASIS, image_seed
from unistep.editing.operators.colorization import Colorization
from unistep.editing.operators.compressed_sensing import CompressedSensing
from unistep.editing.operators.deblurring import GaussianBlur
from unistep.editing.operators.mask import Inpainting, box, centre, left, lower, random, right, upper
from unistep.editing.operators.operator import Operator
from unistep.editing.operators.super_resolution import SuperResolution
from unistep.errors import UserError
from unistep.images.read import Frame, ImageFile, Picture, check_mask, list_images, read_mask, read_picture
from unistep.text import shown

if TYPE_CHECKING:
    from unistep.editing.model import EditModel

_HALVES: dict[str, Callable[[tuple[int, int]], Tensor]] = {"lower": lower, "upper": upper, "left": left, "right": right}
MASKS = (*_HALVES, "centre", "random", "box:TOP,LEFT,HEIGHT,WIDTH")


class KnownTasks:
    """Reads inputs for one task; inputs for which the same is known share one operator.

    Args:
        task: its name.
        model: which edits.
        config: the flags.
        degrade: the input is whole, and measured first.
    """

    def __init__(self, task: str, model: "EditModel", config: EditConfig, degrade: bool) -> None:
        self.task, self.model, self.config, self.degrade = task, model, config, degrade
        self.read = getattr(self, f"_{task}")
        self._shared: dict[object, Operator] = {}
        self._masks: dict[str, ImageFile] | None = None
        channels = model.shape[0]
        if task == "colorize" and channels != 3:
            raise UserError(f"colorize needs a model of colour images; this one has {channels} channel, and knows none")
        if task == "deblur" and config.blur is None:
            raise UserError("--blur is missing; give the blur's standard deviation in pixels, as --blur 1.5")
        if task == "upscale":
            self.factor = _factor(config.factor or "4", model.shape[1])
        if task == "outpaint":
            self.margin = _margin(config.margin, model.shape[1])

    # ------------------------------------------------------------------------------------------ one task each

    def _inpaint(self, file: ImageFile) -> Given:
        named = self.config.mask
        picture = self._picture(file, self.model.shape, alpha=named is None)
        where, size = picture.frame, (picture.pixels.shape[1], picture.pixels.shape[2])
        if named is None:
            if picture.known is None:
                raise UserError(f"{picture.name} has no transparent part; say with --mask what is to be painted")
            known = picture.known
        elif named in _HALVES:
            known = _HALVES[named](size)
        elif named == "centre":
            known = centre(size)
        elif named == "random":
            known = random(size, self.config.share or 0.5, self._generator())
        elif named.startswith("box:"):
            known = box(size, _whole_numbers("mask", named.removeprefix("box:"), 4))
        else:
            known = read_mask(self._mask_file(named, file), where)
        known = known & _inside(where)
        check_mask(known, where, f"the mask of {picture.name}" if named is None else f"--mask {named}")
        operator = self._share(("mask", known.numpy().tobytes(), size), lambda: Inpainting(known))
        return self._given(file, picture, operator, mask=known, clean=picture.pixels if self.degrade else None)

    def _outpaint(self, file: ImageFile) -> Given:
        channels, side, _ = self.model.shape
        left_, top, right_, bottom = self.margin
        picture = self._picture(file, (channels, side - top - bottom, side - left_ - right_))
        height, width = picture.pixels.shape[1:]
        canvas = torch.zeros(channels, height + top + bottom, width + left_ + right_, dtype=torch.uint8)
        canvas[:, top : top + height, left_ : left_ + width] = picture.pixels
        known = torch.zeros(canvas.shape[1:], dtype=torch.bool)
        known[top : top + height, left_ : left_ + width] = _inside(picture.frame)
        size = (known.shape[0], known.shape[1])
        key = ("outpaint", known.numpy().tobytes(), size)
        operator = self._share(key, lambda: Inpainting(known, name="outpainting"))
        whole = (0, 0, size[1], size[0])
        y = operator.A(self._float(canvas))
        return Given(file.name, note_of(picture), picture.pixels, y, size_of(canvas), whole, operator, mask=known)

    def _colorize(self, file: ImageFile) -> Given:
        picture = self._picture(file, self.model.shape)
        operator = self._share("colorize", Colorization)
        given = self._given(file, picture, operator, clean=picture.pixels if self.degrade else None)
        return given._replace(before=to_uint8(given.y)[0].cpu())

    def _upscale(self, file: ImageFile) -> Given:
        (fh, fw), (channels, side, _) = self.factor, self.model.shape
        operator = self._share("upscale", lambda: SuperResolution(self.factor))
        if self.degrade:
            picture = self._picture(file, self.model.shape)
            given = self._given(file, picture, operator, clean=picture.pixels)
            return given._replace(before=to_uint8(given.y)[0].cpu())
        picture = self._picture(file, (channels, side // fh, side // fw))
        left_, top, right_, bottom = picture.frame.inside
        inside = (left_ * fw, top * fh, right_ * fw, bottom * fh)
        y = self._float(picture.pixels)
        size = (channels, y.shape[2] * fh, y.shape[3] * fw)
        return Given(file.name, note_of(picture), picture.pixels, y, size, inside, operator)

    def _deblur(self, file: ImageFile) -> Given:
        blur = self.config.blur
        assert blur is not None
        picture = self._picture(file, self.model.shape)
        operator = self._share("deblur", lambda: GaussianBlur(blur))
        if self.degrade:
            given = self._given(file, picture, operator, clean=picture.pixels)
            return given._replace(before=to_uint8(given.y)[0].cpu())
        y = operator.A(operator.A_pinv(self._float(picture.pixels)))  # what an image can be blurred to
        inside = picture.frame.inside
        return Given(file.name, note_of(picture), picture.pixels, y, size_of(picture.pixels), inside, operator)

    def _sense(self, file: ImageFile) -> Given:
        picture = self._picture(file, self.model.shape)
        channels, height, width = picture.pixels.shape
        shape = (channels, height, width)
        share = self.config.share or 0.25
        operator = self._share(("sense", shape), lambda: CompressedSensing(shape, share, self._generator()))
        return self._given(file, picture, operator, clean=picture.pixels)

    # ------------------------------------------------------------------------------------------ parts

    def _picture(self, file: ImageFile, shape: tuple[int, int, int], *, alpha: bool = False) -> Picture:
        return read_picture(file.path, shape, self.config.fit, alpha=alpha)

    def _given(
        self,
        file: ImageFile,
        picture: Picture,
        operator: Operator,
        *,
        mask: Tensor | None = None,
        clean: Tensor | None = None,
    ) -> Given:
        y = operator.A(self._float(picture.pixels))
        pixels, inside = picture.pixels, picture.frame.inside
        return Given(file.name, note_of(picture), pixels, y, size_of(pixels), inside, operator, mask=mask, clean=clean)

    def _float(self, pixels: Tensor) -> Tensor:
        return to_float(pixels)[None].to(self.model.device)

    def _share(self, key: object, make: Callable[[], Operator]) -> Operator:
        if key not in self._shared:
            self._shared[key] = make()
        return self._shared[key]

    def _generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(image_seed(self.config.seed, 0, BASIS))

    def _mask_file(self, named: str, file: ImageFile) -> Path:
        path = Path(named).expanduser()
        if not path.is_dir():
            if not path.exists():
                raise UserError(f"--mask {shown(named)}: there is no such file; give an image, or {', '.join(MASKS)}")
            return path
        if self._masks is None:
            self._masks = {mask.name: mask for mask in list_images([path], "--mask")}
        if file.name not in self._masks:
            raise UserError(
                f"--mask {shown(named)} has no mask called {shown(file.name)}; add one, of any image format"
            )
        return self._masks[file.name].path


def _inside(where: Frame) -> Tensor:
    known = torch.zeros(where.target[1], where.target[0], dtype=torch.bool)
    left_, top, right_, bottom = where.inside
    known[top:bottom, left_:right_] = True
    return known


def _whole_numbers(flag: str, text: str, count: int) -> tuple[int, int, int, int]:
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        found = []
    if len(found) != count or min(found) < 0:
        raise UserError(f"--{flag} {text}: expected {count} whole numbers separated by commas")
    a, b, c, d = found
    return a, b, c, d


def _factor(text: str, side: int) -> tuple[int, int]:
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(p.isascii() and p.isdigit() and len(p) < 6 for p in parts):
        raise UserError(f"--factor {text or repr('')}: give a whole number, as 4, or two for height x width, as 2x4")
    fh, fw = int(parts[0]), int(parts[-1])
    if min(fh, fw) < 1 or fh * fw < 2 or side % fh or side % fw:
        fit = [str(n) for n in range(2, side + 1) if side % n == 0]
        raise UserError(f"--factor {text}: the model's {side} pixels have no such parts; of use are {', '.join(fit)}")
    return fh, fw


def _margin(text: str | None, side: int) -> tuple[int, int, int, int]:
    """Left, top, right, bottom."""
    if text is None:
        return side // 4, side // 4, side // 4, side // 4
    numbers = _whole_numbers("margin", text if "," in text else ",".join([text] * 4), 4)
    left_, top, right_, bottom = numbers
    if left_ + right_ >= side or top + bottom >= side or not any(numbers):
        raise UserError(f"--margin {text}: some of the model's {side} pixels must be left, and some painted")
    return numbers
