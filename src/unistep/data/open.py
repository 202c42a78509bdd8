"""Open any source of images as a dataset."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np
import torch

from unistep.data.config import DataConfig
from unistep.data.dataset import ImageDataset
from unistep.data.encoded import EncodedReader
from unistep.data.files import FolderFiles, ZipFiles
from unistep.data.mnist import mnist_reader
from unistep.data.npz import NpzReader
from unistep.data.store import load_images
from unistep.errors import UserError
from unistep.text import nearest, nearest_path, shown

_LOG = logging.getLogger(__name__)

BUNDLED = ("mnist", "mnist-test")
"""Datasets that come with the package; a folder of the same name is reached as `./mnist`."""


def open_dataset(config: DataConfig | str) -> ImageDataset:
    """Read a dataset: all its images as uint8 of one shape, and their labels where it has any.

    Args:
        config: what to read and how, or just the source (see `DataConfig.source`).

    Raises:
        UserError: if the source is not there, cannot be read, or its images or labels do not fit together.
    """
    if isinstance(config, str):
        config = DataConfig(source=config)
    reader = open_reader(config.source)
    labels = reader.labels() if config.use_labels else None  # before the images: it is quick, and may be wrong
    images, skipped = load_images(reader, config)
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
        return ImageDataset(images, skipped=texts)
    values = np.delete(labels.values, [item.index for item in skipped])
    return ImageDataset(images, torch.from_numpy(values), labels.names, texts)


def open_reader(source: str) -> EncodedReader | NpzReader:
    """Find out what a source is and open it, without decoding its images.

    Raises:
        UserError: if it is not there or of no known kind.
    """
    if source == "mnist":
        return mnist_reader("train")
    if source == "mnist-test":
        return mnist_reader("test")
    if not source.strip():
        raise UserError("data.source is empty; give mnist or the path of a folder, .zip or .npz")
    path = Path(source).expanduser()
    if os.path.isdir(path):
        return EncodedReader(FolderFiles(path, source))
    if not os.path.exists(path):
        raise UserError(_missing(source, path))
    match path.suffix.lower():
        case ".zip":
            return EncodedReader(ZipFiles(path, source))
        case ".npz":
            return NpzReader(path, source)
        case _:
            raise UserError(
                f"{shown(source)}: data must be a folder of images, a .zip or an .npz; put images in a folder"
            )


def _missing(source: str, path: Path) -> str:
    similar = nearest(source, BUNDLED) if len(path.parts) == 1 else None
    similar = similar or nearest_path(path)
    hint = f"did you mean {shown(similar)}?" if similar else f"bundled are {' and '.join(BUNDLED)}"
    return f"{shown(source)}: there is no such file, folder or bundled dataset; {hint}"
