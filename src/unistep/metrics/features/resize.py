"""Methods that bring images to the size of a feature network's input; numbers depend on them (Parmar et al. 2022).

    legacy-tensorflow   TensorFlow 1's `resize_bilinear`, that of the published FIDs
    clean               Pillow's bicubic filter on float32 channels, clamped and not rounded: that of clean-FID
    none                images that have the size already

The first takes output pixel i from the source at s = i * in / out, in float32: no half-pixel centres, no filter before
it makes an image smaller. With l = floor(s) and u = min(ceil(s), in - 1),

    x[l] + (x[u] - x[l]) * (s - l),

along rows, then along columns. The second widens its filter where it makes an image smaller (Parmar, Zhang and Zhu
2022, "On Aliased Resizing and Surprising Subtleties in GAN Evaluation", arXiv 2104.11222); its bicubic has a = -1/2 and
overshoots at edges, where it is clamped to [0, 255], as the released clean-FID does.
"""

import functools
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from PIL import Image
from torch import Tensor

from unistep.errors import UserError
from unistep.metrics.features.info import Resize


def legacy_tensorflow(images: UInt8[Tensor, "B C H W"], size: int) -> Float32[Tensor, "B C S S"]:
    """Resizes by TensorFlow 1's bilinear filter, bit for bit; values in [0, 255].

    Args:
        images: images on any device.
        size: side of the result in pixels.
    """
    x = images.float()
    if x.shape[2:] == (size, size):
        return x
    for dim in (3, 2):
        lower, upper, fraction = _sources(x.shape[dim], size, x.device)
        left, right = x.index_select(dim, lower), x.index_select(dim, upper)
        # One operation at a time: a fused one rounds once where TensorFlow rounds twice.
        x = left + (right - left) * (fraction if dim == 3 else fraction[:, None])
    return x


def clean(images: UInt8[Tensor, "B C H W"], size: int) -> Float32[Tensor, "B C S S"]:
    """Resizes by Pillow's bicubic filter, every channel as an image of floats; values in [0, 255].

    On an accelerator the filter is a product of matrices, which agrees with Pillow's to 1e-3: the CPU would keep the
    device waiting.

    Args:
        images: images on any device.
        size: side of the result in pixels.
    """
    if images.device.type != "cpu":
        # Apple's GPUs have no float64.
        return filtered(images, size, torch.float32 if images.device.type == "mps" else torch.float64)
    channels = images.flatten(0, 1).numpy().astype(np.float32)
    resized = np.empty((len(channels), size, size), np.float32)
    for target, channel in zip(resized, channels, strict=True):
        target[:] = np.asarray(Image.fromarray(channel).resize((size, size), Image.Resampling.BICUBIC))
    resized.clip(0, 255, out=resized)
    return torch.from_numpy(resized).unflatten(0, images.shape[:2])


def filtered(images: UInt8[Tensor, "B C H W"], size: int, dtype: torch.dtype) -> Float32[Tensor, "B C S S"]:
    """Resizes as `clean` by two products with the filter's matrices, on the images' device; values in [0, 255].

    Args:
        images: images on any device.
        size: side of the result in pixels.
        dtype: precision of the products.
    """
    down, across = (_bicubic(length, size).to(images.device, dtype) for length in images.shape[2:])
    return (down @ (images.to(dtype) @ across.T)).float().clamp_(0, 255)


@functools.lru_cache(maxsize=8)
def _bicubic(before: int, after: int) -> Float32[Tensor, "S L"]:
    """The matrix of Pillow's bicubic filter along one axis: what it makes of every single pixel."""
    rows = Image.fromarray(np.eye(before, dtype=np.float32)).resize((after, before), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.asarray(rows).T.copy())


def none(images: UInt8[Tensor, "B C H W"], size: int) -> Float32[Tensor, "B C S S"]:
    """Returns the images as floats in [0, 255].

    Args:
        images: images of `size` pixels, on any device.
        size: side of the result in pixels.

    Raises:
        UserError: they are of another size.
    """
    if images.shape[2:] != (size, size):
        height, width = images.shape[2:]
        raise UserError(
            f"the images have {height}x{width} pixels and the feature network takes {size}x{size} without a resize; "
            "choose `resize` clean or legacy-tensorflow"
        )
    return images.float()


RESIZES: dict[Resize, Callable[[Tensor, int], Tensor]] = {
    "legacy-tensorflow": legacy_tensorflow,
    "clean": clean,
    "none": none,
}


def check_resize(name: str) -> Resize:
    """Returns the name of a resize.

    Raises:
        UserError: there is none of that name.
    """
    for known in RESIZES:
        if name == known:
            return known
    raise UserError(f"`resize` {name!r} is unknown; choose {', '.join(RESIZES)}")


def _sources(before: int, after: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """The two source indices of every output index, and how far it is from the first to the second, in float32."""
    scale = torch.tensor(before, dtype=torch.float32) / torch.tensor(after, dtype=torch.float32)
    source = torch.arange(after, dtype=torch.float32) * scale
    lower = source.floor()
    upper = source.ceil().clamp(max=before - 1)
    return lower.long().to(device), upper.long().to(device), (source - lower).to(device)
