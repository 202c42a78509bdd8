"""OpenAI's .npz of samples, written as a stream: `arr_0` uint8 [N, H, W, C], `arr_1` int64 labels [N].

np.savez needs all images at once. An .npz is a zip of .npy files, and a .npy a header and the raw values, so blocks of
images can be written as they come. The same images and labels give the same bytes.
"""

import os
import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor


def write_npz(
    path: Path,
    blocks: Iterable[UInt8[np.ndarray, "_ H W C"]],
    array_shape: tuple[int, int, int, int],
    labels: Int64[Tensor, " N"] | None,
) -> None:
    """Writes the file and flushes it to disk.

    Args:
        path: file to be written; one of that name is overwritten.
        blocks: images in order, block by block.
        array_shape: number of images, height, width, channels.
        labels: class of each image; None leaves `arr_1` out.

    Raises:
        ValueError: the blocks hold more or fewer images than `array_shape` has.
    """
    written = 0
    with path.open("wb") as file:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            with archive.open("arr_0.npy", "w", force_zip64=True) as member:
                header = {"descr": "|u1", "fortran_order": False, "shape": array_shape}
                np.lib.format.write_array_header_1_0(member, header)
                for block in blocks:
                    member.write(np.ascontiguousarray(block).data)
                    written += len(block)
            if labels is not None:
                with archive.open("arr_1.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, labels.cpu().numpy(), allow_pickle=False)
        if written != array_shape[0]:
            raise ValueError(f"{written} images for an array of {array_shape[0]}")
        file.flush()
        os.fsync(file.fileno())


def read_npz(path: Path) -> UInt8[Tensor, "N C H W"]:
    """Reads the images of a file that `write_npz` wrote."""
    with np.load(path, allow_pickle=False) as arrays:
        return torch.from_numpy(arrays["arr_0"]).permute(0, 3, 1, 2)
