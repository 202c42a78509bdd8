"""The consistency objective: one loss with five slots, of which every discrete-time method is a row.

    L = E w(t, r) d( f(x_t, t), f_target(x_r, r) ),   t > r

    pairs    which (t, r): neighbours on the Karras grid of N(k) levels, drawn uniformly or from a discretised
             log-normal, or a log-normal t with r = mapping(t, stage)
    step     from x_t to x_r: the teacher's ODE step (Heun or Euler), the same noise at the lower level, or the same
             noise with less variance
    target   an EMA of the student with rate mu(k), or the student itself without gradient
    distance d
    weight   w

Rows: CD and CT (Song et al. 2023, arXiv 2303.01469, algorithms 2 and 3), iCT (Song & Dhariwal 2023, 2310.14189),
ECT (Geng et al. 2024, 2406.14548), Stable Consistency Tuning (Wang et al. 2024, 2410.18958). `methods.py` holds them.

The same-noise step follows the slope (x_t - x)/t of one image, an estimate of the ODE's (x_t - E[x | x_t])/t whose
variance is that of x given x_t. Stable Consistency Tuning puts in the place of x the mean over the images x_i of the
batch that have the same class, weighted by how likely x_t came from each (the score identity):

    x_r = x_bar + r/t (x_t - x_bar),   x_bar = sum_i w_i x_i,   w_i = softmax_i(-|x_t - x_i|^2 / (2 t^2))

Guidance of scale w (Ho & Salimans 2022) enters the step: a teacher's step follows the guided teacher D_w, and the
same-noise step, which takes the clean image x in place of D, moves by what guidance adds to D:

    x_r = x + r * noise + (1 - r/t) (w - 1) (D(x_t, t, c) - D(x_t, t))

Where r is 0 or below sigma_min the target is the clean image itself: f(x, sigma_min) = x.

With `clip` the loss sees images as they are shown, cut off at -1 and 1: the target is cut off, and a value of the
student that lies beyond the same end as the target has no part in the distance. A model leaves noise on areas that are
black or white; half of it lies within the range, and shows. This loss moves such areas beyond the end, where none does.
"""

import contextlib
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from unistep.core import curriculum, distance, noise
from unistep.core.denoiser import Denoiser
from unistep.core.parameterization import expand
from unistep.core.random import ImageRandom
from unistep.core.weighting import WEIGHTINGS, reciprocal_gap
from unistep.errors import UserError
from unistep.objectives.posterior import posterior_mean
from unistep.objectives.protocol import (
    Distance,
    MethodConfig,
    ObjectiveInputs,
    PlainObjective,
    Student,
    dropout_generator,
)
from unistep.objectives.target import copy_target
from unistep.samplers.guidance import Guided
from unistep.samplers.ode_step import euler_step, heun_step

_SMALL_GAP = 2.0**-10


@dataclass(frozen=True)
class ConsistencyConfig(MethodConfig):
    """The five slots of the consistency objective, and their numbers.

    Args:
        pairs: pairs of noise levels (t, r): neighbours on the Karras grid of N(k) levels, drawn uniformly ("uniform")
            or from a discretised log-normal ("lognormal"), or a log-normal t with r(t) of ECT ("mapping").
        step: step from x_t to x_r: the same noise at the lower level ("same-noise"), the same with less variance
            ("mean-noise"), or a solver's step along the teacher's ODE ("heun", "euler").
        target: network that evaluates x_r: an average of the student ("ema") or the student itself without gradient
            ("stop-gradient").
        distance: distance of student and target: "l1", "l2", "l2-32" (at 32 x 32 pixels), "pseudo-huber" or "lpips".
        weighting: weight of a pair, a function of t, or "1/(t-r)".
        scales: growth of N(k): "fixed", "progressive" (as CT) or "doubling" (as iCT).
        start_scales: N at the first step (s0); with "fixed" scales N of every step.
        end_scales: N at the last step (s1).
        ema_decay: decay mu of the target's average; mu0 with `ema_adaptive`.
        ema_adaptive: whether mu(k) follows N(k), as in CT.
        P_mean: mean of ln(t), for the pairs "lognormal" and "mapping".
        P_std: standard deviation of ln(t).
        q: factor by which each stage divides the relative gap (t - r)/t; for the pairs "mapping", as `k` to
            `tightening`.
        k: height of the term that widens the gap at small t.
        b: steepness of that term.
        adj: "sigmoid" has that term, "const" does not.
        stages: number of times the gap shrinks, at equal intervals of the run.
        tightening: "stages" shrinks the gap at once where a stage begins, "smooth" a little every step.
        huber_c: constant of the distance "pseudo-huber"; null is 0.00054 sqrt(C H W), 0 makes it the Euclidean norm.
        guidance: scale w of classifier-free guidance by the teacher, which must have a null class; 1 is none.
        sigma_min: smallest noise level, where the model is the identity.
        sigma_max: largest noise level.
        rho: exponent of the Karras grid.
        clip: whether the loss sees images cut off at -1 and 1, as they are shown: for black and white areas without
            noise.

    Raises:
        UserError: a value is out of range, or two do not fit each other.
    """

    slots: ClassVar[tuple[str, ...]] = ("pairs", "step", "target", "distance", "weighting", "scales")

    pairs: Literal["uniform", "lognormal", "mapping"] = "uniform"
    step: Literal["same-noise", "mean-noise", "heun", "euler"] = "same-noise"
    target: Literal["ema", "stop-gradient"] = "stop-gradient"
    distance: Literal["l1", "l2", "l2-32", "pseudo-huber", "lpips"] = "l2"
    weighting: Literal["uniform", "snr", "snr+1", "karras", "truncated-snr", "1/(t-r)"] = "uniform"
    scales: Literal["fixed", "progressive", "doubling"] = "fixed"
    start_scales: int = 40
    end_scales: int = 40
    ema_decay: float = 0.95
    ema_adaptive: bool = False
    P_mean: float = -1.1
    P_std: float = 2.0
    q: float = 2.0
    k: float = 8.0
    b: float = 1.0
    adj: Literal["sigmoid", "const"] = "sigmoid"
    stages: int = 8
    tightening: Literal["stages", "smooth"] = "stages"
    huber_c: float | None = None
    guidance: float = 1.0
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0
    clip: bool = False

    def __post_init__(self) -> None:
        if self.start_scales < 2 or self.end_scales < self.start_scales:
            raise UserError(
                f"scales must grow from at least 2: `start_scales` {self.start_scales}, `end_scales` {self.end_scales}"
            )
        if not 0 <= self.ema_decay < 1:
            raise UserError(f"{self.ema_decay} is outside [0, 1)", field="ema_decay")
        if not 0 <= self.sigma_min < self.sigma_max:
            raise UserError(f"`sigma_min` {self.sigma_min} must lie between 0 and `sigma_max` {self.sigma_max}")
        if self.P_std < 0:
            raise UserError(f"{self.P_std} must not be negative", field="P_std")
        if self.huber_c is not None and self.huber_c < 0:
            raise UserError(f"{self.huber_c} must not be negative", field="huber_c")
        if not self.rho > 0:
            raise UserError(f"{self.rho} must be positive", field="rho")
        if self.q <= 1 or self.stages < 1:
            raise UserError(f"`q` {self.q} must exceed 1 and `stages` {self.stages} be at least 1")
        if self.pairs == "mapping" and self.q**-self.stages < torch.finfo(torch.float32).eps:
            # Refused now: the run would stop at the first stage without a gap, most of it done.
            raise UserError(
                f"`q` {self.q} over {self.stages} stages leaves no gap between t and r", "lower `q` or `stages`"
            )
        if self.step == "heun" and (self.pairs == "mapping" or self.sigma_min == 0):
            raise UserError(
                "`step` heun divides by r, which reaches 0 with `pairs` mapping or `sigma_min` 0", "set it to euler"
            )

    def build(self, inputs: ObjectiveInputs) -> "ConsistencyObjective":
        """Makes the objective; an averaged target is a copy of the student.

        Raises:
            ValueError: a teacher or a perceptual distance is missing.
        """
        return ConsistencyObjective(
            self,
            inputs.total_steps,
            inputs.sigma_data,
            teacher=inputs.teacher,
            target=copy_target(inputs.student) if self.target == "ema" else None,
            perceptual=inputs.perceptual,
        )

    def model(self) -> dict[str, Any]:
        """A consistency model of this noise range."""
        return {"kind": "consistency", "sigma_min": self.sigma_min, "sigma_max": self.sigma_max, "rho": self.rho}

    @property
    def needs_teacher(self) -> bool:
        """Whether the step or the guidance is a teacher's."""
        return self.step in ("heun", "euler") or self.guidance != 1

    @property
    def needs_perceptual(self) -> bool:
        """Whether the distance is LPIPS."""
        return self.distance == "lpips"

    @property
    def precise(self) -> bool:
        """Whether the pairs are so close that they are evaluated in fp32 under autocast too.

        Half precision has 8 or 11 digits; of a gap far below them the difference of two outputs has none.
        """
        return self.pairs == "mapping" and self.q**-self.stages < _SMALL_GAP

    def num_scales(self, step: int, total_steps: int) -> int:
        """N(k), the number of levels of the grid at `step`."""
        match self.scales:
            case "fixed":
                return self.start_scales
            case "progressive":
                return curriculum.num_scales_progressive(step, total_steps, self.start_scales, self.end_scales)
            case "doubling":
                return curriculum.num_scales_doubling(step, total_steps, self.start_scales, self.end_scales)

    def target_decay(self, step: int, total_steps: int) -> float:
        """mu(k), the decay of the target's average at `step`."""
        if not self.ema_adaptive:
            return self.ema_decay
        return curriculum.ema_decay_adaptive(step, total_steps, self.start_scales, self.end_scales, self.ema_decay)

    def stage(self, step: int, total_steps: int) -> float:
        """The stage of the mapping r(t) at `step`, from 0 to stages - 1; a fraction where `tightening` is smooth."""
        if self.tightening == "smooth":
            return min(step / max(total_steps - 1, 1), 1.0) * (self.stages - 1)
        return min(step * self.stages // total_steps, self.stages - 1)


class ConsistencyObjective(PlainObjective):
    """Consistency loss between two noise levels of one image.

    Args:
        config: the five slots and their numbers.
        total_steps: length of the curriculum, in steps.
        sigma_data: standard deviation of the data, for the weightings.
        teacher: diffusion denoiser; needed where the step is the teacher's, and `Guided` where there is guidance.
        target: copy of the student's initial weights, needed where the target is an average; see `copy_target`.
        perceptual: distance "lpips" of two batches of images, [B].

    Raises:
        ValueError: teacher, target or perceptual distance is missing.
    """

    def __init__(
        self,
        config: ConsistencyConfig,
        total_steps: int,
        sigma_data: float = 0.5,
        *,
        teacher: Denoiser | None = None,
        target: nn.Module | None = None,
        perceptual: Distance | None = None,
    ) -> None:
        if config.step in ("heun", "euler") and teacher is None:
            raise ValueError(f"step {config.step!r} needs a teacher")
        if config.guidance != 1 and not isinstance(teacher, Guided):
            raise ValueError(f"guidance {config.guidance} needs a guided teacher")
        if config.target == "ema" and target is None:
            raise ValueError("an EMA target needs its network")
        if config.distance == "lpips" and perceptual is None:
            raise ValueError("distance 'lpips' needs its network")
        self.config = config
        self.total_steps = total_steps
        self.perceptual = perceptual
        self.sigma_data = sigma_data
        self.teacher = teacher
        self.target = target if config.target == "ema" else None
        self._pool: tuple[Tensor, Tensor | None] | None = None

    @property
    def whole_batch(self) -> bool:
        """Whether the step takes the mean of the batch's images."""
        return self.config.step == "mean-noise"

    def among(self, x: Float[Tensor, "N C H W"], class_labels: Int[Tensor, " N"] | None) -> None:
        """Takes the mean of these images in the next loss."""
        self._pool = x, class_labels

    def loss(
        self,
        student: Student,
        x: Float[Tensor, "B C H W"],
        class_labels: Int[Tensor, " B"] | None,
        step: int,
        random: ImageRandom,
        dropout_seed: int | None,
    ) -> Float[Tensor, " B"]:
        """Loss of each image at `step`, with pairs and noise drawn from `random`."""
        t, r = self.draw_pairs(step, random)
        return self.loss_at(student, x, class_labels, t, r, random.randn(*x.shape[1:]), dropout_seed)

    def draw_pairs(self, step: int, random: ImageRandom) -> tuple[Float[Tensor, " B"], Float[Tensor, " B"]]:
        """Noise levels t > r, one pair an image; r may be 0 with the pairs "mapping"."""
        c = self.config
        if c.pairs == "mapping":
            t = noise.LogNormal(c.P_mean, c.P_std).sample(random.randn()).clamp(c.sigma_min, c.sigma_max)
            return t, curriculum.ect_r(t, c.stage(step, self.total_steps), c.q, c.k, c.b, c.adj)
        num = c.num_scales(step, self.total_steps)
        if c.pairs == "uniform":
            index = random.randint(num - 1)
        else:
            p = noise.discretized_lognormal(
                num, c.P_mean, c.P_std, c.sigma_min, c.sigma_max, c.rho, device=random.device
            )
            index = noise.sample_index(p, random.rand())
        return noise.pair_sigmas(index, num, c.sigma_min, c.sigma_max, c.rho)

    def loss_at(
        self,
        student: Student,
        x: Float[Tensor, "B C H W"],
        class_labels: Int[Tensor, " B"] | None,
        t: Float[Tensor, " B"],
        r: Float[Tensor, " B"],
        unit_noise: Float[Tensor, "B C H W"],
        dropout_seed: int | None = 0,
    ) -> Float[Tensor, " B"]:
        """Loss at given pairs of noise levels and noise of unit variance."""
        x_t = x + expand(t, x.ndim) * unit_noise
        with torch.autocast(x.device.type, enabled=False) if self.config.precise else contextlib.nullcontext():
            prediction = student(x_t, t, class_labels, generator=dropout_generator(dropout_seed, x))
            with torch.no_grad():
                x_r = self._step(x, x_t, t, r, unit_noise, class_labels)
                y = self._target(student, x_r, r, class_labels, dropout_seed)
                if self.config.clip:
                    y = _cut_off(y, prediction)
            return self._weight(t, r) * self._distance(prediction, y)

    def _target(self, student: Student, x_r: Tensor, r: Tensor, labels: Tensor | None, seed: int | None) -> Tensor:
        """The target at x_r: at the end of the trajectory the consistency function is the identity; at r = 0 x_r is x.

        On a CPU only the images before the end are evaluated; to count them would stop an accelerator. Dropout masks
        are those of the whole batch. One image is evaluated always: weights in parts are gathered by all processes.
        """
        target: Student = student if self.target is None else self.target
        ended = r <= self.config.sigma_min
        if x_r.device.type == "cpu" and seed is None and bool(ended.any()):
            left = (~ended).nonzero().flatten() if not bool(ended.all()) else torch.zeros(1, dtype=torch.int64)
            y = x_r.index_copy(0, left, target(x_r[left], r[left], None if labels is None else labels[left]))
        else:
            y = target(x_r, r, labels, generator=dropout_generator(seed, x_r))
        return torch.where(expand(ended, x_r.ndim), x_r, y)

    def _step(self, x: Tensor, x_t: Tensor, t: Tensor, r: Tensor, unit_noise: Tensor, labels: Tensor | None) -> Tensor:
        if self.config.step in ("same-noise", "mean-noise"):
            x_r = x + expand(r, x.ndim) * unit_noise
            if self.config.step == "mean-noise":
                x_r = x_r + expand(1 - r / t, x.ndim) * (posterior_mean(x_t, t, x, labels, self._pool) - x)
            if isinstance(self.teacher, Guided):
                x_r = x_r + expand(1 - r / t, x.ndim) * self.teacher.correction(x_t, t, labels)
            return x_r
        assert self.teacher is not None
        solver = heun_step if self.config.step == "heun" else euler_step
        return solver(self.teacher, x_t, t, r, labels)

    def _distance(self, a: Tensor, b: Tensor) -> Tensor:
        c = self.config.huber_c
        distances: dict[str, Distance] = {
            "l1": distance.l1,
            "l2": distance.l2,
            "l2-32": distance.l2_32,
            "pseudo-huber": lambda a, b: distance.pseudo_huber(
                a, b, distance.pseudo_huber_c(a[0].numel()) if c is None else c
            ),
        }
        if self.perceptual is not None and self.config.distance == "lpips":
            return self.perceptual(a, b)
        return distances[self.config.distance](a, b)

    def _weight(self, t: Tensor, r: Tensor) -> Tensor:
        if self.config.weighting == "1/(t-r)":
            return reciprocal_gap(t, r)
        return WEIGHTINGS[self.config.weighting](t, self.sigma_data)

    @torch.no_grad()
    def after_step(self, student: nn.Module, step: int) -> None:
        """Moves the averaged target towards the student with rate mu(step)."""
        if self.target is None:
            return
        weight = 1 - self.config.target_decay(step, self.total_steps)
        for average, p in zip(self.target.parameters(), student.parameters(), strict=True):
            average.lerp_(p, weight)

    def recorded(self, step: int) -> Hashable | None:
        """Returns the stage of the mapping; other pairs are not recorded, nor is the perceptual distance."""
        mapped = self.config.pairs == "mapping" and self.perceptual is None
        return self.config.stage(step, self.total_steps) if mapped else None

    def scalars(self, step: int) -> dict[str, float]:
        """N(k) and mu(k), or the mapping's stage."""
        if self.config.pairs == "mapping":
            return {"stage": float(self.config.stage(step, self.total_steps))}
        values = {"num_scales": float(self.config.num_scales(step, self.total_steps))}
        if self.target is not None:
            values["target_decay"] = self.config.target_decay(step, self.total_steps)
        return values

    def networks(self) -> dict[str, nn.Module]:
        """The target network, where it is an average."""
        return {} if self.target is None else {"target": self.target}

    def state_dict(self) -> dict[str, Tensor]:
        """The target network's parameters."""
        return {} if self.target is None else dict(self.target.state_dict())

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restores the target network."""
        if self.target is not None:
            self.target.load_state_dict(state)


def _cut_off(y: Tensor, prediction: Tensor) -> Tensor:
    """The target cut off at -1 and 1; the prediction itself where that is the target when it is cut off, too."""
    y = y.clamp(-1, 1)
    return torch.where(prediction.clamp(-1, 1) == y, prediction.to(y.dtype), y)
