"""The log of a stage: `metrics.jsonl`, TensorBoard and the progress display.

After a resume the lines of steps that will be run again are dropped, so that each line stands once. An evaluation is a
line of its own, after that of its step.
"""

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from unistep.runtime.progress import Bar

_PRINT_EVERY = 10.0  # seconds between two lines where there is no terminal


class RunLog:
    """Log of one stage; on processes other than the first it does nothing.

    Args:
        folder: folder of `metrics.jsonl` and `tensorboard/`.
        title: text before the progress bar.
        total_steps: length of the stage.
        start_step: number of steps done before.
        active: False on all processes but the first.
        shown: whether progress goes to stderr: a bar on a terminal, else a line now and then.
    """

    def __init__(
        self, folder: Path, title: str, total_steps: int, start_step: int, active: bool = True, shown: bool = True
    ) -> None:
        self.active = active
        self._title, self._total, self._shown = title, total_steps, active and shown
        self._bar = Bar(title, total_steps, start_step, status=True, timed=True, keep=True, active=self._shown)
        if not active:
            return
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / "metrics.jsonl"
        _drop_after(self._path, start_step)
        self._file = self._path.open("a")
        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=start_step + 1 if start_step else None)
        self._printed = 0.0
        self._status = ""

    def __enter__(self) -> "RunLog":
        self._bar.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.__exit__()
        if self.active:
            self._file.close()
            self._writer.close()

    def advance(self, step: int) -> None:
        """Moves the progress bar to `step` steps done."""
        self._bar.update(step)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Records numbers.

        Args:
            step: number of steps done.
            values: numbers by name; `loss`, `images_per_second` and `seconds` go on the screen.
        """
        if not self.active:
            return
        self._record(step, values)
        self._status = status = f"loss {values['loss']:.4g}  {values['images_per_second']:.0f} images/s"
        if self._bar.shown:
            self._bar.update(step, status=status)
        elif time.monotonic() - self._printed > _PRINT_EVERY or step >= self._total:
            self._printed = time.monotonic()
            left = values["seconds"] / step * (self._total - step)
            self._print(step, f"{status}  elapsed {_clock(values['seconds'])} · left {_clock(left)}")

    def write_evaluation(self, step: int, values: dict[str, float], text: str) -> None:
        """Records a measurement.

        Args:
            step: number of steps done.
            values: numbers by name.
            text: line for the screen, where it stays above the bar.
        """
        if self.active:
            self._record(step, values)
            self._print(step, text)
            self.say(self._status)

    def write_samples(self, step: int, path: Path) -> None:
        """Records a grid of samples in TensorBoard.

        Args:
            step: number of steps done.
            path: the grid, a PNG.
        """
        with Image.open(path) as grid:
            pixels = np.atleast_3d(np.asarray(grid))
        self._writer.add_image("samples", pixels, step, dataformats="HWC")
        self._writer.flush()

    def write_settings(self, settings: Mapping[str, Any]) -> None:
        """Records the settings of a stage in TensorBoard, as its hyperparameters and as a table.

        Args:
            settings: settings by dotted name; what is no number, truth value or text is written as text.
        """
        if not (self.active and settings):
            return
        plain = {name: v if isinstance(v, int | float | str) else str(v) for name, v in settings.items()}
        table = "\n".join(["| setting | value |", "|---|---|", *(f"| {name} | {v} |" for name, v in plain.items())])
        self._writer.add_text("settings", table)
        # By hand: the writer's own method would put them into a run of their own.
        for summary in hparams(plain, {"loss": 0.0}):
            self._writer._get_file_writer().add_summary(summary)

    def say(self, status: str) -> None:
        """Shows a status beside the bar, until the next one."""
        self._bar.update(status=status)

    def _record(self, step: int, values: dict[str, float]) -> None:
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def _print(self, step: int, text: str) -> None:
        if self._shown:
            line = f"{self._title} {step}/{self._total}  {text}"
            self._bar.console.print(line, highlight=False, markup=False, soft_wrap=True)


def _clock(seconds: float) -> str:
    """Minutes and seconds, or hours, minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _drop_after(path: Path, step: int) -> None:
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except (ValueError, KeyError, TypeError):
            continue  # the last line of a killed run may be cut
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(line + "\n" for line in kept))
    os.replace(temporary, path)
