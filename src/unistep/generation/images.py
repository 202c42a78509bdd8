"""The images of a run: pixels with their seed and classes, which save and show themselves."""

import io
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, overload

from jaxtyping import Int64, UInt8
from torch import Tensor

from unistep.arguments import plain_arguments
from unistep.checks import check_range
from unistep.errors import UserError
from unistep.generation.npz import read_npz
from unistep.generation.png_folder import read_png_folder
from unistep.generation.write import check_columns, check_output, write_images
from unistep.images.grid import grid, scaled, to_pil

if TYPE_CHECKING:
    from collections.abc import Iterator

    from PIL import Image

_MAX_COLUMNS = 10_000
_SHOWN = 100  # images of a notebook's grid


@dataclass(frozen=True, repr=False)
class Images:
    """Images 0 to N - 1 of a run; image i depends on the model, the plan, (seed, i) and its class.

    Args:
        num_images: number of images N.
        shape: channels, height, width.
        seed: seed of the run.
        labels: class of each image [N]; None for an unconditional model.
        evaluations: network evaluations an image.
        seconds: seconds an image; None where all of them were there before.
        columns: columns of a grid.
        made: pixels [N, C, H, W] in memory; None where they are in `path` alone.
        path: file or folder that holds the images; None where they were not written.
    """

    num_images: int
    shape: tuple[int, int, int]
    seed: int
    labels: Int64[Tensor, " N"] | None
    evaluations: int
    seconds: float | None
    columns: int
    made: UInt8[Tensor, "N C H W"] | None = None
    path: Path | None = None

    @cached_property
    def pixels(self) -> UInt8[Tensor, "N C H W"]:
        """All pixels; those of a run that was written are read from its .npz or folder.

        Raises:
            UserError: the images were written as a grid alone.
        """
        if self.made is not None:
            return self.made
        assert self.path is not None
        if self.path.suffix.lower() == ".npz":
            return read_npz(self.path)
        if self.path.is_dir():
            return read_png_folder(self.path, self.num_images, self.shape)
        raise UserError(f"{self.path} is a grid; write an .npz or a folder to have single images again")

    def __len__(self) -> int:
        return self.num_images

    def __iter__(self) -> "Iterator[Tensor]":
        return iter(self.pixels)

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> Tensor: ...
    def __getitem__(self, index: int | slice) -> Tensor:
        return self.pixels[index]

    def pil(self) -> "list[Image.Image]":
        """Returns one Pillow image each, grey ("L") or colour ("RGB")."""
        return [to_pil(image) for image in self.pixels]

    @plain_arguments(empty=["path"])
    def save(self, path: str | os.PathLike[str], columns: int | None = None) -> Path:
        """Writes the images; a file appears whole or not at all.

        Args:
            path: a .png grid, an .npz (`arr_0` uint8 NHWC, `arr_1` labels), or a folder of PNGs.
            columns: columns of the grid; default: those of the run.

        Returns:
            The path.

        Raises:
            UserError: the place cannot be written to, or is of another kind, or `columns` are given for no grid.
        """
        place = check_output(path, field="path")
        if columns is not None:
            check_range("columns", columns, 1, _MAX_COLUMNS)
            check_columns(place)
        return write_images(self.pixels, self.labels, place, columns or self.columns)

    def grid(self) -> "Image.Image":
        """Returns the first images as one picture, enlarged by a whole factor."""
        return scaled(to_pil(grid(self.pixels[:_SHOWN], self.columns)))

    def __repr__(self) -> str:
        channels, height, width = self.shape
        kind = {1: "grey", 3: "colour"}.get(channels, f"{channels}-channel")
        place = "" if self.path is None else f", path={str(self.path)!r}"
        return f"Images({self.num_images} {kind} images of {width}x{height}, seed={self.seed}{place})"

    def _repr_png_(self) -> bytes:
        file = io.BytesIO()
        self.grid().save(file, format="PNG")
        return file.getvalue()
