"""Explicit randomness: every image has its own generator.

Image `index` of a run seeded with `seed` draws from `torch.Generator` number `image_seed(seed, index)` and from no
other, so what it draws does not depend on the batch it is in, on the number of processes or on the device count.
(CPU and GPU generators are different algorithms: the same seed gives different numbers on the two.)
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor

_MASK32 = (1 << 32) - 1
_MASK64 = (1 << 64) - 1


def _mix64(value: int) -> int:
    """The splitmix64 step (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators")."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK64
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK64
    return value ^ (value >> 31)


def _mix32(value: int) -> int:
    """A bijection of 32-bit integers (the finalizer of MurmurHash3)."""
    value = ((value ^ (value >> 16)) * 0x85EBCA6B) & _MASK32
    value = ((value ^ (value >> 13)) * 0xC2B2AE35) & _MASK32
    return value ^ (value >> 16)


def image_seed(seed: int, index: int) -> int:
    """The generator seed of image `index` in a run seeded with `seed`: 63 bits, the same for ever.

    Any integers are accepted (they are taken modulo 2**64). For one `seed`, no two indices below 2**32 share a
    seed, nor even its low 32 bits: torch's CPU generator reads no more than those, and hashed freely they would
    give two of 50,000 images the same noise in one run of four.
    """
    key = _mix64(seed & _MASK64)
    low = _mix32(_mix32((index ^ key) & _MASK32) ^ (key >> 32))
    high = _mix64(key ^ (index & _MASK64)) >> 33
    return high << 32 | low


class ImageRandom:
    """One independent generator per image of a batch; row i of every draw comes from generator i alone.

    Args:
        seeds: one seed per image, each in [0, 2**64); `image_seed` makes good ones.
        device: where the numbers are drawn and returned.
    """

    def __init__(self, seeds: Sequence[int], device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self.generators = [torch.Generator(self.device).manual_seed(seed) for seed in seeds]

    def __len__(self) -> int:
        return len(self.generators)

    def randn(self, *shape: int) -> Float[Tensor, "B ..."]:
        """Unit Gaussian noise, fp32, of shape [B, *shape]."""
        draws = [torch.randn(shape, generator=g, device=self.device, dtype=torch.float32) for g in self.generators]
        return torch.stack(draws) if draws else torch.empty((0, *shape), device=self.device)

    def rand(self, *shape: int) -> Float[Tensor, "B ..."]:
        """Uniform numbers in [0, 1), fp32, of shape [B, *shape]."""
        draws = [torch.rand(shape, generator=g, device=self.device, dtype=torch.float32) for g in self.generators]
        return torch.stack(draws) if draws else torch.empty((0, *shape), device=self.device)

    def randint(self, high: int) -> Int64[Tensor, " B"]:
        """One integer per image, uniform in [0, high)."""
        draws = [torch.randint(high, (), generator=g, device=self.device) for g in self.generators]
        return torch.stack(draws) if draws else torch.empty(0, device=self.device, dtype=torch.int64)
