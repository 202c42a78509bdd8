"""Short trainings of a teacher of CIFAR-10, one for each choice of the recipe `cifar10-cpu`.

    python benchmarks/short_runs.py --data cifar10 --minutes 5 --write docs/cifar10.md

Every row trains the recipe's teacher with the flags of the row for as many minutes of one thread, whatever they buy:
more images of a small network or fewer of a large one. Where the row does not say otherwise, networks have 96 and 192
channels and batches 64 images, and AdamW's learning rate rises in 100 steps. Then 1,000 samples in 17 evaluations
(Heun, 9 steps) are compared with the first 5,000 training images by the features of EfficientNet-Lite0. Runs and
numbers are kept below --output: an interrupted command goes on where it was.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from marked_page import marked_page

import unistep
from unistep.data import ImageDataset

RECIPE = "cifar10-cpu"
STEPS = 9
BASE = {
    "network.block-out-channels": "[96,192]",
    "teacher.steps": "1000000",
    "teacher.batch-size": "64",
    "teacher.optimizer.name": "adamw",
    "teacher.optimizer.betas": "[0.9,0.99]",
    "teacher.optimizer.warmup-steps": "100",
    "teacher.sample-every": "0",
    "teacher.log-every": "1",
}
NARROW = {"network.block-out-channels": "[64,128]"}
MUON = {"teacher.optimizer.name": "muon", "teacher.optimizer.betas": "[0.95,0.99]"}


@dataclass(frozen=True)
class Choice:
    """A choice: its name, what it is about, and the keys of the recipe that it changes."""

    name: str
    about: str
    keys: Mapping[str, str] = field(default_factory=dict)


CHOICES = (
    Choice("recipe", "96 and 192 channels, AdamW, batches of 64"),
    Choice("narrow", "64 and 128 channels", NARROW),
    Choice("wide", "128 and 256 channels", {"network.block-out-channels": "[128,256]"}),
    Choice("deep", "2 layers a resolution", {"network.layers-per-block": "2"}),
    Choice("no-attention", "no attention", {"network.add-attention": "false"}),
    Choice(
        "patch-4",
        "patches of 4, 128 and 256 channels",
        {"network.patch-size": "4", "network.block-out-channels": "[128,256]"},
    ),
    Choice("batch-32", "batches of 32", {"teacher.batch-size": "32"}),
    Choice("batch-16", "batches of 16", {"teacher.batch-size": "16"}),
    Choice("batch-128", "batches of 128", {"teacher.batch-size": "128"}),
    Choice("narrow-32", "64 and 128 channels, batches of 32", NARROW | {"teacher.batch-size": "32"}),
    Choice("muon-32", "Muon, 64 and 128 channels, batches of 32", MUON | NARROW | {"teacher.batch-size": "32"}),
    Choice("muon-64", "Muon, 64 and 128 channels, batches of 64", MUON | NARROW),
    Choice(
        "muon-lr-double",
        "Muon, learning rate 2e-3, 64 and 128 channels, batches of 32",
        MUON | NARROW | {"teacher.batch-size": "32", "teacher.optimizer.lr": "2e-3"},
    ),
    Choice("muon-wide", "Muon, batches of 32", MUON | {"teacher.batch-size": "32"}),
    Choice("lr-half", "learning rate 5e-4", {"teacher.optimizer.lr": "5e-4"}),
    Choice("lr-double", "learning rate 2e-3", {"teacher.optimizer.lr": "2e-3"}),
    Choice(
        "noise",
        "P_mean -0.8, P_std 1.4",
        {"teacher.objective.P_mean": "-0.8", "teacher.objective.P_std": "1.4"},
    ),
    Choice("no-classes", "no class labels", {"use-labels": "false"}),
)


def train(choice: Choice, folder: Path, arguments: argparse.Namespace) -> dict[str, float]:
    """What a training cost: minutes of a core, images, parameters; kept beside its log."""
    record = folder.with_suffix(".cost.json")
    if record.exists():
        return json.loads(record.read_text())
    command = [sys.executable, "-m", "unistep", "train", RECIPE, "--output", str(folder), "--data", arguments.data]
    command += ["--threads", "1", "--max-minutes", str(arguments.minutes), "--no-progress"]
    command += [word for key, value in (BASE | dict(choice.keys)).items() for word in (f"--{key}", value)]
    with folder.with_suffix(".log").open("w") as log:
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{choice.name} failed; see {log.name}")
    lines = (folder / "teacher" / "metrics.jsonl").read_text().splitlines()
    network = unistep.load(folder / "teacher" / "model").denoiser.network
    found = {
        "core_minutes": (usage.ru_utime + usage.ru_stime) / 60,
        "images": json.loads(lines[-1])["images"],
        "parameters": sum(p.numel() for p in network.parameters()),
    }
    record.write_text(json.dumps(found))
    return found


def quality(folder: Path, arguments: argparse.Namespace) -> dict[str, float]:
    """Frechet distance with its interval, and kernel distance, of the samples; kept beside the log."""
    record = folder.with_suffix(".quality.json")
    if record.exists():
        return json.loads(record.read_text())
    model = unistep.load(folder / "teacher" / "model", dtype="bf16")
    classes = [i % 10 for i in range(arguments.count)] if model.num_classes else None
    images = unistep.sample(
        model, num_images=arguments.count, class_labels=classes, steps=STEPS, seed=0, batch_size=50, progress=False
    )
    whole = unistep.open_dataset(arguments.data)
    report = unistep.evaluate(
        images,
        reference=ImageDataset(whole.images[: arguments.reference_count], None, ()),
        features="effnet-lite0",
        metrics=["fd", "kd"],
        feature_cache=arguments.output / "features",
        progress=False,
    )
    low, high = report["fd"].interval
    found = {"fd": report["fd"].value, "half": (high - low) / 2, "kd": report["kd"].value}
    images.save(folder.with_suffix(".png"))
    record.write_text(json.dumps(found))
    return found


def table(rows: list[tuple[Choice, dict[str, float], dict[str, float]]], arguments: argparse.Namespace) -> str:
    """The table and what it is of, in Markdown."""
    lines = ["| change | parameters | images seen | minutes | images/s | FD | KD |", "|---|---|---|---|---|---|---|"]
    for choice, cost, found in rows:
        pace = cost["images"] / (60 * cost["core_minutes"])
        lines.append(
            f"| {choice.about} | {cost['parameters'] / 1e6:.1f} M | {cost['images']:,.0f} | {cost['core_minutes']:.1f} "
            f"| {pace:.0f} | {found['fd']:.0f} ± {found['half']:.0f} | {found['kd']:.3f} |"
        )
    lines += ["", f"{arguments.count:,} samples in {2 * STEPS - 1} evaluations against the first"]
    lines[-1] += f" {arguments.reference_count:,} training images; minutes and images/s are those of one thread."
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--minutes", type=float, default=5, help="time of each training")
    parser.add_argument("--count", type=int, default=1000, help="samples of each")
    parser.add_argument("--reference-count", type=int, default=5000)
    parser.add_argument("--only", nargs="*", metavar="NAME", help=", ".join(choice.name for choice in CHOICES))
    parser.add_argument("--output", type=Path, default=Path("runs/short-runs"))
    parser.add_argument("--write", type=marked_page("short-runs"), help="Markdown page whose table is replaced")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    rows = []
    for choice in CHOICES:
        if arguments.only and choice.name not in arguments.only:
            continue
        folder = arguments.output / choice.name
        rows.append((choice, train(choice, folder, arguments), quality(folder, arguments)))
        print(table(rows[-1:], arguments).splitlines()[2], flush=True)
    text = table(rows, arguments)
    print(text)
    if arguments.write:
        arguments.write.write(text)


if __name__ == "__main__":
    main()
