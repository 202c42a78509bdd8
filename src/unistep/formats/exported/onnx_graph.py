"""The graph of an ONNX file as it claims to be: operations, sizes of its tensors, and the values of small ones.

Nothing that is as large as a weight is copied.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from unistep.errors import UserError
from unistep.formats.exported.description import AGAIN, MOST_BYTES
from unistep.formats.exported.operators import ONNX_OPERATORS
from unistep.formats.exported.wire import WireError, fields_of, integers, message, text

DOMAINS = ("", "ai.onnx")
SMALL = 64
"""Numbers of a tensor whose values are read: sizes, axes and factors."""

_MOST_NODES = 200_000
_EXTERNAL = 1
# Bits of a number, by the code of its type in ONNX.
_BITS = {1: 32, 2: 8, 3: 8, 4: 16, 5: 16, 6: 32, 7: 64, 9: 8, 10: 16, 11: 64, 12: 32, 13: 64, 16: 16, 21: 4, 22: 4}
_TYPES = {1: np.dtype("<f4"), 6: np.dtype("<i4"), 7: np.dtype("<i8"), 9: np.dtype("?"), 11: np.dtype("<f8")}


@dataclass(frozen=True)
class Known:
    """The facts about a tensor that need no computation.

    Args:
        shape: shape of the tensor.
        value: values of a small tensor; None where they depend on images, or are many.
    """

    shape: tuple[int, ...]
    value: np.ndarray | None = None

    @property
    def numbers(self) -> int:
        """Numbers that it holds."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Node:
    """An operation.

    Args:
        operator: name of the operator.
        inputs, outputs: names of tensors; empty for one that is left out.
        attributes: integers, floats, texts, lists of these, and `Known` tensors, by name.
    """

    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any]


@dataclass
class Graph:
    """The graph of a file.

    Args:
        inputs: shape of each input by name; -1 for a side without a number.
        outputs: names of the outputs.
        stored: tensors that are stored, by name.
        nodes: operations.
        external: places of weights in other files: name, offset and length.
    """

    inputs: dict[str, tuple[int, ...]] = field(default_factory=dict)
    outputs: list[str] = field(default_factory=list)
    stored: dict[str, Known] = field(default_factory=dict)
    nodes: list[Node] = field(default_factory=list)
    external: list[tuple[str, int, int]] = field(default_factory=list)


def read_graph(data: memoryview, path: Path) -> Graph:
    """Reads a graph, and refuses what no exported model needs.

    Args:
        data: message of the graph.
        path: file, for messages.

    Raises:
        UserError: it holds something that is refused.
        WireError: it is damaged.
    """
    graph = Graph()
    for number, value in fields_of(data):
        if number == 1:
            if len(graph.nodes) == _MOST_NODES:
                raise refused(path, f"more than {_MOST_NODES:,} operations")
            graph.nodes.append(_node(message(value), graph, path))
        elif number == 5:
            name, tensor = _tensor(message(value), graph, path)
            if name in graph.stored:
                raise WireError("two tensors of one name")
            graph.stored[name] = tensor
        elif number == 11:
            name, shape = _input(message(value))
            graph.inputs[name] = shape
        elif number == 12:
            graph.outputs.append(_input(message(value))[0])
        elif number == 15:
            raise refused(path, "sparse tensors")
    return graph


def entry(data: memoryview) -> tuple[str, str]:
    """Returns the key and the value of an entry.

    Raises:
        WireError: it is damaged, or too large.
    """
    found = {1: "", 2: ""}
    for number, value in fields_of(data):
        if number in found:
            if len(message(value)) > MOST_BYTES:
                raise WireError("an entry that is too large")
            found[number] = text(value)
    return found[1], found[2]


def refused(path: Path, held: str) -> UserError:
    """The error of a file that holds something that no exported model does."""
    return UserError(f"{path} is not opened: it holds {held}, which no exported model does", AGAIN)


def _node(data: memoryview, graph: Graph, path: Path) -> Node:
    inputs, outputs, operator, domain, attributes = [], [], "", "", {}
    for number, value in fields_of(data):
        if number == 1:
            inputs.append(text(value))
        elif number == 2:
            outputs.append(text(value))
        elif number == 4:
            operator = text(value)
        elif number == 7:
            domain = text(value)
        elif number == 5:
            name, content = _attribute(message(value), graph, path)
            attributes[name] = content
    if domain not in DOMAINS:
        raise refused(path, f"operators of others ({domain[:60]})")
    if operator not in ONNX_OPERATORS:
        raise refused(path, f"the operator {operator[:60]!r}")
    return Node(operator, tuple(inputs), tuple(outputs), attributes)


def _attribute(data: memoryview, graph: Graph, path: Path) -> tuple[str, Any]:
    name, content, listed = "", None, []
    for number, value in fields_of(data):
        if number == 1:
            name = text(value)
        elif number == 5:
            _, content = _tensor(message(value), graph, path)
        elif number in (6, 11):
            raise refused(path, "loops or branches")
        elif number in (10, 22, 23):
            raise refused(path, "lists of tensors")
        elif number == 3:
            content = integers(value)[0]
        elif number == 4:
            content = text(value)
        elif number == 2:
            content = float(np.frombuffer(message(value), "<f4")[0])
        elif number == 8:
            listed += integers(value)
        elif number == 7:
            listed += np.frombuffer(message(value), "<f4").tolist()
    return name, listed if content is None else content


def _input(data: memoryview) -> tuple[str, tuple[int, ...]]:
    """The name and the shape of an input or an output; only tensors have one."""
    name, shape = "", ()
    for number, value in fields_of(data):
        if number == 1:
            name = text(value)
        elif number == 2:
            tensors = [message(one) for kind, one in fields_of(message(value)) if kind == 1]
            shapes = [message(one) for tensor in tensors for kind, one in fields_of(tensor) if kind == 2]
            shape = tuple(side for one in shapes for side in _sides(one))
    return name, shape


def _sides(data: memoryview) -> Iterator[int]:
    for number, value in fields_of(data):
        if number == 1:
            sides = [integers(one)[0] for kind, one in fields_of(message(value)) if kind == 1]
            yield sides[0] if sides and sides[0] >= 0 else -1


def _tensor(data: memoryview, graph: Graph, path: Path) -> tuple[str, Known]:
    """The name of a tensor, with its values where they are few."""
    dims: list[int] = []
    kind, name, raw, listed, entries, place, count = 0, "", None, [], {}, 0, 0
    for number, value in fields_of(data):
        if number == 1:
            dims += integers(value)
        elif number == 2 and isinstance(value, int):
            kind = value
        elif number == 8:
            name = text(value)
        elif number == 9:
            raw = message(value)
        elif number in (4, 5, 7, 10, 11):
            count += 1 if isinstance(value, int) else len(value)
            listed.append((number, value))
        elif number == 13:
            key, content = entry(message(value))
            entries[key] = content
        elif number == 14 and isinstance(value, int):
            place = value
    if kind not in _BITS:
        raise refused(path, "a tensor of no numbers")
    if len(dims) > 8 or min(dims, default=0) < 0:
        raise WireError("a tensor of no shape")
    shape, numbers = tuple(dims), math.prod(dims)
    size = (numbers * _BITS[kind] + 7) // 8
    if entries or place == _EXTERNAL:
        graph.external.append(_external(entries, size))
        return name, Known(shape)
    if (raw is not None and len(raw) != size) or (raw is None and numbers > count):
        raise WireError("a tensor of another size than its shape")
    if numbers > SMALL or kind not in _TYPES:
        return name, Known(shape)
    return name, Known(shape, _values(raw, listed, kind, numbers).reshape(shape))


def _values(raw: memoryview | None, listed: list[tuple[int, Any]], kind: int, numbers: int) -> np.ndarray:
    if raw is not None:
        return np.frombuffer(raw, _TYPES[kind])
    found: list[Any] = []
    for number, value in listed:
        if number in (4, 10):
            found += np.frombuffer(message(value), "<f4" if number == 4 else "<f8").tolist()
        else:
            found += integers(value)
    if len(found) != numbers:
        raise WireError("a tensor of another size than its shape")
    return np.array(found, dtype=np.int64 if kind in (6, 7) else _TYPES[kind])


def _external(entries: dict[str, str], size: int) -> tuple[str, int, int]:
    try:
        offset, length = int(entries.get("offset", "0")), int(entries.get("length", str(size)))
    except ValueError:
        raise WireError("a place of weights that is none") from None
    if length != size:
        raise WireError("weights of another size than their shape")
    return entries.get("location", ""), offset, length
