"""Opens any source of images as a dataset."""

import logging
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from unistep.arguments import plain_arguments
from unistep.checks import user_path
from unistep.data.arrow import open_saved
from unistep.data.bundled import BUNDLED
from unistep.data.cifar import open_cifar
from unistep.data.config import DataConfig
from unistep.data.dataset import ImageDataset
from unistep.data.encoded import EncodedReader
from unistep.data.files import FolderFiles, ZipFiles
from unistep.data.hub import hub_folder
from unistep.data.idx import open_idx
from unistep.data.npz import NpzReader
from unistep.data.packed import open_parts
from unistep.data.parquet import open_parquet
from unistep.data.published import SOURCES
from unistep.data.raw import RawReader
from unistep.data.shards import open_listed, open_shards
from unistep.data.store import load_images
from unistep.data.streaming import is_streamed, stream
from unistep.errors import UserError
from unistep.files import check_regular_file
from unistep.text import nearest, nearest_path, shown

_LOG = logging.getLogger(__name__)


@plain_arguments(empty=["path"])
def open_dataset(
    path: str | os.PathLike[str],
    *,
    resolution: int | None = None,
    channels: int | None = None,
    skip_bad: bool = False,
    use_labels: bool = True,
    memory_limit: int = DataConfig.memory_limit,
    cache_dir: str | os.PathLike[str] | None = None,
) -> ImageDataset:
    """Reads a dataset: all its images as uint8 of one shape, and their labels if it has any.

    Args:
        path: folder of images, .zip of images (with or without EDM's dataset.json), .npz of uint8 images, folder of
            packed parts or of .tar shards, name-{000000..000123}.tar, or CIFAR-10, IDX files or .parquet as they are
            published; a folder of save_to_disk, or hf://datasets/OWNER/NAME; or mnist, mnist-test or emoji, which are
            bundled; or cifar10, cifar10-test, fashion-mnist or fashion-mnist-test once they are fetched.
        resolution: side of the images in pixels, to which each is cropped in its middle and resized by a Lanczos
            filter; None keeps the images as they are, which then must be of one size.
        channels: 1 makes every image grey, 3 makes every image colour; None makes all grey if all are, else colour.
        skip_bad: leave out and list files that cannot be read as images, instead of raising.
        use_labels: read class labels: from dataset.json, else metadata.jsonl or metadata.csv, else class subfolders;
            from arr_1, labels or y_train of an .npz.
        memory_limit: bytes of pixels that are held in memory; a larger dataset is mapped from a file in the cache.
        cache_dir: folder of that cache; None is $XDG_CACHE_HOME/unistep/data, or ~/.cache/unistep/data where that
            variable is not set.

    Returns:
        The dataset, which a notebook shows as a grid of its first images.

    Raises:
        UserError: the dataset is not there, cannot be read, or its images or labels do not fit together.

    Example:
        >>> import unistep
        >>> digits = unistep.open_dataset("mnist-test", resolution=16)
        >>> digits
        ImageDataset(10,000 grey images of 16x16, 10 classes)
        >>> digits.images[0].shape, int(digits.labels[0])
        (torch.Size([1, 16, 16]), 7)
    """
    return read_dataset(
        DataConfig(
            source=os.fspath(path),
            resolution=resolution,
            channels=channels,
            skip_bad=skip_bad,
            use_labels=use_labels,
            memory_limit=memory_limit,
            cache_dir=None if cache_dir is None else os.fspath(cache_dir),
        )
    )


def read_dataset(config: DataConfig) -> ImageDataset:
    """Reads the dataset of a config; see `open_dataset`.

    Raises:
        UserError: the dataset is not there, cannot be read, or its images or labels do not fit together.
    """
    reader = open_reader(config.source, config.cache_dir)
    labels = reader.labels() if config.use_labels else None  # before the images: it is quick, and may be wrong
    file = ""
    if is_streamed(reader, config):
        images, skipped, remarks = stream(reader, config)
    else:
        images, skipped, remarks, file = load_images(reader, config)
    for line in filter(None, [reader.passed_over(), *remarks]):
        _LOG.warning("%s", line)
    if skipped:
        _LOG.warning(
            "%s: %d of %d images were left out, first %s",
            shown(config.source),
            len(skipped),
            len(reader),
            skipped[0].text,
        )
    texts = [item.text for item in skipped]
    if labels is None:
        return ImageDataset(images, skipped=texts, file=file)
    values = np.delete(labels.values, [item.index for item in skipped])
    return ImageDataset(images, torch.from_numpy(values), labels.names, texts, file)


def open_reader(source: str, cache_dir: str | None = None) -> EncodedReader | RawReader:
    """Opens a source of images without decoding them.

    Args:
        source: path of a folder or file, or the name of a bundled or fetched dataset.
        cache_dir: folder in which indices of shards are kept; None is the user's cache.

    Raises:
        UserError: the source is not there or of no known kind.
    """
    if source in BUNDLED:
        return BUNDLED[source].reader()
    if source in SOURCES:
        return SOURCES[source].reader(source)
    if not source.strip():
        raise UserError("the name of the dataset is empty; give mnist, emoji or the path of a folder, .zip or .npz")
    path, cache = hub_folder(source) or user_path(source), None if cache_dir is None else user_path(cache_dir)
    if (reader := open_listed(source, cache)) is not None:
        return reader
    if not os.path.exists(path):
        raise UserError(_missing(source, path))
    if not os.path.isdir(path):
        check_regular_file(path, "give a folder of images, a .zip or an .npz")
    for open_kind in KINDS:
        if (reader := open_kind(path, source)) is not None:
            return reader
    if (reader := open_shards(path, source, cache) or _open_files(path, source)) is not None:
        return reader
    raise UserError(
        f"{shown(source)}: data must be a folder of images, a .zip or an .npz, or batches of CIFAR-10, IDX files,"
        " .tar or .parquet; put images in a folder"
    )


def _open_npz(path: Path, source: str) -> NpzReader | None:
    return NpzReader(path, source) if path.suffix.lower() == ".npz" else None


def _open_files(path: Path, source: str) -> EncodedReader | None:
    if path.is_dir():
        return EncodedReader(FolderFiles(path, source))
    return EncodedReader(ZipFiles(path, source)) if path.suffix.lower() == ".zip" else None


KINDS: tuple[Callable[[Path, str], EncodedReader | RawReader | None], ...] = (
    open_parts,
    _open_npz,
    open_cifar,
    open_idx,
    open_parquet,
    open_saved,
)
"""Functions that open a path, one for each kind of source; the first that gives a reader counts. Shards and images by
themselves come last."""


def _missing(source: str, path: Path) -> str:
    similar = nearest(source, [*BUNDLED, *SOURCES]) if len(path.parts) == 1 else None
    similar = similar or nearest_path(path)
    hint = f"did you mean {shown(similar)}?" if similar else f"bundled are {', '.join(BUNDLED)}"
    return f"{shown(source)}: there is no such file, folder or bundled dataset; {hint}"
