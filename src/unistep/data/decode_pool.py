"""Processes that decode images of shards ahead of those who need them.

A batch is cut into tasks, and each task has a place in memory that all processes share, so that pixels are copied once
and no queue holds more than the batches that were asked for. Tasks wait in the pipes of the workers: nothing in this
process has to run for them to go on.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import select
import subprocess
import tempfile
import weakref
from collections import deque
from dataclasses import dataclass, field
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from unistep.data import decode_worker
from unistep.data.decode_worker import DONE, STATE_BYTES, TASK, DecodeJob, Decoder
from unistep.data.reader import Pixels
from unistep.data.subprocesses import ended, started
from unistep.errors import UserError

HANGING_SECONDS = 300.0
"""Time for one image after which a worker is given up: a disk or a network that does not answer."""

_MOST_IMAGES, _MOST_BYTES = 64, 4 << 20  # of a task
_LOOK_SECONDS = 1.0
_MOST_WORKERS = 500  # whose states have room


@dataclass
class _Worker:
    """A process that decodes.

    Args:
        process: the process.
        tasks: places of the tasks that it was given and has not answered, the oldest first.
        answers: bytes of its answers that are not whole yet.
        seen: image that it was at when it was last looked at.
        seconds: time for which it has been at that image.
    """

    process: subprocess.Popen[bytes]
    tasks: deque[int] = field(default_factory=deque)
    answers: bytes = b""
    seen: int = -1
    seconds: float = 0.0

    @property
    def output(self) -> int:
        """File of its answers."""
        assert self.process.stdout is not None
        return self.process.stdout.fileno()


@dataclass(frozen=True)
class Asked:
    """Images that were asked for: place and number of images of each task."""

    tasks: tuple[tuple[int, int], ...]


class DecodePool:
    """Workers and the memory that they share with this process.

    Args:
        job: images, and their preparation.
        workers: number of processes.
        hanging_seconds: time for one image after which a worker is given up.

    Raises:
        UserError: a process cannot be started.
    """

    def __init__(self, job: DecodeJob, workers: int, hanging_seconds: float = HANGING_SECONDS) -> None:
        self._job, self._hanging = job, hanging_seconds
        self._images = max(1, min(_MOST_IMAGES, _MOST_BYTES // job.image_bytes))
        self._place_bytes = job.place_bytes(self._images)
        self._memory = _shared_memory()
        os.ftruncate(self._memory.fileno(), STATE_BYTES)
        self._state = np.frombuffer(mmap.mmap(self._memory.fileno(), STATE_BYTES), np.int64)
        self._state[:] = -1
        self._places: list[NDArray[np.uint8]] = []
        self._free: list[int] = []
        self._answered: dict[int, str] = {}  # reason by place; empty for success
        self._dropped: set[int] = set()
        self._workers: list[_Worker] = []
        self._wanted: int | None = None  # place of the task that is waited for
        self._close = weakref.finalize(self, _end, self._workers, self._memory)
        try:
            for number in range(min(workers, _MOST_WORKERS)):
                self._workers.append(_Worker(self._started(number)))
        except OSError as error:
            self.close()
            raise UserError(
                f"a process to decode images cannot be started ({error.strerror})", "give fewer `workers`"
            ) from error

    def ask(self, positions: NDArray[np.int64], mirrored: NDArray[np.bool_] | None) -> Asked:
        """Has images decoded, without waiting for them.

        Args:
            positions: positions of the images in the shards.
            mirrored: whether each image is mirrored left to right; None mirrors none.
        """
        signed = positions if mirrored is None else np.where(mirrored, -1 - positions, positions)
        size = max(1, min(self._images, -(-len(signed) // len(self._workers))))
        tasks: list[tuple[int, int]] = []
        for start in range(0, len(signed), size):
            part = signed[start : start + size]
            place = self._free.pop() if self._free else self._new_place()
            self._places[place][: 8 * len(part)].view(np.int64)[:] = part
            worker = min(self._workers, key=lambda one: len(one.tasks))
            worker.tasks.append(place)
            with contextlib.suppress(BrokenPipeError):  # told where its answer is waited for
                os.write(worker.process.stdin.fileno(), TASK.pack(place, len(part)))  # type: ignore[union-attr]
            tasks.append((place, len(part)))
        return Asked(tuple(tasks))

    def take(self, asked: Asked) -> Pixels:
        """Returns images [N, C, H, W] that were asked for, once they are there.

        Args:
            asked: answer of `ask`; it can be taken once.

        Raises:
            UserError: an image cannot be read, or a worker ended or hangs; names shard and member.
        """
        pixels = np.empty((sum(count for _, count in asked.tasks), *self._job.shape), np.uint8)
        row = 0
        for place, count in asked.tasks:
            self._wanted = place
            while place not in self._answered:
                self._look()
            self._wanted = None
            if reason := self._answered.pop(place):
                raise UserError(f"{reason}; repair or remove it, or leave out such files with `skip_bad=True`")
            content = self._places[place][8 * self._images :][: count * self._job.image_bytes]
            pixels[row : row + count] = content.reshape(count, *self._job.shape)
            self._free.append(place)
            row += count
        return pixels

    def waiting_for(self) -> str:
        """Shard and member that the worker is at which `take` waits for; empty where it does not wait."""
        place = self._wanted
        at = [number for number, worker in enumerate(self._workers) if place in worker.tasks]
        return self._place_of(at[0]) if at else ""

    def abandon(self) -> None:
        """Kills the workers, without waiting for their end; the pool is of no use then."""
        for worker in self._workers:
            worker.process.kill()

    def drop(self, asked: Asked) -> None:
        """Gives up images that were asked for."""
        for place, _ in asked.tasks:
            if self._answered.pop(place, None) is None:
                self._dropped.add(place)
            else:
                self._free.append(place)

    def close(self) -> None:
        """Ends the workers."""
        self._close()

    def _started(self, number: int) -> subprocess.Popen[bytes]:
        memory = self._memory.fileno()
        start = {"job": self._job.to_dict(), "memory": memory, "worker": number, "most_images": self._images}
        return started(decode_worker.__name__, start, [memory])

    def _new_place(self) -> int:
        number = len(self._places)
        start = STATE_BYTES + number * self._place_bytes
        os.ftruncate(self._memory.fileno(), start + self._place_bytes)
        place = mmap.mmap(self._memory.fileno(), self._place_bytes, offset=start)
        self._places.append(np.frombuffer(place, np.uint8))
        return number

    def _look(self) -> None:
        """Takes the answers that are there, or waits a little for one."""
        busy = {worker.output: worker for worker in self._workers if worker.tasks}
        ready, _, _ = select.select(list(busy), [], [], _LOOK_SECONDS)
        for output in ready:
            worker = busy[output]
            content = os.read(output, 1 << 16)
            if not content:
                raise self._ended(worker)
            worker.answers, worker.seconds = worker.answers + content, 0.0
            self._count(worker)
        if not ready:
            # Steps of waiting are counted, not the time: this process may have been stopped itself.
            for number, worker in enumerate(self._workers):
                at = int(self._state[number])
                worker.seconds = worker.seconds + _LOOK_SECONDS if worker.tasks and at == worker.seen else 0.0
                worker.seen = at
                if worker.seconds >= self._hanging:
                    raise UserError(
                        f"{self._place_of(number)}: nothing has come from it for {worker.seconds:,.0f} s",
                        "look whether its disk or network answers",
                    )

    def _count(self, worker: _Worker) -> None:
        """Notes the whole answers of a worker."""
        while len(worker.answers) >= DONE.size:
            place, length = DONE.unpack(worker.answers[: DONE.size])
            if len(worker.answers) < DONE.size + length:
                return
            reason = worker.answers[DONE.size : DONE.size + length].decode("utf-8", "replace")
            worker.answers = worker.answers[DONE.size + length :]
            worker.tasks.remove(place)
            if place in self._dropped:
                self._dropped.remove(place)
                self._free.append(place)
            else:
                self._answered[place] = reason

    def _ended(self, worker: _Worker) -> UserError:
        place = self._place_of(self._workers.index(worker))
        remedy = "there may be too little memory for so many `workers`; a run goes on from its last checkpoint"
        return UserError(f"{place}: the process that decodes it {ended(worker.process)}", remedy)

    def _place_of(self, number: int) -> str:
        """Shard and member that a worker is at, or has to begin with."""
        at, tasks = int(self._state[number]), self._workers[number].tasks
        if at < 0 and tasks:
            first = int(self._places[tasks[0]][:8].view(np.int64)[0])
            at = first if first >= 0 else -1 - first
        return self._job.location if at < 0 else Decoder(self._job).name(at)


def _shared_memory() -> IO[bytes]:
    """A file in memory; on the disk where the system has none. /dev/shm is too small in many containers."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("unistep"), "w+b", buffering=0)
    return tempfile.TemporaryFile(buffering=0)


def _end(workers: list[Any], memory: IO[bytes]) -> None:
    for worker in workers:
        with contextlib.suppress(OSError):
            worker.process.stdin.close()
        worker.process.kill()
    for worker in workers:
        worker.process.wait()
        worker.process.stdout.close()
    memory.close()
