"""Training steps: this trainer in its modes beside the published loop of ECT, on the same network in the same run.

    python benchmarks/training.py                                        cifar10-ect, batch 16, in fp32 and bf16
    python benchmarks/training.py --at last                              the end of the curriculum
    python benchmarks/training.py cifar10-edm:teacher --runs eager:bf16
    python benchmarks/training.py --runs published:fp32 eager:bf16 graphed:bf16 --batch 512
    python benchmarks/training.py --host --batch 512                     the host's time besides the network

A case is a recipe and a stage of it, which is trained on random images from random weights. A run is a mode and a
precision. `eager`, `compiled` and `graphed` are this trainer with `compile` none, network and graph; `published` is the
loop of `ect_loop.py`, for stages of ECT, whose passes run in fp32, in fp32 with products in TF32, or under autocast to
bf16, which is not the authors' way.

Runs of one precision take turns on a CPU, so that a busy moment meets all of them; on a GPU one follows the other, and
its memory is free before the next. Columns:

    images/s     of whole steps, many queued one after the other; the median over turns
    to published the median of the turns' ratios to the published loop in the same precision, else in fp32
    host ms      time until a step returns whose predecessor is done: on a GPU that of the host alone, if nothing waits
    TFLOP/s      FLOPs that the step needs, counted as `dry_run` does, over its time; evaluations at levels of 0 are not
                 needed, whoever makes them
    of matrix    the part of the rate of products in the run's precision that this is
"""

import argparse
import functools
import gc
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from rates import default_device, matrix_rate, name_of, synchronize
from torch import Tensor, nn
from training_cases import Case, Contender, Result, flops_of

from unistep.core.random import ImageRandom, image_seeds
from unistep.formats.model import precondition
from unistep.training.trainer import Trainer
from unistep.workflows.estimate.measure import random_images
from unistep.workflows.runs.build import build_objective
from unistep.workflows.runs.loop import build_accelerator


def compare(case: Case, runs: Sequence[str], options: argparse.Namespace) -> list[Result]:
    """Measures runs of one precision.

    Args:
        case: what is trained; its mode and precision are those of each run.
        runs: modes and precisions.
        options: number of steps and turns.
    """
    device = default_device()
    gpu = device.type == "cuda"
    results: list[Result] = []
    alive: list[tuple[Result, Contender]] = []
    needed = flops_of(case, options.flops)
    case = replace(case, batch=case.batch or case.design()[2].stage.batch_size)
    for run in runs:
        mode = run.partition(":")[0]
        own = replace(case, mode="eager" if mode == "published" else mode)
        result = Result(f"{case.recipe}:{case.stage}", run, case.batch, case.at, name_of(device))
        result.needed_gflop = None if needed is None else needed / 1e9
        results.append(result)
        contender = _started(own, run, result, options)
        if contender is None:
            continue
        if not gpu:
            alive.append((result, contender))
            continue
        each = contender.turn(1)
        steps = max(1, min(options.steps, int(options.limit / each / options.turns)))
        turns = max(1, min(options.turns, int(options.limit / each)))
        result.seconds = [contender.turn(steps) for _ in range(turns)]
        _finish(result, contender, options)
    for _ in range(options.turns):
        for result, contender in alive:
            result.seconds.append(contender.turn(options.steps))
    for result, contender in alive:
        _finish(result, contender, options)
    return results


def _started(case: Case, run: str, result: Result, options: argparse.Namespace) -> Contender | None:
    """A contender after its first steps, in as many passes as its memory asks for; None where it fails."""
    device = default_device()
    while True:
        try:
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            contender = Contender(case, run, options.images)
            result.start_s = contender.start(options.warmup)
            result.rounds = case.accumulation
            return contender
        except torch.OutOfMemoryError:
            contender = None
            if case.accumulation >= 16:
                result.failed = "out of memory"
                return None
        except Exception as error:
            result.failed = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            print(f"  {run} failed: {result.failed}", file=sys.stderr)
            return None
        gc.collect()
        torch.cuda.empty_cache()
        case = replace(case, accumulation=case.accumulation * 2)


def _finish(result: Result, contender: Contender, options: argparse.Namespace) -> None:
    """Measures the host, notes the memory and ends the contender."""
    count = int(options.limit / 2 / statistics.median(result.seconds))
    result.host_ms = 1000 * contender.host(max(1, min(5, count)))
    if contender.device.type == "cuda":
        result.peak_mib = torch.cuda.max_memory_allocated() / 2**20
    contender.close()


class Free(nn.Module):
    """A network that costs nothing: its output is its input times its one weight.

    Args:
        config: architecture that it stands for.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor, c_noise: Tensor, class_labels: Tensor | None = None, **_: object) -> Tensor:
        return x * self.scale


def host_time(case: Case, options: argparse.Namespace) -> dict[str, float]:
    """Milliseconds of a step besides the network, and of its noise, with a network that costs nothing.

    Args:
        case: what is trained.
        options: number of steps and images.

    Returns:
        `host`, until the step returns; `whole`, until the device is done; `noise`, drawing that of a batch.
    """
    config, images, design = case.design()
    accelerator = build_accelerator(config.precision)
    student = precondition(Free(design.network), design.info).to(accelerator.device)
    trainer = Trainer(
        Path(tempfile.gettempdir(), "never-written"),
        student,
        build_objective(config, design, student),
        random_images(images.shape, images.classes, options.images),
        design.stage,
        seed=0,
        accelerator=accelerator,
        use_labels=bool(images.classes),
        flip=config.data.flip,
    )
    device, first = accelerator.device, case.first_step(design.stage.steps)
    for step in range(first, first + 5):
        trainer.train_step(step)
    host, whole = [], []
    for step in range(first + 5, first + 5 + max(options.steps, 10)):
        synchronize(device)
        began = time.perf_counter()
        trainer.train_step(step)
        host.append(time.perf_counter() - began)
        synchronize(device)
        whole.append(time.perf_counter() - began)
    seeds = image_seeds(0, range(case.batch))

    def draw() -> None:
        random = ImageRandom(seeds, device)
        random.randn()
        random.randn(*images.shape)
        synchronize(device)

    times = {"host": host, "whole": whole, "noise": [_timed(draw) for _ in range(10)]}
    return {name: 1000 * statistics.median(values) for name, values in times.items()}


def _timed(work: Callable[[], None]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def with_rates(results: list[Result], rates: dict[str, float]) -> None:
    """Adds the achieved rates and the ratios to the published loop.

    Args:
        results: measurements of all runs of all cases.
        rates: FLOP/s of matrix products by precision.
    """
    for result in results:
        precision = result.run.partition(":")[2]
        if result.seconds and result.needed_gflop is not None:
            result.tflops = result.needed_gflop * result.images_per_second / 1000
            if rate := rates.get(precision):
                result.of_matrix = result.tflops * 1e12 / rate
        others = {
            other.run: other
            for other in results
            if (other.case, other.batch, other.at) == (result.case, result.batch, result.at) and other.seconds
        }
        base = others.get(f"published:{precision}") or others.get("published:fp32")
        if base is not None and result.seconds:
            turns = zip(result.seconds, base.seconds, strict=False)  # of a slow run there may be fewer
            result.to_published = statistics.median(b / a for a, b in turns)


def table(results: list[Result]) -> str:
    """All results as text.

    Args:
        results: measurements.
    """
    lines = [
        f"{'case':24}{'batch':>6} {'at':6}{'run':16}{'images/s':>10}{'to published':>13}{'host ms':>9}"
        f"{'TFLOP/s':>9}{'of matrix':>10}{'MiB':>8}{'start s':>8}"
    ]
    for r in results:
        row = f"{r.case:24}{r.batch:6d} {r.at:6}{r.run:16}"
        if not r.seconds:
            lines.append(f"{row}  failed: {r.failed[:60]}")
            continue
        cells = [
            f"{r.images_per_second:10.1f}",
            f"{r.to_published:13.2f}" if r.to_published else f"{'':13}",
            f"{r.host_ms:9.2f}" if r.host_ms is not None else f"{'':9}",
            f"{r.tflops:9.3g}" if r.tflops else f"{'':9}",
            f"{r.of_matrix:10.1%}" if r.of_matrix else f"{'':10}",
            f"{r.peak_mib:8.0f}" if r.peak_mib else f"{'':8}",
            f"{r.start_s:8.1f}",
            f"  in {r.rounds} passes" if r.rounds > 1 else "",
        ]
        lines.append(row + "".join(cells))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", default=["cifar10-ect:student"], help="RECIPE:STAGE")
    parser.add_argument("--batch", type=int, nargs="+", default=[16], help="images of a step; 0: the recipe's")
    parser.add_argument("--at", nargs="+", choices=["first", "last"], default=["first"], help="place in the curriculum")
    parser.add_argument("--runs", nargs="+", help="MODE:PRECISION; default: published and eager in fp32 and bf16")
    parser.add_argument("--steps", type=int, default=3, help="steps of a turn")
    parser.add_argument("--turns", type=int, default=5, help="how often each run is measured")
    parser.add_argument("--warmup", type=int, default=2, help="steps before")
    parser.add_argument("--images", type=int, default=2048, help="images of the data set")
    parser.add_argument("--limit", type=float, default=60.0, help="seconds of a run's turns, about; on GPUs alone")
    parser.add_argument("--dropout", type=float, help="dropout of the network; recorded steps have none")
    parser.add_argument("--optimizer", choices=["adamw", "radam"], help="this trainer's; recorded steps have adamw")
    parser.add_argument("--rates", type=Path, help="JSON of rates.py; default: products are measured here")
    parser.add_argument("--seconds", type=float, default=1e9, help="no run is begun after so many")
    parser.add_argument("--count", action="store_true", help="count FLOPs an image into --json, and do no more")
    parser.add_argument("--flops", type=Path, help="JSON of --count; default: FLOPs are counted here")
    parser.add_argument("--host", action="store_true", help="measure the host's time besides the network, and no more")
    parser.add_argument("--tiny", action="store_true", help="a tiny network, to try the script")
    parser.add_argument("--json", type=Path, help="file that the numbers are written to")
    options = parser.parse_args()
    device, began = default_device(), time.perf_counter()
    if options.count:
        counted = {
            f"{name} {at}": flops_of(Case(*name.split(":"), 1, at, "fp32", tiny=options.tiny), None)
            for name in options.cases
            for at in options.at
        }
        options.json.write_text(json.dumps(counted))
        print(counted)
        return
    print(f"{name_of(device)}, torch {torch.__version__}", flush=True)
    runs = options.runs or ["published:fp32", "eager:fp32", "published:bf16", "eager:bf16"]
    results: list[Result] = []
    hosts: dict[str, Any] = {}

    def write() -> None:
        if options.json:
            options.json.parent.mkdir(parents=True, exist_ok=True)
            values = [asdict(r) | {"images_per_second": r.images_per_second} for r in results]
            options.json.write_text(json.dumps({"device": name_of(device), "runs": values, "host": hosts}, indent=1))

    precisions = list(dict.fromkeys(run.partition(":")[2] for run in runs))
    rates = {} if options.host else _rates(options.rates, device, precisions, options.tiny)
    for name in options.cases:
        recipe, _, stage = name.partition(":")
        for batch, at in ((b, a) for b in options.batch for a in options.at):
            case = functools.partial(
                Case, recipe, stage, batch, at, tiny=options.tiny, dropout=options.dropout, optimizer=options.optimizer
            )
            if options.host:
                found = hosts[f"{name} {batch} {at}"] = host_time(case("auto"), options)
                print(f"{name}, batch {batch}: " + ", ".join(f"{key} {value:.3f} ms" for key, value in found.items()))
                write()
                continue
            for precision in precisions:
                own = [run for run in runs if run.partition(":")[2] == precision]
                left = options.seconds - (time.perf_counter() - began)
                if left <= 0:
                    print(f"  no time is left for {name}, batch {batch}, {precision}", flush=True)
                    continue
                results += compare(case(precision), own, options)
                with_rates(results, rates)
                write()
    if results:
        print(table(results))


def _rates(path: Path | None, device: torch.device, precisions: Sequence[str], tiny: bool) -> dict[str, float]:
    if path is not None and path.exists():
        return json.loads(path.read_text())["rates"]
    size = 256 if tiny else 8192 if device.type == "cuda" else 1024
    types = {"bf16": torch.bfloat16, "fp32": torch.float32, "tf32": torch.float32}
    return {p: matrix_rate(device, types[p], size, tf32=p == "tf32") for p in precisions}


if __name__ == "__main__":
    main()
