"""Images in memory to files: a grid, OpenAI's .npz, or a folder of PNGs. A file appears whole or not at all."""

from pathlib import Path

from jaxtyping import Int64, UInt8
from torch import Tensor

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
        raise UserError(f"cannot write {path}: {error.strerror or error}; choose another --output") from None
    n, channels, height, width = images.shape
    folder = PngFolder(path, n, (channels, height, width))
    folder.claim({}, restart=True)
    folder.write(0, images)
    folder.flush()
    return folder.finish(labels)
