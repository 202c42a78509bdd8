"""Folders as runs leave them, written without a training."""

import json
from pathlib import Path
from typing import Any

from unistep.config import find_recipe, read_values
from unistep.config.seal import sealed
from unistep.documents import dump_yaml


def write_run(folder: Path, changes: dict[str, dict[str, Any]] | None = None, recipe: str = "mnist-quick") -> Path:
    """The folder of a run that has not begun; `changes` are keys of its stages by name."""
    values = read_values(find_recipe(recipe))
    for name, keys in (changes or {}).items():
        values["stages"][name] |= keys
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(sealed(dump_yaml(values)))
    return folder


def write_log(stage: Path, lines: list[dict[str, Any]]) -> None:
    stage.mkdir(parents=True, exist_ok=True)
    with (stage / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)


def write_checkpoint(stage: Path, step: int) -> None:
    (stage / "checkpoints").mkdir(parents=True, exist_ok=True)
    (stage / "checkpoints" / f"step-{step:08d}.pt").write_bytes(b"")


def write_model(stage: Path) -> None:
    (stage / "model").mkdir(parents=True, exist_ok=True)
    (stage / "model/model_index.json").write_text("{}")


def training(steps: int, every: int = 10, batch_size: int = 64, speed: float = 100.0) -> list[dict[str, float]]:
    """The lines of a training at a constant speed."""
    return [
        {
            "step": step,
            "loss": 1 / step,
            "lr": 4e-4,
            "images_per_second": speed,
            "seconds": step * batch_size / speed,
            "images": float(step * batch_size),
            "grad_norm": 0.5,
        }
        for step in range(every, steps + 1, every)
    ]


def evaluation(step: int, value: float, name: str = "KD-MNIST") -> dict[str, float]:
    return {"step": step, name: value, f"{name}/low": value - 0.1, f"{name}/high": value + 0.1, f"{name}/seconds": 2.0}
