"""The log of a stage: `metrics.jsonl`, TensorBoard and the progress display.

After a resume, and where the stage goes back to a checkpoint, the lines of steps that will be run again are dropped, so
that each line stands once. An evaluation is a line of its own, after that of its step, and so is a return to a
checkpoint. Numbers that are not finite are left out: JSON has none.
"""

import contextlib
import json
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from unistep.files import whole_file, write_error
from unistep.runtime.progress import Bar
from unistep.training.trackers import Trackers

_log = logging.getLogger("unistep")

_RESUME = "resume"
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
        trackers: services that follow the stage, which `write_settings` begins; None is none.

    Raises:
        UserError: the log cannot be written, at its beginning or later.
    """

    def __init__(
        self,
        folder: Path,
        title: str,
        total_steps: int,
        start_step: int,
        active: bool = True,
        shown: bool = True,
        trackers: Trackers | None = None,
    ) -> None:
        self.active, self._trackers = active, trackers or Trackers((), folder, title)
        self._title, self._total, self._shown = title, total_steps, active and shown
        self._bar = Bar(title, total_steps, start_step, status=True, timed=True, keep=True, active=self._shown)
        if not active:
            return
        self._path, self._board = folder / "metrics.jsonl", folder / "tensorboard"
        self._writer: SummaryWriter | None = None
        self._printed = 0.0
        self._status = ""
        with _written(folder):
            folder.mkdir(parents=True, exist_ok=True)
        self._open(start_step)

    def __enter__(self) -> "RunLog":
        self._bar.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.__exit__()
        if self.active:
            self._close()
            self._trackers.end()

    def rewind(self, step: int, values: dict[str, float]) -> None:
        """Goes back to a checkpoint.

        Args:
            step: its number of steps.
            values: numbers by name that are recorded of it.
        """
        self.advance(step)
        if self.active:
            self._close()
            self._open(step)
            self._record(step, values)

    def advance(self, step: int) -> None:
        """Moves the progress bar to `step` steps done."""
        self._bar.update(step)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Records numbers.

        Args:
            step: number of steps done.
            values: numbers by name; `loss`, else that of a critic, `images_per_second` and `seconds` go on the screen.
                Without a loss no step was taken since the last line.
        """
        if not self.active:
            return
        self._record(step, values)
        shown = next(
            (f"{name} {value:.4g}" for name, value in values.items() if name.partition("/")[0] == "loss"), None
        )
        loss = "all steps skipped" if shown is None else shown
        self._status = status = f"{loss}  {values['images_per_second']:.0f} images/s"
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
        """Records a grid of samples in TensorBoard and at the services.

        Args:
            step: number of steps done.
            path: the grid, a PNG.
        """
        with Image.open(path) as grid:
            pixels = np.atleast_3d(np.asarray(grid))

        def add(writer: SummaryWriter) -> None:
            writer.add_image("samples", pixels, step, dataformats="HWC")
            writer.flush()

        self._show(add)
        self._trackers.write_samples(step, path)

    def write_settings(self, settings: Mapping[str, Any]) -> None:
        """Records the settings of a stage in TensorBoard, as its hyperparameters and as a table, and at the services.

        Args:
            settings: settings by dotted name; what is no number, truth value or text is written as text.

        Raises:
            UserError: a service does not begin.
        """
        if self.active:
            self._trackers.begin(settings)
        if not (self.active and settings):
            return
        plain = {name: v if isinstance(v, int | float | str) else str(v) for name, v in settings.items()}
        table = "\n".join(["| setting | value |", "|---|---|", *(f"| {name} | {v} |" for name, v in plain.items())])

        def add(writer: SummaryWriter) -> None:
            writer.add_text("settings", table)
            # By hand: the writer's own method would put them into a run of their own.
            for summary in hparams(plain, {"loss": 0.0}):
                writer._get_file_writer().add_summary(summary)

        self._show(add)

    def say(self, status: str) -> None:
        """Shows a status beside the bar, until the next one."""
        self._bar.update(status=status)

    def _open(self, step: int) -> None:
        """Opens the files for the lines after `step`."""
        with _written(self._path):
            _drop_after(self._path, step)
            self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        self._hook = threading.excepthook
        threading.excepthook = _without_disk_errors(self._hook)
        with _written(self._board):
            self._writer = SummaryWriter(str(self._board), purge_step=step + 1 if step else None)

    def _close(self) -> None:
        os.close(self._file)
        with contextlib.suppress(OSError):  # TensorBoard's last lines on a full disk
            if self._writer is not None:
                self._writer.close()
        self._writer = None
        threading.excepthook = self._hook

    def _show(self, add: Callable[[SummaryWriter], None]) -> None:
        """Writes to TensorBoard, whose thread meets an error of the disk at some later time."""
        with _written(self._board):
            if self._writer is not None:
                add(self._writer)

    def _record(self, step: int, values: Mapping[str, float]) -> None:
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        line = json.dumps({"step": step, **finite}).encode() + b"\n"
        with _written(self._path):
            size = os.fstat(self._file).st_size
            try:
                if os.write(self._file, line) < len(line):
                    os.write(self._file, line[-1:])  # which raises the error
                    raise OSError("the line was cut")
            except OSError:
                os.ftruncate(self._file, size)  # no half line
                raise

        def add(writer: SummaryWriter) -> None:
            for name, value in finite.items():
                writer.add_scalar(name, value, step)

        self._show(add)
        self._trackers.write(step, finite)

    def _print(self, step: int, text: str) -> None:
        if self._shown:
            line = f"{self._title} {step}/{self._total}  {text}"
            self._bar.console.print(line, highlight=False, markup=False, soft_wrap=True)


def _clock(seconds: float) -> str:
    """Minutes and seconds, or hours, minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _without_disk_errors(hook: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A hook of threads that prints no error of the disk, which TensorBoard's thread hands to its caller too."""

    def quiet(what: Any) -> None:
        if not (isinstance(what.exc_value, OSError) and type(what.thread).__module__.startswith("tensorboard.")):
            hook(what)

    return quiet


@contextlib.contextmanager
def _written(path: Path) -> Iterator[None]:
    """While entered, an error of the system is one of a file that cannot be written.

    Raises:
        UserError: there was one.
    """
    try:
        yield
    except OSError as error:
        raise write_error(path, error, _RESUME) from None


def _drop_after(path: Path, step: int) -> None:
    """Keeps the lines up to `step`, none where it is 0; those that are damaged are dropped, and said."""
    if not path.exists():
        return
    kept, damaged = [], 0
    lines = path.read_bytes().split(b"\n")
    for i, line in enumerate(lines, 1):
        try:
            if line and json.loads(line)["step"] <= step and step:
                kept.append(line)
        except (ValueError, KeyError, TypeError, RecursionError):
            damaged += i < len(lines)  # the last line of a killed run may be cut: its step is run again
    with whole_file(path) as temporary:
        temporary.write_bytes(b"".join(line + b"\n" for line in kept))
    if damaged:
        _log.warning("%s: damaged lines, %d of them, are dropped; training goes on without them", path, damaged)
