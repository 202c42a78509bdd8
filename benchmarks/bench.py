"""All that `make bench` measures: the start, sampling, other runtimes and evaluation; one file of figures, one page.

    python benchmarks/bench.py                                   into benchmarks/figures.json and docs/performance.md
    python benchmarks/bench.py --parts runtimes --models imagenet64 --batches 1     a part; the others stay as they are
    python benchmarks/bench.py --check                           writes nothing, and fails where a ratio fell

Figures of another processor are not compared, and are replaced as a whole. A ratio may fall by 10%. The page names the
processor; its tables stand between two markers.
"""

import argparse
import importlib.metadata
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import evaluation
import runtimes
import sampling
import startup
from marked_page import marked_page

HERE = Path(__file__).parent
FIGURES, PAGE = HERE / "figures.json", HERE.parent / "docs" / "performance.md"
TITLES = {"imagenet64": "ImageNet-64", "lsun256": "LSUN-256"}
LEAST = 0.9
"""Share of its stored value that a ratio may have."""


def measure_start(options: argparse.Namespace) -> dict[str, Any]:
    """Figures of `startup.py`."""
    found = startup.figures(startup.measure(startup.ROWS, options.turns))
    print(startup.table(found))
    return {"start": found}


def measure_sampling(options: argparse.Namespace) -> dict[str, Any]:
    """Figures of `sampling.py`."""
    found = {}
    for name in options.models:
        folder, _ = runtimes.models(name, options.folder, int8=False)
        found[name] = sampling.measure(name, folder, options)
    return {"models": found}


def measure_runtimes(options: argparse.Namespace) -> dict[str, Any]:
    """Figures of `runtimes.py`, every operation in int8 too; preparing a model is not timed."""
    found = {}
    for name in options.models:
        folder, quantized = runtimes.models(name, options.folder, int8=True)
        runtimes.apart(runtimes.prepare, folder)
        for batch in options.batches or sampling.BATCHES[name]:
            rows = runtimes.measure(name, folder, batch, options.turns, quantized)
            found[f"{name}, batch {batch}"] = rows
    return {"runtimes": found}


def measure_evaluation(options: argparse.Namespace) -> dict[str, Any]:
    """Figures of `evaluation.py`."""
    return {"evaluation": evaluation.measure(turns=min(options.turns, 3), folder=options.folder)}


PARTS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "start": measure_start,
    "sampling": measure_sampling,
    "runtimes": measure_runtimes,
    "evaluation": measure_evaluation,
}


def merged(stored: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, Any]:
    """The stored figures with the new ones in their place; those of another processor alone.

    Args:
        stored: figures of an earlier run.
        found: figures of this one.
    """
    if "processor" in found and stored.get("processor") != found["processor"]:
        return dict(found)
    result = dict(stored)
    for name, value in found.items():
        both = isinstance(value, dict) and isinstance(stored.get(name), dict)
        result[name] = merged(stored[name], value) if both else value
    return result


def ratios(figures: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, float]]:
    """All ratios of figures, with the words on the way to them."""
    for name, value in figures.items():
        place = f"{path}, {name}" if path else name
        if isinstance(value, Mapping):
            yield from ratios(value, place)
        elif isinstance(value, float) and (name == "ratio" or ", ratios" in path):
            yield place, value


def fallen(stored: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """The ratios that are less than nine tenths of the stored ones, a line each; none on another processor.

    Args:
        stored: figures of an earlier run.
        found: figures of this one.
    """
    if stored.get("processor") != found["processor"]:
        print(f"the stored figures are of {stored.get('processor')}; nothing is compared")
        return []
    before = dict(ratios(stored))
    return [
        f"{place} fell from {before[place]:.2f} to {ratio:.2f}"
        for place, ratio in ratios(found)
        if ratio < LEAST * before.get(place, 0)
    ]


def tables(figures: Mapping[str, Any]) -> str:
    """The figures as Markdown."""
    made = [f"{figures['processor']}; {', '.join(f'{n} {v}' for n, v in figures['versions'].items())}."]
    if rows := figures.get("runtimes"):
        made.append(_table(("one evaluation", "s", "ratio", "peak MiB"), list(_runtimes(rows))))
    if rows := figures.get("models"):
        head = ("by the pipeline", "diffusers, default", "its best", 'unistep, `dtype="auto"`', "ratio", "floor")
        made.append(_table(head, list(_sampling(rows))))
    if rows := figures.get("start"):
        lines = [(n, f"{row['seconds']:.2f}", f"{row['beyond']:+.2f}") for n, row in rows.items()]
        made.append(_table(("from a cold shell", "s", "beyond `import torch`"), lines))
    if rows := figures.get("evaluation"):
        lines = [(name, f"{rate:,.0f}") for name, rate in rows["images/s"].items()]
        made.append(_table(("features, in batches of 64", "images/s"), lines))
        lines = [
            (evaluation.PEERS.get(side, side), f"{one['seconds']:.1f}", f"{one['ratio']:.2f}", f"{one['value']:.6f}")
            for side, one in rows["frechet"].items()
        ]
        title = f"Frechet distance of {rows['count']:,} x {evaluation.frechet.DIM:,} features"
        made.append(_table((title, "s", "ratio", "value"), lines))
    return "\n\n".join(made)


def _runtimes(figures: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    for place, rows in figures.items():
        name, _, batch = place.partition(", ")
        for text, row in rows.items():
            first = f"{TITLES[name]}, {batch}: {text}"
            yield first, f"{row['seconds']:.3f}", f"{row['ratio']:.2f}", f"{row['peak_mib']:,.0f}"


def _sampling(figures: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    for name, model in figures.items():
        for batch, row in model.items():
            if batch.startswith("batch"):
                seconds, floor = row["seconds"], row["floor"].get("seconds")
                best = min(s for side, s in seconds.items() if side.startswith("diffusers"))
                ours = seconds["unistep auto"]
                first = (f"{TITLES[name]}, {batch}", f"{seconds['diffusers default']:.3f}", f"{best:.3f}")
                ratio = f"{best / ours:.2f} ({seconds['diffusers default'] / ours:.2f} to the default)"
                yield *first, f"{ours:.3f}", ratio, f"{ours / floor:.2f} x {floor:.3f}" if floor else ""


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in (head, tuple("---" for _ in head), *rows)]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--models", nargs="+", choices=list(sampling.UNETS), default=list(sampling.UNETS))
    parser.add_argument("--batches", nargs="+", type=int, help="batch sizes; default: 1 and 8, for 256 pixels 1")
    parser.add_argument("--turns", type=int, default=5, help="how often each row is measured")
    parser.add_argument("--folder", type=Path, help="where the models are kept; default: a temporary folder")
    parser.add_argument("--figures", type=Path, default=FIGURES, help="file of the figures")
    parser.add_argument("--page", type=marked_page("bench"), default=str(PAGE), help="page of the tables")
    parser.add_argument("--check", action="store_true", help="write nothing, and fail where a ratio fell by 10%%")
    options = parser.parse_args()
    options.device = "cpu"
    stored: dict[str, Any] = json.loads(options.figures.read_text()) if options.figures.exists() else {}
    versions = {name: importlib.metadata.version(name) for name in ("torch", "openvino", "diffusers")}
    found: dict[str, Any] = {"processor": sampling.processor(), "versions": versions}
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as temporary:
        options.folder = options.folder or Path(temporary)
        for part in options.parts:
            found |= PARTS[part](options)
    print(f"\nmeasured in {(time.perf_counter() - began) / 60:.1f} minutes")
    if options.check:
        if lines := fallen(stored, found):
            raise SystemExit("\n".join(lines))
        return
    figures = merged(stored, found)
    options.figures.write_text(json.dumps(figures, indent=1) + "\n")
    options.page.write(tables(figures))


if __name__ == "__main__":
    main()
