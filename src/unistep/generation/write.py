"""Images in memory to files: a grid, OpenAI's .npz, or a folder of PNGs. A file appears whole or not at all."""

import os
from pathlib import Path

from jaxtyping import Int64, UInt8
from torch import Tensor

from unistep.checks import check_place, user_path
from unistep.errors import UserError
from unistep.files import whole_file
from unistep.generation.npz import write_npz
from unistep.generation.png_folder import PngFolder
from unistep.images.grid import save_grid


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
            n, channels, height, width = images.shape
            with whole_file(path) as temporary:
                write_npz(temporary, [images.permute(0, 2, 3, 1).numpy()], (n, height, width, channels), labels)
            return path
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}; choose another `output`") from None
    n, channels, height, width = images.shape
    folder = PngFolder(path, n, (channels, height, width))
    folder.claim({}, restart=True)
    folder.write(0, images)
    folder.flush()
    return folder.finish(labels)


def check_columns(path: Path) -> None:
    """Refuses columns where no grid is written.

    Args:
        path: place of images.

    Raises:
        UserError: it is no .png.
    """
    if path.suffix.lower() != ".png":
        what = "an .npz" if path.suffix.lower() == ".npz" else "a folder"
        raise UserError(f"`columns` is for a .png grid, and {path} is {what}", "leave it out")


def check_output(name: str | os.PathLike[str], field: str = "output") -> Path:
    """Returns the place of images: a .png, an .npz or a folder, without a dot in its name unless it is there or ends in
    a slash.

    Args:
        name: path as the user gives it; ~ is the home folder.
        field: name of the parameter.

    Raises:
        UserError: it is of another ending, of another kind than what is there, or cannot be written to.
    """
    text = os.fspath(name)
    path = user_path(text)
    suffix = path.suffix
    if not text.strip():
        raise UserError("is empty; give a .png, an .npz or a folder", field=field)
    if suffix.lower() in (".png", ".npz"):
        if path.is_dir():
            raise UserError(f"{text} is a folder; give another name", field=field)
    elif os.path.lexists(path) and not path.is_dir():
        raise UserError(f"{text} is a file; give a .png, an .npz or a folder", field=field)
    elif suffix and not path.is_dir() and not text.endswith("/"):
        raise UserError(f"{text}: cannot write {suffix}; give a .png, an .npz or a folder, as {text}/", field=field)
    check_place(field, path)
    return path
