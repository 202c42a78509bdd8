"""Every training method on MNIST: the same network, the same images seen, the same seeds; one table.

    python benchmarks/compare_methods.py                      trains and measures all (`make compare-methods`)
    python benchmarks/compare_methods.py --only ect ict       some of them
    python benchmarks/compare_methods.py --seeds 3            each three times, with the interval over the seeds
    python benchmarks/compare_methods.py --write docs/results.md   puts the table there, between its markers
    python benchmarks/compare_methods.py --picture methods.png     draws what has been trained, and does no more

A teacher is trained once, by the recipe `mnist-edm`; the methods train by their recipes `mnist-METHOD` and take that
teacher where they need one. Each training is a process of its own on one core, as many at a time as there are cores.
What is done is kept in --output: an interrupted comparison goes on where it was.

Time and peak memory are those of 40 further steps of a method's last stage, one method after the other on one core,
when all trainings have ended: so they do not depend on what else the machine did meanwhile.

Quality is that of --count samples: the Frechet distance in the features of the bundled MNIST classifier to the 60,000
training images, and the share of samples that the classifier takes for the class asked for. The distance depends on
the number of samples: compare at equal counts only. Its 95% interval is, with one seed, that of drawing other samples
of the same model; with several, that of training again, from the spread of the seeds, of which the mean is given.
"""

import argparse
import dataclasses
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from marked_page import marked_page

from unistep.cli.train import parse_run
from unistep.formats.model_folder.folder import load_model
from unistep.generation.generate import generate
from unistep.generation.plan import default_plan
from unistep.images.grid import save_grid
from unistep.metrics.features.mnist_classifier import FEATURE_DIM, load_mnist_classifier
from unistep.metrics.frechet import frechet_estimate
from unistep.metrics.mnist import mnist_reference
from unistep.metrics.moments import GroupedMoments
from unistep.objectives.methods import METHODS

STUDENTS = [name for name in METHODS if name != "edm"]
# All methods without guidance: this one would learn it as an input, for which the teacher lacks the null class.
FLAGS = {"imf": ["--student.objective.label_dropout", "0"]}
STEPS, OF_FLOW_MAPS = (1, 2, 4), (1, 2, 4, 8)
COSTED = 40  # steps that memory is taken from, and time from the second half of them
BATCH = 250
# Quantiles 0.975 of Student's t, by degrees of freedom, and from there on the normal one.
STUDENT_T = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776}


@dataclass(frozen=True)
class Quality:
    """Of the samples in one number of steps: distance, half the length of its 95% interval, accuracy."""

    distance: float
    reach: float
    accuracy: float

    def __str__(self) -> str:
        return f"{self.distance:.2f} ± {self.reach:.2f}"


@dataclass(frozen=True)
class Row:
    """A method, what it cost and what it makes."""

    name: str
    start: str
    cost: tuple[float, float] | None  # seconds per 1,000 images, peak MiB
    quality: dict[int, Quality]  # by number of steps


def train(recipe: str, folder: Path, flags: list[str]) -> float:
    """Runs `unistep train` and returns its peak memory in MiB."""
    command = [sys.executable, "-m", "unistep", "train", recipe, "--output", str(folder), *flags]
    log = folder.with_suffix(".log")
    with log.open("w") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, env=os.environ | {"OMP_NUM_THREADS": "1"}
        )
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"training {recipe} failed; see {log}")
    return usage.ru_maxrss / 1024


def train_once(recipe: str, folder: Path, flags: list[str]) -> None:
    """Trains a recipe to its end, if that was not done before."""
    record = folder.with_suffix(".done")
    if not record.exists():
        train(recipe, folder, flags)
        record.touch()


def cost(recipe: str, root: Path, flags: list[str]) -> tuple[float, float]:
    """Seconds per 1,000 images of the recipe's last stage, and peak memory in MiB, of a short training; kept."""
    record = root / f"{recipe}.cost.json"
    if not record.exists():
        *before, last = [stage.name for stage in parse_run([recipe, *flags])[0].stages]
        short = {"steps": COSTED, "log_every": COSTED // 2, "sample_every": 0, "checkpoint_every": 10 * COSTED}
        keys = {f"{name}.steps": 8 for name in before} | {f"{last}.{key}": value for key, value in short.items()}
        more = [word for key, value in keys.items() for word in (f"--{key}", str(value))]
        with tempfile.TemporaryDirectory() as folder:
            peak = train(recipe, Path(folder) / "run", [*flags, *more])
            lines = (Path(folder) / "run" / last / "metrics.jsonl").read_text().splitlines()
        record.write_text(json.dumps([1000 / json.loads(lines[-1])["images_per_second"], peak]))
    seconds, peak = json.loads(record.read_text())
    return seconds, peak


def measure(model: Path, steps: int | None, count: int) -> Quality:
    """Quality of `count` samples; kept beside the model."""
    record = model.parent / f"quality-{steps}-{count}.json"
    if record.exists():
        return Quality(**json.loads(record.read_text()))
    loaded = load_model(model)
    labels = torch.arange(count) % 10
    found, correct = GroupedMoments(FEATURE_DIM), 0
    plan, classifier = default_plan(loaded.info, steps), load_mnist_classifier()
    for first, images in enumerate(
        generate(loaded.denoiser, plan, loaded.image_shape, range(count), batch_size=BATCH, labels=labels)
    ):
        features, logits = classifier.features_and_logits(images)
        found.update(features, first * BATCH)
        correct += int((logits.argmax(1) == labels[first * BATCH :][: len(images)]).sum())
    distance = frechet_estimate(found, mnist_reference()).distance
    low, high = distance.interval
    quality = Quality(distance.value, (high - low) / 2, correct / count)
    record.write_text(json.dumps(dataclasses.asdict(quality)))
    return quality


def over_seeds(found: list[Quality]) -> Quality:
    """The mean, and its interval from the spread; a single one as it is."""
    if len(found) == 1:
        return found[0]
    distances, n = [q.distance for q in found], len(found)
    reach = STUDENT_T.get(n - 1, 1.96) * statistics.stdev(distances) / math.sqrt(n)
    return Quality(statistics.fmean(distances), reach, statistics.fmean(q.accuracy for q in found))


def qualities(stage: Path, count: int) -> dict[int, Quality]:
    """Of a trained student, at each number of steps that it can be sampled in."""
    info = load_model(stage / "model").info
    found = {}
    for steps in OF_FLOW_MAPS if info.flow_map else STEPS:
        # A progressively distilled model is one for each number of steps.
        own = stage / f"model-{steps}-steps"
        if own.exists() or info.kind != "diffusion" or steps == 1:
            found[steps] = measure(own if own.exists() else stage / "model", steps, count)
    return found


def picture(root: Path, path: Path, methods: list[str]) -> None:
    """The teacher's samples above those of each method in one step, from the same noise."""
    models = [root / "edm" / "teacher" / "model", *(root / m / "student" / "model" for m in methods)]
    rows = []
    for model in (load_model(m) for m in models):
        steps = None if model.info.kind == "diffusion" else 1
        plan, labels = default_plan(model.info, steps), torch.arange(20) % 10
        rows.append(torch.cat(list(generate(model.denoiser, plan, model.image_shape, range(20), labels=labels))))
    save_grid(torch.cat(rows), path, 20)


def table(teacher: Row, rows: list[Row], arguments: argparse.Namespace) -> str:
    """As Markdown."""
    steps = [n for n in OF_FLOW_MAPS if any(n in row.quality for row in rows)]
    made = teacher.quality[18]
    spent = "" if teacher.cost is None else ", {:.1f} s per 1,000 images trained, {:.0f} MiB".format(*teacher.cost)
    columns = [f"{n} step{'s' * (n > 1)}" for n in steps] + ["accuracy, 1 step"]
    columns += [] if teacher.cost is None else ["s per 1,000 images", "peak MiB"]
    lines = [
        f"{teacher.name}: distance {made}, accuracy {made.accuracy:.1%}{spent}.",
        "",
        f"| method | starts from | {' | '.join(columns)} |",
        "|---" * (len(columns) + 2) + "|",
    ]
    for row in rows:
        cells = [str(row.quality.get(n, "")) for n in steps]
        spent = "" if row.cost is None else " {:.1f} | {:.0f} |".format(*row.cost)
        lines.append(f"| {row.name} | {row.start} | {' | '.join(cells)} | {row.quality[1].accuracy:.1%} |{spent}")
    seeds = f"{arguments.seeds} seeds" if arguments.seeds > 1 else "one seed"
    lines += ["", f"{arguments.count:,} samples, {seeds}."]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/compare-methods"))
    parser.add_argument("--only", nargs="+", choices=STUDENTS, default=STUDENTS, metavar="METHOD")
    parser.add_argument("--seeds", type=int, default=1, help="trainings of each method, with the seeds 0, 1, ...")
    parser.add_argument("--quality-only", action="store_true", help="leave time and memory out")
    parser.add_argument("--count", type=int, default=5000, help="samples a measurement")
    parser.add_argument("--write", type=marked_page("compare-methods"), help="Markdown page whose table is replaced")
    parser.add_argument("--picture", type=Path, help="PNG to draw instead")
    arguments, flags = parser.parse_known_args()  # the rest goes to `unistep train`
    root = arguments.output
    if arguments.picture:
        return picture(root, arguments.picture, arguments.only)
    root.mkdir(parents=True, exist_ok=True)

    def row(name: str, start: str, recipe: str, more: list[str], found: list[dict[int, Quality]]) -> Row:
        quality = {n: over_seeds([each[n] for each in found]) for n in found[0]}
        shown = ", ".join(f"{n} steps: distance {q}, accuracy {q.accuracy:.1%}" for n, q in quality.items())
        print(f"{name}: {shown}", flush=True)
        return Row(name, start, None if arguments.quality_only else cost(recipe, root, more), quality)

    print("training the teacher", flush=True)
    train_once("mnist-edm", root / "edm", [])
    by = root / "edm" / "teacher"
    from_teacher = {m: len(parse_run([f"mnist-{m}"])[0].stages) > 1 for m in arguments.only}

    def folder(method: str, seed: int) -> Path:
        return root / (f"{method}-seed-{seed}" if seed else method)

    def flags_of(method: str) -> list[str]:
        return [*(["--teacher", str(by)] if from_teacher[method] else []), *FLAGS.get(method, []), *flags]

    def train_method(method: str, seed: int) -> None:
        of_seed = ["--seed", str(seed)] if seed else []
        train_once(f"mnist-{method}", folder(method, seed), [*flags_of(method), *of_seed])
        print(f"{METHODS[method].title}, seed {seed}: trained", flush=True)

    # The longest first, so that no core waits for them at the end.
    longest = ("imf", "facm", "cmt", "meanflow", "scd", "sct")
    runs = [(m, seed) for seed in range(arguments.seeds) for m in arguments.only]
    runs.sort(key=lambda run: (run[0] not in longest, not from_teacher[run[0]]))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(lambda run: train_method(*run), runs):
            pass
    found = [{18: measure(by / "model", 18, arguments.count)}]
    teacher = row("EDM teacher, 18 Heun steps", "random", "mnist-edm", [], found)
    rows = []
    for method in arguments.only:
        found = [qualities(folder(method, seed) / "student", arguments.count) for seed in range(arguments.seeds)]
        start = "teacher" if from_teacher[method] else "random"
        rows.append(row(METHODS[method].title, start, f"mnist-{method}", flags_of(method), found))
    text = table(teacher, rows, arguments)
    print(f"\n{text}")
    if arguments.write:
        arguments.write.write(text)


if __name__ == "__main__":
    main()
