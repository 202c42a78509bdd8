"""The comparison of an exported program with PyTorch, before it is handed over.

Batches of several sizes, among them 1, on which careless traces specialise; low, middle and high noise; and every class
in turn. The reference is the model in fp32.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unistep.engines.engine import Engine
from unistep.exporting.cases import MOST_CLASSES, Cases
from unistep.exporting.programs import DenoiserProgram, Program
from unistep.formats.model import ModelInfo

_BEST = 120.0  # dB; of equal values


@dataclass(frozen=True)
class Bound:
    """The difference from fp32 that a precision may have.

    Args:
        error: largest difference of a value, in units of [-1, 1]; of pixels one level more. None is any.
        psnr: least peak signal-to-noise ratio in dB.
    """

    error: float | None
    psnr: float


BOUNDS = {"fp32": Bound(1e-3, 60.0), "fp16": Bound(None, 40.0), "int8": Bound(None, 35.0)}
"""Bounds by precision."""


@dataclass(frozen=True)
class Comparison:
    """The difference of a program from the model in fp32 for one batch.

    Args:
        batch: number of images.
        noise: low, middle or high; empty for programs that begin at noise.
        sigma: noise level; None for such programs.
        error: largest difference, in units of [-1, 1].
        psnr: peak signal-to-noise ratio of all images in dB, at most 120.
        differing: share of pixels that differ; None where values are not pixels.
        within: whether the difference is within the bound.
    """

    batch: int
    noise: str
    sigma: float | None
    error: float
    psnr: float
    differing: float | None
    within: bool


def compare(
    reference: Program,
    engine: Engine,
    info: ModelInfo,
    *,
    dtype: str = "fp32",
    batches: Sequence[int] = (1, 2, 5, 16),
    on_done: Callable[[int], None] | None = None,
) -> tuple[Comparison, ...]:
    """Compares a program in another runtime with the same in PyTorch.

    Args:
        reference: program over the model in fp32.
        engine: program in the other runtime.
        info: noise range of the model.
        dtype: precision of the weights: fp32, fp16 or int8.
        batches: sizes of batches.
        on_done: callback with the number of batches that are done.
    """
    cases = Cases(reference, info, batches)
    found = []
    with torch.no_grad():
        for batch, noise, sigma, inputs in cases:
            expected, got = reference(*inputs), engine(*inputs)
            found.append(_compared(expected, got, batch, noise, sigma, BOUNDS[dtype]))
            if on_done:
                on_done(len(found))
    return tuple(found)


def count_cases(reference: Program, batches: Sequence[int]) -> int:
    """Returns the number of comparisons that `compare` makes."""
    levels = 3 if isinstance(reference, DenoiserProgram) else 1
    left, largest = min(reference.num_classes, MOST_CLASSES) - sum(batches), max(batches)
    return levels * len(batches) + max(0, math.ceil(left / largest))


def difference(expected: Tensor, got: Tensor) -> tuple[float, float, float]:
    """Returns the largest error in units of [-1, 1], the peak signal-to-noise ratio in dB, and the peak.

    Args:
        expected: images of the model in fp32, floats or pixels.
        got: images of the same shape and dtype.
    """
    pixels = expected.dtype == torch.uint8
    unit = 1 / 127.5 if pixels else 1.0
    apart = (expected.double() - got.double()) * unit
    error, mse = float(apart.abs().max()), float(apart.square().mean())
    # Peak to peak is 2; of outputs beyond [-1, 1] as much more.
    peak = 2 * max(1.0, float((expected.double() * unit - (1 if pixels else 0)).abs().max()))
    psnr = _BEST if mse == 0 else min(_BEST, 10 * math.log10(peak**2 / mse)) if math.isfinite(mse) else 0.0
    return error, psnr, peak


def _compared(expected: Tensor, got: Tensor, batch: int, noise: str, sigma: float | None, bound: Bound) -> Comparison:
    if got.shape != expected.shape or got.dtype != expected.dtype:
        return Comparison(batch, noise, sigma, math.inf, 0.0, None, within=False)
    pixels = expected.dtype == torch.uint8
    error, psnr, peak = difference(expected, got)
    allowed = math.inf if bound.error is None else bound.error * peak / 2 + (1.001 / 127.5 if pixels else 0)
    return Comparison(
        batch,
        noise,
        sigma,
        error,
        psnr,
        float((expected != got).double().mean()) if pixels else None,
        within=error <= allowed and psnr >= bound.psnr,
    )
