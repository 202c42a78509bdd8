"""An estimate of a run before it begins: parameters, FLOPs, memory and time of every stage.

FLOPs and memory are counted (`count.py`), and time is measured on the device (`measure.py`), with random weights on
random images.
"""

from unistep.config import RunConfig
from unistep.errors import UserError
from unistep.generation.plan import default_plan
from unistep.workflows.estimate.count import Flops, count
from unistep.workflows.estimate.design import build_parts, designed
from unistep.workflows.estimate.measure import Measuring, free_memory, measure, random_images
from unistep.workflows.estimate.result import Estimate, StageEstimate
from unistep.workflows.runs.design import StageDesign
from unistep.workflows.runs.loop import build_accelerator


def estimate(config: RunConfig, steps: int = 10, seconds: float = 40.0, *, name: str = "run") -> Estimate:
    """Counts and measures; writes nothing, and reads neither the data nor any weights.

    Args:
        config: run.
        steps: number of steps of every stage that are measured; 0 measures nothing.
        seconds: time that measuring all stages may take, about.
        name: name of the run.

    Raises:
        UserError: the config leaves the images' size or the network open, or they do not fit each other.
    """
    accelerator = build_accelerator(config.precision)
    if accelerator.num_processes > 1:
        raise UserError("`dry_run` tells what one device does; start it as one process, without accelerate launch")
    images, designs, notes = designed(config)
    dataset, stages = random_images(images.shape, images.classes), []
    for design in designs:
        stage = design.stage
        stage.check_split(1)
        network, flops, memory = count(config, design, images, accelerator)
        if stage == config.evaluated:
            notes.append(_of_evaluations(config, design, flops))
        measured = None
        if steps:
            measuring = Measuring(steps, seconds / len(designs), flops.total, flops.evaluation, memory)
            measured = measure(
                lambda alone, d=design: build_parts(config, d, alone), stage, dataset, measuring, accelerator
            )
        method = design.info.method or stage.method
        stages.append(StageEstimate(stage.name, network, method, stage, flops, memory, measured))
    precision = {"no": "fp32"}.get(accelerator.mixed_precision, accelerator.mixed_precision)
    device = accelerator.device
    return Estimate(name, images, tuple(stages), device, precision, free_memory(device), tuple(notes))


def _of_evaluations(config: RunConfig, design: StageDesign, flops: Flops) -> str:
    """A note on the cost of the measurements in training."""
    stage, each = design.stage, config.evaluation.num_images
    count = -(-stage.steps // config.evaluate_every)
    making = count * each * default_plan(design.info, config.evaluation.steps).nfe * flops.evaluation
    part = making / (stage.steps * stage.batch_size * flops.total)
    evaluations = "the evaluation is" if count == 1 else f"the {count:,} evaluations are"
    return (
        f"{evaluations} not counted: of {each:,} images each, whose making takes {part:.1%} of the FLOPs of "
        f"training the {design.stage.name}; their features come on top"
    )
