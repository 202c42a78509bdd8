"""Arrays of `.npy` and `.npz` files of outside origin, read within limits; no header is evaluated, nothing unpickled.

The reader of NumPy evaluates the header as Python, allocates what it claims, and raises whatever its parts do.
"""

import math
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedIOBase
from pathlib import Path

import numpy as np

_MOST_HEADER = 10_000
_MOST_MEMBERS = 10_000
# Booleans, integers, floats, complex numbers, texts.
_DTYPE = re.compile(r"[<>|=]?(?:\?|b1|[iu][1248]|f[248]|f16|c8|c16|[SU]\d{1,9})")
_FIELD = re.compile(r"""['"](descr|fortran_order|shape)['"]\s*:\s*('[^']*'|"[^"]*"|True|False|\([^()]*\)|[^,}]+)""")
# What zipfile and the decompressors raise for damaged bytes, and for what they do not support.
_DAMAGE = (OSError, EOFError, ValueError, KeyError, RuntimeError, struct.error, zlib.error, OverflowError, MemoryError)
try:
    from lzma import LZMAError
except ImportError:  # a Python built without it; zipfile then raises RuntimeError
    pass
else:
    _DAMAGE += (LZMAError,)


class ArrayError(ValueError):
    """The reason, in one line, why bytes are no array."""


@dataclass(frozen=True)
class ArrayHeader:
    """The head of an array.

    Args:
        shape: length of each axis.
        fortran: whether the first axis varies fastest.
        dtype: type of the entries; no object.
        offset: bytes before the entries.
    """

    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype
    offset: int

    @property
    def num_bytes(self) -> int:
        """Bytes of head and entries."""
        return self.offset + math.prod(self.shape) * self.dtype.itemsize


def read_header(stream: BufferedIOBase) -> ArrayHeader:
    """Reads the head of an array, and leaves the stream at its entries.

    Raises:
        ArrayError: it is malformed, or the entries are Python objects.
    """
    magic = stream.read(8)
    if len(magic) < 8 or magic[:6] != b"\x93NUMPY":
        raise ArrayError("no .npy array")
    if magic[6:] not in (b"\1\0", b"\2\0", b"\3\0"):
        raise ArrayError(f"an unknown version of the .npy format, {magic[6]}.{magic[7]}")
    length = 2 if magic[6] == 1 else 4
    size = int.from_bytes(stream.read(length), "little")
    if size > _MOST_HEADER:
        raise ArrayError(f"its header takes {size:,} bytes")
    content = stream.read(size)
    text = content.decode("latin-1")
    fields = dict(_FIELD.findall(text))
    if len(content) < size or len(fields) != 3 or not re.fullmatch(r"\s*\{[\s,]*\}\s*", _FIELD.sub("", text)):
        raise ArrayError("its header is damaged")
    descr = fields["descr"].strip()
    if not re.match(r"['\"\[]", descr):
        raise ArrayError("its header is damaged")
    descr = descr.strip("'\"")
    if re.fullmatch(r"[<>|=]?O\d*", descr) or descr.startswith("["):
        raise ArrayError("it holds Python objects or records, which are never loaded; save plain numbers")
    shape = re.fullmatch(r"\(\s*((?:\d{1,18}L?\s*,\s*)*(?:\d{1,18}L?)?)\s*\)", fields["shape"])
    if not _DTYPE.fullmatch(descr) or fields["fortran_order"].strip() not in ("True", "False") or not shape:
        raise ArrayError("its header is damaged")
    lengths = tuple(int(one.strip().rstrip("L")) for one in shape[1].split(",") if one.strip())
    if len(lengths) > 32:
        raise ArrayError(f"it has {len(lengths)} axes")
    try:
        dtype = np.dtype(descr)
    except TypeError:
        raise ArrayError("its header is damaged") from None
    return ArrayHeader(lengths, fields["fortran_order"].strip() == "True", dtype, 8 + length + size)


def read_array(stream: BufferedIOBase, size: int, most_bytes: int) -> np.ndarray:
    """Reads an array.

    Args:
        stream: bytes of the array, from its head on.
        size: number of bytes that are there.
        most_bytes: size of the largest array that is read.

    Raises:
        ArrayError: it is malformed, larger than that, or not as long as its shape says.
    """
    header = read_header(stream)
    if header.num_bytes != size:
        raise ArrayError(f"{size:,} bytes, where its shape {header.shape} makes {header.num_bytes:,}")
    if size > most_bytes:
        raise ArrayError(f"{size:,} bytes, more than the {most_bytes:,} that make sense")
    content = stream.read(size - header.offset)
    if len(content) != size - header.offset:
        raise ArrayError("it ends early")
    array = np.frombuffer(bytearray(content), header.dtype)
    return array.reshape(header.shape, order="F" if header.fortran else "C")


class Arrays:
    """The arrays of an .npz; see `open_arrays`."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._members = {entry.filename.removesuffix(".npy"): entry for entry in archive.infolist()}
        self._archive = archive

    @property
    def names(self) -> list[str]:
        """Names of the arrays."""
        return list(self._members)

    def read(self, name: str, most_bytes: int) -> np.ndarray:
        """Reads an array.

        Args:
            name: name of the array.
            most_bytes: size of the largest array that is read.

        Raises:
            ArrayError: there is none of that name, or it is malformed.
        """
        if name not in self._members:
            raise ArrayError(f"it has no {name}")
        entry = self._members[name]
        try:
            with self._archive.open(entry) as stream:
                return read_array(stream, entry.file_size, most_bytes)  # pyright: ignore[reportArgumentType]
        except ArrayError as error:
            raise ArrayError(f"{name}: {error}") from None


@contextmanager
def open_arrays(path: Path) -> Iterator[Arrays]:
    """Opens an .npz while entered.

    Raises:
        ArrayError: it is no .npz, or damaged; also where the code inside finds that out.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if len(archive.infolist()) > _MOST_MEMBERS:
                raise ArrayError(f"it has {len(archive.infolist()):,} members")
            yield Arrays(archive)
    except ArrayError:
        raise
    except (zipfile.BadZipFile, NotImplementedError, *_DAMAGE) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ArrayError(reason) from None
