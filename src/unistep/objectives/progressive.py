"""Progressive distillation (Salimans & Ho 2022, arXiv 2202.00512), in the noise levels of the consistency-model code.

A student of N steps learns to make in one Euler step what its teacher makes in two. On the Karras grid let
t, t', t'' be the levels at i/N, (i + 1/2)/N and (i + 1)/N of the way from sigma_max to sigma_min. Then

    x_t'  = x_t  + (t'  - t ) (x_t  - D(x_t,  t )) / t
    x_t'' = x_t' + (t'' - t') (x_t' - D(x_t', t')) / t'
    target x = x_t - t (x_t'' - x_t) / (t'' - t),      L = w(t) mean((D_student(x_t, t) - x)^2)

where the target is the clean image whose single Euler step from t to t'' lands on x_t''. A run is a chain of phases
with N, N/2, ... 1: at the end of each the student becomes the teacher, and optimizer and averages begin afresh. The
phases of N = 2 and N = 1, the hardest, are twice as long.

The student is a diffusion model, sampled by N Euler steps from sigma_max to sigma_min (`samplers/progressive.py`).
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from unistep.core.denoiser import Denoiser
from unistep.core.distance import l2
from unistep.core.noise import karras_sigma
from unistep.core.parameterization import expand
from unistep.core.random import ImageRandom
from unistep.core.weighting import WEIGHTINGS, WeightingName
from unistep.errors import UserError
from unistep.objectives.protocol import MethodConfig, ObjectiveInputs, PlainObjective, Student, dropout_generator
from unistep.objectives.target import copy_target
from unistep.samplers.ode_step import move, slope


@dataclass(frozen=True)
class ProgressiveConfig(MethodConfig):
    """Numbers of progressive distillation.

    Args:
        start_scales: N of the first phase; the first teacher makes 2 N Euler steps.
        end_scales: N of the last phase; `start_scales` is this times a power of two.
        weighting: weight of the squared error as a function of t; "truncated-snr" is the paper's.
        guidance: scale w of classifier-free guidance by the first teacher, which must have a null class; 1 is none.
        sigma_min: smallest noise level, above 0.
        sigma_max: largest noise level.
        rho: exponent of the Karras grid.

    Raises:
        UserError: a value is out of range, or two do not fit each other.
    """

    fixed_length: ClassVar[bool] = True

    start_scales: int = 64
    end_scales: int = 1
    weighting: WeightingName = "truncated-snr"
    guidance: float = 1.0
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    def __post_init__(self) -> None:
        ratio = self.start_scales // max(self.end_scales, 1)
        if self.end_scales < 1 or ratio < 1 or self.end_scales * ratio != self.start_scales or ratio & (ratio - 1):
            raise UserError(
                f"`start_scales` {self.start_scales} must be `end_scales` {self.end_scales} times a power of two"
            )
        if not 0 < self.sigma_min < self.sigma_max:
            raise UserError(f"`sigma_min` {self.sigma_min} must lie above 0 and below `sigma_max` {self.sigma_max}")
        if not self.rho > 0:
            raise UserError(f"{self.rho} must be positive", field="rho")

    def build(self, inputs: ObjectiveInputs) -> "ProgressiveObjective":
        """Makes the objective; the teacher of later phases is a copy of the student.

        Raises:
            ValueError: there is no teacher, or there are too few steps.
        """
        if inputs.teacher is None:
            raise ValueError("progressive distillation needs a teacher")
        target = copy_target(inputs.student)
        return ProgressiveObjective(self, inputs.total_steps, inputs.sigma_data, teacher=inputs.teacher, target=target)

    def model(self) -> dict[str, Any]:
        """A diffusion model that is sampled in `end_scales` Euler steps."""
        return {
            "kind": "diffusion",
            "sigma_min": self.sigma_min,
            "sigma_max": self.sigma_max,
            "rho": self.rho,
            "solver": "progressive",
            "steps": self.end_scales,
        }

    @property
    def needs_teacher(self) -> bool:
        """True: the loss has no other target."""
        return True

    def check_steps(self, total_steps: int) -> None:
        """Refuses fewer steps than there are phases, counting the last two twice.

        Raises:
            UserError: too few steps.
        """
        self.phases(total_steps)

    def phases(self, total_steps: int) -> list[tuple[int, int, int]]:
        """(N, first step, step after the last) of every phase of a run.

        Raises:
            UserError: too few steps.
        """
        count = (self.start_scales // self.end_scales).bit_length()
        scales = [self.start_scales >> i for i in range(count)]
        shares = [2 if n <= 2 else 1 for n in scales]
        if total_steps < sum(shares):
            raise UserError(f"`steps` {total_steps} are too few for {count} phases; give at least {sum(shares)}")
        ends = [total_steps * sum(shares[: i + 1]) // sum(shares) for i in range(count)]
        return list(zip(scales, [0, *ends[:-1]], ends, strict=True))


class ProgressiveObjective(PlainObjective):
    """Squared error to the clean image whose single Euler step lands where two of the teacher do.

    Args:
        config: phases and weights.
        total_steps: length of all phases together, in steps.
        sigma_data: standard deviation of the data, for the weightings.
        teacher: diffusion denoiser of the first phase.
        target: copy of the student, which becomes the teacher of the later phases; see `copy_target`.

    Raises:
        UserError: too few steps.
    """

    def __init__(
        self,
        config: ProgressiveConfig,
        total_steps: int,
        sigma_data: float = 0.5,
        *,
        teacher: Denoiser,
        target: nn.Module,
    ) -> None:
        self.config = config
        self.total_steps = total_steps
        self.sigma_data = sigma_data
        self.phases = config.phases(total_steps)
        self.teacher = teacher
        self.first_teacher: Denoiser | None = teacher
        self.target = target.eval()

    def loss(
        self,
        student: Student,
        x: Float[Tensor, "B C H W"],
        class_labels: Int[Tensor, " B"] | None,
        step: int,
        random: ImageRandom,
        dropout_seed: int | None,
    ) -> Float[Tensor, " B"]:
        """Loss of each image at `step`, with indices and noise drawn from `random`."""
        num_scales = self.num_scales(step)
        index = random.randint(num_scales)
        return self.loss_at(student, x, class_labels, index, num_scales, random.randn(*x.shape[1:]), dropout_seed)

    def loss_at(
        self,
        student: Student,
        x: Float[Tensor, "B C H W"],
        class_labels: Int[Tensor, " B"] | None,
        index: Int[Tensor, " B"],
        num_scales: int,
        unit_noise: Float[Tensor, "B C H W"],
        dropout_seed: int | None = 0,
    ) -> Float[Tensor, " B"]:
        """Loss at given indices 0 .. num_scales - 1 and noise of unit variance."""
        c = self.config
        # Half indices on a grid of 2 N steps are whole ones, so that its ends are sigma_max and sigma_min exactly.
        first = (2 * index).to(torch.promote_types(x.dtype, torch.float32))
        t, t1, t2 = (
            karras_sigma(first + half, 2 * num_scales + 1, c.sigma_min, c.sigma_max, c.rho) for half in range(3)
        )
        x_t = x + expand(t, x.ndim) * unit_noise
        denoised = student(x_t, t, class_labels, generator=dropout_generator(dropout_seed, x))
        with torch.no_grad():
            teacher = self.first_teacher or self.target
            d = slope(x_t, t, teacher(x_t, t, class_labels))
            x_t1 = move(x_t, d, t, t1)
            d1 = slope(x_t1, t1, teacher(x_t1, t1, class_labels))
            # (x_t'' - x_t) / (t'' - t) as the mean of the two slopes: the difference itself would cancel at small t.
            target = move(x_t, d + expand((t2 - t1) / (t2 - t), x.ndim) * (d1 - d), t, torch.zeros_like(t))
        return WEIGHTINGS[c.weighting](t, self.sigma_data) * l2(denoised, target)

    def num_scales(self, step: int) -> int:
        """N at `step`."""
        return self._at(step)[0]

    def phase(self, step: int) -> tuple[int, int]:
        """The steps [start, end) with the N of `step`."""
        return self._at(step)[1:]

    def _at(self, step: int) -> tuple[int, int, int]:
        return next(phase for phase in reversed(self.phases) if step >= phase[1])

    def after_step(self, student: nn.Module, step: int) -> None:
        """Makes the student the teacher where the next step begins a phase."""
        if step + 1 < self.total_steps and self.phase(step + 1)[0] == step + 1:
            self.target.load_state_dict(student.state_dict())
            self.first_teacher = None

    def phase_model(self, step: int) -> tuple[str, dict[str, Any]]:
        """The model that is sampled in N steps."""
        num_scales = self.num_scales(step)
        return f"{num_scales}-steps", {"steps": num_scales}

    def networks(self) -> dict[str, nn.Module]:
        """The teacher of the later phases."""
        return {"target": self.target}

    def scalars(self, step: int) -> dict[str, float]:
        """N at `step`."""
        return {"num_scales": float(self.num_scales(step))}

    def state_dict(self) -> dict[str, Tensor]:
        """The teacher's weights, from the second phase on."""
        return {} if self.first_teacher is not None else dict(self.target.state_dict())

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restores the teacher; that of the first phase has no weights here."""
        if state:
            self.target.load_state_dict(state)
        self.first_teacher = None if state else self.teacher
