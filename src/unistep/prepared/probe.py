"""A prepared network compared with eager, in quality and in time."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from unistep.core.denoiser import Denoiser

_PEAK = 2.0  # of images in [-1, 1]
_EQUAL = 200.0  # dB; said of images without a difference, for JSON has no infinity


@dataclass(frozen=True)
class Probe:
    """Noisy images on which two denoisers are compared.

    Args:
        x_t: noisy images [B, C, H, W].
        sigma: noise level of each.
        class_labels: class of each; None for an unconditional model.
    """

    x_t: Float[Tensor, "B C H W"]
    sigma: Float[Tensor, " B"]
    class_labels: Int64[Tensor, " B"] | None

    @torch.no_grad()
    def images(self, denoiser: Denoiser, batch: int | None = None) -> Float[Tensor, "B C H W"]:
        """Returns the clean images of a denoiser, computed in batches."""
        parts = []
        for start in range(0, len(self.sigma), batch or len(self.sigma)):
            part = slice(start, start + (batch or len(self.sigma)))
            labels = None if self.class_labels is None else self.class_labels[part]
            parts.append(denoiser(self.x_t[part], self.sigma[part], labels))
        return torch.cat(parts)


def make_probe(
    denoiser: Denoiser,
    shape: tuple[int, int, int],
    num_classes: int,
    sigmas: Sequence[float],
    each: int,
    seed: int = 0,
) -> Probe:
    """Makes a probe: images of the model's own, and noise.

    Args:
        denoiser: denoiser or consistency function.
        shape: channels, height, width of an image.
        num_classes: number of classes; 0 for an unconditional model.
        sigmas: noise levels, the highest first.
        each: number of images at every level.
        seed: seed of the noise.
    """
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(each, *shape, generator=generator)
    labels = torch.arange(each) * max(num_classes // each, 1) % num_classes if num_classes else None
    first = Probe(noise * sigmas[0], torch.full((each,), sigmas[0]), labels)
    x0 = first.images(denoiser, batch=1).clamp(-1, 1)
    x_t = torch.cat([x0 + sigma * torch.randn(x0.shape, generator=generator) for sigma in sigmas])
    sigma = torch.tensor(sigmas).repeat_interleave(each)
    return Probe(x_t, sigma, None if labels is None else labels.repeat(len(sigmas)))


def psnr(a: Float[Tensor, "B C H W"], b: Float[Tensor, "B C H W"]) -> float:
    """Returns the peak signal-to-noise ratio in dB between images in [-1, 1]; -200 where one is not finite."""
    error = float((a.double() - b.double()).square().mean())
    if not math.isfinite(error):
        return -_EQUAL
    return min(10 * math.log10(_PEAK**2 / error), _EQUAL) if error else _EQUAL


def psnr_by_level(probe: Probe, reference: Tensor, images: Tensor) -> dict[str, float]:
    """Returns the ratio of `psnr` by noise level."""
    return {
        f"{sigma:g}": round(psnr(reference[probe.sigma == sigma], images[probe.sigma == sigma]), 2)
        for sigma in sorted(set(probe.sigma.tolist()), reverse=True)
    }


def seconds(call: Callable[[], Any], limit: float = 3.0) -> float:
    """Returns the shortest time of up to five calls after a first one, within a limit in seconds."""
    call()
    times: list[float] = []
    began = time.perf_counter()
    while len(times) < 5 and (not times or time.perf_counter() - began < limit):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return min(times)
