"""Messages of protobuf, read field by field: enough to examine an ONNX file without building it.

A message is a sequence of fields, each a number, a kind and a value; a message within is bytes. Nothing is copied but
what is asked for, so that a file of gigabytes is examined in the memory of its names.
"""

from collections.abc import Iterator

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
_LONGEST = 10


class WireError(ValueError):
    """Bytes that are no message."""


def fields_of(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yields the number and the value of every field: a number, or the bytes of text, tensors and messages.

    Args:
        data: message.

    Raises:
        WireError: it is cut short, or of no known form.
    """
    place, end = 0, len(data)
    while place < end:
        tag, place = _varint(data, place)
        number, kind = tag >> 3, tag & 7
        if number == 0:
            raise WireError("a field without a number")
        if kind == VARINT:
            value, place = _varint(data, place)
            yield number, value
            continue
        if kind == BYTES:
            size, place = _varint(data, place)
        elif kind in (FIXED32, FIXED64):
            size = 4 if kind == FIXED32 else 8
        else:
            raise WireError("a field of no known kind")
        if size > end - place:
            raise WireError("cut short")
        yield number, data[place : place + size]
        place += size


def integers(value: int | memoryview) -> list[int]:
    """Returns the signed integers of a repeated field, packed or a single one."""
    if isinstance(value, int):
        return [_signed(value)]
    found, place = [], 0
    while place < len(value):
        one, place = _varint(value, place)
        found.append(_signed(one))
    return found


def text(value: int | memoryview) -> str:
    """Returns the text of a field.

    Raises:
        WireError: it is none.
    """
    if isinstance(value, int):
        raise WireError("a number in the place of text")
    try:
        return bytes(value).decode("utf-8")
    except UnicodeDecodeError:
        raise WireError("text that is not UTF-8") from None


def message(value: int | memoryview) -> memoryview:
    """Returns the bytes of a message within.

    Raises:
        WireError: it is a number.
    """
    if isinstance(value, int):
        raise WireError("a number in the place of a message")
    return value


def _varint(data: memoryview, place: int) -> tuple[int, int]:
    value = 0
    for i in range(_LONGEST):
        if place >= len(data):
            raise WireError("cut short")
        byte = data[place]
        place += 1
        value |= (byte & 0x7F) << (7 * i)
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, place
    raise WireError("a number without an end")


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value
