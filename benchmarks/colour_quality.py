"""Quality of a class-conditional colour model by all measures, beside its teacher and images that were not trained on.

    python benchmarks/colour_quality.py STUDENT --teacher TEACHER --reference cifar10 --test cifar10-test \\
        --write docs/cifar10.md

Samples of the student in one and in two steps, and of the teacher in 35 evaluations, against the training images:
Frechet and kernel distance, precision and recall, agreement of an independent classifier with the class asked for,
copies of training images, and a picture of the nearest ones. The last row is that of the test images, the floor of
every number; the distance of fewer images is larger, so compare it with as many samples, --count.

Samples, features and numbers are kept below --output: an interrupted command goes on where it was. Defaults are for
CIFAR-10; --features and --judge name other feature networks.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from marked_page import marked_page

import unistep
from unistep.data import ImageDataset
from unistep.files import whole_file
from unistep.generation.settings import weights_digest

_SHOWN = ("fd", "kd", "precision", "recall", "agreement", "copies", "copies_near")
_SHARES = _SHOWN[2:]
_Z95 = 1.96


def first(name: str, count: int | None) -> Any:
    """The first images of a data set with their labels; all of them for None."""
    dataset = unistep.open_dataset(name)
    labels = None if dataset.labels is None else dataset.labels[:count]
    return ImageDataset(dataset.images[:count], labels, dataset.class_names)


def numbers(images: Any, arguments: argparse.Namespace, name: str) -> dict[str, Any]:
    """All numbers of images with labels, by name; the picture of nearest training images goes beside the numbers."""
    common = {"feature_cache": arguments.output / "features", "device": arguments.device, "progress": False}
    report = unistep.evaluate(
        images,
        reference=first(arguments.reference, arguments.reference_count),
        features=arguments.features,
        metrics=["fd", "kd", "pr", "copies"],
        **common,
    )
    report.save(arguments.output / f"{name.replace(' ', '-')}.json")
    judged = unistep.evaluate(
        images, features=arguments.judge, features_path=arguments.judge_path, metrics=["agreement"], **common
    )
    return report.to_dict()["metrics"] | judged.to_dict()["metrics"]


def measure(arguments: argparse.Namespace, found: dict[str, Any], path: Path) -> None:
    """Measures the rows that are not there yet, and writes each."""

    def add(name: str, images: Any, evaluations: int | None, seconds: float | None) -> None:
        row = {"images": len(images), "evaluations": evaluations, "seconds": seconds}
        found["rows"][name] = row | {"metrics": numbers(images, arguments, name)}
        with whole_file(path) as temporary:
            temporary.write_text(json.dumps(found, indent=2, default=str) + "\n")
        print(line(name, found["rows"][name]), flush=True)

    wanted = [("1 step", arguments.student, 1), ("2 steps", arguments.student, 2)]
    if arguments.teacher:
        wanted.append(("teacher", arguments.teacher, 18))
    for name, model, steps in wanted:
        if name not in found["rows"]:
            images = unistep.sample(
                unistep.load(model, device=arguments.device, dtype=arguments.dtype),
                num_images=arguments.count,
                steps=steps,
                seed=arguments.seed,
                batch_size=arguments.batch_size,
                output=arguments.output / f"{name.replace(' ', '-')}.npz",
                progress=False,
            )
            add(name, images, images.evaluations, images.seconds)
    if "test images" not in found["rows"]:
        add("test images", first(arguments.test, arguments.test_count), None, None)


def cell(name: str, metric: dict[str, Any]) -> str:
    """A number with its 95% interval: shares in percent, others to three digits."""
    value, reach = metric["value"], _Z95 * metric["standard_error"]
    return f"{value:.1%} ± {reach:.1%}" if name in _SHARES else f"{value:.3g} ± {reach:.2g}"


def line(name: str, row: dict[str, Any]) -> str:
    """A row of the table."""
    cells = [cell(key, row["metrics"][key]) for key in _SHOWN]
    shown = f"{row['images']:,} {name}" if row["evaluations"] is None else name
    seconds = "" if row["seconds"] is None else f"{row['seconds']:.2g}"
    return f"| {shown} | {row['evaluations'] or ''} | {' | '.join(cells)} | {seconds} |".replace("|  |", "| |")


def table(found: dict[str, Any]) -> str:
    """The table of all rows, in Markdown."""
    rows: list[tuple[str, Any]] = sorted(found["rows"].items(), key=lambda item: item[1]["evaluations"] is None)
    metrics = rows[0][1]["metrics"]
    titles = [metrics["fd"]["title"], metrics["kd"]["title"], *_SHOWN[2:6], "near"]
    head = ["samples", "evaluations", *titles, "s per image"]
    about = found["settings"]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head), *(line(name, row) for name, row in rows)]
    count = f"{about['count']:,} samples of each model, seed {about['seed']}, {about['dtype']}"
    chosen = about["reference_count"]
    against = f"the first {chosen:,} training images" if chosen else "all training images"
    return "\n".join([*lines, "", f"{count}, against {against}; ± is the 95% interval."])


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("student", help="consistency model")
    parser.add_argument("--teacher", help="diffusion model")
    parser.add_argument("--reference", default="cifar10", help="training images")
    parser.add_argument("--test", default="cifar10-test", help="images that were not trained on, with labels")
    parser.add_argument("--count", type=int, default=50_000, help="samples a row")
    parser.add_argument("--reference-count", type=int, help="training images, the first ones; default: all")
    parser.add_argument("--test-count", type=int, help="images of the floor, the first ones; default: all")
    parser.add_argument("--features", default="effnet-lite0", help="network of the distances")
    parser.add_argument("--judge", default="cifar10", help="network of the classes")
    parser.add_argument("--judge-path", help="its weights")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--dtype", default="fp32")
    parser.add_argument("--device")
    parser.add_argument("--output", type=Path, default=Path("runs/colour-quality"))
    parser.add_argument("--write", type=marked_page("colour-quality"), help="Markdown page whose table is replaced")
    arguments = parser.parse_args(given)
    arguments.output.mkdir(parents=True, exist_ok=True)
    path = arguments.output / "quality.json"
    names = ("reference", "reference_count", "test", "test_count", "count", "features", "judge", "judge_path")
    settings: dict[str, Any] = {name: getattr(arguments, name) for name in (*names, "seed", "dtype")}
    for name in ("student", "teacher"):
        model = getattr(arguments, name)
        settings[name] = model and weights_digest(unistep.load(model, device="cpu").denoiser)
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"settings": settings, "rows": {}}
    if differing := [name for name in settings if found["settings"].get(name) != settings[name]]:
        raise SystemExit(f"{path} is of another {' and '.join(differing)}; choose another --output")
    measure(arguments, found, path)
    text = table(found)
    print(f"\n{text}")
    if arguments.write:
        arguments.write.write(text)


if __name__ == "__main__":
    main()
