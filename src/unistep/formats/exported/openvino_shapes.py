"""The size of every tensor of an OpenVINO graph, before it is compiled.

OpenVINO computes shapes itself when it reads a graph, and has to compute the values that shapes follow from. So the
part of the graph that such values come from is examined first, and may hold few numbers; then the graph is read, and
the shapes that OpenVINO finds are bounded before it compiles.
"""

import math
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np

from unistep.errors import UserError
from unistep.formats.exported.description import AGAIN
from unistep.formats.exported.sizes import BATCHES, Limits, Step, check_steps

_MOST, _MOST_RANK = 4096, 32
# Operators whose inputs but the first are sizes, axes or factors.
_SIZED = frozenset(
    "Broadcast Interpolate MVN Pad ReduceMax ReduceMean ReduceMin "
    "ReduceProd ReduceSum Reshape Slice Split Squeeze StridedSlice TopK Transpose Unsqueeze VariadicSplit".split()
)
# Operators that sizes are computed by: those that make no more numbers than they take, and those that combine.
_KEEP = frozenset(
    "Abs Ceiling Clamp Convert Floor LogicalNot Negative ReduceMax ReduceMin ReduceProd ReduceSum Reshape Round Slice "
    "Split Squeeze StridedSlice Transpose Unsqueeze VariadicSplit".split()
)
_COMBINE = frozenset(
    "Add ConvertLike Divide Equal Gather Greater GreaterEqual Less LessEqual LogicalAnd LogicalOr Maximum Minimum Mod "
    "Multiply NotEqual Power Select Subtract".split()
)


def check_values(root: ET.Element, path: Path) -> None:
    """Refuses a graph whose shapes follow from values that are many, or from images.

    Args:
        root: element `net` of an .xml.
        path: file, for messages.

    Raises:
        UserError: they do.
    """
    values = _Values(root, path)
    for name, layer in values.layers.items():
        # The third input of a Gather is an axis, and that of a transposed convolution a size.
        kind = layer.get("type", "")
        first = 1 if kind in _SIZED else 2 if kind == "Gather" or kind.endswith("BackpropData") else None
        for source in [] if first is None else values.sources(name)[first:]:
            values.count(source)


class _Values:
    """Bounds on the numbers of values that shapes follow from, by the name of a layer."""

    def __init__(self, root: ET.Element, path: Path) -> None:
        self.path, self.counts = path, dict[str, tuple[int, float]]()
        self.layers = {layer.get("id", ""): layer for layer in root.iterfind("layers/layer")}
        self._edges: dict[str, list[tuple[int, str]]] = {}
        for edge in root.iterfind("edges/edge"):
            port, source = edge.get("to-port", ""), edge.get("from-layer", "")
            if source not in self.layers or not (port.isascii() and port.isdigit() and len(port) < 7):
                raise self._refused("an edge from nowhere")
            self._edges.setdefault(edge.get("to-layer", ""), []).append((int(port), source))

    def sources(self, name: str) -> list[str]:
        """Layers whose results a layer takes, in order."""
        return [source for _, source in sorted(self._edges.get(name, ()))]

    def count(self, name: str) -> None:
        """Counts the numbers of a value that a shape follows from, and of all that it is computed from.

        Raises:
            UserError: they are many, or depend on images.
        """
        left, begun = [name], set()
        while left:
            one = left[-1]
            needed = [] if one in self.counts else [n for n in self._needed(one) if n not in self.counts]
            if needed and one in begun:
                raise self._refused("operations in a circle")
            if not needed and one not in self.counts:
                self.counts[one] = self._counted(one)
            begun.add(one)
            left = left + needed if needed else left[:-1]

    def _needed(self, name: str) -> list[str]:
        """Layers whose numbers those of a layer follow from."""
        kind, sources = self.layers[name].get("type", ""), self.sources(name)
        if kind == "Const":
            return []
        if kind == "ShapeOf":  # of a list its length; of images nothing is counted
            return [one for one in sources[:1] if self._is_list(one)]
        if kind not in _KEEP | _COMBINE | {"Concat", "Broadcast"} or not sources:
            raise self._refused(f"a size by the operation {kind[:40]}")
        return sources

    def _is_list(self, name: str) -> bool:
        """Whether a layer makes one row of numbers, by what it is."""
        layer = self.layers[name]
        data = layer.find("data")
        return layer.get("type") == "ShapeOf" or (
            layer.get("type") == "Const" and data is not None and data.get("shape", "").strip().isdigit()
        )

    def _counted(self, name: str) -> tuple[int, float]:
        """The number of a layer's results and the greatest of them, at most."""
        kind, inputs = self.layers[name].get("type", ""), [self.counts[one] for one in self._needed(name)]
        if kind == "Const":
            count, most = self._stored(self.layers[name])
        elif kind == "ShapeOf":
            count, most = (1, inputs[0][0]) if inputs else (_MOST_RANK, math.inf)
        elif kind == "Broadcast":
            sides, longest = inputs[min(1, len(inputs) - 1)]
            most = inputs[0][1]
            # To a shape of these numbers; where they are not bounded, neither is the result.
            count = inputs[0][0] * int(max(longest, 1) ** sides) if longest <= _MOST and sides <= 4 else _MOST + 1
        else:
            counts = [one for one, _ in inputs]
            count = counts[0] if kind in _KEEP else sum(counts) if kind == "Concat" else math.prod(counts)
            greatest = [one for _, one in inputs]
            most = sum(greatest) if kind in ("Add", "Subtract") else math.inf
            if kind in ("Concat", "Maximum", "Minimum", "Select", "Gather") or kind in _KEEP:
                most = max(greatest)
        if count > _MOST:
            raise self._refused("a size of more numbers")
        return count, most

    def _stored(self, layer: ET.Element) -> tuple[int, float]:
        """The same of a tensor that is stored; `_layer` has compared its place with the file."""
        data = layer.find("data")
        given = {} if data is None else data.attrib
        count = math.prod(int(side) for side in given.get("shape", "").split(",") if side.strip())
        kind = {"i64": "<i8", "i32": "<i4"}.get(given.get("element_type", ""))
        if kind is None or not 0 < count <= _MOST:
            return count, math.inf
        with self.path.with_suffix(".bin").open("rb") as file:
            file.seek(int(given["offset"]))
            values = np.frombuffer(file.read(int(given["size"])), kind)
        return count, float(np.abs(values.astype(np.float64)).max())

    def _refused(self, held: str) -> UserError:
        return UserError(f"{self.path} is not opened: it holds {held}, which no exported model does", AGAIN)


def check_shapes(model: Any, limits: Limits, path: Path) -> None:
    """Refuses a model of OpenVINO whose tensors are larger than those of any model; it stays as it is.

    Args:
        model: model that was read.
        limits: limits of its tensors.
        path: file, for messages.

    Raises:
        UserError: they are, or a size does not follow from the inputs.
    """
    found: dict[int, list[Step]] = {}
    constant, results = set(), []
    for batch in BATCHES:
        copy = model.clone()
        for parameter in copy.get_parameters():
            shape = parameter.partial_shape
            if shape.rank.is_dynamic or not len(shape) or any(side.is_dynamic for side in list(shape)[1:]):
                raise UserError(
                    f"{path} is not opened: it holds an input of any size, which no exported model does", AGAIN
                )
            parameter.set_partial_shape(type(shape)([batch, *(side.get_length() for side in list(shape)[1:])]))
        copy.validate_nodes_and_infer_types()
        found[batch], results = [], []
        for op in copy.get_ordered_ops():
            name, kind = op.get_friendly_name(), op.get_type_name()
            sources = [one.get_source_output() for one in op.inputs()]
            inputs = [(one.get_node().get_friendly_name(), one.get_index()) for one in sources]
            if kind == "Constant":
                constant.add((name, 0))
            elif kind == "Result":
                results += inputs
            elif kind != "Parameter":
                found[batch].append(
                    Step(kind, inputs, {(name, i): _numbers(one, kind, path) for i, one in enumerate(op.outputs())})
                )
    check_steps(found, constant, results, limits, path)


def _numbers(output: Any, kind: str, path: Path) -> int:
    shape = output.get_partial_shape()
    if shape.is_dynamic:
        raise UserError(
            f"{path} is not opened: it holds an operation {kind} whose size depends on images, which no exported model "
            "does",
            AGAIN,
        )
    return math.prod(max(side, 1) for side in shape.to_shape())
