"""Results of an edit: images with their candidates, or the frames of an animation, which save and show themselves."""

import io
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float32, Int64, UInt8
from PIL import Image
from torch import Tensor

from unistep.arguments import plain_arguments
from unistep.checks import check_file, user_path
from unistep.core.pixels import psnr
from unistep.editing.places import check_images_place, output_places, ranked_places
from unistep.editing.sheet import Row, edit_sheet
from unistep.errors import UserError
from unistep.images.animation import save_animation
from unistep.images.grid import grid, save_grid, save_png, scaled, to_pil

MOST_ROWS = 100  # of a sheet
_SHOWN = 10  # rows of a notebook's sheet


@dataclass(frozen=True, repr=False)
class EditedImage:
    """The results of one image.

    Args:
        name: name of the input, or its number.
        candidates: results [K, C, H, W], best first.
        residual: distance of each between the model's estimate and the input, lower is better.
        class_labels: class of each, given, guessed or drawn; None for a model without classes.
        before: image that was given, at the size at which the model took it.
        measurement: part of the image that is kept, as a picture; of tasks that measure nothing, the image.
        mask: True where a pixel is known; None where pixels are not known one by one.
        original: whole image that `before` was made of, to compare with; None where there is none.
    """

    name: str
    candidates: UInt8[Tensor, "K C H W"]
    residual: Float32[Tensor, " K"]
    class_labels: Int64[Tensor, " K"] | None
    before: UInt8[Tensor, "_ _ _"]
    measurement: UInt8[Tensor, "C H W"]
    mask: Bool[Tensor, "H W"] | None = None
    original: UInt8[Tensor, "C H W"] | None = None

    @property
    def image(self) -> UInt8[Tensor, "C H W"]:
        """The best result."""
        return self.candidates[0]

    @property
    def psnr(self) -> float | None:
        """PSNR of the best result in dB; None where there is nothing to compare with."""
        return None if self.original is None else float(psnr(self.image[None], self.original[None]))

    @property
    def measurement_psnr(self) -> float | None:
        """PSNR of the measurement in dB; None where there is nothing to compare with."""
        return None if self.original is None else float(psnr(self.measurement[None], self.original[None]))

    def pil(self) -> list[Image.Image]:
        """Returns all candidates as Pillow images."""
        return [to_pil(candidate) for candidate in self.candidates]

    @plain_arguments()
    def save(self, path: str | os.PathLike[str]) -> list[Path]:
        """Writes the best result as `path`, the others beside it: x.png, x-2.png and so on.

        Returns:
            The paths.

        Raises:
            UserError: they cannot be written.
        """
        places = ranked_places(Path(path), len(self.candidates))
        for picture, place in zip(self.pil(), places, strict=True):
            _writing(place, lambda picture=picture, place=place: save_png(picture, place))
        return places

    def row(self, shows_measurement: bool) -> Row:
        """Returns the image's row of a sheet, with or without the measurement."""
        captions = [f"off by {float(residual):.3f}" for residual in self.residual]
        if self.class_labels is not None:
            pairs = zip(self.class_labels.tolist(), captions, strict=True)
            captions = [f"class {label}, {text}" for label, text in pairs]
        original = self.original
        if original is not None and torch.equal(original, self.before):
            original = None
        known = self.measurement if shows_measurement else None
        return Row(original, self.before, known, self.mask, list(self.candidates), captions)

    def __repr__(self) -> str:
        return f"EditedImage({self.name}: {_counted(len(self.candidates), 'candidate')} of {_size(self.image)})"


@dataclass(frozen=True, repr=False)
class EditResult:
    """Results of an edit, one an input; or the frames of an interpolation or a walk.

    Args:
        items: results in the order of the inputs; empty for an animation.
        evaluations: network evaluations for all candidates of one input, or for one frame, without `guesses`.
        guesses: network evaluations that guessed the class of one input; 0 where it was given or drawn.
        shows_measurement: whether a sheet shows the measurements.
        frames: frames [N, C, H, W] of an animation; None for images.
        fps: frames a second.
        columns: columns of the grid of frames.
        output: file or folder to which the results were written; None where they were not.
        sheet: file to which the sheet was written; None where it was not.
    """

    items: tuple[EditedImage, ...]
    evaluations: int
    guesses: int = 0
    shows_measurement: bool = False
    frames: UInt8[Tensor, "N C H W"] | None = None
    fps: float = 12.0
    columns: int = 8
    output: Path | None = None
    sheet: Path | None = None

    @property
    def images(self) -> UInt8[Tensor, "N C H W"]:
        """The best result of every input, or the frames of an animation.

        Raises:
            UserError: the images are of several sizes.
        """
        return self._stacked(lambda one: one.image) if self.frames is None else self.frames

    @property
    def candidates(self) -> UInt8[Tensor, "N K C H W"]:
        """All results of every input, best first.

        Raises:
            UserError: the images are of several sizes, or these are the frames of an animation.
        """
        return self._stacked(lambda one: one.candidates)

    @property
    def residual(self) -> Float32[Tensor, "N K"]:
        """Distance of every candidate between the model's estimate and the input, lower is better.

        Raises:
            UserError: these are the frames of an animation.
        """
        return self._stacked(lambda one: one.residual)

    @property
    def class_labels(self) -> Int64[Tensor, "N K"] | None:
        """Class of every candidate; None for a model without classes.

        Raises:
            UserError: these are the frames of an animation.
        """
        labels = [one.class_labels for one in self.items if one.class_labels is not None]
        return None if self.items and not labels else self._stacked(lambda one: _some(one.class_labels))

    @property
    def measurement(self) -> UInt8[Tensor, "N C H W"]:
        """The measurement of every input, as a picture.

        Raises:
            UserError: the images are of several sizes, or these are the frames of an animation.
        """
        return self._stacked(lambda one: one.measurement)

    @property
    def psnr(self) -> float | None:
        """Mean PSNR of the best results in dB; None where there is nothing to compare with."""
        return _mean([one.psnr for one in self.items])

    @property
    def measurement_psnr(self) -> float | None:
        """Mean PSNR of the measurements in dB; None where there is nothing to compare with."""
        return _mean([one.measurement_psnr for one in self.items])

    def __len__(self) -> int:
        return len(self.items) if self.frames is None else len(self.frames)

    def __iter__(self) -> Iterator[EditedImage]:
        return iter(self.items)

    def __getitem__(self, index: int) -> EditedImage:
        return self.items[index]

    def pil(self) -> list[Image.Image]:
        """Returns the best result of every input, or every frame, as a Pillow image."""
        images = [one.image for one in self.items] if self.frames is None else list(self.frames)
        return [to_pil(image) for image in images]

    @plain_arguments()
    def save(self, path: str | os.PathLike[str]) -> Path:
        """Writes the results; every file appears whole or not at all.

        Args:
            path: a .png for one image, or a folder for several, where further candidates go beside the best, as
                x-2.png; a .gif, an .mp4 or a .png grid for an animation.

        Returns:
            The path.

        Raises:
            UserError: the place cannot be written to, or is of another kind.
        """
        place = user_path(path)
        if self.frames is not None:
            return self._save_frames(self.frames, place)
        check_images_place("path", place, str(path))
        for one, best in zip(self.items, output_places([one.name for one in self.items], place), strict=True):
            one.save(best)
        return place

    @plain_arguments()
    def save_sheet(self, path: str | os.PathLike[str]) -> Path:
        """Writes a .png with a row for every image, the first hundred at most: before, known and after.

        Returns:
            The path.

        Raises:
            UserError: the place cannot be written to, or these are the frames of an animation.
        """
        place = user_path(path)
        check_file("path", place, (".png",))
        picture = self._sheet(MOST_ROWS)
        _writing(place, lambda: save_png(picture, place))
        return place

    def __repr__(self) -> str:
        if self.frames is not None:
            return f"EditResult({_counted(len(self.frames), 'frame')} of {_size(self.frames[0])})"
        sizes = {_size(one.image) for one in self.items}
        size = sizes.pop() if len(sizes) == 1 else "several sizes"
        count = len(self.items[0].candidates)
        each = f", {_counted(count, 'candidate')} each" if count > 1 else ""
        return f"EditResult({_counted(len(self.items), 'image')} of {size}{each})"

    def _repr_png_(self) -> bytes:
        picture = self._sheet(_SHOWN) if self.frames is None else scaled(to_pil(grid(self.frames, self.columns)))
        file = io.BytesIO()
        picture.save(file, format="PNG")
        return file.getvalue()

    def _sheet(self, most: int) -> Image.Image:
        if not self.items:
            raise UserError("an animation has no sheet", "save its frames as a .png grid")
        return edit_sheet([one.row(self.shows_measurement) for one in self.items[:most]])

    def _save_frames(self, frames: Tensor, place: Path) -> Path:
        if place.suffix.lower() != ".png":
            return save_animation(frames, place, fps=self.fps)
        _writing(place, lambda: save_grid(frames, place, self.columns))
        return place

    def _stacked(self, part: Callable[[EditedImage], Tensor]) -> Tensor:
        if not self.items:
            raise UserError("these are the frames of an animation", "take `frames`")
        parts = [part(one) for one in self.items]
        if len({tuple(one.shape) for one in parts}) > 1:
            raise UserError("the images are of several sizes", "take them one by one, as result[0].image")
        return torch.stack(parts)


def _writing(place: Path, write: Callable[[], object]) -> None:
    try:
        write()
    except OSError as error:
        raise UserError(f"cannot write {place}: {error.strerror or error}", "choose another `output`") from None


def _some(labels: Tensor | None) -> Tensor:
    assert labels is not None
    return labels


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"


def _size(image: Tensor) -> str:
    return f"{image.shape[-1]}x{image.shape[-2]}"
