"""Nested values, of YAML or of keyword arguments, to frozen dataclasses and back, with errors that name the key."""

import contextlib
import dataclasses
import functools
import math
import os
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from unistep.arguments import plain_scalar
from unistep.documents import DocumentError, parse_yaml
from unistep.errors import UserError
from unistep.text import did_you_mean

T = TypeVar("T")

_MOST_BITS = 64  # of a whole number: seeds have as many


@dataclass(frozen=True)
class Key:
    """One setting of a run.

    Args:
        name: dotted name, as "student.optimizer.lr".
        hint: type of its value; a dataclass where it has keys of its own.
        default: value where it is not given; None for a section.
        text: description, from the docstring of the dataclass that declares it.
    """

    name: str
    hint: Any
    default: Any
    text: str

    @property
    def is_section(self) -> bool:
        """Whether it has keys of its own."""
        return _section(self.hint) is not None


def keys_of(kind: type, prefix: str = "", defaults: Mapping[str, Any] | None = None) -> Iterator[Key]:
    """The settings that a dataclass declares, those of its sections included.

    Args:
        kind: dataclass.
        prefix: beginning of their names, with its dot.
        defaults: defaults that differ from the dataclass's.
    """
    hints, texts = typing.get_type_hints(kind), documented(kind)
    for f in dataclasses.fields(kind):
        key = Key(prefix + f.name, hints[f.name], None, texts.get(f.name, ""))
        if key.is_section:
            yield key
            yield from keys_of(key.hint, f"{key.name}.", (defaults or {}).get(f.name))
        else:
            value = f.default_factory() if f.default_factory is not dataclasses.MISSING else f.default
            value = None if value is dataclasses.MISSING else value
            yield dataclasses.replace(key, default=(defaults or {}).get(f.name, value))


def build(kind: type[T], values: Mapping[str, Any], prefix: str = "", *, where: str = "") -> T:
    """A dataclass of nested values; a section that is built already is taken as it is.

    Args:
        kind: dataclass.
        values: values by name; missing ones have their defaults.
        prefix: dotted name of the section, with its dot, for messages.
        where: file that the values are from, for messages.

    Raises:
        UserError: an unknown name, a value of another type, or one that the dataclass refuses.
    """
    hints, given = typing.get_type_hints(kind), {}
    for name, value in values.items():
        if name not in hints:
            raise unknown_key(f"{prefix}{name}", [key.name for key in keys_of(kind, prefix)], where)
        given[name] = convert(hints[name], value, f"{prefix}{name}", where=where)
    try:
        built = kind(**given)
    except ValueError as error:
        raise UserError(_located(str(error), prefix, hints)) from None
    for name, value in given.items():
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, float) and not math.isfinite(number):
                raise UserError(f"`{prefix}{name}` {number} must be a finite number")
    return built


def convert(hint: Any, value: Any, key: str, *, where: str = "") -> Any:
    """`value` as the type `hint`.

    Raises:
        UserError: it is none of that type.
    """
    options = _options(hint)
    if value is None:
        if types.NoneType in options or Any in options:
            return None
        raise UserError(f"{_at(where)}`{key}` has no value; give it one, or leave the key out")
    for option in options:
        if option is Any:
            return value
        if (section := _section(option)) is not None:
            if isinstance(value, section):
                return value
            if not isinstance(value, Mapping):
                raise not_a_section(key, value, next(iter(typing.get_type_hints(section))), where)
            return build(section, value, f"{key}.", where=where)
        if typing.get_origin(option) is tuple and dataclasses.is_dataclass(typing.get_args(option)[0]):
            return tuple(value)
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    for option in options:
        if (found := _as(option, value)) is not None:
            return found
    raise _wrong(options, value, key)


def parse_text(key: Key, text: str) -> Any:
    """The value that a flag's text stands for: YAML, but plain text where the type is text.

    Raises:
        UserError: a section is given no mapping.
    """
    options = _options(key.hint)
    section = _section(key.hint)
    if text == "null" and (types.NoneType in options or section is not None):
        return None
    if section is not None:
        try:
            value = parse_yaml(text)
        except DocumentError:
            value = text
        if not isinstance(value, Mapping):
            raise not_a_section(key.name, text, next(iter(typing.get_type_hints(section))))
        return value
    if str in options or any(typing.get_origin(o) is Literal for o in options):
        return text
    if any(typing.get_origin(o) is tuple for o in options) and not text.startswith("["):
        text = f"[{text}]"
    try:
        return parse_yaml(text)
    except DocumentError:
        return text


def plain(value: Any) -> Any:
    """Dataclasses as mappings and tuples as lists, as YAML holds them."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {name: plain(inner) for name, inner in value.items()}
    return [plain(inner) for inner in value] if isinstance(value, tuple | list) else value


def leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The dotted names of nested mappings, with their values; an empty mapping is a value."""
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def unknown_key(key: str, known: Iterable[str], where: str = "") -> UserError:
    """The error of a key that does not exist, with the nearest that does."""
    return UserError(f"{_at(where)}unknown key {key}{did_you_mean(key, known)}")


def not_a_section(key: str, value: Any, example: str, where: str = "") -> UserError:
    """The error of a section that is given one value."""
    return UserError(f"{_at(where)}`{key}` {_brief(value)}: it has keys of its own, as `{key}.{example}`")


@functools.cache
def documented(kind: type) -> dict[str, str]:
    """The descriptions of a dataclass's fields, by name, from the `Args` of its docstring and of those it extends."""
    import docstring_parser

    texts: dict[str, str] = {}
    for one in reversed(kind.__mro__):
        if dataclasses.is_dataclass(one) and one.__doc__:
            for entry in docstring_parser.parse(one.__doc__, docstring_parser.DocstringStyle.GOOGLE).params:
                for name in entry.arg_name.split(", "):
                    texts[name] = re.sub(r"\s+", " ", entry.description or "")
    return texts


def kind_in_words(hint: Any) -> str:
    """Returns a type in words, as "int or null", for messages and help."""
    return _in_words(_options(hint))


def _in_words(options: tuple[Any, ...]) -> str:
    words: list[str] = []
    for option in options:
        if typing.get_origin(option) is Literal:
            words += [str(c) for c in typing.get_args(option)]
        elif typing.get_origin(option) is tuple:
            words.append(_list_in_words(option))
        elif option is not types.NoneType:
            words.append({int: "int", float: "float", bool: "true or false"}.get(option, "text"))
    return " or ".join(words + ["null"] * (types.NoneType in options))


def _list_in_words(hint: Any) -> str:
    of, *rest = typing.get_args(hint)
    if typing.get_origin(of) is tuple:
        return f"lists as [[0, 9], [0, 9, 19]], each of {_list_in_words(of)}"
    count = "" if rest == [...] else f"{1 + len(rest)} "
    words = {int: "whole numbers", float: "numbers", str: "words"}
    if typing.get_origin(of) is Literal:
        return f"{count}names of {', '.join(map(str, typing.get_args(of)))}, separated by commas"
    return f"{count}{words[of]} separated by commas"


def _section(hint: Any) -> type | None:
    """The dataclass that a type is; None where it is none."""
    return hint if isinstance(hint, type) and dataclasses.is_dataclass(hint) else None


def _options(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def _as(option: Any, value: Any) -> Any:
    """`value` as one type; None where it is none of it."""
    value, origin = plain_scalar(value), typing.get_origin(option)
    if origin is Literal:
        return value if isinstance(value, str) and value in typing.get_args(option) else None
    if origin is tuple:
        of, *rest = typing.get_args(option)
        if getattr(value, "ndim", None) == 1 and hasattr(value, "tolist"):  # of NumPy or PyTorch
            value = value.tolist()
        if not isinstance(value, list | tuple) or (rest != [...] and len(value) != 1 + len(rest)):
            return None
        found = [_as(of, inner) for inner in value]
        return None if None in found else tuple(found)
    if option is bool or option is str:
        return value if isinstance(value, option) else None
    if isinstance(value, bool):
        return None
    if option is int:
        return value if isinstance(value, int) and value.bit_length() <= _MOST_BITS else None
    if option is float:
        with contextlib.suppress(OverflowError):  # whole numbers have no limit
            return float(value) if isinstance(value, int | float) else None
    return None


def _wrong(options: tuple[Any, ...], value: Any, key: str) -> UserError:
    given = _brief(value)
    for option in options:
        if typing.get_origin(option) is Literal:
            choices = [str(c) for c in typing.get_args(option)]
            near = did_you_mean(str(value), choices)
            return UserError(f"`{key}` {given}: must be one of {', '.join(choices)}{near}")
    remedy = ""
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > _MOST_BITS:
        remedy = "give a smaller number"
    elif isinstance(value, str) and re.fullmatch(r"[-+]?0[\d_]+(\.\d*)?", value) and str not in options:
        remedy = "write it without leading zeros"
    elif bool in options and str(value).lower() in ("yes", "no", "on", "off", "y", "n"):
        remedy = "write true or false"
    return UserError(f"`{key}` {given}: expected {_in_words(options)}", remedy)


def _brief(value: Any) -> str:
    """The value as a piece of one line."""
    try:
        text = str(plain(value)) or repr("")
    except ValueError:  # a whole number of more digits than Python writes
        return "a number of thousands of digits"
    return text if len(text) <= 100 else f"{text[:97]}..."


def _located(message: str, prefix: str, names: Mapping[str, Any]) -> str:
    """A message of a section's own checks with the dotted names of its fields."""
    found = re.sub(r"`(\w+)`", lambda m: f"`{prefix}{m[1]}`" if m[1] in names else m[0], message)
    if found == message and not re.search(r"`\w+\.", message):  # a check that names its field without backticks
        first = re.match(r"(\w+):? ", message)
        found = f"`{prefix}{first[1]}` {message[first.end() :]}" if first and first[1] in names else message
        if found == message and prefix:
            found = f"`{prefix.rstrip('.')}`: {message}"
    return found


def _at(where: str) -> str:
    return f"{where}: " if where else ""
