"""Scalars of a run: `metrics.jsonl`, TensorBoard and the progress display.

After a resume the lines of steps that will be run again are dropped, so that each line stands once. An evaluation is a
line of its own, after that of its step.
"""

import json
import os
import time
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch.utils.tensorboard import SummaryWriter


class RunLog:
    """Writes scalars of one stage; on processes other than the first it does nothing.

    Args:
        folder: where `metrics.jsonl` and `tensorboard/` go.
        title: shown before the progress bar.
        total_steps: length of the run.
        start_step: steps already done.
        active: False on all processes but the first.
    """

    def __init__(self, folder: Path, title: str, total_steps: int, start_step: int, active: bool = True) -> None:
        self.active = active
        self._title = title
        self._total = total_steps
        self._progress: Progress | None = None
        if not active:
            return
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / "metrics.jsonl"
        _drop_after(self._path, start_step)
        self._file = self._path.open("a")
        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=start_step + 1 if start_step else None)
        console = Console(stderr=True)
        self._plain = not console.is_terminal
        self._printed = 0.0
        self._status = ""
        if not self._plain:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[status]}"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(elapsed_when_finished=False),
            )
            self._progress = Progress(*columns, console=console)
            self._task = self._progress.add_task(title, total=total_steps, completed=start_step, status="")

    def __enter__(self) -> "RunLog":
        if self._progress is not None:
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()
        if self.active:
            self._file.close()
            self._writer.close()

    def advance(self, step: int) -> None:
        """Moves the progress bar to `step` steps done."""
        if self._progress is not None:
            self._progress.update(self._task, completed=step)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Records `values` of the `step` steps done; `loss` and `images_per_second` go on the screen."""
        if not self.active:
            return
        self._record(step, values)
        self._status = status = f"loss {values['loss']:.4g}  {values['images_per_second']:.0f} images/s"
        if self._progress is not None:
            self._progress.update(self._task, completed=step, status=status)
        elif time.monotonic() - self._printed > 10 or step >= self._total:
            self._printed = time.monotonic()
            seconds = values["seconds"] / step * (self._total - step)
            left = f"{seconds // 60:.0f}:{seconds % 60:02.0f}"
            self._print(step, f"{status}  left {left}")

    def write_evaluation(self, step: int, values: dict[str, float], text: str) -> None:
        """Records what was measured after `step` steps; `text` goes on the screen, and stays there above the bar."""
        if self.active:
            self._record(step, values)
            self._print(step, text)
            self.say(self._status)

    def say(self, status: str) -> None:
        """Shows what is being done beside the bar, until there is something else to show."""
        if self._progress is not None:
            self._progress.update(self._task, status=status)

    def _record(self, step: int, values: dict[str, float]) -> None:
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def _print(self, step: int, text: str) -> None:
        console = Console(stderr=True) if self._progress is None else self._progress.console
        console.print(f"{self._title} {step}/{self._total}  {text}", highlight=False, markup=False, soft_wrap=True)


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
