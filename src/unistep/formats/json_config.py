"""JSON objects as values of a dataclass: every value has the type of its field, or the file is refused."""

import contextlib
import json
import math
import types
import typing
from collections.abc import Collection
from pathlib import Path
from typing import Any

from unistep.documents import read_json
from unistep.errors import UserError

_MOST_BYTES = 1_000_000
_WORDS = {
    int: "a whole number",
    float: "a finite number",
    str: "text",
    bool: "true or false",
    types.NoneType: "null",
}


def read_object(path: Path, remedy: str) -> dict[str, Any]:
    """Reads the JSON object in a file.

    Args:
        path: the file.
        remedy: remedy for a missing or wrong file, the end of a message.

    Raises:
        UserError: no file, not JSON, or JSON of another kind.
    """
    value = read_json(path, remedy, most_bytes=_MOST_BYTES)
    if not isinstance(value, dict):
        raise UserError(f"{path} does not hold a JSON object; {remedy}")
    return value


def write_object(path: Path, value: dict[str, Any]) -> None:
    """Writes an indented JSON object."""
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def typed_fields(config_type: type, raw: dict[str, Any], path: Path) -> dict[str, Any]:
    """The entries of `raw` that are fields of a dataclass, in the types of the fields: lists are tuples there.

    Args:
        config_type: a dataclass whose fields are int, float, str, bool, Literal, tuple[X, ...] or a union of them.
        raw: a JSON object.
        path: file of the object, for messages.

    Raises:
        UserError: a value of another type, a number that is not finite.
    """
    values = {}
    for name, hint in typing.get_type_hints(config_type).items():
        if name in raw:
            try:
                values[name] = _as_type(raw[name], hint)
            except TypeError:
                raise UserError(f"{path}: {name} is {shown(raw[name])}; it must be {_words(hint)}") from None
    return values


def refuse_unknown(raw: dict[str, Any], known: Collection[str], path: Path) -> None:
    """Refuses an unknown entry, which may change the meaning of the file.

    Entries that begin with an underscore, and those that are null or false, pass.

    Args:
        raw: a JSON object.
        known: names of known entries.
        path: file of the object, for messages.

    Raises:
        UserError: names the first such entry.
    """
    for name, value in raw.items():
        if name not in known and not name.startswith("_") and value is not None and value is not False:
            raise UserError(
                f"{path}: unknown field {shown(name)} with the value {shown(value)}; "
                "remove it if it does not change what the model computes"
            )


def refuse_other(raw: dict[str, Any], fixed: dict[str, Any], path: Path) -> None:
    """Refuses an entry whose value is not the one in `fixed`.

    Args:
        raw: a JSON object.
        fixed: the only supported value of each entry.
        path: file of the object, for messages.

    Raises:
        UserError: names the entry and the value it may have.
    """
    for name, value in fixed.items():
        if raw.get(name, value) != value:
            raise UserError(f"{path}: {name} {shown(raw[name])} is not supported; only {value!r} is")


def shown(value: Any) -> str:
    """`value` as a short piece of one line."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _as_type(value: Any, hint: Any) -> Any:
    inner, origin = typing.get_args(hint), typing.get_origin(hint)
    if origin in (types.UnionType, typing.Union):
        for option in inner:
            with contextlib.suppress(TypeError):
                return _as_type(value, option)
    elif origin is tuple:
        if isinstance(value, list):
            return tuple(_as_type(v, inner[0]) for v in value)
    elif origin is typing.Literal:
        if value in inner:
            return value
    elif hint is float:
        if type(value) in (int, float):
            with contextlib.suppress(OverflowError):  # JSON's whole numbers have no limit
                if math.isfinite(number := float(value)):
                    return number
    elif type(value) is hint:
        return value
    raise TypeError


def _words(hint: Any) -> str:
    """The JSON form of a type, in words."""
    inner, origin = typing.get_args(hint), typing.get_origin(hint)
    if origin is typing.Literal:
        return " or ".join(inner)
    if origin is tuple:
        return f"a list, each entry {_words(inner[0])}"
    if inner:
        return " or ".join(_words(option) for option in inner)
    return _WORDS[hint]
