"""The time from a shell to the first image: whole processes, in turns, the least of each.

    python benchmarks/startup.py
    python benchmarks/startup.py --turns 15 --json startup.json

Every row is a new process of this interpreter, timed from its start to its end. The first turn does not count: in it
the byte code of the package is written, files come into memory and the model is prepared for OpenVINO. The last column
is what a row takes beyond `import torch` in the same turn, the median over the turns.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

_IMAGE = "pipe = ConsistencyModelPipeline.from_pretrained('mnist'); pipe().images[0].save('first.png')"

_SAMPLE = ("-m", "unistep.cli.main", "sample", "--num-images", "1", "--output")

ROWS: dict[str, Sequence[str]] = {
    "the interpreter": ("-c", "pass"),
    "import torch": ("-c", "import torch"),
    "import unistep": ("-c", "import unistep"),
    "unistep --help": ("-m", "unistep.cli.main", "--help"),
    "import the pipeline": ("-c", "from unistep import ConsistencyModelPipeline"),
    "first image, Python": ("-c", f"from unistep import ConsistencyModelPipeline; {_IMAGE}"),
    "first image, command": (*_SAMPLE, "sample.png"),
    "first image, OpenVINO": (*_SAMPLE, "prepared.png", "--runtime", "openvino"),
}
"""Arguments of the interpreter by name of the row."""

BASE = "import torch"


def measure(rows: Mapping[str, Sequence[str]], turns: int) -> dict[str, list[float]]:
    """Seconds of each row in each turn.

    Args:
        rows: arguments of the interpreter by name.
        turns: number of turns that count.

    Raises:
        CalledProcessError: a process failed.
    """
    seconds: dict[str, list[float]] = {name: [] for name in rows}
    # Byte code is written, as it is for a user.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    with tempfile.TemporaryDirectory() as folder:
        environment["XDG_CACHE_HOME"] = folder
        for _ in range(turns + 1):
            for name, arguments in rows.items():
                began = time.perf_counter()
                subprocess.run(
                    [sys.executable, *arguments], cwd=folder, env=environment, check=True, capture_output=True
                )
                seconds[name].append(time.perf_counter() - began)
    return {name: values[1:] for name, values in seconds.items()}


def figures(seconds: Mapping[str, Sequence[float]]) -> dict[str, dict[str, float]]:
    """The least seconds of each row, and those beyond the base row's.

    Args:
        seconds: seconds of each row in each turn.
    """
    base = seconds[BASE]
    return {
        name: {
            "seconds": min(values),
            "beyond": statistics.median(a - b for a, b in zip(values, base, strict=True)),
        }
        for name, values in seconds.items()
    }


def table(found: Mapping[str, Mapping[str, float]]) -> str:
    """The figures as text.

    Args:
        found: figures of each row.
    """
    lines = [f"{'':24}{'s':>8}{'beyond ' + BASE:>22}"]
    lines += [f"{name:24}{row['seconds']:8.3f}{row['beyond']:+22.3f}" for name, row in found.items()]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=7, help="how often each row is measured")
    parser.add_argument("--json", type=Path, help="file that the figures are written to")
    options = parser.parse_args()
    found = figures(measure(ROWS, options.turns))
    print(table(found))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
