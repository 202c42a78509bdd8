"""Distance to the training images over network evaluations, for a student and its teacher, in one picture.

    python benchmarks/distance_curve.py                                    the embedded MNIST models
    python benchmarks/distance_curve.py STUDENT TEACHER --features effnet-lite0 \\
        --reference cifar10 --test cifar10-test --count 50000 --output runs/curve/cifar10.json

Both are models as `unistep evaluate` opens them, of either kind; further diffusion models may follow. A consistency
model takes as many steps as evaluations, by its own schedule where it has one. A diffusion model takes the most steps
of --solvers that the evaluations allow, a curve for each solver. All samples are of the same seed. The line is the
floor: images that were never trained on against the training images, at most as many as there are samples. The distance
shrinks with the number of samples: compare at equal counts only.

--output holds all numbers. What is in it is not measured again, and the features of samples are kept as by `unistep
evaluate`, so that an interrupted command goes on. The picture is the PNG beside it; --draw draws it anew, and no more.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import unistep
from unistep.files import whole_file
from unistep.formats.model import LoadedModel
from unistep.generation.settings import weights_digest
from unistep.samplers.table import SOLVERS

EVALUATIONS = (1, 2, 4, 8, 18, 35)
_COLOURS = ("tab:blue", "tab:orange", "tab:green", "tab:red", "tab:purple", "tab:brown")
_Z95 = 1.96


def curves(model: LoadedModel, name: str, solvers: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The options of `unistep.evaluate` for each curve of a model, by its title, and the number of its steps."""
    if model.info.kind == "consistency":
        return {name: {}}
    titles = {solver: f"{name}, {SOLVERS[solver].title}" if len(solvers) > 1 else name for solver in solvers}
    return {titles[solver]: {"solver": solver} for solver in solvers}


def steps_within(evaluations: int, solver: str | None) -> int:
    """The most steps of a solver, or of a consistency model for None, that take no more than so many evaluations."""
    if solver is None:
        return evaluations
    counted: Callable[[int], int] = SOLVERS[solver].evaluations
    return max((steps for steps in range(1, evaluations + 1) if counted(steps) <= evaluations), default=0)


def measured(known: dict[str, Any], key: str, path: Path, samples: Any, options: dict[str, Any]) -> None:
    """Evaluates samples, unless the numbers of the key are there already, and writes all numbers."""
    if key in known["points"]:
        return
    started = time.perf_counter()
    report = unistep.evaluate(samples, **options)
    found = report.to_dict()
    known["points"][key] = {
        "evaluations": report.samples.get("evaluations"),
        "images": report.samples["count"],
        "seconds": time.perf_counter() - started,
        "metrics": found["metrics"],
    }
    known["features"], known["made"] = found["features"], found["made"]
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(known, indent=2) + "\n")
    numbers = ", ".join(f"{result.title} {result.estimate}" for result in report.results)
    print(f"{key}: {numbers}; {known['points'][key]['seconds']:.0f} s", flush=True)


def read(path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """The numbers that are there already, which must be of the same settings."""
    if not path.exists():
        return {"settings": settings, "points": {}}
    known = json.loads(path.read_text())
    if differing := [name for name in settings if known["settings"].get(name) != settings[name]]:
        raise SystemExit(f"{path} is of another {' and '.join(differing)}; choose another --output")
    return known


def draw(known: dict[str, Any], path: Path) -> None:
    """Draws the first metric of all points over evaluations."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter, NullLocator

    metric = known["settings"]["metrics"][0]
    figure = Figure(figsize=(7.2, 4.6), layout="constrained", dpi=120)
    FigureCanvasAgg(figure)
    panel = figure.subplots()
    ticks, title = set(), metric
    series: dict[str, list[dict[str, Any]]] = {}
    for key, point in known["points"].items():
        series.setdefault(key.rpartition(" @ ")[0], []).append(point)
    floor = series.pop("", None)
    for colour, (name, points) in zip(_COLOURS * len(series), series.items(), strict=False):
        points = sorted(points, key=lambda point: point["evaluations"])
        values = [point["metrics"][metric] for point in points]
        places = [point["evaluations"] for point in points]
        bars = [_Z95 * value["standard_error"] for value in values]
        panel.errorbar(
            places,
            [value["value"] for value in values],
            yerr=bars,
            color=colour,
            marker="o",
            markersize=4,
            linewidth=1.2,
            capsize=3,
            label=name,
        )
        ticks |= set(places)
        title = values[0]["title"]
    if floor:
        value = floor[0]["metrics"][metric]["value"]
        label = f"{floor[0]['images']:,} images not trained on: {value:.3g}"
        panel.axhline(value, color="black", linestyle="--", linewidth=1, label=label)
    panel.set_xscale("log")
    if all(point["metrics"][metric]["value"] > 0 for point in known["points"].values()):
        panel.set_yscale("log")
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.yaxis.set_minor_locator(NullLocator())
    panel.xaxis.set_minor_locator(NullLocator())
    panel.xaxis.set_minor_formatter(NullFormatter())
    apart = [tick for tick in sorted(ticks) if not any(0.9 * other < tick < other for other in ticks)]
    panel.set_xticks(apart, [str(tick) for tick in apart])
    panel.yaxis.set_major_formatter("{x:g}")
    panel.set_xlabel("network evaluations an image")
    panel.set_ylabel(title)
    panel.set_title(f"{known['settings']['count']:,} samples, with 95% intervals", fontsize=10)
    panel.grid(alpha=0.3)
    panel.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as temporary:
        figure.savefig(temporary, format="png")


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=["mnist", "mnist-teacher"], help="student, teacher, others")
    parser.add_argument(
        "--names", type=lambda text: text.split(","), help="names in the picture, in the order of models"
    )
    parser.add_argument("--evaluations", type=lambda text: [int(n) for n in text.split(",")], default=EVALUATIONS)
    parser.add_argument(
        "--solvers", type=lambda text: text.split(","), default=["heun", "euler"], help="of diffusion models"
    )
    parser.add_argument("--reference", default="mnist", help="training images")
    parser.add_argument("--test", default="mnist-test", help="images of the floor; empty leaves it out")
    parser.add_argument("--count", type=int, default=10_000, help="samples a point")
    parser.add_argument("--metrics", type=lambda text: text.split(","), default=["fd", "kd"], help="the first is drawn")
    parser.add_argument("--features")
    parser.add_argument("--features-path")
    parser.add_argument("--feature-cache")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--dtype", default="fp32")
    parser.add_argument("--device")
    parser.add_argument("--output", type=Path, default=Path("runs/distance-curve.json"))
    parser.add_argument("--draw", action="store_true", help="draw the numbers of --output, and measure nothing")
    arguments = parser.parse_args(given)
    path: Path = arguments.output
    if arguments.draw:
        return draw(json.loads(path.read_text()), path.with_suffix(".png"))
    names = arguments.names or [*("student", "teacher")[: len(arguments.models)], *arguments.models[2:]]
    models = [unistep.load(name, device=arguments.device, dtype=arguments.dtype) for name in arguments.models]
    settings = {
        name: getattr(arguments, name) for name in ("reference", "count", "metrics", "features", "seed", "dtype")
    }
    settings["models"] = {name: weights_digest(model.denoiser) for name, model in zip(names, models, strict=True)}
    known = read(path, settings)
    common = {name: getattr(arguments, name) for name in ("metrics", "reference", "features", "features_path")}
    common |= {"feature_cache": arguments.feature_cache, "progress": False}
    sampling = {"num_images": arguments.count, "seed": arguments.seed, "batch_size": arguments.batch_size}
    if arguments.test:
        count = min(arguments.count, len(unistep.open_dataset(arguments.test, use_labels=False)))
        device = {"device": arguments.device}
        measured(known, " @ floor", path, arguments.test, common | device | {"num_images": count})
    for name, model in zip(names, models, strict=True):
        for title, options in curves(model, name, arguments.solvers).items():
            for steps in sorted({steps_within(n, options.get("solver")) for n in arguments.evaluations} - {0}):
                measured(known, f"{title} @ {steps}", path, model, common | sampling | options | {"steps": steps})
    draw(known, path.with_suffix(".png"))
    print(f"{path}\n{path.with_suffix('.png')}")


if __name__ == "__main__":
    main()
