"""Explicit randomness: a generator for each image, and named streams of a run's seed.

Image `index` of a run seeded with `seed` draws from `torch.Generator` number `image_seed(seed, index)` and from no
other, so its numbers depend neither on the batch it is in nor on the number of processes or devices.
(CPU and GPU generators are different algorithms: the same seed gives different numbers on the two.)

Numbers that must not repeat the image's noise (its class, the noise of a degraded input, ...) come from another stream
of the same seed. Hashes and seeds are those of SplitMix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom
number generators"), integer arithmetic that gives the same numbers in every version of numpy and PyTorch.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int64
from numpy.typing import NDArray
from torch import Tensor

IMAGES = 0
"""Stream of the noise that images are made from."""
LABELS = 0x1ABE1
"""Stream of classes that are drawn."""
DEGRADE = 0xDE6
"""Stream of the noise that `degrade` adds to the input of denoising."""
BASIS = 0xBA515
"""Stream of random masks and bases of measurements."""
GUESS = 0x6E55
"""Stream of the noise by which classes are guessed."""
ORDER = 0x6F72646572
"""Stream of the order of training images ("order" in ASCII)."""
FLIP = 0x666C6970
"""Stream of mirrored training images ("flip" in ASCII)."""

_GAMMA = 0x9E3779B97F4A7C15
_MASK32 = (1 << 32) - 1
_MASK64 = (1 << 64) - 1


def _mix64(value: int) -> int:
    """SplitMix64's output function, a bijection of the 64-bit integers; `_mix64_array` is the same elementwise."""
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK64
    return value ^ (value >> 31)


def _mix64_array(value: NDArray[np.uint64]) -> NDArray[np.uint64]:
    # uint64 arrays wrap around by themselves; Python's integers would make some numpy versions go to float64.
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def hashes(key: Sequence[int], counters: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """One 64-bit hash for each counter under a key.

    Args:
        key: integers, such as a stream and a seed.
        counters: numbers of the hashes.
    """
    state = 0
    for word in key:
        state = _mix64((state + (word + 1) * _GAMMA) & _MASK64)
    return _mix64_array(np.uint64(state) + (counters + np.uint64(1)) * np.uint64(_GAMMA))


def _mix32(value: int) -> int:
    """A bijection of 32-bit integers (the finalizer of MurmurHash3)."""
    value = ((value ^ (value >> 16)) * 0x85EBCA6B) & _MASK32
    value = ((value ^ (value >> 13)) * 0xC2B2AE35) & _MASK32
    return value ^ (value >> 16)


def image_seed(seed: int, index: int, stream: int = IMAGES) -> int:
    """The generator seed of image `index` in a run seeded with `seed`: 63 bits, which never change.

    For one `seed`, no two indices below 2**32 share a seed, nor even its low 32 bits: torch's CPU generator reads no
    more than those, and hashed freely they would give two of 50,000 images the same noise in one run of four.

    Args:
        seed: seed of the run, any integer modulo 2**64.
        index: number of the image in the run, any integer modulo 2**64.
        stream: stream of the seed, a constant of this module.
    """
    key = _mix64(((seed ^ stream) + _GAMMA) & _MASK64)
    low = _mix32(_mix32((index ^ key) & _MASK32) ^ (key >> 32))
    high = _mix64(((key ^ (index & _MASK64)) + _GAMMA) & _MASK64) >> 33
    return high << 32 | low


class ImageRandom:
    """Independent generators, one an image of a batch; row i of every draw comes from generator i alone.

    Args:
        seeds: seed of each image, in [0, 2**64), as `image_seed` makes them.
        device: device on which the numbers are drawn and returned.
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
