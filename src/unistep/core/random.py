"""Explicit randomness: numbers that belong to an image, and named streams of a run's seed.

Number `position` of draw `draw` of image `index` in a run seeded with `seed` is a pure function of these four (and of
the stream). So it depends neither on the batch that the image is in nor on the number of processes, nor on the device:
Philox4x32-10 (`unistep.core.philox`) under the key `image_seed(seed, index)`, its low word first, turns the counter
(floor(position / 4), draw, 0, 0) into four words, of which word position mod 4 is the number's. Normals come in pairs,
of words 0 and 1 and of words 2 and 3. `draw` counts the calls on one `ImageRandom` from 0, whatever they draw.

Numbers that must not repeat the image's noise (its class, the noise of a degraded input, ...) come from another stream
of the same seed. Hashes and seeds are those of SplitMix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom
number generators"), integer arithmetic that gives the same numbers in every version of numpy and PyTorch.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import numpy as np
import torch
from jaxtyping import Float32, Int64
from numpy.typing import NDArray
from torch import Tensor

from unistep.core.philox import integers, normals, philox4x32, uniforms

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
_CHUNK = 1 << 16
"""Blocks of four numbers that a CPU computes at once: their temporary words stay in its caches."""


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


def _mix32_array(value: NDArray[np.uint64]) -> NDArray[np.uint64]:
    value = ((value ^ (value >> np.uint64(16))) * np.uint64(0x85EBCA6B)) & np.uint64(_MASK32)
    value = ((value ^ (value >> np.uint64(13))) * np.uint64(0xC2B2AE35)) & np.uint64(_MASK32)
    return value ^ (value >> np.uint64(16))


def image_seed(seed: int, index: int, stream: int = IMAGES) -> int:
    """The generator seed of image `index` in a run seeded with `seed`: 63 bits, which never change.

    For one `seed`, no two indices below 2**32 share a seed, nor even its low 32 bits.

    Args:
        seed: seed of the run, any integer modulo 2**64.
        index: number of the image in the run, any integer modulo 2**64.
        stream: stream of the seed, a constant of this module.
    """
    key = _mix64(((seed ^ stream) + _GAMMA) & _MASK64)
    low = _mix32(_mix32((index ^ key) & _MASK32) ^ (key >> 32))
    high = _mix64(((key ^ (index & _MASK64)) + _GAMMA) & _MASK64) >> 33
    return high << 32 | low


def image_seeds(seed: int, indices: Sequence[int], stream: int = IMAGES) -> NDArray[np.uint64]:
    """Returns `image_seed` of many images at once, for indices in [0, 2**64)."""
    index = np.asarray(indices, dtype=np.uint64)
    key = np.uint64(_mix64(((seed ^ stream) + _GAMMA) & _MASK64))
    low = _mix32_array(_mix32_array((index ^ key) & np.uint64(_MASK32)) ^ (key >> np.uint64(32)))
    high = _mix64_array((key ^ index) + np.uint64(_GAMMA)) >> np.uint64(33)
    return high << np.uint64(32) | low


def seed_words(seeds: Sequence[int] | NDArray[np.uint64]) -> Int64[Tensor, "2 B"]:
    """Returns the low and the high 32 bits of each seed, the words of a key, on the CPU.

    Args:
        seeds: seeds in [0, 2**64).
    """
    keys = np.asarray(seeds, dtype=np.uint64)
    return torch.from_numpy(np.stack([keys & np.uint64(_MASK32), keys >> np.uint64(32)]).astype(np.int64))


def _words(keys: Tensor, draw: Tensor, position: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The four words of each block; the arguments are those of `draw_normals`."""
    zero = torch.zeros_like(draw)
    return philox4x32((position, draw, zero, zero), (keys[0], keys[1]))


def draw_normals(
    keys: Int64[Tensor, "2 N"], draw: Int64[Tensor, ""], position: Int64[Tensor, " N"]
) -> Float32[Tensor, "N 4"]:
    """Returns the unit normals of some blocks of a draw, four a block.

    Args:
        keys: words of the seed of each block's image.
        draw: number of the draw.
        position: number of each block in its image.
    """
    w = _words(keys, draw, position)
    return torch.stack((*normals(w[0], w[1]), *normals(w[2], w[3])), dim=1)


def draw_uniforms(
    keys: Int64[Tensor, "2 N"], draw: Int64[Tensor, ""], position: Int64[Tensor, " N"]
) -> Float32[Tensor, "N 4"]:
    """Returns the uniform numbers of some blocks of a draw, four a block; the arguments are those of `draw_normals`."""
    return torch.stack([uniforms(one) for one in _words(keys, draw, position)], dim=1)


Kernel = Callable[[Tensor, Tensor, Tensor], Tensor]
KERNELS: Mapping[str, Kernel] = MappingProxyType({"normal": draw_normals, "uniform": draw_uniforms})
"""The functions by which an `ImageRandom` draws, by the kind of number; a compiled one gives the same numbers."""


class ImageRandom:
    """Independent numbers for each image of a batch; row i of every draw depends on seed i and the draw's number alone.

    Args:
        seeds: seed of each image, in [0, 2**64), as `image_seed` makes them; or their words, as `seed_words` does.
        device: device on which the numbers are drawn and returned.
        kernels: functions that draw, as `KERNELS`.
    """

    def __init__(
        self,
        seeds: Sequence[int] | NDArray[np.uint64] | Int64[Tensor, "2 B"],
        device: torch.device | str = "cpu",
        kernels: Mapping[str, Kernel] = KERNELS,
    ) -> None:
        self.device = torch.device(device)
        self._keys = (seeds if isinstance(seeds, Tensor) else seed_words(seeds)).to(self.device)
        self._kernels = kernels
        self._draws = 0

    def __len__(self) -> int:
        return self._keys.shape[1]

    def randn(self, *shape: int) -> Float32[Tensor, "B ..."]:
        """Unit Gaussian noise, fp32, of shape [B, *shape]."""
        return self._draw(shape, self._kernels["normal"])

    def rand(self, *shape: int) -> Float32[Tensor, "B ..."]:
        """Uniform numbers in [0, 1), fp32, of shape [B, *shape]."""
        return self._draw(shape, self._kernels["uniform"])

    def randint(self, high: int) -> Int64[Tensor, " B"]:
        """One integer per image, uniform in [0, high), of which `high` is at most 2**31."""
        if not 1 <= high <= 2**31:
            raise ValueError(f"high must lie between 1 and 2**31, not {high}")

        def draw_integers(keys: Tensor, draw: Tensor, position: Tensor) -> Tensor:
            return torch.stack([integers(one, high) for one in _words(keys, draw, position)], dim=1)

        return self._draw((), draw_integers)

    def _draw(self, shape: tuple[int, ...], kernel: Kernel) -> Tensor:
        """Returns the next draw, computed in chunks that stay in a processor's cache."""
        draw, count, batch = self._draws, math.prod(shape), len(self)
        self._draws += 1
        blocks = -(-count // 4)
        chunk = _CHUNK if self.device.type == "cpu" else max(batch * blocks, 1)
        parts = []
        number = torch.full((), draw, dtype=torch.int64, device=self.device)
        for start in range(0, batch * blocks or 1, chunk):
            # Outside the kernel: a compiler would compute with positions of 32 bits, too few for the products.
            block = torch.arange(start, min(start + chunk, batch * blocks), device=self.device)
            row = block // max(blocks, 1)
            parts.append(kernel(self._keys[:, row], number, block - row * blocks))
        drawn = torch.cat(parts) if len(parts) > 1 else parts[0]
        return drawn.view(batch, 4 * blocks)[:, :count].reshape(batch, *shape)
