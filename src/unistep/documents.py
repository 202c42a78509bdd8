"""JSON and YAML of outside origin, parsed within limits.

What the parsers of Python let pass is refused: keys that stand twice, and nesting without end. The words and numbers
that YAML 1.1 reads otherwise than they look (`0777`, `1:30:00`, `yes`) are texts. Aliases of YAML are copies, and count
as often as they stand. Numbers that are not finite pass: whoever takes the value refuses it by its name.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from unistep.errors import UserError
from unistep.files import check_regular_file

_MOST_DEPTH = 64
_MOST_YAML = 200_000  # characters; the parser takes a second for them
_MOST_NODES = 20_000
_MOST_DIGITS = 4300  # of a whole number, as in Python


class DocumentError(ValueError):
    """The reason, in one line, why a text is no document."""


def read_json(path: Path, remedy: str, *, most_bytes: int) -> Any:
    """Reads the JSON in a file; UTF-8 and UTF-16, with or without a byte order mark.

    Args:
        path: file.
        remedy: remedy for a missing or wrong file, the end of a message.
        most_bytes: size of the largest file that is read.

    Raises:
        UserError: no file, too large, or not JSON.
    """
    try:
        return parse_json(_read(path, remedy, most_bytes))
    except DocumentError as error:
        raise UserError(f"{path} is not readable JSON ({error})", remedy) from None


def read_yaml(path: Path, remedy: str) -> Any:
    """Reads the YAML in a file, UTF-8.

    Args:
        path: file.
        remedy: remedy for a missing or wrong file, the end of a message.

    Raises:
        UserError: no file, too large, or not YAML.
    """
    try:
        # A character takes four bytes at most.
        return parse_yaml(_read(path, remedy, 4 * _MOST_YAML).decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise UserError(f"{path} is not readable YAML (it is not UTF-8)", remedy) from None
    except DocumentError as error:
        raise UserError(f"{path} is not readable YAML ({error})", remedy) from None


def parse_json(text: str | bytes) -> Any:
    """Parses JSON.

    Args:
        text: document; bytes in UTF-8, UTF-16 or UTF-32, with or without a byte order mark.

    Raises:
        DocumentError: it is none, holds a key twice, or is nested too deep.
    """
    try:
        value = json.loads(text, object_pairs_hook=_object, parse_int=_whole)
    except DocumentError:
        raise
    except RecursionError:
        raise DocumentError(f"nested deeper than {_MOST_DEPTH}") from None
    except UnicodeDecodeError:
        raise DocumentError("its text is in no encoding of Unicode") from None
    except ValueError as error:
        head = text[:200].lstrip()
        if not head:
            raise DocumentError("it is empty") from None
        raise DocumentError(" ".join(str(error).split())) from None
    _check_depth(value)
    return value


def dump_yaml(value: Any) -> str:
    """Returns YAML that `parse_yaml` reads, and readers of YAML 1.1 as well."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def parse_yaml(text: str) -> Any:
    """Parses YAML by the core schema of YAML 1.2; keys are texts.

    Raises:
        DocumentError: it is none, is too long or nested too deep, holds a key twice, or a tag.
    """
    if len(text) > _MOST_YAML:
        raise DocumentError(f"more than {_MOST_YAML:,} characters")
    try:
        node = yaml.compose(text, Loader=_Loader)
        return None if node is None else _value(node)
    except DocumentError:
        raise
    except yaml.MarkedYAMLError as error:
        raise _at(error.problem_mark or error.context_mark, str(error.problem or error.context)) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = str(error).splitlines() or [type(error).__name__]
        raise DocumentError(reason[0]) from None


# ---------------------------------------------------------------------------------------------------- JSON


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))
        raise DocumentError(f"the key {twice!r} stands twice")
    return found


def _whole(text: str) -> int:
    if len(text) > _MOST_DIGITS:
        raise DocumentError(f"a number of {len(text):,} digits")
    return int(text)


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(_MOST_DEPTH):
        inside = (one.values() if isinstance(one, dict) else one for one in level if isinstance(one, dict | list))
        level = [inner for values in inside for inner in values if isinstance(inner, dict | list)]
        if not level:
            return
    raise DocumentError(f"nested deeper than {_MOST_DEPTH}")


# ---------------------------------------------------------------------------------------------------- YAML


class _Loader(yaml.SafeLoader):
    """The composer of nodes, which counts them; of the constructors of YAML 1.1 none is used."""

    yaml_implicit_resolvers = {}

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._depth = self._count = 0
        self._anchored: dict[int, tuple[int, int]] = {}  # nodes below, and depth, by the identity of a node

    def compose_node(self, parent: Any, index: Any) -> Any:
        mark = self.peek_event().start_mark
        is_alias = self.check_event(yaml.AliasEvent)
        before, self._depth = self._count, self._depth + 1
        if self._depth > _MOST_DEPTH:
            raise _at(mark, f"nested deeper than {_MOST_DEPTH}")
        node = super().compose_node(parent, index)
        self._depth -= 1
        if is_alias:
            if id(node) not in self._anchored:
                raise _at(mark, "an alias of what it stands in")
            count, depth = self._anchored[id(node)]
            self._count += count
            if self._depth + depth > _MOST_DEPTH:
                raise _at(mark, f"nested deeper than {_MOST_DEPTH}")
        else:
            self._count += 1
            below = node.value if isinstance(node, yaml.SequenceNode) else []
            if isinstance(node, yaml.MappingNode):
                below = [inner for pair in node.value for inner in pair]
            depth = 1 + max((self._anchored[id(inner)][1] for inner in below), default=0)
            self._anchored[id(node)] = self._count - before, depth
        if self._count > _MOST_NODES:
            raise _at(mark, f"more than {_MOST_NODES:,} values, those of aliases included")
        return node


class _Dumper(yaml.SafeDumper):
    """Quotes texts that either version of YAML reads as something else."""


_TAG = "tag:yaml.org,2002:"
_NULL = r"~|null|Null|NULL|"
_BOOL = r"true|True|TRUE|false|False|FALSE"
# Digits in groups are what they look like; a leading zero is decimal to some readers, and octal to others.
_INT = r"[-+]?(0|[1-9][0-9]*(_[0-9]+)*)|0o[0-7]+|0x[0-9a-fA-F]+"
_FLOAT = (
    r"[-+]?(\.[0-9]+|(0|[1-9][0-9]*(_[0-9]+)*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?"
    r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
)
for _name, _pattern, _first in (
    ("null", _NULL, ["~", "n", "N", ""]),
    ("bool", _BOOL, list("tTfF")),
    ("int", _INT, list("-+0123456789")),
    ("float", _FLOAT, list("-+.0123456789")),
):
    for _kind in (_Loader, _Dumper):
        _kind.add_implicit_resolver(_TAG + _name, re.compile(rf"^(?:{_pattern})$"), _first)


def _int(text: str) -> int:
    if len(text) > _MOST_DIGITS:
        raise DocumentError(f"a number of {len(text):,} digits")
    digits = text.lower()
    return int(digits, {"0o": 8, "0x": 16}.get(digits[:2], 10))


def _float(text: str) -> float:
    return float(text.replace(".", "") if re.fullmatch(r"[-+]?\.(inf|nan)", text.lower()) else text)


_SCALARS: dict[str, tuple[str, Callable[[str], Any]]] = {
    _TAG + "null": (_NULL, lambda text: None),
    _TAG + "bool": (_BOOL, lambda text: text.lower() == "true"),
    _TAG + "int": (_INT, _int),
    _TAG + "float": (_FLOAT, _float),
    _TAG + "str": (r"(?s:.*)", str),
}


def _value(node: Any) -> Any:
    try:
        if isinstance(node, yaml.ScalarNode) and node.tag in _SCALARS:
            pattern, convert = _SCALARS[node.tag]
            if re.fullmatch(pattern, node.value):
                return convert(node.value)
        if isinstance(node, yaml.SequenceNode) and node.tag == _TAG + "seq":
            return [_value(inner) for inner in node.value]
        if isinstance(node, yaml.MappingNode) and node.tag == _TAG + "map":
            return _mapping(node)
    except DocumentError as error:
        raise error if str(error).startswith("line ") else _at(node.start_mark, str(error)) from None
    raise _at(node.start_mark, f"the tag {node.tag.replace(_TAG, '!!')} is not supported here")


def _mapping(node: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, inner in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise _at(key.start_mark, "a key is a text")
        if key.value == "<<" and not key.style:
            raise _at(key.start_mark, "<< merges in YAML 1.1 alone; write the keys out")
        if key.value in found:
            raise _at(key.start_mark, f"the key {key.value!r} stands twice")
        found[key.value] = _value(inner)
    return found


def _at(mark: Any, problem: str) -> DocumentError:
    where = "" if mark is None else f"line {mark.line + 1}: "
    return DocumentError(f"{where}{' '.join(problem.split())[:200]}")


# ---------------------------------------------------------------------------------------------------- files


def _read(path: Path, remedy: str, most_bytes: int) -> bytes:
    check_regular_file(path, remedy, most_bytes=most_bytes)
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error})", remedy) from None
