"""`unistep.export_weights`: the weights of a run in small parts, which another machine trains on with."""

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from unistep.arguments import plain_arguments
from unistep.checks import check_place, check_range, user_path
from unistep.config import read_run, run_config
from unistep.errors import UserError
from unistep.text import html_table

_LEAST_MB, _MOST_MB = 0.1, 4000


@dataclass(frozen=True, repr=False)
class ExportedWeights:
    """Weights of a run that were exported.

    Args:
        path: folder that holds them.
        files: names of its files.
        num_bytes: bytes of all files.
        steps: number of steps done of each stage, by name.
        visits: log of the trainings that made the weights, the newest last.
    """

    path: Path
    files: tuple[str, ...]
    num_bytes: int
    steps: dict[str, int]
    visits: tuple[dict[str, Any], ...]

    def to_dict(self) -> dict[str, Any]:
        """Returns all of it in JSON's types."""
        return asdict(self) | {"path": str(self.path), "files": list(self.files), "visits": list(self.visits)}

    def rows(self) -> list[tuple[str, str]]:
        """Returns name and facts of the folder, and a row for each visit."""
        steps = ", ".join(f"{name} at step {step:,}" for name, step in self.steps.items())
        rows = [(str(self.path), f"{len(self.files)} files, {self.num_bytes / 1e6:,.1f} MB, {steps}")]
        for number, visit in enumerate(self.visits, 1):
            images = ", ".join(f"{name} {stage['images']:,.0f} images" for name, stage in visit["stages"].items())
            distance = f", {visit['distance']}" if visit["distance"] else ""
            made = f"{visit['date']}, {visit['device']}, {visit['minutes']:.1f} minutes, {images}{distance}"
            rows.append((f"visit {number}", made))
        return rows

    def __repr__(self) -> str:
        return f"ExportedWeights({self.path}: {len(self.files)} files, {self.num_bytes / 1e6:,.1f} MB)"

    def _repr_html_(self) -> str:
        return html_table("exported", self.rows())


@plain_arguments(empty=["run", "out"])
def export_weights(
    run: str | os.PathLike[str],
    out: str | os.PathLike[str],
    max_part_mb: float = 14.0,
    *,
    averages_only: bool = False,
    device: str | None = None,
    distance: str | None = None,
) -> ExportedWeights:
    """Writes the weights of a run in parts of a limited size, for a training that goes on elsewhere.

    The folder holds the newest stage's weights and their averages, the models of the stages before it, the config, and
    a log of the trainings that made them. `unistep.train(init_from=...)` begins a run from it, which can be exported in
    turn: so several short trainings, each on another machine, add up to one. Kernels and matrices are rounded to bf16,
    and the moments of the optimizer stay behind.

    Args:
        run: run directory.
        out: folder for the parts; one that was exported before is replaced.
        max_part_mb: size of the largest file in millions of bytes; default: 14.
        averages_only: leave out the weights in training, which then go on from their averages; half the size.
        device: device that the run was trained on, for the log; default: that of this machine.
        distance: measured distance of the model, in words, for the log; default: the run's last evaluation, if any.

    Returns:
        The folder, its files and the log.

    Raises:
        UserError: there is no such run, it has no checkpoint yet, a file of it is damaged, or the folder cannot be
            written.

    Example:
        >>> import tempfile, unistep
        >>> tiny = {"block_out_channels": [8, 8], "attention_head_dim": 8}
        >>> short = {"steps": 2, "batch_size": 2}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     quiet = {"network": tiny, "teacher": short, "student": short, "progress": False}
        ...     run = unistep.train("mnist-quick", output=f"{folder}/run", **quiet)
        ...     exported = unistep.export_weights(run.folder, f"{folder}/out")
        ...     exported.files, exported.steps
        (('config.yaml', 'index.json', 'visits.json', 'weights-1.safetensors'), {'teacher': 2, 'student': 2})
    """
    for name, value in (("run", run), ("out", out)):
        if not os.fspath(value).strip():
            raise UserError("is empty; give a path", field=name)
    check_range("max_part_mb", max_part_mb, _LEAST_MB, _MOST_MB)
    folder, target = user_path(run), user_path(out)
    config = run_config(read_run(folder), str(folder / "config.yaml"))
    check_place("out", target)

    from unistep.runtime.device import pick_device
    from unistep.workflows.estimate.units import device_name
    from unistep.workflows.runs.exporting import export

    device = device or device_name(pick_device(None))
    visits, steps = export(folder, config, target, round(max_part_mb * 1e6), averages_only, device, distance)
    files = sorted(path for path in target.iterdir() if path.is_file())
    size = sum(path.stat().st_size for path in files)
    return ExportedWeights(target, tuple(path.name for path in files), size, steps, tuple(visits))
