"""A feature network by its name, as `--features` takes it."""

from pathlib import Path

import torch

from unistep.errors import UserError
from unistep.metrics.features.protocol import FeatureNetwork
from unistep.text import nearest, shown

NAMES = ("inception", "dinov2", "mnist", "effnet-lite0", "onnx:FILE")
_ONNX = "onnx:"
_DIGIT_SIZES = (28, 32)


def open_features(
    name: str, device: str | torch.device = "cpu", *, path: str | Path | None = None, resize: str | None = None
) -> FeatureNetwork:
    """Opens a feature network.

    Args:
        name: one of `NAMES`, FILE being a path.
        device: to compute on.
        path: of weights, in place of those that are downloaded or installed; inception, dinov2 and effnet-lite0 alone.
        resize: how images are brought to the size of its input, see `Resize`; None is the one of the published numbers.

    Raises:
        UserError: no such name, path or resize; the weights cannot be had, or a package is not installed.
    """
    # Every network is imported where it is asked for: one must not need what another one does.
    if name.startswith(_ONNX):
        from unistep.metrics.features.onnx import ONNX

        _refuse(name, "path", path, "the file is part of the name")
        if not (file := name.removeprefix(_ONNX)):
            raise UserError("onnx: names no file; give onnx:FILE")
        return ONNX(file, device, resize=resize)
    options = {} if resize is None else {"resize": resize}
    if name == "inception":
        from unistep.metrics.features.inception import Inception

        return Inception(path, device, **options)
    if name == "dinov2":
        from unistep.metrics.features.dinov2 import DINOv2

        return DINOv2(path, device, **options)
    if name == "effnet-lite0":
        from unistep.metrics.features.effnet import EffNetLite0

        return EffNetLite0(path, device, **options)
    if name == "mnist":
        from unistep.metrics.features.mnist import MNIST

        _refuse(name, "path", path, "its weights are part of the package")
        _refuse(name, "resize", None if resize == "none" else resize, "it takes digits as they are")
        return MNIST(device)
    if name.endswith(".onnx"):
        raise UserError(f"features {shown(name)} are unknown; did you mean onnx:{shown(name)}?")
    near = nearest(name, NAMES)
    raise UserError(
        f"features {shown(name)} are unknown; " + (f"did you mean {near}?" if near else f"choose {', '.join(NAMES)}")
    )


def default_features(channels: int, height: int, width: int) -> str:
    """The name of the network that images of this shape are measured with, where none is asked for."""
    digits = channels == 1 and height == width and height in _DIGIT_SIZES
    return "mnist" if digits else "inception"


def _refuse(name: str, option: str, value: object, reason: str) -> None:
    if value is not None:
        raise UserError(f"features {name} take no {option}, for {reason}; leave it out")
