"""Features kept on the disk, so that they are computed once.

An entry is a folder named by a hash of the images' digest, the network's key and the kind of features. It holds .npy
files of 256 images each, `000000256-000000512.npy`, float32 [256, D], and about.json, a description. A file appears
whole or not at all: an evaluation that was interrupted goes on, and several processes share the work.
"""

import hashlib
import json
import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from unistep.arrays import read_header
from unistep.errors import UserError
from unistep.files import check_regular_file
from unistep.formats.published.file import cache_folder
from unistep.metrics.features.info import FeatureInfo, Kind

BLOCK = 256
"""Number of images a file; a multiple of every tile of `unistep.generation.generate` on CPUs."""

_FORMAT = 1  # raised whenever the same images and network would give other features


@dataclass(frozen=True)
class StoredFeatures:
    """Features of images 0 to `count` - 1 of a source, in files.

    Args:
        folder: folder of the files.
        count: number of images.
        dim: length of the vectors.
    """

    folder: Path
    count: int
    dim: int

    def parts(self) -> list[range]:
        """Returns the images of each file, in order."""
        return [range(start, min(start + BLOCK, self.count)) for start in range(0, self.count, BLOCK)]

    def missing(self) -> list[range]:
        """Returns the parts that are missing or damaged."""
        return [part for part in self.parts() if self._load(part) is None]

    def read(self, part: range) -> Float32[Tensor, "B D"]:
        """Reads the features of one part, memory-mapped and not to be written to.

        Raises:
            UserError: they are missing or damaged.
        """
        features = self._load(part)
        if features is None:
            raise UserError(f"{self._path(part)} is gone or damaged; repeat the command to have it made again")
        return features

    def blocks(self) -> Iterator[Float32[Tensor, "B D"]]:
        """Returns all features in order, a part at a time."""
        return map(self.read, self.parts())

    def all(self) -> Float32[Tensor, "N D"]:
        """Returns all features in memory."""
        return torch.cat(list(self.blocks()))

    def write(self, part: range, features: Float32[Tensor, "B D"]) -> None:
        """Writes the features of one part.

        Raises:
            UserError: the folder cannot be written to.
        """
        path = self._path(part)
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                np.save(file, features.contiguous().numpy())
            os.replace(temporary, path)
        except OSError as error:
            reason = error.strerror or error
            raise UserError(f"cannot write {self.folder}: {reason}; choose another `feature_cache`") from None
        finally:
            temporary.unlink(missing_ok=True)

    def _path(self, part: range) -> Path:
        return self.folder / f"{part.start:09d}-{part.stop:09d}.npy"

    def _load(self, part: range) -> Tensor | None:
        path = self._path(part)
        try:
            check_regular_file(path, "it is made again")
            with path.open("rb") as file:
                header = read_header(file)
            if header.shape != (len(part), self.dim) or header.dtype != np.float32 or header.fortran:
                return None
            if header.num_bytes != path.stat().st_size:
                return None
            # Copy-on-write: torch takes no read-only memory without a warning.
            return torch.from_numpy(np.memmap(path, np.float32, "c", header.offset, header.shape))
        except (OSError, ValueError):
            return None


def stored_features(
    root: Path, digest: str, count: int, info: FeatureInfo, kind: Kind, about: dict[str, Any]
) -> StoredFeatures:
    """Returns the place of the features of images, which need not exist.

    Args:
        root: folder of all features that are kept.
        digest: digest of the images.
        count: number of images.
        info: identity of the network.
        kind: kind of features.
        about: description for people, written to about.json.

    Raises:
        UserError: the folder cannot be made.
    """
    key = hashlib.sha256(f"{_FORMAT} {digest} {info.key} {kind}".encode()).hexdigest()[:40]
    folder = root / key
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "about.json").exists():
            (folder / "about.json").write_text(json.dumps(about, indent=2, default=str) + "\n")
    except OSError as error:
        raise UserError(f"cannot write {root}: {error.strerror or error}; choose another `feature_cache`") from None
    return StoredFeatures(folder, count, info.dims[kind])


def default_cache() -> Path:
    """Returns the default folder of features.

    It is `$XDG_CACHE_HOME/unistep/features`, or `~/.cache/unistep/features` where that variable is not set.
    """
    return cache_folder("features")
