"""What a run would take, before it is begun: parameters, FLOPs, memory and time of every stage.

FLOPs and memory are counted on the objective itself, run forward and backward on tensors without content (PyTorch's
FakeTensorMode): what the method evaluates is what is counted, and no memory is used.

    FLOPs        2 x MACs of convolutions, matrix products and attention; everything else is small beside them
    memory       fp32 weights, gradients, two moments, averages, the other networks, and what the backward pass keeps

The backward pass of convolutions and matrix products takes twice the FLOPs of the forward pass. What it keeps grows
linearly with the micro-batch, beside the weights that autocast has cast, so it is counted for one image and for two.

Time is measured on the device (`measure.py`), with random weights on random images.
"""

import contextlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate import Accelerator
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import flop_counter
from torch.utils.flop_counter import FlopCounterMode

from unistep.config import RunConfig, TeacherConfig
from unistep.core.random import ImageRandom
from unistep.data.open import BUNDLED
from unistep.errors import UserError
from unistep.generation.plan import default_plan
from unistep.objectives.continuous import ContinuousObjective
from unistep.objectives.protocol import Student, dropout_generator
from unistep.training.trainer import TrainerConfig
from unistep.workflows.estimate.design import Design, Images, build_parts, design_stages, image_kind, opened_teacher
from unistep.workflows.estimate.measure import (
    AVERAGES,
    OPTIMIZER,
    Measurement,
    Measuring,
    Memory,
    Parts,
    free_memory,
    measure,
    random_images,
)
from unistep.workflows.train import build_accelerator, trainer_config

# What the FLOPs of a training step are for; not every method has all.
FLOPS_PARTS = (
    "student, forward",
    "tangent, about",
    "teacher, forward",
    "target, forward",
    "LPIPS, forward",
    "the rest of the loss",
    "backward",
)

_FP32 = 4  # bytes


@dataclass(frozen=True)
class Flops:
    """FLOPs an image: of one network evaluation, and of the parts of one training step, in the order they run."""

    evaluation: int
    parts: dict[str, int]

    @property
    def total(self) -> int:
        """Of a training step."""
        return sum(self.parts.values())


@dataclass(frozen=True)
class StageEstimate:
    """What a stage would take on one device; `measured` is None where no time was to be measured."""

    name: str
    network: str
    method: str
    config: TrainerConfig
    flops: Flops
    memory: Memory
    measured: Measurement | None

    @property
    def parameters(self) -> int:
        """Of the network, all of them trained."""
        return self.memory.parts["weights"] // _FP32

    @property
    def images(self) -> int:
        """That the stage trains on, counting repetitions."""
        return self.config.steps * self.config.batch_size

    @property
    def micro_batch(self) -> int:
        """Images of one forward and backward pass."""
        return self.config.batch_size // self.config.accumulation

    @property
    def images_per_second(self) -> float | None:
        """Of the recipe's batch."""
        return None if self.measured is None else self.measured.images_per_second(self.config.batch_size)

    @property
    def hours(self) -> float | None:
        """Of the whole stage."""
        rate = self.images_per_second
        return None if rate is None else self.images / rate / 3600

    def accumulation_within(self, memory: float) -> int | None:
        """The fewest parts of the batch of which one fits into so many bytes; None where not even one image does."""
        batch = self.config.batch_size
        parts = [n for n in range(self.config.accumulation, batch + 1) if batch % n == 0]
        return next((n for n in parts if self.memory.total(batch // n) <= memory), None)


@dataclass(frozen=True)
class Estimate:
    """What a run would take on `device`, which has `free_memory` bytes free; `notes` tell what was assumed."""

    images: Images
    stages: tuple[StageEstimate, ...]
    device: torch.device
    precision: str
    free_memory: int
    notes: tuple[str, ...]


def estimate(config: RunConfig, steps: int = 10, seconds: float = 40.0) -> Estimate:
    """Counts and measures; writes nothing, and reads neither the data nor any weights.

    Args:
        config: the run.
        steps: to measure of every stage; 0 measures nothing.
        seconds: that measuring all stages may take, about.

    Raises:
        UserError: image size or network are not told by the config, or do not fit each other.
    """
    accelerator = build_accelerator(config.precision)
    if accelerator.num_processes > 1:
        raise UserError("--dry-run tells what one device does; start it as one process, without accelerate launch")
    teacher, notes = opened_teacher(config)
    images = image_kind(config, teacher)
    if images.classes == 0 and config.use_labels and config.data.use_labels and config.data.source not in BUNDLED:
        notes.append("how many classes there are is not known before the data are read; none are counted")
    designs = design_stages(config, images, teacher)
    dataset, stages = random_images(images.shape, images.classes), []
    for design in designs:
        design.stage.check_split(1)
        network, flops, memory = _count(config, design, images, accelerator)
        if design.name == config.evaluated:
            notes.append(_of_evaluations(config, design, flops))
        measured = None
        if steps:
            measuring = Measuring(steps, seconds / len(designs), flops.total, flops.evaluation, memory)
            measured = measure(
                lambda alone, d=design: build_parts(config, d, alone),
                trainer_config(design.stage),
                dataset,
                measuring,
                accelerator,
            )
        config_of_stage = trainer_config(design.stage)
        stages.append(StageEstimate(design.name, network, design.method, config_of_stage, flops, memory, measured))
    precision = {"no": "fp32"}.get(accelerator.mixed_precision, accelerator.mixed_precision)
    return Estimate(images, tuple(stages), accelerator.device, precision, free_memory(accelerator.device), tuple(notes))


def _of_evaluations(config: RunConfig, design: Design, flops: Flops) -> str:
    """What the evaluations in training would take beside it."""
    stage, each = design.stage, config.evaluation.num_images
    count = -(-stage.steps // config.evaluate_every)
    making = count * each * default_plan(design.info, config.evaluation.steps).nfe * flops.evaluation
    part = making / (stage.steps * stage.batch_size * flops.total)
    evaluations = "the evaluation is" if count == 1 else f"the {count:,} evaluations are"
    return (
        f"{evaluations} not counted: of {each:,} images each, whose making takes {part:.1%} of the FLOPs of "
        f"training the {design.name}; their features come on top"
    )


def _attention(query: torch.Size, key: torch.Size, value: torch.Size, *_: object, **__: object) -> int:
    return flop_counter.sdpa_flop_count(query, key, value)


def _attention_backward(
    gradient: torch.Size, query: torch.Size, key: torch.Size, value: torch.Size, *_: object, **__: object
) -> int:
    return flop_counter.sdpa_backward_flop_count(gradient, query, key, value)


# PyTorch's counter knows the kernels of GPUs alone.
_CPU_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}


class _Fake(FakeTensorMode):
    """Tensors without content; networks of them can be copied."""

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Fake":
        return self


class _Continuous(ContinuousObjective):
    """The objective to be counted: FakeTensorMode knows no forward-mode derivatives, so the tangent is two evaluations.

    That is what it is for convolutions and matrix products; attention has one more product in it.
    """

    def loss_at(
        self,
        student: Student,
        x: Float[Tensor, "B C H W"],
        class_labels: Int[Tensor, " B"] | None,
        sigma: Float[Tensor, " B"],
        unit_noise: Float[Tensor, "B C H W"],
        step: int,
        dropout_seed: int = 0,
    ) -> Float[Tensor, " B"]:
        """A loss that takes the evaluations of the real one."""
        generator = dropout_generator(dropout_seed, x)
        prediction = student(x, sigma, class_labels, generator=generator)
        with torch.no_grad():
            target = self.dx_dt(x, unit_noise, x, sigma, class_labels)
            for _ in range(2):
                target = target + student(x, sigma, class_labels, generator=generator)
        return (prediction - target).square().flatten(1).mean(1)


def _without_augmentation(design: Design) -> Design:
    """Which images are transformed how is decided by their content, and there is none; it costs the network nothing."""
    if not isinstance(design.stage, TeacherConfig):
        return design
    return replace(design, stage=replace(design.stage, objective=replace(design.stage.objective, augment=0.0)))


def _count(config: RunConfig, design: Design, images: Images, accelerator: Accelerator) -> tuple[str, Flops, Memory]:
    """What the network is, FLOPs and memory of a stage."""
    # Copies of such tensors ask where their content is; it is not needed.
    with warnings.catch_warnings(action="ignore"), _Fake(), torch.device(accelerator.device):
        parts = build_parts(config, _without_augmentation(design))
        if isinstance(real := parts.objective, ContinuousObjective):
            counted = _Continuous(real.config, real.total_steps, real.sigma_data, teacher=real.teacher)
            parts = replace(parts, objective=counted)
        counter = FlopCounterMode(display=False, custom_mapping=_CPU_ATTENTION)
        with counter, _tallied(parts, counter) as tally:
            losses, of_one = _forward(parts, design, images, accelerator, 1)
            forward = counter.get_total_flops()
            losses.float().mean().backward()
            tally["the rest of the loss"] = forward - sum(tally.values())
            tally["backward"] = counter.get_total_flops() - forward
        of_two = _forward(parts, design, images, accelerator, 2)[1]
    parameters, averages = _size(parts.student), len(design.stage.ema_decays)
    sizes = {"weights": parameters, "gradients": parameters, OPTIMIZER: 2 * parameters, AVERAGES: averages * parameters}
    sizes |= {name: _size(network) for name, network in parts.others.items()}
    return (
        type(parts.student.network).__name__,
        Flops(tally["student, forward"], {name: n for name, n in tally.items() if n}),
        Memory({name: _FP32 * n for name, n in sizes.items()}, max(0, 2 * of_one - of_two), of_two - of_one),
    )


def _forward(parts: Parts, design: Design, images: Images, accelerator: Accelerator, batch: int) -> tuple[Tensor, int]:
    """The losses, and the bytes that are kept for the backward pass."""
    x = torch.zeros(batch, *images.shape)
    labels = torch.zeros(batch, dtype=torch.int64) if images.classes else None
    kept: dict[int, Any] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage  # held, or its number might be given to another
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), accelerator.autocast():
        random = ImageRandom(list(range(batch)), accelerator.device)
        losses = parts.objective.loss(parts.student, x, labels, design.stage.steps // 2, random, 0)
    networks = (parts.student, *parts.others.values())
    weights = {p.untyped_storage()._cdata for network in networks for p in network.parameters()}
    return losses, sum(storage.nbytes() for number, storage in kept.items() if number not in weights)


@contextlib.contextmanager
def _tallied(parts: Parts, counter: FlopCounterMode) -> Iterator[dict[str, int]]:
    """While entered, the FLOPs of every network's evaluations by what they are for."""
    tally: dict[str, int] = {}
    begun: list[int] = []

    def begin(*_: object) -> None:
        begun.append(counter.get_total_flops())

    def end(name: str) -> None:
        tally[name] = tally.get(name, 0) + counter.get_total_flops() - begun.pop()

    def end_of_student(*_: object) -> None:
        if torch.is_grad_enabled():
            end("student, forward")
        else:
            end("tangent, about" if isinstance(parts.objective, ContinuousObjective) else "target, forward")

    handles = []
    # Continuous-time objectives evaluate the network beside the student that it is in.
    named = {name: getattr(network, "network", network) for name, network in parts.others.items()}
    for name, network in (("student", parts.student.network), *named.items()):
        handles.append(network.register_forward_pre_hook(begin))
        after = end_of_student if name == "student" else lambda *_, name=name: end(f"{name}, forward")
        handles.append(network.register_forward_hook(after))
    try:
        yield tally
    finally:
        for handle in handles:
            handle.remove()


def _size(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())
