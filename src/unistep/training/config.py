"""Settings of a stage of training. Nothing here imports torch: the help of `unistep train` reads it."""

import math
from dataclasses import dataclass, field
from typing import Literal

from unistep.checks import check_range
from unistep.errors import UserError

Precision = Literal["auto", "fp32", "bf16", "fp16"]
Ramp = Literal["steps", "half-life", "none"]
Compile = Literal["none", "network", "graph"]
TrackerName = Literal["wandb", "mlflow", "trackio"]
EngineName = Literal["ddp", "fsdp"]

SHORTEST, LONGEST = 0.001, 0.28
"""Relative lengths that an average by a power function may have; a plain mean has 12^(-1/2) = 0.2887."""


@dataclass(frozen=True)
class OptimizerConfig:
    """The optimizer and its learning rate.

    Args:
        name: optimizer: "radam" (the consistency-model papers'), "adamw", or "muon", which learns more from each image.
        lr: peak learning rate.
        betas: decay rates of the averages of the gradient and of its square; "muon" goes well with 0.95 as the first.
        eps: number added to the root of the average square.
        weight_decay: decoupled weight decay.
        warmup_steps: number of steps in which the learning rate rises linearly to `lr`.
        decay: learning rate after that: "constant", "cosine" down to `lr` * `final_lr` at the last step, or
            "inverse-sqrt", as 1/sqrt(step) from step `decay_steps` on (Karras et al. 2024, EDM2).
        final_lr: fraction of `lr` left at the end of a cosine.
        decay_steps: step from which "inverse-sqrt" falls.
        clip_grad_norm: largest norm of a gradient, to which larger ones are scaled down; null leaves them.

    Raises:
        UserError: a value is out of range.
    """

    name: Literal["radam", "adamw", "muon"] = "radam"
    lr: float = 4e-4
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    warmup_steps: int = 0
    decay: Literal["constant", "cosine", "inverse-sqrt"] = "constant"
    final_lr: float = 0.0
    decay_steps: int = 10_000
    clip_grad_norm: float | None = None

    def __post_init__(self) -> None:
        if not self.lr > 0:
            raise UserError(f"{self.lr} must be positive", field="lr")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise UserError(f"{list(self.betas)} must lie in [0, 1)", field="betas")
        for name in ("eps", "weight_decay", "warmup_steps"):
            check_range(name, getattr(self, name), 0, math.inf)
        check_range("decay_steps", self.decay_steps, 1, math.inf)
        check_range("final_lr", self.final_lr, 0, 1)
        if self.clip_grad_norm is not None and not self.clip_grad_norm > 0:
            raise UserError(f"{self.clip_grad_norm} must be positive, or null for no limit", field="clip_grad_norm")

    def lr_at(self, step: int, total_steps: int) -> float:
        """The learning rate of step number `step` (from 0) of `total_steps`."""
        warmup = min(1.0, (step + 1) / max(self.warmup_steps, 1))
        if self.decay == "constant":
            return self.lr * warmup
        if self.decay == "inverse-sqrt":
            return self.lr * warmup / math.sqrt(max(step / self.decay_steps, 1.0))
        cosine = 0.5 * (1 + math.cos(math.pi * min(step / max(total_steps, 1), 1.0)))
        return self.lr * warmup * (self.final_lr + (1 - self.final_lr) * cosine)


@dataclass(frozen=True)
class TrainerConfig:
    """Length and pace of a stage.

    Args:
        steps: length of the stage, in optimizer steps.
        batch_size: number of images a step, over all processes together.
        accumulation: number of forward and backward passes that a process splits its share of the batch into; more
            take less memory, and the training stays the same.
        optimizer: optimizer and learning rate.
        ema_decays: decay rates of the averages of the weights; the first average is the model that is saved and shown.
        ema_ramp: growth of the decay rates at the beginning: "steps", EDM's "half-life", or "none".
        ema_lengths: relative lengths of further averages, by power functions, whose snapshots give the average of any
            length after training: two as [0.05, 0.1]; empty keeps none.
        snapshot_every: number of steps between two snapshots of those averages, each of two bytes a weight and length.
        log_every: number of steps between two lines of the log.
        sample_every: number of steps between two grids of samples; 0 makes none.
        checkpoint_every: number of steps between two checkpoints.
        keep_checkpoints: number of checkpoints that stay, the newest ones, at least 2.
        max_skipped: number of steps in a row that may be skipped because loss or gradient is not finite; after that the
            stage goes back to its last good checkpoint.
        rollback_lr: factor of the learning rate for the rest of the stage, each time that it goes back.
        max_rollbacks: number of times that a stage goes back before it stops.

    Raises:
        UserError: a value is out of range.
    """

    steps: int = 10_000
    batch_size: int = 128
    accumulation: int = 1
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    ema_decays: tuple[float, ...] = (0.999,)
    ema_ramp: Ramp = "steps"
    ema_lengths: tuple[float, ...] = ()
    snapshot_every: int = 500
    log_every: int = 50
    sample_every: int = 1000
    checkpoint_every: int = 500
    keep_checkpoints: int = 2
    max_skipped: int = 20
    rollback_lr: float = 0.5
    max_rollbacks: int = 3

    def __post_init__(self) -> None:
        counts = ("steps", "batch_size", "accumulation", "log_every", "checkpoint_every", "snapshot_every")
        for name in (*counts, "keep_checkpoints", "max_skipped"):
            check_range(name, getattr(self, name), 1, math.inf)
        for name in ("sample_every", "max_rollbacks"):
            check_range(name, getattr(self, name), 0, math.inf)
        if not 0 < self.rollback_lr <= 1:
            raise UserError(f"{self.rollback_lr} must lie in (0, 1]", field="rollback_lr")
        if not self.ema_decays or any(not 0 <= d < 1 for d in self.ema_decays):
            raise UserError(f"{list(self.ema_decays)} must hold at least one number in [0, 1)", field="ema_decays")
        if any(not SHORTEST <= length <= LONGEST for length in self.ema_lengths):
            given = list(self.ema_lengths)
            raise UserError(f"{given} must lie between {SHORTEST:g} and {LONGEST:g}", field="ema_lengths")
        if len({*self.ema_lengths}) < len(self.ema_lengths):
            raise UserError(f"{list(self.ema_lengths)} holds one twice", "keep one", field="ema_lengths")

    def check_split(self, processes: int) -> None:
        """Refuses a batch that cannot be split evenly into `processes` x `accumulation` parts.

        Raises:
            UserError: names the number that the batch must be a multiple of.
        """
        parts = processes * self.accumulation
        if self.batch_size % parts:
            raise UserError(
                f"`batch_size` {self.batch_size} cannot be split into {processes} processes x `accumulation` "
                f"{self.accumulation}; make it a multiple of {parts}"
            )
