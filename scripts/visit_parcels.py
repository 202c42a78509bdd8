"""Files in few parcels of a limited size, for `gpu_visit.py`: caches of compilers, and what trainings leave behind."""

import lzma
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path

MIB = 2**20


class _Parts:
    """A file for writing that is cut into parts.

    Args:
        stem: path of the parts without their number.
        size: bytes of a part at most.
    """

    def __init__(self, stem: Path, size: int) -> None:
        self.stem, self.size = stem, size
        self.paths: list[Path] = []
        self.room = 0

    def write(self, data: bytes) -> int:
        """Writes to the part of now, and goes on with the next where it is full."""
        view, total = memoryview(data), len(data)
        while view:
            if not self.room:
                self.paths.append(self.stem.with_name(f"{self.stem.name}.{len(self.paths):02d}"))
                self.paths[-1].write_bytes(b"")
                self.room = self.size
            piece = view[: self.room]
            with self.paths[-1].open("ab") as file:
                file.write(piece)
            self.room -= len(piece)
            view = view[len(piece) :]
        return total


def pack_folder(folder: Path, stem: Path, part_mib: float = 15.0) -> list[Path]:
    """Packs a folder as tar.xz into STEM.00, STEM.01, ...

    Args:
        folder: folder.
        stem: path of the parts without their number.
        part_mib: size of a part at most.

    Returns:
        The parts.
    """
    stem.parent.mkdir(parents=True, exist_ok=True)
    parts = _Parts(stem, int(part_mib * MIB))
    # The lowest level: caches hold the same text many times over, and time is dearer than bytes here.
    compressed = lzma.LZMAFile(parts, "w", preset=0)  # pyright: ignore[reportArgumentType]
    with compressed, tarfile.open(fileobj=compressed, mode="w|") as archive:
        archive.add(folder, ".", filter=_plain)
    return parts.paths


def _plain(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    return None if member.name.endswith((".lock", ".tmp")) else member


class _Joined:
    """The parts as one file for reading."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.files = [path.open("rb") for path in paths]

    def read(self, count: int) -> bytes:
        """Reads bytes; none only at the end."""
        while self.files:
            if piece := self.files[0].read(count):
                return piece
            self.files.pop(0).close()
        return b""


def unpack_folder(parts: Sequence[Path], folder: Path) -> int:
    """Unpacks what `pack_folder` has packed; returns the number of files.

    Args:
        parts: the parts, in their order.
        folder: folder that is filled; what is there stays.
    """
    folder.mkdir(parents=True, exist_ok=True)
    compressed = lzma.LZMAFile(_Joined(parts))  # pyright: ignore[reportArgumentType]
    count = 0
    with compressed, tarfile.open(fileobj=compressed, mode="r|") as archive:
        for member in archive:
            archive.extract(member, folder, filter="data")
            count += member.isfile()
    return count


def parcels(files: Iterable[tuple[Path, str]], folder: Path, stem: str, most: int, mib: float = 15.0) -> list[str]:
    """Puts files into tar archives STEM-0.tar, STEM-1.tar, ..., the large ones first, each where it fits.

    Args:
        files: files and their names in the archives.
        folder: folder of the archives.
        stem: beginning of their names.
        most: number of archives at most.
        mib: size of one at most.

    Returns:
        Names of the files that are too large or for which no archive has room.
    """
    room = [mib * MIB - 20 * 512] * most
    chosen: list[list[tuple[Path, str]]] = [[] for _ in room]
    left = []
    for path, name in sorted(files, key=lambda pair: -pair[0].stat().st_size):
        needed = path.stat().st_size + 3 * 512
        place = next((i for i, free in enumerate(room) if free >= needed), None)
        if place is None:
            left.append(name)
            continue
        room[place] -= needed
        chosen[place].append((path, name))
    for number, own in enumerate(chosen):
        if own:
            with tarfile.open(folder / f"{stem}-{number}.tar", "w") as archive:
                for path, name in own:
                    archive.add(path, name)
    return left
