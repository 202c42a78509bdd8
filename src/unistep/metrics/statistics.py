"""Files of feature statistics, which stand for a reference without its images.

    mu, sigma        mean and covariance of pool features: OpenAI's, EDM's and pytorch-fid's .npz, and ours
    mu_s, sigma_s    the same of spatial features: OpenAI's, and ours
    arr_0            OpenAI's keep images beside them, uint8 NHWC
    about            ours only: JSON with the network, the number of images and their description

Published files do not name their network; by their makers' papers it is Inception-v3 with the resize of TensorFlow.
"""

import json
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from unistep.errors import UserError
from unistep.files import whole_file
from unistep.metrics.features.info import FeatureInfo, Kind
from unistep.metrics.moments import Moments

_KEYS: dict[Kind, tuple[str, str]] = {"pool": ("mu", "sigma"), "spatial": ("mu_s", "sigma_s")}
_DAMAGE = (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error, NotImplementedError)
_UNKNOWN = 0


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
    found: dict[Kind, Moments] = {}
    try:
        with np.load(path, allow_pickle=False) as file:
            if "mu" not in file.files:
                return None
            has_images = "arr_0" in file.files
            about = json.loads(str(file["about"])) if "about" in file.files else {}
            counts = about.get("count", _UNKNOWN)
            for kind, (mu, sigma) in _KEYS.items():
                if mu in file.files:
                    found[kind] = _moments(path, mu, file[mu], sigma, file[sigma], int(counts))
    except UserError:
        raise
    except _DAMAGE as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path}: its statistics cannot be read ({reason}); get or make the file again") from None
    return Statistics(found, str(path), about, has_images)


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


def _moments(path: Path, mu_key: str, mu: np.ndarray, sigma_key: str, sigma: np.ndarray, count: int) -> Moments:
    if mu.ndim != 1 or sigma.shape != (len(mu), len(mu)) or not len(mu):
        raise UserError(
            f"{path}: {mu_key} has the shape {mu.shape} and {sigma_key} {sigma.shape}; a mean [D] and a covariance "
            "[D, D] are needed"
        )
    for key, array in ((mu_key, mu), (sigma_key, sigma)):
        if not np.issubdtype(array.dtype, np.floating):
            raise UserError(f"{path}: {key} is {array.dtype}; statistics are floating-point numbers")
        if not np.isfinite(array).all():
            raise UserError(f"{path}: {key} holds NaN or infinite values; get or make the file again")
    scale = np.abs(sigma).max()
    if not np.allclose(sigma, sigma.T, rtol=0, atol=1e-6 * scale) or (sigma.diagonal() < -1e-6 * scale).any():
        raise UserError(f"{path}: {sigma_key} is no covariance: it is not symmetric, or has negative variances")
    return Moments(torch.from_numpy(mu.astype(np.float64)), torch.from_numpy(sigma.astype(np.float64)), count)
