"""The part `train` of `gpu_visit.py`: trainings and scripts within a deadline, and what they leave, in few files.

Every job is a process with a log of its own. A job is a recipe, its minutes and flags of `unistep train`, as

    "cifar10-minutes 5 --data DATA --compile graph"

which also exports its weights and its newest grid of samples at the end; or a script and its arguments, as

    "scripts/train_cifar10_classifier.py TRAIN TEST --output {out}/classifier.safetensors"

where {out} is a folder whose files come along. At the deadline, and where a job's minutes are over and it does not end
by itself, a job is asked to stop by SIGTERM, which writes its checkpoint, and ended ten seconds later. Weights of a
former visit are those of the recipe's name below --weights, as its archives hold them.
"""

import argparse
import json
import shlex
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from visit_parcels import parcels
from visit_processes import Job, python, start, wait

_GRACE = 10.0  # seconds for a checkpoint
_EXPORT = 25.0  # seconds for the export of one run's weights
_LINES = 5.0  # seconds between two lines of progress


@dataclass
class Task:
    """A job of the visit.

    Args:
        name: name of the recipe or of the script.
        command: command and arguments.
        limit: seconds after which it is asked to stop.
        run: run directory; None of a script.
        left: folder of the files that come along.
    """

    name: str
    command: list[str]
    limit: float
    run: Path | None
    left: Path


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the part."""
    parser.add_argument("--job", action="append", required=True, help="recipe, minutes and flags; or a script")
    parser.add_argument("--together", action="store_true", help="run all jobs at the same time, not one by one")
    parser.add_argument("--deadline-s", type=float, default=1e6, help="seconds after which all jobs are stopped")
    parser.add_argument("--weights", type=Path, help="folder with the exports of a former visit, by recipe")
    parser.add_argument("--runs", type=Path, help="folder of the runs; default: below --work")
    parser.add_argument("--archives", type=int, default=6, help="number of archives of 15 MiB at most")


def task_of(text: str, folder: Path, weights: Path | None) -> Task:
    """The task of a job's text.

    Args:
        text: the text.
        folder: folder of runs and files.
        weights: folder with the exports of a former visit.
    """
    words = shlex.split(text)
    if words[0].endswith(".py"):
        name = Path(words[0]).stem
        left = folder / "left" / name
        return Task(name, python(*(word.replace("{out}", str(left)) for word in words)), 1e6, None, left)
    recipe, minutes, *flags = words
    name = Path(recipe).stem
    run, left = folder / name, folder / "left" / name
    command = python("-m", "unistep", "train", recipe, "--output", run, "--max-minutes", minutes, *flags)
    former = [] if weights is None else [weights / name / "weights", weights / name]
    if found := next((path for path in former if path.is_dir()), None):
        command += ["--init-from", str(found)]
    return Task(name, command, 60 * float(minutes) + 60, run, left)


def train(options: argparse.Namespace, work: Path, environment: Mapping[str, str]) -> None:
    """Runs the jobs and brings their results home.

    Args:
        options: options of `add_options`, and `output`.
        work: folder of logs.
        environment: variables of the processes.
    """
    ends = time.monotonic() + options.deadline_s
    folder = (options.runs or work / "runs").resolve()
    weights = None if options.weights is None else options.weights.resolve()
    tasks = [task_of(text, folder, weights) for text in options.job]
    for task in tasks:
        task.left.mkdir(parents=True, exist_ok=True)
    jobs: list[Job] = []
    groups = [tasks] if options.together else [[task] for task in tasks]
    for group in groups:
        if time.monotonic() >= ends - 1:
            print(f"no time is left for {', '.join(task.name for task in group)}", flush=True)
            continue
        running = [start(task.name, task.command, work, 1e9, environment) for task in group]
        jobs += running
        watch(list(zip(group, running, strict=True)), ends)
    exports = [
        start(f"export-{task.name}", export_command(task), work, _EXPORT, environment)
        for task in tasks
        if task.run is not None and (task.run / "config.yaml").exists()
    ]
    wait(exports)
    gather(tasks, [*jobs, *exports], options.output, work, options.archives)


def watch(pairs: Sequence[tuple[Task, Job]], ends: float) -> None:
    """Waits for jobs that run at the same time, and says now and then how far they are.

    Args:
        pairs: tasks and their processes.
        ends: time at which all are stopped.
    """
    asked: dict[str, float] = {}
    said = time.monotonic()
    while not all([job.poll() for _, job in pairs]):
        now = time.monotonic()
        for task, job in pairs:
            if job.ended is not None:
                continue
            if task.name not in asked and (now > ends or job.seconds > task.limit):
                asked[task.name] = now
                job.note = f"asked to stop after {job.seconds:.0f} s"
                job.ask()
            elif now - asked.get(task.name, now) > _GRACE:
                job.note = "killed at the deadline"
                job.stop(0.1)
        if now - said >= _LINES:
            said = now
            print(" | ".join(progress(task, job) for task, job in pairs if job.ended is None), flush=True)
        time.sleep(0.2)
    for task, job in pairs:
        print(f"{task.name}: {job.verdict()} after {job.seconds:.0f} s", flush=True)


def progress(task: Task, job: Job) -> str:
    """How far a job is, in a few words."""
    logs = sorted(task.run.glob("*/metrics.jsonl"), key=lambda p: p.stat().st_mtime) if task.run else []
    for line in reversed(logs[-1].read_text().splitlines() if logs else []):
        try:
            values = json.loads(line)
            rate = f"{values['images_per_second']:,.0f}/s"
            loss = f"loss {values['loss']:.4g}"
            return f"{task.name} {logs[-1].parent.name} {values['step']:,} {rate} {loss}"
        except (ValueError, KeyError):
            continue
    last = job.text(400).splitlines()
    return f"{task.name}: {last[-1][:70] if last else 'starting'}"


def export_command(task: Task) -> list[str]:
    """The command that writes a run's weights in parts."""
    code = "import sys, unistep; unistep.export_weights(sys.argv[1], sys.argv[2], max_part_mb=14)"
    return python("-c", code, task.run, task.left / "weights")


def gather(tasks: Sequence[Task], jobs: Sequence[Job], output: Path, work: Path, archives: int) -> None:
    """Puts logs, grids and weights into the output, in flat names.

    Args:
        tasks: the jobs of the visit.
        jobs: their processes, and those of the exports.
        output: folder of the results.
        work: folder of the logs.
        archives: number of archives at most.
    """
    files: list[tuple[Path, str]] = []
    for task in tasks:
        for grid in newest_grids(task):
            shutil.copy(grid, task.left / f"{grid.parents[1].name}-{grid.name}")
        for log in task.run.glob("*/metrics.jsonl") if task.run else ():
            shutil.copy(log, task.left / f"{log.parent.name}-{log.name}")
        files += [
            (path, f"{task.name}/{path.relative_to(task.left)}") for path in task.left.rglob("*") if path.is_file()
        ]
    files += [(job.log, f"logs/{job.log.name}") for job in jobs]
    left = parcels(files, output, "trained", archives)
    grid = next((path for task in tasks for path in reversed(newest_grids(task))), None)
    if grid is not None:
        shutil.copy(grid, output / "grid.png")
    lines = [f"{job.name}: {job.verdict()}, {job.seconds:.0f} s" for job in jobs]
    lines += [f"left behind, for it is too large: {name}" for name in left]
    for job in jobs:
        if job.process.returncode:
            lines += [f"  {line[:160]}" for line in job.text(3000).splitlines()[-8:]]
    (output / "trained.txt").write_text("\n".join(lines) + "\n")
    print("\n".join(lines), flush=True)


def newest_grids(task: Task) -> list[Path]:
    """The newest grid of samples of each stage, the oldest first."""
    stages = sorted(task.run.glob("*/samples"), key=lambda p: p.stat().st_mtime) if task.run else []
    found = [sorted(stage.glob("step-*.png")) for stage in stages]
    return [grids[-1] for grids in found if grids]
