"""Edits that keep a measurement: algorithm 4 of Song et al. 2023, generalised to any operator, then settling."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from unistep.core.denoiser import Denoiser
from unistep.core.pixels import to_uint8
from unistep.editing.methods.protocol import Made
from unistep.editing.methods.settle import settle
from unistep.editing.methods.zero_shot import Edited, start, zero_shot
from unistep.editing.operators.operator import EXACT, Operator, agree_in_range
from unistep.samplers.noise_source import NoiseSource, draw


class MeasurementEdit:
    """Keeps the part of images that an operator measures, and makes the rest; a `Method`.

    Args:
        operators: operator of every image; images of the same operator object share batches.
        y: measurement [1, ...] of every image.
        levels: noise levels, descending.
        sigma_min: level at which the model's trajectories end.
        tolerance: largest distance of a result from its measurement, see `agree_in_range`.
        settle_sigmas: noise levels of evaluations without noise, descending, see `unistep.editing.methods.settle`.
    """

    def __init__(
        self,
        operators: Sequence[Operator],
        y: Sequence[Tensor],
        levels: Sequence[float],
        sigma_min: float,
        tolerance: float = EXACT,
        settle_sigmas: Sequence[float] = (),
    ) -> None:
        self.operators, self.y, self.levels, self.sigma_min = operators, y, levels, sigma_min
        self.tolerance, self.settle_sigmas = tolerance, settle_sigmas
        self.known = [op.A_pinv(one) for op, one in zip(operators, y, strict=True)]
        channels, height, width = self.known[0].shape[1:]
        self.size = (channels, height, width)
        self.evaluations = len(levels) + len(settle_sigmas)

    def __len__(self) -> int:
        return len(self.y)

    def group(self, index: int) -> int:
        return id(self.operators[index])

    def run(self, denoiser: Denoiser, rows: Sequence[int], labels: Tensor | None, random: NoiseSource) -> Made:
        edited = self._edited(denoiser, rows, labels, random, self.levels)
        if not self.settle_sigmas:
            return Made(edited.x, edited.residual)
        operator, y = self._measurements(rows)
        x = settle(denoiser, operator, y, edited.x, self.settle_sigmas, labels, tolerance=self.tolerance)
        return Made(x, edited.residual)

    def finish(self, row: int, x: Float[Tensor, "1 C H W"]) -> Float[Tensor, "1 C H W"]:
        return agree_in_range(self.operators[row], x, self.y[row], self.tolerance)

    def class_residuals(
        self, denoiser: Denoiser, rows: Sequence[int], labels: Tensor, random: NoiseSource, sigmas: Sequence[float]
    ) -> Float[Tensor, "L B"]:
        # By an edit: one of the wrong class ends far from the measurement.
        return self._edited(denoiser, rows, labels, random, sigmas).residuals

    def _edited(
        self,
        denoiser: Denoiser,
        rows: Sequence[int],
        labels: Tensor | None,
        random: NoiseSource,
        sigmas: Sequence[float],
    ) -> Edited:
        operator, y = self._measurements(rows)
        x_T = start(operator, y, draw(random, torch.cat([self.known[i] for i in rows])), sigmas[0])
        return zero_shot(denoiser, operator, y, x_T, sigmas, labels, random=random, sigma_min=self.sigma_min)

    def _measurements(self, rows: Sequence[int]) -> tuple[Operator, Tensor]:
        """Returns the operator of a group, and its measurements."""
        return self.operators[rows[0]], torch.cat([self.y[i] for i in rows])

    def measurement(self) -> UInt8[Tensor, "N C H W"]:
        return to_uint8(torch.cat(self.known)).cpu()
