"""Processes with a limit of time, for `gpu_visit.py`: what one of them does ends none of the others."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


@dataclass
class Job:
    """A process that has been started.

    Args:
        name: name in messages.
        process: the process, first of a group of its own.
        log: file of its output.
        limit: seconds that it may take.
        started: time of its start.
    """

    name: str
    process: subprocess.Popen[bytes]
    log: Path
    limit: float
    started: float
    ended: float | None = None
    note: str = ""

    @property
    def seconds(self) -> float:
        """Seconds since its start, or until its end."""
        return (self.ended or time.monotonic()) - self.started

    def poll(self) -> bool:
        """Whether it has ended; one whose time is over is ended here."""
        if self.ended is None and self.process.poll() is not None:
            self.ended = time.monotonic()
        if self.ended is None and self.seconds > self.limit:
            self.note = f"stopped after {self.limit:.0f} s"
            self.stop()
        return self.ended is not None

    def stop(self, patience: float = 5.0) -> None:
        """Asks it to end, and ends its whole group where it has not done so after `patience` seconds."""
        self._signal(signal.SIGTERM)
        try:
            self.process.wait(patience)
        except subprocess.TimeoutExpired:
            self.note = self.note or "killed"
        self._signal(signal.SIGKILL)
        self.process.wait()
        self.ended = self.ended or time.monotonic()

    def ask(self) -> None:
        """Asks it to end, and does not wait."""
        self._signal(signal.SIGTERM)

    def text(self, most: int = 100_000) -> str:
        """The end of its output."""
        return self.log.read_bytes()[-most:].decode(errors="replace") if self.log.exists() else ""

    def verdict(self) -> str:
        """Its end in words."""
        code = self.process.returncode
        return self.note or ("done" if code == 0 else f"failed with {code}")

    def _signal(self, number: int) -> None:
        try:
            os.killpg(self.process.pid, number)
        except ProcessLookupError:
            pass  # it has ended


def python(*arguments: object) -> list[str]:
    """The command of this interpreter with arguments.

    Args:
        *arguments: file and arguments of it.
    """
    return [sys.executable, *map(str, arguments)]


def start(name: str, command: Sequence[str], folder: Path, limit: float, environment: Mapping[str, str]) -> Job:
    """Starts a process in the root of the sources.

    Args:
        name: name of its log file too.
        command: command and arguments.
        folder: folder of the log.
        limit: seconds that it may take.
        environment: variables beside those of this process.
    """
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / f"{name}.log"
    paths = [str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]
    variables = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "PYTHONUNBUFFERED": "1"} | environment
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, env=variables, process_group=0
        )
    return Job(name, process, log, limit, time.monotonic())


def wait(jobs: Sequence[Job], pause: float = 0.1) -> None:
    """Waits until all have ended, each within its limit.

    Args:
        jobs: processes.
        pause: seconds between two looks.
    """
    while not all([job.poll() for job in jobs]):
        time.sleep(pause)
