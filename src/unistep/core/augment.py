"""EDM's augmentation of training images, on which the network is conditioned (Karras et al. 2022, appendix F.2).

A network that is conditioned on how each training image was augmented makes, by labels of zeros, images that were not:
the augmentation does not leak into the samples (Jun et al. 2020, "Distribution augmentation for generative
modeling"). The transformations are geometric ones of Karras et al. 2020, "Training generative adversarial networks with
limited data", appendix B, in this order, with p the `probability`, w unit Gaussian unless it is defined otherwise:

    label     number             transformation                                                  applied with
    0         0 or 1             x-flip: left and right change places                            1/2
    1         0 or 1             y-flip: top and bottom change places                            p / 2
    2         w                  scaling by 2^(scale_std w)                                      p
    3, 4      cos w - 1, sin w   rotation by w, uniform in +-pi rotate_max                       p
    5, 6      w cos a, w sin a   scaling by s = 2^(aniso_std w) along an axis, by 1/s across:    p
                                 a uniform in +-pi with aniso_rotate_prob, else 0
    7, 8      w_x, w_y           shift by translate_std (w_x W, w_y H) pixels                    p

A transformation that is not applied has zeros. x grows to the right and y downwards; rotations are counter-clockwise to
the eye, and so is the angle a of the axis, from x. These are the order and the definitions of the published networks
(`map_augment` of 9 numbers), including that x-flips do not depend on p (so the data are not to be flipped elsewhere),
that y-flips come half as often as the others, and that the labels 5 and 6 are the same for (w, a) and (-w, a + pi).

Flips are exact. The rest is one affine map, applied to an image magnified twice by the low-pass filter of the wavelet
sym6 and reduced again by the same filter: the filter is orthonormal, so that nothing is lost where nothing moves.
Around the image lie its reflections, without end. (The published code reflects once, and shows grey beyond.)

The filter overshoots at edges: photographs in [-1, 1] stay within about +-1.2, white strokes on black within +-1.7,
noise of black and white pixels within +-2.1. Nothing is clipped.
"""

import functools
import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from unistep.core.random import ImageRandom

AUGMENT_LABELS = 9

# The scaling filter of the least asymmetric orthogonal wavelet of 6 vanishing moments (Daubechies 1992, table 6.3).
_SYM6 = (
    0.015404109327027373,
    0.0034907120842174702,
    -0.11799011114819057,
    -0.048311742585633,
    0.4910559419267466,
    0.787641141030194,
    0.3379294217276218,
    -0.07263752278646252,
    -0.021060292512300564,
    0.04472490177066578,
    0.0017677118642428036,
    -0.007800708325034148,
)
# Pixel i weighs _SYM6[n - 2 i + _BEFORE] in sample n of the magnified line, and lies at sample 2 i: the centre of
# gravity of the filter, which is not quite symmetric, is at 2 i + 0.1.
_BEFORE = 5


@dataclass(frozen=True)
class AugmentConfig:
    """Probability and strength of the transformations; the defaults are EDM's.

    Args:
        probability: probability of each transformation (EDM: 0.12 for CIFAR-10, 0.15 for FFHQ and AFHQ); 0 is none.
        scale_std: standard deviation of log2 of the scaling.
        rotate_max: largest rotation, in half turns.
        aniso_std: standard deviation of log2 of the anisotropic scaling.
        aniso_rotate_prob: probability that the axis of the anisotropic scaling is a random one and not x.
        translate_std: standard deviation of the shift, in sides of the image.

    Raises:
        ValueError: a value out of range.
    """

    probability: float = 0.0
    scale_std: float = 0.2
    rotate_max: float = 1.0
    aniso_std: float = 0.2
    aniso_rotate_prob: float = 0.5
    translate_std: float = 0.125

    def __post_init__(self) -> None:
        for name in ("probability", "rotate_max", "aniso_rotate_prob"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} {getattr(self, name)} is outside [0, 1]")
        for name in ("scale_std", "aniso_std", "translate_std"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise ValueError(f"{name} {getattr(self, name)} must be finite and not negative")


@dataclass(frozen=True)
class Transforms:
    """One transformation an image, in the numbers of the labels; zeros leave an image as it is.

    Args:
        x_flip, y_flip: whether the image is mirrored.
        scale: w of the scaling.
        rotation: angle in radians.
        aniso, axis: w of the anisotropic scaling, and the angle of its axis in radians.
        shift: (w_x, w_y).
    """

    x_flip: Bool[Tensor, " B"]
    y_flip: Bool[Tensor, " B"]
    scale: Float[Tensor, " B"]
    rotation: Float[Tensor, " B"]
    aniso: Float[Tensor, " B"]
    axis: Float[Tensor, " B"]
    shift: Float[Tensor, "B 2"]

    def labels(self) -> Float[Tensor, "B 9"]:
        """The labels that the network is conditioned on."""
        return torch.stack(
            [
                self.x_flip.to(self.scale.dtype),
                self.y_flip.to(self.scale.dtype),
                self.scale,
                self.rotation.cos() - 1,
                self.rotation.sin(),
                self.aniso * self.axis.cos(),
                self.aniso * self.axis.sin(),
                *self.shift.unbind(1),
            ],
            dim=1,
        )

    def inverse(self, config: AugmentConfig, height: int, width: int) -> Float[Tensor, "B 2 3"]:
        """The affine map from a place (x, y) in the result to the place in the flipped image that it shows.

        Args:
            config: strength of the transformations.
            height, width: size of the images in pixels.

        Returns:
            One map an image, between places in pixels from the centre of the image.
        """
        scale, aniso = (config.scale_std * self.scale).exp2(), (config.aniso_std * self.aniso).exp2()
        shift = self.shift * self.shift.new_tensor([config.translate_std * width, config.translate_std * height])
        squeeze = torch.diag_embed(torch.stack([1 / aniso, aniso], 1))
        # The image is scaled, rotated, stretched and shifted; the inverse undoes that from the last to the first.
        with _full_precision(shift.device):
            linear = _rotation(self.rotation) @ _rotation(-self.axis) @ squeeze @ _rotation(self.axis)
            linear = linear / scale[:, None, None]
            return torch.cat([linear, -linear @ shift[:, :, None]], dim=2)

    def moves(self) -> Bool[Tensor, " B"]:
        """Returns whether an image is transformed beyond flips."""
        return (torch.stack([self.scale, self.rotation, self.aniso, *self.shift.unbind(1)]) != 0).any(0)


def draw_transforms(config: AugmentConfig, random: ImageRandom) -> Transforms:
    """Draws random transformations, by 9 uniform and 4 Gaussian numbers an image in any case."""
    p, uniform, normal = config.probability, random.rand(9), random.randn(4)
    coin_x, coin_y, angle, axis, has_axis, *applied = uniform.unbind(1)
    scales, rotates, stretches, shifts = (gate < p for gate in applied)
    return Transforms(
        x_flip=coin_x < 0.5,
        y_flip=coin_y < 0.5 * p,
        scale=normal[:, 0] * scales,
        rotation=(2 * angle - 1) * (math.pi * config.rotate_max) * rotates,
        aniso=normal[:, 1] * stretches,
        axis=(2 * axis - 1) * math.pi * (has_axis < config.aniso_rotate_prob),
        shift=normal[:, 2:] * shifts[:, None],
    )


@torch.no_grad()
def augment(
    x: Float[Tensor, "B C H W"], config: AugmentConfig, random: ImageRandom
) -> tuple[Float[Tensor, "B C H W"], Float[Tensor, "B 9"]]:
    """Transforms images at random.

    Args:
        x: images; they are not changed.
        config: probability and strength; with probability 0 nothing is drawn and `x` itself is returned.
        random: random stream of each image; no image depends on the others of its batch.

    Returns:
        The images, in the dtype of `x`, and the labels that the network is conditioned on, in fp32, on the device of
        `x`.
    """
    if config.probability == 0:
        return x, torch.zeros(len(x), AUGMENT_LABELS, device=x.device)
    transforms = draw_transforms(config, random)
    return apply(x, transforms, config), transforms.labels().to(x.device)


@torch.no_grad()
def apply(x: Float[Tensor, "B C H W"], transforms: Transforms, config: AugmentConfig) -> Float[Tensor, "B C H W"]:
    """Transforms images; flips alone are exact to the last bit.

    Args:
        x: images.
        transforms: transformation of each image.
        config: strength of the transformations.
    """
    x_flip, y_flip = (flip.to(x.device)[:, None, None, None] for flip in (transforms.x_flip, transforms.y_flip))
    x = torch.where(x_flip, x.flip(3), x)
    x = torch.where(y_flip, x.flip(2), x)
    moved = transforms.moves().nonzero().flatten()
    if len(moved):
        inverse = transforms.inverse(config, *x.shape[2:])[moved].to(x.device)
        moved = moved.to(x.device)
        x[moved] = warp(x[moved], inverse)
    return x


@torch.no_grad()
def warp(x: Float[Tensor, "B C H W"], inverse: Float[Tensor, "B 2 3"]) -> Float[Tensor, "B C H W"]:
    """Maps images by affine maps.

    Args:
        x: images.
        inverse: inverse of each map, as `Transforms.inverse` returns it.
    """
    height, width = x.shape[2:]
    up_y, down_y = _filters(height, x.device)
    up_x, down_x = _filters(width, x.device)
    with _full_precision(x.device):
        period = up_y @ x.float() @ up_x.T
        places = _places(inverse.float(), height, width)
        moved = functional.grid_sample(period, places, padding_mode="border", align_corners=True)
        return (down_y @ moved @ down_x.T).to(x.dtype)


def _full_precision(device: torch.device) -> torch.autocast:
    """Switches mixed precision off, which would round the training images."""
    return torch.autocast(device.type, enabled=False)


def _rotation(angle: Tensor) -> Tensor:
    """[B] -> [B, 2, 2]"""
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([torch.stack([cos, -sin], 1), torch.stack([sin, cos], 1)], 1)


def _places(inverse: Tensor, height: int, width: int) -> Tensor:
    """Places in the magnified period of the samples of the magnified result, in `grid_sample`'s units of [-1, 1]."""

    def samples(size: int) -> Tensor:
        n = torch.arange(-_BEFORE, 2 * size + len(_SYM6) - _BEFORE - 2, device=inverse.device)
        return n / 2 - (size - 1) / 2

    def fold(pixel: Tensor, size: int) -> Tensor:
        period = _period(size)
        return (pixel + (size - 1) / 2).remainder(period) * (2 / period) - 1

    x, y = samples(width)[None, None, :], samples(height)[None, :, None]
    source_x, source_y = (
        row[:, 0, None] * x + row[:, 1, None] * y + row[:, 2, None] for row in inverse[..., None].unbind(1)
    )
    return torch.stack([fold(source_x, width), fold(source_y, height)], dim=-1)


def _period(size: int) -> int:
    """Period in pixels of a line with its reflections, which do not repeat its ends."""
    return max(2 * size - 2, 1)


@functools.lru_cache(maxsize=32)
def _filters(size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Magnification and reduction of a line of `size` pixels as matrices: [2 period + 1, size], [size, 2 size + 10].

    The first makes one period of the line and its reflections, and the first sample of the next. The second
    takes as many samples before and after the magnified line as the filter reaches.
    """
    taps, period = torch.tensor(_SYM6, dtype=torch.float64), _period(size)
    up = torch.zeros(2 * period + 1, size, dtype=torch.float64)
    for n in range(len(up)):
        for k in range((n + _BEFORE) % 2, len(_SYM6), 2):
            pixel = (n + _BEFORE - k) // 2 % period
            up[n, min(pixel, period - pixel)] += taps[k] * math.sqrt(2)
    down = torch.zeros(size, 2 * size + len(_SYM6) - 2, dtype=torch.float64)
    for j in range(size):
        down[j, 2 * j : 2 * j + len(_SYM6)] = taps / math.sqrt(2)
    return up.float().to(device), down.float().to(device)
