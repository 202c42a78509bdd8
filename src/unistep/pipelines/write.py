"""Images to files: a grid, OpenAI's .npz, or a folder of PNGs. A file appears whole or not at all."""

from pathlib import Path

import numpy as np
from jaxtyping import Int64, UInt8
from torch import Tensor

from unistep.errors import UserError
from unistep.pipelines.grid import save_grid, save_png, to_pil
from unistep.pipelines.whole_file import whole_file


def write_images(
    images: UInt8[Tensor, "N C H W"], labels: Int64[Tensor, " N"] | None, path: Path, columns: int
) -> Path:
    """Writes by the ending of `path`: .png a grid, .npz `arr_0` uint8 NHWC and `arr_1` labels, else a folder.

    Raises:
        UserError: the place cannot be written to.
    """
    try:
        if path.suffix.lower() == ".png":
            return save_grid(images, path, columns)
        if path.suffix.lower() == ".npz":
            return _save_npz(images, labels, path)
        for i, image in enumerate(images):
            save_png(to_pil(image), path / f"{i:06d}.png")
        return path
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}; choose another --output") from None


def _save_npz(images: Tensor, labels: Tensor | None, path: Path) -> Path:
    arrays = [images.permute(0, 2, 3, 1).numpy()] + ([] if labels is None else [labels.numpy()])
    with whole_file(path) as temporary, temporary.open("wb") as file:
        np.savez(file, *arrays)
    return path
