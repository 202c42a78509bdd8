"""The model of a step on several devices: memory, bytes that travel, and time.

step       accumulation x (forward and backward pass) + exposed exchange + update
exchange   ddp: 2 (P - 1) / P of the gradients, once; fsdp: (P - 1) / P of the weights for each evaluation and for
           the backward pass of each micro-batch, and of the gradients once
exposed    what of the exchange does not fit beside the backward pass
memory     ddp: all networks, and the gradients twice; fsdp: 1 / P of them, the blocks that are gathered; on CPUs as
           much more as was measured, and the copy that a checkpoint is written from
"""

from dataclasses import dataclass

from unistep.workflows.estimate.measure import AVERAGES, KERNELS, OPTIMIZER
from unistep.workflows.estimate.result import StageEstimate

_WEIGHT_PASSES, _MOMENT_PASSES = 3, 2  # reads of weight, gradient and moments, writes of weight and moments
_AVERAGE_PASSES = 3
_GATHERED_BLOCKS = 2  # the one that computes, and the next
COPY = "copy for a checkpoint"


@dataclass(frozen=True)
class Gathered:
    """Bytes of weights that are whole while a sharded network computes.

    Args:
        block: those of the largest block.
        rest: those outside of the blocks.
    """

    block: int
    rest: int


@dataclass(frozen=True)
class Speed:
    """The times of one device.

    Args:
        passes: seconds of forward and backward pass of an image.
        update: seconds of an update of all weights.
        exchange: bytes a second that each device sends.
        overlap: share of forward and backward pass beside which bytes travel.
        directions: seconds of an optimizer's products, which every device makes of whole matrices.
    """

    passes: float
    update: float
    exchange: float
    overlap: float
    directions: float = 0.0


@dataclass(frozen=True)
class StagePlan:
    """A stage on several devices.

    Args:
        name: name of the stage.
        micro_batch: number of images of a device's forward and backward pass.
        memory: bytes of a device by purpose.
        exchange: bytes that each device sends in a step.
        step_seconds: seconds of a step by part.
        images: number of images that the stage trains on.
        batch: number of images of a step of all devices.
        main_memory: bytes of main memory beside the device, of the copy that a checkpoint is written from: in the first
            process by ddp, a share in each by fsdp; 0 on a CPU, whose `memory` has it.
    """

    name: str
    micro_batch: int
    memory: dict[str, int]
    exchange: int
    step_seconds: dict[str, float]
    images: int
    batch: int
    main_memory: int = 0

    @property
    def images_per_second(self) -> float:
        """Pace of all devices."""
        return self.batch / sum(self.step_seconds.values())

    @property
    def hours(self) -> float:
        """Hours of the stage."""
        return self.images / self.images_per_second / 3600


def stage_plan(
    stage: StageEstimate, processes: int, engine: str, speed: Speed, gathered: Gathered, peak: int = 0
) -> StagePlan:
    """Plans a stage.

    Args:
        stage: counts of the stage on one device.
        processes: number of devices.
        engine: "ddp" or "fsdp".
        speed: times of one device.
        gathered: weights that are whole while a sharded network computes.
        peak: bytes that a process took at most in steps that were measured on a CPU; 0 is another device.
    """
    config, parts = stage.config, stage.memory.parts
    micro = config.batch_size // (processes * config.accumulation)
    sharded = engine == "fsdp" and processes > 1
    share = processes if sharded else 1
    memory = {name: -(-size // share) for name, size in parts.items()}
    if sharded:
        memory["gathered"] = min(_GATHERED_BLOCKS * gathered.block, parts["weights"]) + gathered.rest
        if config.accumulation > 1:
            memory["gradients"] = parts["gradients"]  # whole until the last micro-batch
    elif processes > 1:
        memory["gradients' buckets"] = parts["gradients"]
    memory["activations"] = stage.memory.activations(micro)
    copy = -(-stage.memory.copy // share)
    if peak:
        memory["kernels and libraries"] = max(0, peak - sum(memory.values()))
        memory[COPY] = copy
    else:
        memory["kernels, about"] = round(KERNELS * memory["activations"])
    exchange = _exchange(stage, processes, sharded)
    passes = config.accumulation * micro * speed.passes
    travel = exchange / speed.exchange if exchange else 0.0
    hidden = speed.overlap * (passes if sharded else micro * speed.passes)
    seconds = {
        "forward and backward": passes,
        "exchange": max(0.0, travel - hidden),
        "update": speed.update / share + speed.directions,
    }
    return StagePlan(stage.name, micro, memory, exchange, seconds, stage.images, config.batch_size, 0 if peak else copy)


def update_bytes(stage: StageEstimate) -> int:
    """Bytes of memory that an update of the weights reads and writes."""
    parts = stage.memory.parts
    trained = parts["weights"] + parts.get("critic", 0)
    return _WEIGHT_PASSES * trained + _MOMENT_PASSES * parts[OPTIMIZER] + _AVERAGE_PASSES * parts[AVERAGES]


def _exchange(stage: StageEstimate, processes: int, sharded: bool) -> int:
    """Bytes that each device sends in a step."""
    parts, flops = stage.memory.parts, stage.flops
    travelling = (processes - 1) / processes
    if not sharded:
        return round(2 * travelling * parts["gradients"])
    forward = sum(
        n for name, n in flops.parts.items() if name not in ("backward", "the rest of the loss", "LPIPS, forward")
    )
    evaluations = max(1, round(forward / flops.evaluation)) if flops.evaluation else 1
    gathers = (evaluations + 1) * stage.config.accumulation
    return round(travelling * (gathers * parts["weights"] + parts["gradients"]))
