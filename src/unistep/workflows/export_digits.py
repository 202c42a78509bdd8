"""The quality of the digits that an exported program draws, beside those of the model in fp32."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from unistep.core.random import ImageRandom, image_seeds
from unistep.engines.engine import Engine, EngineDenoiser
from unistep.exporting.programs import DenoiserProgram, Program, SamplerProgram
from unistep.formats.model import ModelInfo
from unistep.generation.collect import collect
from unistep.generation.plan import make_plan
from unistep.metrics.mnist import evaluate_digits, mnist_reference

_BATCH = 50


def draws_digits(program: Program, info: ModelInfo) -> bool:
    """Returns whether a program draws digits as MNIST has them, from noise in one way.

    Args:
        program: program.
        info: kind of the model.
    """
    kind = isinstance(program, SamplerProgram) or (isinstance(program, DenoiserProgram) and info.kind == "consistency")
    return kind and program.shape == (1, 28, 28) and program.num_classes == 10


def measure_digits(
    reference: Program, engine: Engine, info: ModelInfo, count: int, on_progress: Callable[[str, int, int], None]
) -> tuple[float, float]:
    """Returns the Frechet distances to MNIST of the digits of an engine and of a program in PyTorch.

    Args:
        reference: program over the model in fp32.
        engine: the same in another runtime.
        info: noise range of the model.
        count: number of digits.
        on_progress: callback with a text, the number of digits that are done and that of all.
    """
    labels, real = torch.arange(count) % 10, mnist_reference()

    def distance(run: Any) -> float:
        def on_done(done: int) -> None:
            on_progress("evaluate", done, count)

        images = _digits(reference, run, info, labels, on_done)
        return evaluate_digits(images, labels, real).frechet_distance

    return distance(engine), distance(reference)


@torch.no_grad()
def _digits(program: Program, run: Any, info: ModelInfo, labels: Tensor, on_done: Callable[[int], None]) -> Tensor:
    """Digits of (seed, image) 0 and on, as `unistep.sample` makes them."""
    if isinstance(program, DenoiserProgram):
        denoiser = EngineDenoiser(run, flow_map=program.flow_map, guidance=program.guidance)
        plan = make_plan(info)
        return collect(
            denoiser, plan, program.shape, len(labels), labels, seed=0, batch_size=_BATCH, device="cpu", on_done=on_done
        )
    made = []
    for start in range(0, len(labels), _BATCH):
        numbers = range(start, min(start + _BATCH, len(labels)))
        random = ImageRandom(image_seeds(0, numbers))
        noise = torch.stack([random.randn(*program.shape) for _ in range(program.inputs[0].shape[0])], dim=1)
        made.append(run(noise, labels[numbers.start : numbers.stop].to(torch.int32)).permute(0, 3, 1, 2))
        on_done(numbers.stop)
    return torch.cat(made)
