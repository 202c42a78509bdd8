"""The values of ONNX operations on small tensors, which sizes are computed with."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from unistep.formats.exported.onnx_graph import SMALL, Known, Node
from unistep.formats.exported.onnx_rules import Invalid, at, constant, shape_of, slice_values, slices


def value_of(node: Node, inputs: Sequence[Known | None]) -> np.ndarray | None:
    """The value of an operation on small tensors; None where it is not one of those that compute sizes."""
    if node.operator == "Constant":
        return constant(node).value
    if node.operator == "Shape":
        return np.array(shape_of(node, inputs), dtype=np.int64)
    if node.operator == "Size":
        return np.array(at(inputs, 0).numbers, dtype=np.int64)
    compute = _VALUES.get(node.operator)
    given = [None if one is None else one.value for one in inputs]
    if compute is None or any(one is not None and one.value is None for one in inputs):
        return None
    with np.errstate(all="ignore"):
        made = compute(node, given)
    return None if made is None or np.size(made) > SMALL else np.asarray(made)


def _cast(node: Node, x: Sequence[Any]) -> np.ndarray | None:
    kind = {1: np.float32, 6: np.int32, 7: np.int64, 9: np.bool_, 11: np.float64}.get(node.attributes["to"])
    return None if kind is None else x[0].astype(kind)


def _quotient(node: Node, x: Sequence[Any]) -> np.ndarray:
    if not np.issubdtype(np.result_type(x[0], x[1]), np.integer):
        return x[0] / x[1]
    if not np.all(x[1]):
        raise Invalid
    return np.trunc(x[0] / x[1]).astype(np.int64)


def _sliced(node: Node, x: Sequence[Any]) -> np.ndarray:
    return x[0][tuple(slices(x[0].shape, *slice_values(x)))]


def _axes_value(node: Node, x: Sequence[Any]) -> list[int]:
    if len(x) > 1 and x[1] is not None:
        return [int(axis) for axis in np.ravel(x[1])]
    return list(node.attributes.get("axes", []))


_VALUES: Mapping[str, Callable[[Node, Sequence[Any]], Any]] = {
    "Identity": lambda n, x: x[0],
    "Cast": _cast,
    "Add": lambda n, x: x[0] + x[1],
    "Sub": lambda n, x: x[0] - x[1],
    "Mul": lambda n, x: x[0] * x[1],
    "Div": _quotient,
    "Mod": lambda n, x: np.mod(x[0], x[1]),
    "Neg": lambda n, x: -x[0],
    "Max": lambda n, x: np.max(np.broadcast_arrays(*x), axis=0),
    "Min": lambda n, x: np.min(np.broadcast_arrays(*x), axis=0),
    "Floor": lambda n, x: np.floor(x[0]),
    "Ceil": lambda n, x: np.ceil(x[0]),
    "Equal": lambda n, x: np.equal(x[0], x[1]),
    "Where": lambda n, x: np.where(x[0], x[1], x[2]),
    "Concat": lambda n, x: np.concatenate(x, axis=n.attributes["axis"]),
    "Gather": lambda n, x: np.take(x[0], x[1], axis=n.attributes.get("axis", 0)),
    "Slice": _sliced,
    "Reshape": lambda n, x: x[0].reshape([int(side) for side in x[1]]),
    "Squeeze": lambda n, x: np.squeeze(x[0], tuple(_axes_value(n, x)) or None),
    "Unsqueeze": lambda n, x: np.expand_dims(x[0], tuple(_axes_value(n, x))),
}
