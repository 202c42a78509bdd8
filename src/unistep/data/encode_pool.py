"""Processes that prepare images for shards, one for each thread that hands them work."""

from __future__ import annotations

import contextlib
import queue
import subprocess
from collections.abc import Sequence
from types import TracebackType

from unistep.data import encode_worker
from unistep.data.encode_worker import SIZES, Encoded, EncodeJob, packed, read_exactly, unpacked_answer
from unistep.data.subprocesses import ended, started
from unistep.errors import UserError


class EncodePool:
    """Workers, started when they are first needed.

    Args:
        job: preparation of the images.
        workers: number of processes.
    """

    def __init__(self, job: EncodeJob, workers: int) -> None:
        self._job = job
        self._idle: queue.SimpleQueue[subprocess.Popen[bytes] | None] = queue.SimpleQueue()
        self._all: list[subprocess.Popen[bytes]] = []
        for _ in range(workers):
            self._idle.put(None)

    def __enter__(self) -> EncodePool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for process in self._all:
            process.kill()
            for file in (process.stdin, process.stdout):
                with contextlib.suppress(OSError):
                    file.close()  # type: ignore[union-attr]
            process.wait()

    def encode(self, images: Sequence[bytes]) -> list[Encoded]:
        """Prepares images; several threads may call it. An image that ends its process counts as one that is bad.

        Args:
            images: files, or plain pixels.

        Raises:
            UserError: a process cannot be started.
        """
        found, _ = self._try(images)
        if found is None:
            found = []
            for content in images:
                one, how = self._try([content])
                found += one or [Encoded.bad(f"the process that decodes it {how}")]
        return found

    def _try(self, images: Sequence[bytes]) -> tuple[list[Encoded] | None, str]:
        """The images, or None and the way in which the process ended."""
        process = self._idle.get()
        alive: subprocess.Popen[bytes] | None = None
        try:
            if process is None:
                process = self._start()
            try:
                _write(process, packed(images))
                sizes = read_exactly(process.stdout, SIZES.size)  # type: ignore[arg-type]
                if len(sizes) < SIZES.size:
                    return None, ended(process)
                count, length = SIZES.unpack(sizes)
                body = read_exactly(process.stdout, length)  # type: ignore[arg-type]
            except BrokenPipeError:
                return None, ended(process)
            if len(body) < length:
                return None, ended(process)
            alive = process
            return unpacked_answer(count, body), ""
        finally:
            self._idle.put(alive)

    def _start(self) -> subprocess.Popen[bytes]:
        try:
            process = started(encode_worker.__name__, self._job.to_dict())
        except OSError as error:
            raise UserError(
                f"a process to encode images cannot be started ({error.strerror})", "give fewer `workers`"
            ) from error
        self._all.append(process)
        return process


def _write(process: subprocess.Popen[bytes], content: bytes) -> None:
    assert process.stdin is not None
    view = memoryview(content)
    while view:
        view = view[process.stdin.write(view) :]
