"""Inception V3 of 5 December 2015, the network of FID, sFID, KID and the inception score.

The file is NVIDIA's translation of TensorFlow's `inception-2015-12-05.tgz` to TorchScript, the one that StyleGAN, EDM
and clean-FID measure with. TorchScript is code: a file is opened only if its SHA-256 is the published one, wherever it
comes from.

    pool            mean of the last 8x8 features, 2048 (`pool_3:0`)
    spatial         the first 7 channels of the 17x17 features `mixed_6/conv:0`, after their ReLU, flattened as
                    TensorFlow lays them out, channels last: 2023 (Nash et al. 2021, arXiv 2103.03841; measured so by
                    the evaluator of Dhariwal and Nichol 2021, arXiv 2105.05233)
    probabilities   softmax(W pool) of 1008 classes, without the bias, as the inception score has been measured since
                    Salimans et al. 2016

The network's own resize is left aside: images are resized before, in one of two ways (see
`unistep.metrics.features.resize`), and enter as (x - 128) / 128 at 299 pixels.
"""

import hashlib
import io
import warnings
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float32, UInt8
from torch import Tensor

from unistep.errors import UserError
from unistep.files import check_regular_file
from unistep.formats.published.file import PublishedFile, cache_folder, expanded, fetch
from unistep.metrics.features.exact import exact_convolutions
from unistep.metrics.features.info import FeatureInfo, Kind
from unistep.metrics.features.request import as_rgb, check_kinds
from unistep.metrics.features.resize import RESIZES, check_resize

INCEPTION = PublishedFile(
    name="inception-2015-12-05.pt",
    url="https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/inception-2015-12-05.pt",
    sha256="f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4",
    key="`features_path`",
    instead="take `features` effnet-lite0 or mnist, which need no network",
)
SIZE = 299
_MOST_BYTES = 1_000_000_000
_SPATIAL_STAGE = "mixed_6"
_SPATIAL_CHANNELS = 7


class Inception:
    """A `FeatureNetwork` with pool, spatial features and probabilities.

    Args:
        path: published file; None downloads it once, 91 MiB.
        device: device to compute on.
        resize: method of the resize, see `Resize`: legacy-tensorflow for FID as it is published, clean for clean-FID.
        sha256: hash of the file; one with another hash is not opened. It would be code by somebody else: give its hash
            only to run that.
        cache_dir: folder of the download; None is `unistep/networks` in the user's cache.

    Raises:
        UserError: the resize is unknown, or the file cannot be had or is another one.
    """

    def __init__(
        self,
        path: str | Path | None = None,
        device: str | torch.device = "cpu",
        resize: str = "legacy-tensorflow",
        *,
        sha256: str = INCEPTION.sha256,
        cache_dir: str | Path | None = None,
    ) -> None:
        chosen = check_resize(resize)
        file = fetch(INCEPTION, cache_folder("networks", cache_dir)) if path is None else expanded(path)
        self._device = torch.device(device)
        self._module = _open(file, sha256, self._device)
        # The classes' weights, without the bias that the score leaves out.
        self._head: Tensor = self._module.output.weight.float()
        pool, spatial = self._pool_and_spatial(torch.zeros(1, 3, SIZE, SIZE, device=self._device))
        self.info = FeatureInfo(
            name="inception",
            label="Inception",
            digest=sha256,
            resize=chosen,
            dims={"pool": pool.shape[1], "spatial": spatial.shape[1], "probabilities": len(self._head)},
        )

    def __call__(self, images: UInt8[Tensor, "B C H W"], kinds: Collection[Kind]) -> dict[Kind, Float32[Tensor, "B _"]]:
        """Returns the features of uint8 images of 1 or 3 channels and of any size, on the CPU; in one pass.

        Raises:
            UserError: images of other channels, an unknown kind, or a size that is not resized to 299 pixels.
        """
        check_kinds(self.info, kinds)
        x = RESIZES[self.info.resize](as_rgb(self.info, images.to(self._device)), SIZE)
        pool, spatial = self._pool_and_spatial((x - 128) / 128)
        found: dict[Kind, Tensor] = {"pool": pool, "spatial": spatial}
        if "probabilities" in kinds:
            with torch.no_grad():
                found["probabilities"] = F.linear(pool, self._head).softmax(1)
        return {kind: found[kind].cpu() for kind in kinds}

    @torch.no_grad()
    def _pool_and_spatial(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Both features of images in [-1, 1) at 299 pixels. Always both, so that each is the same in every call."""
        spatial = x
        with exact_convolutions(self._device):
            for name, stage in self._module.layers.named_children():
                if name == _SPATIAL_STAGE:
                    # The first of the four branches of this stage, which the stage itself does not show.
                    spatial = stage.conv(x)[:, :_SPATIAL_CHANNELS].movedim(1, 3).flatten(1)
                x = stage(x)
        return x.flatten(1).float(), spatial.float()


def _open(path: Path, sha256: str, device: torch.device) -> Any:
    """The TorchScript in a file, if its content has this hash."""
    check_regular_file(path, INCEPTION.remedy, most_bytes=_MOST_BYTES)
    # What is hashed is what is opened, whatever becomes of the file in between.
    content = path.read_bytes()
    if (found := hashlib.sha256(content).hexdigest()) != sha256:
        raise UserError(
            f"{path} is not the published {INCEPTION.name}, and it holds code, so it is not opened: its SHA-256 is "
            f"{found[:12]}..., not {sha256[:12]}...; {INCEPTION.remedy}"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # PyTorch would rather have everybody leave TorchScript
        module = torch.jit.load(io.BytesIO(content), map_location=device)
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    return module.eval()
