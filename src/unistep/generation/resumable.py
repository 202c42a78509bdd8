"""The images of an unfinished run: a hidden folder that outlives a kill at any instant.

    settings.json     what the images are made of: the same settings go on, others are refused
    lock              held by the run that writes; the system releases it when the run dies
    ...               images by their numbers: `shards.py` for an .npz, `png_folder.py` for a folder

Every file appears whole, by renaming. The folder is removed once the output is in its place.
"""

import contextlib
import errno
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from jaxtyping import Int64, UInt8
from torch import Tensor

from unistep.errors import UserError
from unistep.files import whole_file

try:
    import fcntl
except ImportError:  # not POSIX: two runs that write the same output then do not notice each other
    fcntl = None

_SETTINGS = "settings.json"
_LOCK = "lock"


class ResumableWriter(ABC):
    """Images 0 to `num_images` - 1 of a run on their way to `output`.

    Several processes may write, each other images; one of them calls `claim` before and `finish` after all.

    Args:
        output: file or folder to be written in the end.
        folder: hidden folder of the unfinished run.
        num_images: number of images of the run.
        shape: channels, height, width of an image.
    """

    def __init__(self, output: Path, folder: Path, num_images: int, shape: tuple[int, int, int]) -> None:
        self.output, self.folder, self.num_images, self.shape = output, folder, num_images, shape
        self.claimed = False
        self._locked: int | None = None

    @abstractmethod
    def write(self, start: int, images: UInt8[Tensor, "B C H W"]) -> None:
        """Stores the images `start`, `start` + 1, ...; at the latest when `flush` returns they are on disk."""

    @abstractmethod
    def flush(self) -> None:
        """Writes what is waiting."""

    @abstractmethod
    def stored(self) -> list[range]:
        """Ranges of the images on disk, ascending, by the names of the files."""

    @abstractmethod
    def _remove_damaged(self) -> None:
        """Removes what is not whole, as after a power cut, and what contradicts itself."""

    @abstractmethod
    def _is_ours(self, name: str) -> bool:
        """Whether a file in the folder is one that `write` or `finish` makes."""

    @abstractmethod
    def _finish(self, labels: Tensor | None, settings: dict[str, Any]) -> None:
        """Puts the output in its place."""

    def count(self) -> int:
        """Number of images on disk."""
        return sum(map(len, self.stored()))

    def missing(self) -> list[range]:
        """Ranges of the images that are not on disk, ascending."""
        bounds = [0, *(bound for part in self.stored() for bound in (part.start, part.stop)), self.num_images]
        return [range(a, b) for a, b in zip(bounds[::2], bounds[1::2], strict=True) if a < b]

    def claim(self, settings: dict[str, Any], *, restart: bool = False) -> int:
        """Makes the folder, or takes up the one that a run of the same settings left; returns how many images it holds.

        Args:
            settings: all that the images depend on, by a name for people; JSON values. Long ones, such as a digest, are
                compared but not shown.
            restart: remove images that are there.

        Raises:
            UserError: images of other settings are there, another run writes to them, or it cannot be written.
        """
        settings = json.loads(json.dumps(settings))
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock()
            self.claimed = True
            former = self._read_settings()
            if former == settings and not restart:
                self._remove(name for name in os.listdir(self.folder) if name.endswith(".tmp"))
                self._remove_damaged()
                return self.count()
            if former is not None and not restart and (count := self.count()):
                raise UserError(self._refusal(count, former, settings))
            self._clear()
            with whole_file(self.folder / _SETTINGS) as temporary:
                temporary.write_text(json.dumps(settings, indent=2) + "\n")
        except OSError as error:
            raise self.unwritable(error) from None
        return 0

    def finish(self, labels: Int64[Tensor, " N"] | None) -> Path:
        """Puts the output in its place, a former one of that name included, and removes the folder; returns its path.

        Raises:
            UserError: an image has been damaged since, or the place cannot be written to.
        """
        try:
            self._finish(labels, self._read_settings() or {})
            self.discard()
        except OSError as error:
            raise self.unwritable(error) from None
        return self.output

    def discard(self) -> None:
        """Removes the folder; what somebody else put there stays."""
        self._clear()
        self._remove([_LOCK])
        with contextlib.suppress(OSError):
            self.folder.rmdir()
        self.release()

    def release(self) -> None:
        """Lets other runs claim the images; `discard` and the end of the process do it too."""
        if self._locked is not None:
            os.close(self._locked)
            self._locked = None

    def unwritable(self, error: OSError) -> UserError:
        """The error of a place that cannot be written to."""
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        remedy = "free the disk and repeat the command" if full else "choose another `output`"
        return UserError(f"cannot write {self.output}: {error.strerror or error}; {remedy}")

    def _clear(self) -> None:
        """Removes all images; the settings first, so that a half-emptied folder is not taken for a run."""
        self._remove([_SETTINGS])
        self._remove(name for name in os.listdir(self.folder) if name.endswith(".tmp") or self._is_ours(name))

    def _remove(self, names: Iterable[str]) -> None:
        for name in names:
            (self.folder / name).unlink(missing_ok=True)

    def _lock(self) -> None:
        if fcntl is None or self._locked is not None:
            return
        file = os.open(self.folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
            raise UserError(
                f"{self.output} is being written by another run; wait for it, or choose another `output`"
            ) from None
        except OSError:  # a file system without locks
            pass
        self._locked = file

    def _read_settings(self) -> dict[str, Any] | None:
        try:
            settings = json.loads((self.folder / _SETTINGS).read_text())
        except FileNotFoundError:
            return None
        except (ValueError, RecursionError):
            settings = None
        return settings if isinstance(settings, dict) else {}

    def _refusal(self, count: int, former: dict[str, Any], settings: dict[str, Any]) -> str:
        differing = [name for name in settings | former if former.get(name) != settings.get(name)]
        shown = [_difference(name, former.get(name), settings.get(name)) for name in differing]
        return (
            f"{count} of {former.get('num_images', '?')} images for {self.output} are there from a run that differs in "
            f"{', '.join(shown)}; repeat its command to go on, or give `restart=True` to delete them"
        )


def _difference(name: str, former: Any, now: Any) -> str:
    texts = [str(v) for v in (former, now)]
    return name if any(len(text) > 40 for text in texts) else f"{name} ({texts[0]}, now {texts[1]})"


def runs(numbers: Sequence[int]) -> Iterator[range]:
    """Ascending numbers as ranges without gaps."""
    start = 0
    for i in range(1, len(numbers) + 1):
        if i == len(numbers) or numbers[i] != numbers[i - 1] + 1:
            yield range(numbers[start], numbers[i - 1] + 1)
            start = i
