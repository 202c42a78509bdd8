#!/usr/bin/env python3
"""All that is to be done on a GPU which is at hand for minutes, in parts that can be called alone.

    python scripts/gpu_visit.py all --output OUT --budget-s 150        tests, rates, steps and sampling, in this order
    python scripts/gpu_visit.py steps --output OUT                     one part
    python scripts/gpu_visit.py all --output OUT --tiny                tries everything on a CPU, with tiny networks
    python scripts/gpu_visit.py train --output OUT --deadline-s 400 \\
        --job "cifar10-minutes 5 --data DATA --compile graph" --job "scripts/train_cifar10_classifier.py TRAIN TEST"

Nothing is installed: the sources run as they are, beside PyTorch, accelerate and the small libraries that they need.

    tests       the tests marked `gpu`
    warm        compiles what `steps`, `sampling` and a later training need, several networks at a time
    rates       matrix products, copies
    steps       images a second of training steps, as a part of the rate of products, beside the published loop of ECT
    sampling    one-step images a second of the ImageNet-64 and LSUN-256 networks, beside diffusers
    train       trains recipes, and runs scripts, within a deadline: see visit_train.py

`tests` and `warm` run at the same time, the rest alone. Every part has a limit of its own, and what becomes of it ends
no other. --output gets few files: visit.json with all numbers, visit.txt with all tables, visit.log with all that was
printed, and what --save-cache packs; they are written anew after every part, so that a killed visit leaves what it had.

Compiled kernels lie in --cache. --save-cache packs them into OUT/cache.NN; --load-cache unpacks those of a former
visit, so that nothing is compiled twice.
"""

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from visit_parcels import pack_folder, unpack_folder
from visit_processes import ROOT, Job, python, start, wait
from visit_train import add_options, train

LIMITS = {"tests": 120.0, "warm": 110.0, "rates": 25.0, "steps": 110.0, "sampling": 75.0}
"""Seconds that a part may take, where its turn leaves it so many."""

RESERVED = {"rates": 10.0, "steps": 60.0, "sampling": 35.0}
"""Seconds that earlier parts leave to a later one."""

ORDER = (("tests", "warm"), ("rates",), ("steps",), ("sampling",))
"""Parts of `all`; those of a group run at the same time."""

TAIL = 9000  # characters of the summary at the end


@dataclass
class Visit:
    """A visit: where its files are, and what has come of its parts.

    Args:
        output: folder of the results.
        work: folder of the parts' own files.
        cache: folder of compiled kernels.
        tiny: whether networks are tiny, to try the script.
        recipe: recipe whose network is measured beside the published one.
    """

    output: Path
    work: Path
    cache: Path
    tiny: bool
    recipe: str
    began: float = field(default_factory=time.monotonic)
    parts: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        """Variables of all processes."""
        return {
            "TORCHINDUCTOR_CACHE_DIR": str(self.cache / "inductor"),
            "TRITON_CACHE_DIR": str(self.cache / "triton"),
            "TOKENIZERS_PARALLELISM": "false",
        }

    def start(self, name: str, command: Sequence[str], limit: float) -> Job:
        """Starts a process of a part.

        Args:
            name: name of its log.
            command: command and arguments.
            limit: seconds that it may take.
        """
        return start(name, command, self.work, max(limit, 1.0), self.environment)

    def note(self, part: str, jobs: Sequence[Job], numbers: Sequence[Path] = ()) -> None:
        """Keeps what has come of a part, and writes all results anew.

        Args:
            part: name of the part.
            jobs: its processes.
            numbers: JSON files that they were to write.
        """
        self.parts[part] = {
            "processes": {job.name: {"verdict": job.verdict(), "seconds": round(job.seconds, 1)} for job in jobs},
            "numbers": {path.stem: json.loads(path.read_text()) for path in numbers if path.exists()},
            "text": "\n".join(f"[{job.name}: {job.verdict()}, {job.seconds:.0f} s]\n{shown(job)}" for job in jobs),
        }
        self.write()
        print(f"{time.monotonic() - self.began:6.0f} s  {part}: {', '.join(job.verdict() for job in jobs)}", flush=True)

    def write(self) -> None:
        """Writes the results so far."""
        values = {"machine": machine(), "parts": {name: drop(part, "text") for name, part in self.parts.items()}}
        (self.output / "visit.json").write_text(json.dumps(values, indent=1))
        (self.output / "visit.txt").write_text(self.text())
        with (self.output / "visit.log").open("wb") as file:
            for log in sorted(self.work.glob("*.log")):
                file.write(f"===== {log.stem}\n".encode() + log.read_bytes()[-2_000_000:] + b"\n")

    def text(self) -> str:
        """All tables."""
        return "\n\n".join(f"== {name}\n{part['text']}" for name, part in self.parts.items()) + "\n"


def drop(values: dict[str, Any], key: str) -> dict[str, Any]:
    """Returns a mapping without a key."""
    return {name: value for name, value in values.items() if name != key}


def machine() -> dict[str, Any]:
    """The machine, in names and numbers."""
    import torch

    gpu = torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name() if gpu else "CPU",
        "memory_gib": round(torch.cuda.get_device_properties(0).total_memory / 2**30, 1) if gpu else None,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if gpu else None,
    }


def shown(job: Job) -> str:
    """The part of a process's output that a person wants to see: of pytest's the end, of others' all but noise."""
    lines = [line for line in job.text().splitlines() if line.strip() and "Warning" not in line]
    if job.name == "tests":
        keep = [line for line in lines if line.startswith(("FAILED", "ERROR", "E  "))][:40]
        lines = [*keep, *lines[-10:]]
    elif job.process.returncode:
        lines = lines[-12:]
    return "\n".join(line[:180] for line in lines[-40:])


def tests(visit: Visit, limit: float) -> Callable[[], None]:
    """Starts the tests marked `gpu`."""
    marked = [path for path in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.gpu" in path.read_text()]
    options = ["-v", "-p", "no:cacheprovider", "-m", "gpu", "--tb=short", "--durations=6", "--no-header"]
    job = visit.start("tests", python("-m", "pytest", *options, *marked), limit)

    def finish() -> None:
        wait([job])
        visit.note("tests", [job])

    return finish


def steps_command(visit: Visit, *arguments: object) -> list[str]:
    """The command of the training benchmark, with what all calls of it have in common."""
    return python(ROOT / "benchmarks/training.py", *arguments, *(["--tiny"] if visit.tiny else []))


def warm(visit: Visit, limit: float) -> Callable[[], None]:
    """Starts processes that compile the networks of later parts: each makes a few steps and measures nothing."""
    quick = ["--steps", 1, "--turns", 1, "--warmup", 6, "--limit", 1]
    if visit.tiny:
        quick = ["--steps", 1, "--turns", 1, "--warmup", 1, "--limit", 1]
    mode = "graphed:bf16" if gpu() else "eager:bf16"
    plain = ["--dropout", 0, "--optimizer", "adamw"]
    own, batch = visit.recipe, 512 if gpu() else 4
    commands = {
        "warm-published": steps_command(visit, "cifar10-ect:student", "--runs", mode, "--batch", batch, *plain, *quick),
        "warm-teacher": steps_command(visit, f"{own}:teacher", "--runs", mode, "--batch", 0 if gpu() else 4, *quick),
        "warm-student": steps_command(visit, f"{own}:student", "--runs", mode, "--batch", 0 if gpu() else 4, *quick),
    }
    jobs = [visit.start(name, command, limit) for name, command in commands.items()]
    # FLOPs are the same on every device, and counting them takes the host's time alone.
    cases = ["cifar10-ect:student", "cifar10-edm:teacher", f"{own}:teacher", f"{own}:student"]
    counting = steps_command(visit, *cases, "--at", "first", "last", "--count", "--json", visit.work / "flops.json")
    environment = visit.environment | {"CUDA_VISIBLE_DEVICES": ""}
    jobs.append(start("count", counting, visit.work, limit, environment))

    def finish() -> None:
        wait(jobs)
        visit.note("warm", jobs, [visit.work / "flops.json"])

    return finish


def rates(visit: Visit, limit: float) -> Callable[[], None]:
    """Starts the measurement of the device's rates."""
    path = visit.work / "rates.json"
    sizes = ["--size", 256] if visit.tiny else []
    job = visit.start("rates", python(ROOT / "benchmarks/rates.py", "--json", path, *sizes), limit)

    def finish() -> None:
        wait([job])
        visit.note("rates", [job], [path])

    return finish


def steps(visit: Visit, limit: float) -> Callable[[], None]:
    """Returns what measures training steps: the recipe's network, then the published one, then the host's time."""

    def finish() -> None:
        ours = [f"{mode}:bf16" for mode in ("eager", "compiled", "graphed")] if gpu() else ["eager:bf16"]
        few = ["--steps", 10, "--turns", 3, "--warmup", 6, "--limit", 2.0, "--images", 50_000]
        if visit.tiny:
            few = ["--steps", 1, "--turns", 1, "--warmup", 1, "--limit", 0.5, "--images", 64]
        own, batch = visit.recipe, (lambda number: number if gpu() else 4)
        plain = ["--dropout", 0, "--optimizer", "adamw"]
        published = ["published:fp32", "published:tf32"]
        # What says most first: a step of the published network in fp32 takes half a second, and may use up the time.
        calls = {
            "steps-recipe": [f"{own}:teacher", f"{own}:student", "--batch", batch(0), "--runs", *ours],
            "steps-recipe-published": [f"{own}:student", "--batch", batch(0), "--runs", *published],
            "steps-host": [f"{own}:student", "--host", "--batch", batch(512), *plain],
            "steps-published-128": ["cifar10-ect:student", "--batch", batch(128), "--runs", *published, ours[0]],
            "steps-teacher-512": ["cifar10-edm:teacher", "--batch", batch(512), "--runs", ours[0], *plain[2:]],
            "steps-published-512": ["cifar10-ect:student", "--batch", batch(512), "--runs", *published, *ours, *plain],
            "steps-last-512": ["cifar10-ect:student", "--at", "last", "--batch", batch(512), "--runs"]
            + ["published:fp32", ours[0], ours[-1], *plain],
        }
        few += ["--rates", visit.work / "rates.json", "--flops", visit.work / "flops.json"]

        def command(name: str, left: float) -> list[str]:
            return [*steps_command(visit, *calls[name], *few), "--seconds", str(left - 5)]

        one_by_one(visit, "steps", list(calls), command, limit)

    return finish


def sampling(visit: Visit, limit: float) -> Callable[[], None]:
    """Returns what measures one-step sampling: first both networks as they are, then compiled."""

    def finish() -> None:
        tiny = ["--tiny", "--seconds", 0.1, "--batch", 2] if visit.tiny else ["--seconds", 1.0]
        script = ROOT / "benchmarks/one_step.py"
        calls = {"sampling": [], "sampling-compiled": ["--models", "imagenet64", "--compiled"]}

        def command(name: str, left: float) -> list[str]:
            return python(script, *calls[name], *tiny)

        one_by_one(visit, "sampling", list(calls), command, limit)

    return finish


def one_by_one(
    visit: Visit, part: str, names: Sequence[str], command: Callable[[str, float], list[str]], limit: float
) -> None:
    """Runs the measurements of a part, one after the other, as long as there is time.

    Args:
        visit: the visit.
        part: name of the part.
        names: names of the measurements.
        command: command of a measurement by its name and the seconds that are left.
        limit: seconds of all of them.
    """
    ends, jobs, files = time.monotonic() + limit, [], []
    for name in names:
        left = ends - time.monotonic()
        if left < 6:
            print(f"           no time is left for {name}", flush=True)
            continue
        files.append(visit.work / f"{name}.json")
        jobs.append(visit.start(name, [*command(name, left), "--json", str(files[-1])], left))
        wait(jobs[-1:])
        visit.note(part, jobs, files)


def gpu() -> bool:
    """Whether there is a GPU."""
    import torch

    return torch.cuda.is_available()


PARTS: dict[str, Callable[[Visit, float], Callable[[], None]]] = {
    "tests": tests,
    "warm": warm,
    "rates": rates,
    "steps": steps,
    "sampling": sampling,
}


def measure(visit: Visit, names: Sequence[str], budget: float) -> None:
    """Runs parts, group by group, each within its limit and what is left of the budget.

    Args:
        visit: the visit.
        names: parts.
        budget: seconds of all parts together.
    """
    for number, group in enumerate(ORDER):
        own = [name for name in group if name in names]
        later = [name for following in ORDER[number + 1 :] for name in following if name in names]
        left = budget - (time.monotonic() - visit.began) - sum(RESERVED[name] for name in later)
        if own and left < 5:
            print(f"{time.monotonic() - visit.began:6.0f} s  no time is left for {', '.join(own)}", flush=True)
            continue
        begun = []
        for name in own:
            try:
                begun.append((name, PARTS[name](visit, min(LIMITS[name], left))))
            except Exception as error:  # of a part that cannot begin
                print(f"{name}: {type(error).__name__}: {error}", flush=True)
        for name, finish in begun:
            try:
                finish()
            except Exception as error:
                print(f"{name}: {type(error).__name__}: {error}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="part", required=True)
    for name in ("all", *PARTS, "train"):
        own = commands.add_parser(name)
        own.add_argument("--output", type=Path, required=True, help="folder of the results")
        own.add_argument("--work", type=Path, help="folder of the parts' own files; default: a temporary one")
        own.add_argument(
            "--cache",
            type=Path,
            default=Path(tempfile.gettempdir(), "unistep-compiled"),
            help="folder of compiled kernels, the same in every visit",
        )
        own.add_argument("--load-cache", type=Path, help="folder with the cache.NN of a former visit")
        own.add_argument("--save-cache", action="store_true", help="pack the compiled kernels into --output")
        if name == "train":
            add_options(own)
            continue
        own.add_argument("--tiny", action="store_true", help="tiny networks, to try the script")
        own.add_argument("--recipe", default="cifar10-minutes", help="recipe that is measured, of teacher and student")
        own.add_argument("--budget-s", type=float, default=1e6, help="seconds of all parts together")
        if name == "all":
            own.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS), help="parts of them")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    options.output, options.cache = options.output.resolve(), options.cache.resolve()
    work = options.work or Path(tempfile.mkdtemp(prefix="gpu-visit-"))
    work.mkdir(parents=True, exist_ok=True)
    visit = Visit(
        options.output,
        work.resolve(),
        options.cache,
        getattr(options, "tiny", False),
        getattr(options, "recipe", ""),
    )
    print(json.dumps(machine()), flush=True)
    if options.load_cache:
        parts = sorted(options.load_cache.glob("cache.[0-9][0-9]"))
        print(f"{unpack_folder(parts, visit.cache)} files of compiled kernels", flush=True)
    if options.part == "train":
        train(options, visit.work, visit.environment)
    else:
        measure(visit, options.parts if options.part == "all" else [options.part], options.budget_s)
    if options.save_cache and visit.cache.exists():
        found = pack_folder(visit.cache, visit.output / "cache")
        print(f"compiled kernels: {sum(p.stat().st_size for p in found) / 2**20:.1f} MiB in {len(found)} parts")
    if options.part != "train":
        visit.write()
        print(visit.text()[-TAIL:], flush=True)


if __name__ == "__main__":
    main()
