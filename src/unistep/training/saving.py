"""Checkpoints that are written beside the training, one at a time.

A state is copied in main memory, and written from there by a thread. Where a process is killed meanwhile, the
checkpoint before is the newest one, and the run goes on from it in the same numbers.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from unistep.errors import UserError
from unistep.formats.checkpoint import save_checkpoint, save_error
from unistep.formats.checkpoint_names import checkpoint_path
from unistep.formats.checkpoint_parts import remove_parts
from unistep.training.engines import Engine
from unistep.training.restore import on_first


class CheckpointWriter:
    """Writes the checkpoints of a stage. Leaving its context waits for the one under way.

    Args:
        folder: folder of the checkpoints.
        keep: number of checkpoints that stay.
        accelerator: devices and processes, all of which call each method.
        engine: way in which the processes share the networks.
    """

    def __init__(self, folder: Path, keep: int, accelerator: Accelerator, engine: Engine) -> None:
        self._folder, self._keep, self._accelerator, self._engine = folder, keep, accelerator, engine
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoints")
        self._task: Future[None] | None = None

    def __enter__(self) -> "CheckpointWriter":
        return self

    def __exit__(self, *error: object) -> None:
        self._thread.shutdown()

    def begin(self, step: int, state: dict[str, Any], also: int | None, then: Callable[[], None]) -> None:
        """Begins to write a checkpoint, after the one before is there.

        Args:
            step: number of optimizer steps done.
            state: its state, copied.
            also: step of a checkpoint that stays beside the newest ones; None is none.
            then: called when it is written, on the first process.

        Raises:
            UserError: the one before could not be written.
        """
        self.wait()
        main = self._accelerator.is_main_process

        def write() -> None:
            path = checkpoint_path(self._folder, step)
            try:
                left = self._engine.store(path, state)
                if main:
                    save_checkpoint(self._folder, step, left, self._keep, also)
            except OSError as error:
                raise save_error(path, error) from None
            finally:
                if main and not path.exists():  # nothing half-written stays
                    remove_parts(path)
            if main:
                then()

        if main or self._engine.sharded:
            self._task = self._thread.submit(write)

    def failed(self) -> bool:
        """Whether this process could not write the checkpoint under way."""
        return self._task is not None and self._task.done() and self._task.exception() is not None

    def wait(self) -> None:
        """Returns when the checkpoint under way is written.

        Raises:
            UserError: it could not be.
        """
        task, self._task = self._task, None
        error = None if task is None else task.exception()
        if error is not None and not isinstance(error, UserError):
            raise error

        def tell() -> None:
            if error is not None:
                raise error

        on_first(self._accelerator, tell)
