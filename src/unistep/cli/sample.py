"""`unistep sample`: images with any model, from the command line."""

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from unistep.cli.arguments import instantiate, new_parser, parse
from unistep.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from unistep.formats.model_folder import ModelInfo
    from unistep.pipelines.generate import Plan

_DESCRIPTION = """Make images: `unistep sample [MODEL|RUN] [options]`.

MODEL is a model folder, RUN a training's run directory; without either the embedded MNIST model is used.
Image i is the same whatever the batch size and the number of processes (accelerate launch -m unistep sample ...)."""


@dataclass(frozen=True)
class SampleConfig:
    """What to make.

    Args:
        num_images: how many images.
        steps: network evaluations of a consistency model (default 1), solver steps of a diffusion model (default 18).
        timesteps: indices of the model's noise grid, from 0 (sigma_max) up, as 0,22; instead of --steps.
        sigmas: noise levels directly, from sigma_max down, as 80,0.8; instead of --steps.
        solver: of diffusion models.
        class_labels: one class for all, or a list as 0,1,2 that is repeated; default: drawn from the seed.
        seed: of the run; image i is made from seed and i alone.
        batch_size: images at once.
        output: a .png grid, an .npz (arr_0 uint8 NHWC, arr_1 labels), or a folder of PNGs.
        columns: of the grid.
    """

    num_images: int = 64
    steps: int | None = None
    timesteps: str | None = None
    sigmas: str | None = None
    solver: Literal["heun", "euler", "dpm2", "ancestral"] = "heun"
    class_labels: str | None = None
    seed: int = 0
    batch_size: int = 64
    output: str = "samples.png"
    columns: int | None = None

    def __post_init__(self) -> None:
        for name in ("num_images", "batch_size"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name} {getattr(self, name)} must be at least 1")
        if self.steps is not None and self.steps < 1:
            raise UserError(f"--steps {self.steps} must be at least 1")
        if self.columns is not None and self.columns < 1:
            raise UserError(f"--columns {self.columns} must be at least 1")
        given = [f"--{n}" for n in ("steps", "timesteps", "sigmas") if getattr(self, n) is not None]
        if len(given) > 1:
            raise UserError(f"{' and '.join(given)} exclude each other; give one")
        output = Path(self.output)
        if output.suffix in (".jpg", ".jpeg", ".gif", ".npy", ".zip", ".webp"):
            raise UserError(f"--output {output}: cannot write {output.suffix}; give .png, .npz or a folder")
        if output.is_file() and output.suffix not in (".png", ".npz"):
            raise UserError(f"--output {output} is a file; give .png, .npz or a folder")
        if output.is_dir() and output.suffix in (".png", ".npz"):
            raise UserError(f"--output {output} is a folder; give another name")


def run(arguments: list[str]) -> None:
    """Parses, samples and writes."""
    parser = new_parser("sample", _DESCRIPTION)
    parser.add_argument("model", type=str | None, nargs="?", default=None, help="model folder or run directory")
    parser.add_class_arguments(SampleConfig, None)
    parser.usage = "unistep sample [MODEL|RUN] [options]"
    if "-h" in arguments or "--help" in arguments:
        parser.print_help()
        sys.exit(0)
    parsed = parse(parser, arguments)
    model = parsed.pop("model")
    config = instantiate(parser, parsed, SampleConfig)
    _sample(model, config)


def _sample(name: str | None, config: SampleConfig) -> None:
    from unistep.build import build_accelerator, load_model, resolve_model

    path = resolve_model(name)
    distributed = int(os.environ.get("WORLD_SIZE", "1")) > 1
    accelerator = build_accelerator("fp32") if distributed else None
    model = load_model(path, accelerator.device if accelerator else _device())
    plan = make_plan(model.info, config)
    labels = make_labels(model.num_classes, config)

    from unistep.pipelines.collect import collect
    from unistep.pipelines.write import write_images

    started = time.perf_counter()
    images = collect(
        model.denoiser,
        plan,
        model.image_shape,
        config.num_images,
        labels,
        seed=config.seed,
        batch_size=config.batch_size,
        accelerator=accelerator,
    )
    if images is None:  # not the first process
        return
    seconds = time.perf_counter() - started
    classes = model.num_classes
    columns = config.columns or (10 if classes == 10 or config.num_images > 64 else 8)
    where = write_images(images, labels, Path(config.output), columns)
    print(
        f"{config.num_images} images, {plan.nfe} evaluation{'s' * (plan.nfe > 1)} each, "
        f"{seconds / config.num_images:.4f} s per image: {where}"
    )


def make_plan(info: "ModelInfo", config: SampleConfig) -> "Plan":
    """The sampler that the flags name, for a model of `info`."""
    from unistep.build import default_plan
    from unistep.pipelines.generate import ConsistencyPlan, DiffusionPlan, consistency_plan

    if info.kind == "diffusion":
        if config.timesteps or config.sigmas:
            raise UserError("--timesteps and --sigmas are for consistency models; for a diffusion model give --steps")
        return DiffusionPlan(config.solver, config.steps or 18, info.sigma_min, info.sigma_max, info.rho)
    if config.solver != "heun":
        raise UserError(f"--solver {config.solver} is for diffusion models; this is a consistency model")
    if config.timesteps is not None:
        indices = [int(t) for t in numbers("timesteps", config.timesteps, int)]
        return consistency_plan(indices, info.num_train_timesteps, info.sigma_min, info.sigma_max, info.rho)
    if config.sigmas is not None:
        return ConsistencyPlan(tuple(numbers("sigmas", config.sigmas, float)), info.sigma_min, info.sigma_max)
    return default_plan(info, config.steps)


def make_labels(num_classes: int, config: SampleConfig) -> "Tensor | None":
    """The class of every image, or None for an unconditional model."""
    import torch

    from unistep.pipelines.generate import random_labels

    if not num_classes:
        if config.class_labels is not None:
            raise UserError("--class_labels: this model has no classes")
        return None
    if config.class_labels is None:
        return random_labels(config.seed, range(config.num_images), num_classes)
    chosen = [int(c) for c in numbers("class_labels", config.class_labels, int)]
    for c in chosen:
        if not 0 <= c < num_classes:
            raise UserError(f"--class_labels {c}: this model has the classes 0 to {num_classes - 1}")
    return torch.tensor(chosen).repeat(-(-config.num_images // len(chosen)))[: config.num_images]


def numbers(flag: str, text: str, kind: type[int] | type[float]) -> list[float]:
    """`0,22` or `[0, 22]` as numbers."""
    try:
        return [kind(part) for part in text.strip("[]() ").split(",")]
    except ValueError:
        raise UserError(f"--{flag} {text}: expected {kind.__name__}s separated by commas, as 0,22") from None


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
