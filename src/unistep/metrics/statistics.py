"""Files of feature statistics, which stand for a reference without its images.

    mu, sigma        mean and covariance of pool features: OpenAI's, EDM's and pytorch-fid's .npz, and ours
    mu_s, sigma_s    the same of spatial features: OpenAI's, and ours
    arr_0            OpenAI's keep images beside them, uint8 NHWC
    about            ours only: JSON with the network, the number of images and their description

Published files do not name their network; by their makers' papers it is Inception-v3 with the resize of TensorFlow.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from unistep.arrays import ArrayError, open_arrays
from unistep.documents import DocumentError, parse_json
from unistep.errors import UserError
from unistep.files import check_regular_file, whole_file
from unistep.metrics.features.info import FeatureInfo, Kind
from unistep.metrics.moments import Moments

_KEYS: dict[Kind, tuple[str, str]] = {"pool": ("mu", "sigma"), "spatial": ("mu_s", "sigma_s")}
_UNKNOWN = 0
_MOST_BYTES = 400 << 20  # of an array; a covariance of 7000 dimensions
_MOST_ABOUT = 4 << 20
_MOST_IMAGES = 10**12
_MOST_VALUE = 1e30  # whose square is finite
_STRIP = 256


@dataclass(frozen=True)
class Statistics:
    """Moments of the features of a reference.

    Args:
        moments: moments of each kind of features that the file has; "pool" always. An unknown count is 0.
        name: name of the file in messages.
        about: description in the file; empty for published files.
        has_images: whether the images are in the file too.
    """

    moments: dict[Kind, Moments]
    name: str
    about: dict[str, Any]
    has_images: bool = False

    def check(self, info: FeatureInfo) -> None:
        """Passes where the statistics are of a feature network.

        Raises:
            UserError: they are of another one.
        """
        if self.about:
            if self.about.get("key") != info.key:
                made = f"{self.about.get('features')} with resize {self.about.get('resize')}"
                raise UserError(
                    f"{self.name} was made with {made}, not with the {info.name} of now (resize {info.resize}): such "
                    "numbers do not compare; give the same `features` and `resize`, or the reference's images"
                )
        elif info.name != "inception":
            raise UserError(
                f"{self.name} names no feature network; such files are of inception, not {info.name}; give `features` "
                "inception, or the reference's images"
            )
        for kind, found in self.moments.items():
            if len(found.mean) != info.dims.get(kind):
                raise UserError(
                    f"{self.name}: its {kind} statistics have {len(found.mean)} dimensions, {info.name} gives "
                    f"{info.dims.get(kind)}; they are of another network"
                )


def read_statistics(path: Path) -> Statistics | None:
    """Reads the statistics in an .npz; nothing in it is executed.

    Returns:
        The statistics; None where the file has no `mu`, as one of images alone.

    Raises:
        UserError: the file is damaged, or its arrays are no mean and covariance.
    """
    check_regular_file(path, "give an .npz")
    found: dict[Kind, Moments] = {}
    try:
        with open_arrays(path) as file:
            if "mu" not in file.names:
                return None
            about = _about(file.read("about", _MOST_ABOUT)) if "about" in file.names else {}
            for kind, (mu, sigma) in _KEYS.items():
                if mu in file.names:
                    mean, covariance = file.read(mu, _MOST_BYTES), file.read(sigma, _MOST_BYTES)
                    found[kind] = _moments(path, mu, mean, sigma, covariance, about.get("count", _UNKNOWN))
            return Statistics(found, str(path), about, "arr_0" in file.names)
    except (ArrayError, DocumentError) as error:
        raise UserError(f"{path}: its statistics cannot be read ({error}); get or make the file again") from None


def write_statistics(
    path: Path, moments: Mapping[Kind, Moments], info: FeatureInfo, description: dict[str, Any]
) -> None:
    """Writes statistics that `read_statistics` reads, and others' tools as well.

    Args:
        path: place of the .npz.
        moments: moments of each kind of features.
        info: identity of the network.
        description: description of the images; JSON.

    Raises:
        UserError: the file cannot be written.
    """
    about = {
        "features": info.name,
        "digest": info.digest,
        "resize": info.resize,
        "key": info.key,
        "count": moments["pool"].count,
        "images": description,
    }
    arrays = {"about": np.array(json.dumps(about, default=str))}
    for kind, (mu, sigma) in _KEYS.items():
        if kind in moments:
            arrays |= {mu: moments[kind].mean.numpy(), sigma: moments[kind].covariance.numpy()}
    try:
        with whole_file(path) as temporary, temporary.open("wb") as file:
            np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}; choose another place") from None


def _about(array: np.ndarray) -> dict[str, Any]:
    """The description in a file.

    Raises:
        DocumentError: it is none.
    """
    about = parse_json(str(array)) if array.dtype.kind == "U" and array.ndim == 0 else None
    if not isinstance(about, dict):
        raise DocumentError("`about` is no JSON object in a text")
    for name in ("features", "digest", "resize", "key"):
        if not isinstance(about.get(name), str):
            raise DocumentError(f"`about` has no {name}")
    count = about.get("count", _UNKNOWN)
    if type(count) is not int or not 0 <= count <= _MOST_IMAGES:
        raise DocumentError("`about` has no number of images")
    if not isinstance(about.get("images", {}), dict):
        raise DocumentError("`about` has no description of images")
    return about


def _moments(path: Path, mu_key: str, mu: np.ndarray, sigma_key: str, sigma: np.ndarray, count: int) -> Moments:
    if mu.ndim != 1 or sigma.shape != (len(mu), len(mu)) or not len(mu):
        raise UserError(
            f"{path}: {mu_key} has the shape {mu.shape} and {sigma_key} {sigma.shape}; a mean [D] and a covariance "
            "[D, D] are needed"
        )
    for key, array in ((mu_key, mu), (sigma_key, sigma)):
        if not np.issubdtype(array.dtype, np.floating):
            raise UserError(f"{path}: {key} is {array.dtype}; statistics are floating-point numbers")
        if not all(np.isfinite(part).all() for part in _strips(array)):
            raise UserError(f"{path}: {key} holds NaN or infinite values; get or make the file again")
        if max(np.abs(part).max() for part in _strips(array)) > _MOST_VALUE:
            raise UserError(f"{path}: {key} holds values beyond {_MOST_VALUE:g}; get or make the file again")
    scale = max(np.abs(part).max() for part in _strips(sigma))
    apart = max(np.abs(part - other).max() for part, other in zip(_strips(sigma), _strips(sigma.T), strict=True))
    if apart > 1e-6 * scale or (sigma.diagonal() < -1e-6 * scale).any():
        raise UserError(f"{path}: {sigma_key} is no covariance: it is not symmetric, or has negative variances")
    mean, covariance = (torch.from_numpy(array.astype(np.float64, copy=False)) for array in (mu, sigma))
    return Moments(mean, covariance, count)


def _strips(array: np.ndarray) -> Iterator[np.ndarray]:
    """The rows of an array, as many at once as cost little memory."""
    for start in range(0, len(array), _STRIP):
        yield array[start : start + _STRIP]
