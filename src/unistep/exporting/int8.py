"""Programs in int8: which of their operations are, and which stay in floats.

A format's quantizer is calibrated on images of the model's own. Every operation is then tried alone in int8, and those
whose error is the largest stay in floats, one after the other, until other images agree with those of fp32 as asked.
None of these images is among those by which the program is compared later.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from unistep.engines.engine import Engine
from unistep.errors import UserError
from unistep.exporting.cases import Cases
from unistep.exporting.compare import difference
from unistep.exporting.programs import DenoiserProgram, Program, evaluations
from unistep.formats.model import ModelInfo
from unistep.prepared.sensitivity import fewest, most_sensitive

LEAST = 40.0
"""Ratio in dB to fp32, at every noise level, that operations are left in floats for."""
MOST_EVALUATIONS = 4
"""Evaluations of the network in a program that is quantized: each has operations of its own to try."""

_LEVELS, _LOWEST = 7, 0.05  # below, the output is nearly the input
_CALIBRATE, _TRY, _CHOOSE = 1, 2, 3  # seeds; comparisons and distances use 0
_EACH = {_CALIBRATE: 16, _TRY: 2, _CHOOSE: 8}  # images a level
_NUMBERS = 1 << 20  # of images that are calibrated with


@runtime_checkable
class Quantizer(Protocol):
    """A program that has been calibrated, in its format."""

    operations: Sequence[str]
    """Names of the operations that can be in int8."""

    def engine(self, kept: Sequence[str]) -> Engine:
        """Returns the program with all operations but `kept` in int8."""
        ...

    def write(self, kept: Sequence[str], path: Path, metadata: dict[str, Any]) -> tuple[Path, ...]:
        """Writes that program, and returns the files."""
        ...


@dataclass(frozen=True)
class Calibration:
    """Everything that a format needs to write a program in int8.

    Args:
        reference: program over the model in fp32.
        info: noise range of the model.
        on_done: callback with the numbers of operations that are tried, and of all.
    """

    reference: Program
    info: ModelInfo
    on_done: Callable[[int, int], None] = lambda done, count: None

    def inputs(self) -> list[tuple[Tensor, ...]]:
        """Returns inputs to calibrate with, of all noise levels: a batch each."""
        return [inputs for _, inputs in self._levels(_CALIBRATE)]

    def choose(self, quantizer: Quantizer) -> list[str]:
        """Returns the operations that are to stay in floats.

        Args:
            quantizer: calibrated program.

        Raises:
            UserError: not even a program without int8 agrees as asked.
        """
        tried, held = self._expected(_TRY), self._expected(_CHOOSE)

        def least(kept: Sequence[str], cases: Sequence[tuple[tuple[Tensor, ...], Tensor]]) -> float:
            engine = quantizer.engine(kept)
            return min(psnr(engine, *case) for case in cases)

        names = most_sensitive(quantizer.operations, lambda kept: -least(kept, tried), self.on_done)
        count = fewest(names, lambda kept: least(kept, held) >= LEAST)
        if count == len(names):
            raise UserError(
                f"no operation of this model can be in int8 at {LEAST:g} dB to fp32", "give `dtype` fp16 or fp32"
            )
        return names[:count]

    def _levels(self, seed: int) -> list[tuple[float | None, tuple[Tensor, ...]]]:
        """A batch of inputs for every noise level; of programs that begin at noise, as many batches."""
        sigmas: list[float | None] = [None] * _LEVELS
        if isinstance(self.reference, DenoiserProgram):
            low = max(self.info.sigma_min, _LOWEST)
            sigmas = list(torch.logspace(math.log10(self.info.sigma_max), math.log10(low), _LEVELS).tolist())
        if seed == _TRY:
            sigmas = sigmas[:: _LEVELS // 2]
        cases = Cases(self.reference, self.info, [1], seed)
        most = max(2, _NUMBERS // (_LEVELS * math.prod(self.reference.shape)))
        return [(sigma, cases.inputs(min(_EACH[seed], most), sigma)) for sigma in sigmas]

    @torch.no_grad()
    def _expected(self, seed: int) -> list[tuple[tuple[Tensor, ...], Tensor]]:
        return [(inputs, self.reference(*inputs)) for _, inputs in self._levels(seed)]


def psnr(engine: Engine, inputs: tuple[Tensor, ...], expected: Tensor) -> float:
    """Returns the ratio in dB of an engine's images to those that are expected."""
    return difference(expected, engine(*inputs))[1]


def check_evaluations(program: Program) -> None:
    """Refuses programs that hold the network too often to be quantized.

    Raises:
        UserError: it is one.
    """
    if evaluations(program) > MOST_EVALUATIONS:
        raise UserError(
            f"a program of {evaluations(program)} network evaluations is not quantized; at most {MOST_EVALUATIONS} are",
            "give `dtype` fp16, or export the denoiser",
        )
