"""Every training method on MNIST: the same network, the same images seen, the same seed; one table.

    python benchmarks/compare_methods.py                      trains and measures all (`make compare-methods`)
    python benchmarks/compare_methods.py --only ect ict       some of them
    python benchmarks/compare_methods.py --write docs/results.md   puts the table there, between its markers
    python benchmarks/compare_methods.py --picture methods.png     draws what has been trained, and does no more

A teacher is trained once, by the recipe `mnist-edm`; the methods train by their recipes `mnist-METHOD` and take that
teacher where they need one. Each training is a process of its own on one core, as many at a time as there are cores:
its time and its peak memory are its own, and networks of this size gain little from a second core. What is done is kept
in --output: an interrupted comparison goes on where it was.

Quality is that of --count samples: the Frechet distance in the features of the bundled MNIST classifier to the 60,000
training images, and the share of samples that the classifier takes for the class asked for. The distance depends on
the number of samples: compare at equal counts only.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from unistep.cli.train import parse_run
from unistep.formats.model_folder.folder import load_model
from unistep.generation.generate import generate
from unistep.generation.plan import default_plan
from unistep.images.grid import save_grid
from unistep.metrics.features.mnist_classifier import load_mnist_classifier
from unistep.metrics.mnist import evaluate_digits, mnist_reference
from unistep.objectives.methods import METHODS

STUDENTS = [name for name in METHODS if name != "edm"]
START, END = "<!-- compare-methods: begin -->", "<!-- compare-methods: end -->"


@dataclass(frozen=True)
class Row:
    """A method, what it cost and what it makes."""

    name: str
    start: str
    seconds_per_1000: float
    peak_mib: float
    quality: dict[str, tuple[float, float]]  # by number of steps: Frechet distance, accuracy


def train(recipe: str, folder: Path, flags: list[str]) -> float:
    """Runs `unistep train` and returns its peak memory in MiB; a finished run keeps what it measured."""
    record = folder.with_suffix(".peak")
    if record.exists():
        return float(record.read_text())
    command = [sys.executable, "-m", "unistep", "train", recipe, "--output", str(folder), *flags]
    log = folder.with_suffix(".log")
    with log.open("w") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, env=os.environ | {"OMP_NUM_THREADS": "1"}
        )
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"training {recipe} failed; see {log}")
    record.write_text(str(usage.ru_maxrss / 1024))
    return usage.ru_maxrss / 1024


def seconds_per_1000(stage: Path) -> float:
    """Of training, by the run's own log."""
    last = json.loads((stage / "metrics.jsonl").read_text().splitlines()[-1])
    return 1000 * last["seconds"] / last["images"]


def measure(model: Path, steps: int | None, count: int, classifier: torch.nn.Module, reference: object) -> tuple:
    """Frechet distance and accuracy of `count` samples."""
    loaded = load_model(model)
    labels = torch.arange(count) % 10
    plan = default_plan(loaded.info, steps)
    images = torch.cat(list(generate(loaded.denoiser, plan, loaded.image_shape, range(count), labels=labels)))
    quality = evaluate_digits(images, labels, reference, classifier=classifier)  # pyright: ignore
    return quality.frechet_distance, quality.accuracy


def picture(root: Path, path: Path) -> None:
    """The teacher's samples above those of each method in one step, from the same noise."""
    models = [root / "edm" / "teacher" / "model", *(root / m / "student" / "model" for m in STUDENTS)]
    rows = []
    for model in (load_model(m) for m in models):
        steps = None if model.info.kind == "diffusion" else 1
        plan, labels = default_plan(model.info, steps), torch.arange(20) % 10
        rows.append(torch.cat(list(generate(model.denoiser, plan, model.image_shape, range(20), labels=labels))))
    save_grid(torch.cat(rows), path, 20)


def table(teacher: Row, rows: list[Row], arguments: argparse.Namespace, minutes: float) -> str:
    """As Markdown."""
    lines = [
        f"{teacher.name}: distance {teacher.quality[18][0]:.2f}, accuracy {teacher.quality[18][1]:.1%}, "
        f"{teacher.seconds_per_1000:.1f} s per 1,000 images trained, {teacher.peak_mib:.0f} MiB.",
        "",
        "| method | starts from | 1 step: distance | accuracy | 2 steps: distance | accuracy "
        "| s per 1,000 images | peak MiB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [f"{value[0]:.2f} | {value[1]:.1%}" for value in (row.quality[1], row.quality[2])]
        lines.append(
            f"| {row.name} | {row.start} | {' | '.join(cells)} | {row.seconds_per_1000:.1f} | {row.peak_mib:.0f} |"
        )
    lines += ["", f"{arguments.count:,} samples, {os.cpu_count()} CPU cores, {minutes:.0f} minutes in all."]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/compare-methods"))
    parser.add_argument("--only", nargs="+", choices=STUDENTS, default=STUDENTS, metavar="METHOD")
    parser.add_argument("--count", type=int, default=5000, help="samples a measurement")
    parser.add_argument("--write", type=Path, help="Markdown page whose table is replaced")
    parser.add_argument("--picture", type=Path, help="PNG to draw instead")
    arguments, flags = parser.parse_known_args()  # the rest goes to `unistep train`
    started = time.monotonic()
    root = arguments.output
    if arguments.picture:
        return picture(root, arguments.picture)
    root.mkdir(parents=True, exist_ok=True)
    classifier, reference = load_mnist_classifier(), mnist_reference()

    def row(name: str, start: str, stage: Path, peak: float, models: dict[int, tuple[Path, int | None]]) -> Row:
        found = {n: measure(path, steps, arguments.count, classifier, reference) for n, (path, steps) in models.items()}
        made = Row(name, start, seconds_per_1000(stage), peak, found)
        shown = ", ".join(f"{n} steps: distance {d:.2f}, accuracy {a:.1%}" for n, (d, a) in found.items())
        print(f"{name}: {shown}; {made.seconds_per_1000:.1f} s per 1,000 images, {peak:.0f} MiB", flush=True)
        return made

    print("training the teacher", flush=True)
    peak = train("mnist-edm", root / "edm", [])
    by = root / "edm" / "teacher"
    teacher = row("EDM teacher, 18 Heun steps", "random", by, peak, {18: (by / "model", 18)})
    from_teacher = {m: len(parse_run([f"mnist-{m}"])[0].stages) > 1 for m in arguments.only}

    def train_method(method: str) -> float:
        by_teacher = ["--teacher", str(by)] if from_teacher[method] else []
        peak = train(f"mnist-{method}", root / method, [*by_teacher, *flags])
        print(f"{METHODS[method].title}: trained", flush=True)
        return peak

    # The longest first, so that no core waits for them at the end.
    ordered = sorted(arguments.only, key=lambda m: (m not in ("scd", "sct"), not from_teacher[m]))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        peaks = dict(zip(ordered, pool.map(train_method, ordered), strict=True))
    rows = []
    for method in arguments.only:
        stage = root / method / "student"
        model, two = stage / "model", stage / "model-2-steps"
        models = {1: (model, 1), 2: (two, 2) if two.exists() else (model, 2)}
        rows.append(
            row(METHODS[method].title, "teacher" if from_teacher[method] else "random", stage, peaks[method], models)
        )
    text = table(teacher, rows, arguments, (time.monotonic() - started) / 60)
    print(f"\n{text}")
    if arguments.write:
        page = arguments.write.read_text(encoding="utf-8")
        before, _, rest = page.partition(START)
        _, _, after = rest.partition(END)
        arguments.write.write_text(f"{before}{START}\n{text}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
