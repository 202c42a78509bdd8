"""What the benchmark of training steps times: cases, their trainings in each mode, and the FLOPs that a step needs."""

import functools
import gc
import json
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from ect_loop import PublishedLoop
from rates import default_device, synchronize
from torch import nn

from unistep.core.random import ImageRandom, image_seeds
from unistep.training.compiled import gpu_arithmetic
from unistep.workflows.estimate.count import Flops, count
from unistep.workflows.estimate.design import designed
from unistep.workflows.estimate.measure import random_images
from unistep.workflows.runs.build import build_model, build_objective
from unistep.workflows.runs.design import ImageKind, StageDesign
from unistep.workflows.runs.loop import build_accelerator
from unistep.workflows.runs.stage_run import StageRun
from unistep.workflows.train import recipe_config

MODES = {"eager": "none", "compiled": "network", "graphed": "graph"}
"""Values of `compile` by the name of the mode."""

TINY = {
    "name": "song",
    "model_channels": 16,
    "channel_mult": [1],
    "num_blocks": 1,
    "attn_resolutions": [],
    "augment_dim": 9,
}


@dataclass(frozen=True)
class Case:
    """A stage of a recipe at a batch and a place of its curriculum, built for one precision.

    Args:
        recipe: name of the recipe.
        stage: name of the stage.
        batch: number of images of a step; 0 is the recipe's.
        at: "first" or "last" step of the stage.
        precision: precision of the passes.
        mode: mode of this trainer.
        accumulation: number of passes that a step is split into.
        tiny: whether the network is a tiny one.
        dropout: dropout of the network; None is the recipe's.
        optimizer: optimizer; None is the recipe's. The published loop keeps its own.
    """

    recipe: str
    stage: str
    batch: int
    at: str
    precision: str
    mode: str = "eager"
    accumulation: int = 1
    tiny: bool = False
    dropout: float | None = None
    optimizer: str | None = None

    def design(self) -> tuple[Any, ImageKind, StageDesign]:
        """Config of the run, kind of the images and design of the stage."""
        changes: dict[str, Any] = {
            "precision": self.precision if self.precision in ("bf16", "auto") else "fp32",
            "compile": MODES[self.mode],
        }
        stage: dict[str, Any] = {"accumulation": self.accumulation}
        if self.batch:
            stage["batch_size"] = self.batch
        if self.dropout is not None:
            stage["dropout"] = self.dropout
        if self.optimizer is not None:
            stage["optimizer"] = {"name": self.optimizer}
        changes["stages"] = {self.stage: stage}
        if self.tiny:
            changes |= {"network": TINY, "data": {"resolution": 16}}
        config = recipe_config(self.recipe, changes)
        images, designs, _ = designed(config)
        return config, images, next(d for d in designs if d.stage.name == self.stage)

    def first_step(self, steps: int) -> int:
        """Number of the first step that is taken.

        Args:
            steps: length of the stage.
        """
        return 0 if self.at == "first" else max(0, steps - 1000)


@dataclass
class Result:
    """Measurements of a run of a case; `seconds` holds those of a step, a turn each."""

    case: str
    run: str
    batch: int
    at: str
    device: str
    seconds: list[float] = field(default_factory=list)
    host_ms: float | None = None
    start_s: float = 0.0
    rounds: int = 1
    needed_gflop: float | None = None
    tflops: float | None = None
    of_matrix: float | None = None
    peak_mib: float | None = None
    to_published: float | None = None
    failed: str = ""

    @property
    def images_per_second(self) -> float:
        """The median over turns; 0 where the run failed."""
        return self.batch / statistics.median(self.seconds) if self.seconds else 0.0


class Contender:
    """A training whose steps are timed.

    Args:
        case: what is trained.
        run: mode and precision, as "eager:bf16".
        number: number of images of the data set.
    """

    def __init__(self, case: Case, run: str, number: int) -> None:
        self.run, self.device = run, default_device()
        # Beside bf16 this trainer lets the little that stays in fp32 round to TF32.
        self.tf32 = run in ("published:tf32", "eager:bf16", "compiled:bf16", "graphed:bf16")
        config, images, design = case.design()
        dataset = random_images(images.shape, images.classes, number)
        self.number = case.first_step(design.stage.steps)
        if run.startswith("published"):
            method: Any = design.stage.objective
            model = build_model(config, design)
            self.loop: PublishedLoop | None = PublishedLoop(
                model,
                dataset,
                case.batch,
                int(method.stage(self.number, design.stage.steps)),
                self.device,
                rounds=case.accumulation,
                P_mean=method.P_mean,
                P_std=method.P_std,
                q=method.q,
                k=method.k,
                b=method.b,
                bf16=case.precision == "bf16",
                workers=1 if self.device.type == "cuda" else 0,
            )
            self.trainer = None
        else:
            self.loop = None
            accelerator = build_accelerator(config.precision)
            folder = Path(tempfile.gettempdir(), "never-written")
            stage = StageRun(config, design, folder, accelerator, dataset, None, False)
            self.trainer = stage.trainer(None, None)

    def step(self) -> None:
        """Takes the next step; the device may still be busy with it."""
        if self.loop is not None:
            self.loop.step()
        else:
            assert self.trainer is not None
            self.trainer.train_step(self.number)
        self.number += 1

    def start(self, steps: int) -> float:
        """Takes the first steps and returns their seconds, in which libraries are loaded and kernels compiled."""
        began = time.perf_counter()
        with gpu_arithmetic(self.device, self.tf32):
            for _ in range(steps):
                self.step()
            synchronize(self.device)
        return time.perf_counter() - began

    def turn(self, steps: int) -> float:
        """Seconds of a step, of several one after the other."""
        with gpu_arithmetic(self.device, self.tf32):
            synchronize(self.device)
            began = time.perf_counter()
            for _ in range(steps):
                self.step()
            synchronize(self.device)
            return (time.perf_counter() - began) / steps

    def host(self, steps: int) -> float:
        """Seconds until a step returns, the median; its predecessor is done before it begins."""
        times = []
        with gpu_arithmetic(self.device, self.tf32):
            for _ in range(steps):
                synchronize(self.device)
                began = time.perf_counter()
                self.step()
                times.append(time.perf_counter() - began)
            synchronize(self.device)
        return statistics.median(times)

    def close(self) -> None:
        """Gives the memory back."""
        if self.loop is not None:
            self.loop.close()
        self.loop = self.trainer = None
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


@functools.cache
def needed_flops(case: Case) -> float | None:
    """FLOPs an image that a step needs: of the target's evaluations those at levels above 0; None if uncounted.

    Args:
        case: what is trained, in eager mode.
    """
    config, images, design = case.design()
    try:
        _, flops, _ = count(config, design, images, build_accelerator(config.precision))
    except Exception as error:  # of a counter that is not made for some operation: the rest is still worth its time
        print(f"  FLOPs are not counted: {type(error).__name__}: {error}", file=sys.stderr)
        return None
    return _needed(flops, needed_share(case, design))


def _needed(flops: Flops, share: float) -> float:
    return flops.total - (1 - share) * flops.parts.get("target, forward", 0)


def flops_of(case: Case, path: Path | None) -> float | None:
    """FLOPs an image that a step needs, from a file of `--count` or counted here.

    Args:
        case: what is trained.
        path: the file; None counts.
    """
    if path is not None and path.exists():
        return json.loads(path.read_text()).get(f"{case.recipe}:{case.stage} {case.at}")
    return needed_flops(replace(case, precision="fp32", mode="eager", batch=1))


def needed_share(case: Case, design: StageDesign) -> float:
    """Part of the images whose lower level is above the least, so that their target is an evaluation.

    Args:
        case: what is trained.
        design: its stage.
    """
    method: Any = design.stage.objective
    if getattr(method, "pairs", "") != "mapping":
        return 1.0
    objective: Any = build_objective(*_nothing(case, design))
    _, r = objective.draw_pairs(case.first_step(design.stage.steps), ImageRandom(image_seeds(0, range(8192))))
    return (r > method.sigma_min).double().mean().item()


def _nothing(case: Case, design: StageDesign) -> tuple[Any, StageDesign, nn.Module]:
    """Config, design and a network without parameters, for an objective that draws and does nothing else."""
    return case.design()[0], design, nn.Identity()
