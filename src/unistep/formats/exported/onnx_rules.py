"""The shapes of what an ONNX operation makes, from the shapes of what it takes: one rule an operator.

Where a size is a value, as the shape that a tensor is expanded to, it has to be known.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from unistep.formats.exported.onnx_graph import SMALL, Known, Node

Shape = tuple[int, ...]


class Invalid(ValueError):
    """An operation that cannot be computed."""


class Unknown(Exception):
    """A size that depends on images."""


def at(x: Sequence[Known | None], place: int) -> Known:
    """Returns an input that an operation must have.

    Raises:
        Invalid: it is left out.
        IndexError: there are fewer inputs.
    """
    found = x[place]
    if found is None:
        raise Invalid
    return found


def _numbers(x: Sequence[Known | None], place: int) -> list[Any] | None:
    """The values of an input; None where it is left out."""
    if place >= len(x) or x[place] is None:
        return None
    value = at(x, place).value
    if value is None:
        raise Unknown
    return np.ravel(value).tolist()


def _needed(x: Sequence[Known | None], place: int) -> list[Any]:
    found = _numbers(x, place)
    if found is None:
        raise Invalid
    return found


def _axis(axis: int, rank: int) -> int:
    if not -rank <= axis < rank:
        raise Invalid
    return axis % rank


def _together(shapes: Sequence[Shape]) -> Shape:
    """The shape to which shapes are broadcast."""
    rank = max(map(len, shapes))
    made = []
    for sides in zip(*((1,) * (rank - len(shape)) + shape for shape in shapes), strict=True):
        own = set(sides) - {1}
        if len(own) > 1:
            raise Invalid
        made.append(own.pop() if own else 1)
    return tuple(made)


def _same(node: Node, x: Sequence[Known | None]) -> list[Shape]:
    return [at(x, 0).shape]


def _broadcast(node: Node, x: Sequence[Known | None]) -> list[Shape]:
    return [_together([at(x, i).shape for i in range(len(x))])]


def constant(node: Node) -> Known:
    """Returns the tensor of an operation Constant.

    Raises:
        Invalid: it has none.
    """
    for name, content in node.attributes.items():
        if isinstance(content, Known):
            return content
        if name in ("value_int", "value_float", "value_ints", "value_floats"):
            kind = np.int64 if "int" in name else np.float32
            value = np.array(content, dtype=kind)
            return Known(value.shape, value if value.size <= SMALL else None)
    raise Invalid


def shape_of(node: Node, x: Sequence[Known | None]) -> Shape:
    """Returns the sides that an operation Shape asks for."""
    return at(x, 0).shape[node.attributes.get("start", 0) : node.attributes.get("end")]


def _reshape(node: Node, x: Sequence[Known | None]) -> list[Shape]:
    source, wanted = at(x, 0), [int(side) for side in _needed(x, 1)]
    if not node.attributes.get("allowzero", 0):
        wanted = [source.shape[i] if side == 0 else side for i, side in enumerate(wanted)]
    rest = math.prod(side for side in wanted if side != -1)
    made = tuple(source.numbers // max(rest, 1) if side == -1 else side for side in wanted)
    if math.prod(made) != source.numbers or wanted.count(-1) > 1:
        raise Invalid
    return [made]


def _expand(node: Node, x: Sequence[Known | None]) -> list[Shape]:
    source, wanted = at(x, 0).shape, tuple(int(side) for side in _needed(x, 1))
    rank = max(len(source), len(wanted))
    aligned = [(1,) * (rank - len(shape)) + shape for shape in (source, wanted)]
    return [tuple(map(max, *aligned))]  # that the sides fit is for the runtime to say


def _flatten(node: Node, x: Sequence[Known | None]) -> list[Shape]:
    shape = at(x, 0).shape
    axis = node.attributes.get("axis", 1)
    axis = axis + len(shape) if axis < 0 else axis
    return [(math.prod(shape[:axis]), math.prod(shape[axis:]))]


def _concat(node: Node, x: Sequence[Known | None]) -> list[Shape]:
    shapes = [at(x, i).shape for i in range(len(x))]
    axis = _axis(node.attributes["axis"], len(shapes[0]))
    if any(s[:axis] != shapes[0][:axis] or s[axis + 1 :] != shapes[0][axis + 1 :] for s in shapes):
        raise Invalid
    return [(*shapes[0][:axis], sum(s[axis] for s in shapes), *shapes[0][axis + 1 :])]


def _split(node: Node, x: Sequence[Known | None]) -> list[Shape]:
    shape, count = at(x, 0).shape, len(node.outputs)
    axis = _axis(node.attributes.get("axis", 0), len(shape))
    parts = _numbers(x, 1)
    if parts is None:
        parts = [-(-shape[axis] // count)] * count
    if len(parts) != count or min(parts) < 0 or sum(parts) > shape[axis] + count:
        raise Invalid
    return [(*shape[:axis], int(part), *shape[axis + 1 :]) for part in parts]


def slice_values(x: Sequence[Any]) -> tuple[list[int], list[int], list[int] | None, list[int] | None]:
    """Returns starts, ends, axes and steps of an operation Slice; None for what is left out.

    Args:
        x: values of its inputs, the tensor first.

    Raises:
        Invalid: starts or ends are left out.
    """

    def listed(place: int) -> list[int] | None:
        if place >= len(x) or x[place] is None:
            return None
        return [int(one) for one in np.ravel(x[place])]

    starts, ends = listed(1), listed(2)
    if starts is None or ends is None:
        raise Invalid
    return starts, ends, listed(3), listed(4)


def slices(
    shape: Shape, starts: list[int], ends: list[int], axes: list[int] | None, steps: list[int] | None
) -> list[slice]:
    """Returns the cut along each axis of a tensor.

    Args:
        shape: shape of the tensor.
        starts, ends, axes, steps: values of `slice_values`.

    Raises:
        Invalid: there is no such axis.
    """
    found = [slice(None)] * len(shape)
    axes = [*range(len(starts))] if axes is None else axes
    for axis, start, end, step in zip(axes, starts, ends, steps or [1] * len(starts), strict=True):
        # An end before the beginning is one past it, which is what a slice of Python has None for.
        bound = None if step < 0 and end < -shape[axis] else end
        found[_axis(axis, len(shape))] = slice(start, bound, step)
    return found


def _slice(node: Node, x: Sequence[Known | None]) -> list[Shape]:
    shape = at(x, 0).shape
    values = [None, *(_numbers(x, i) for i in range(1, 5))]
    cut = slices(shape, *slice_values(values))
    return [tuple(len(range(*one.indices(side))) for one, side in zip(cut, shape, strict=True))]


def _axes(node: Node, x: Sequence[Known | None]) -> list[int] | None:
    found = _numbers(x, 1) if len(x) > 1 else None
    found = node.attributes.get("axes") if found is None else found
    return None if found is None else [int(axis) for axis in found]


def _squeeze(node: Node, x: Sequence[Known | None]) -> list[Shape]:
    shape, axes = at(x, 0).shape, _axes(node, x)
    gone = {i for i, side in enumerate(shape) if side == 1} if axes is None else {_axis(a, len(shape)) for a in axes}
    if any(shape[i] != 1 for i in gone):
        raise Invalid
    return [tuple(side for i, side in enumerate(shape) if i not in gone)]


def _unsqueeze(node: Node, x: Sequence[Known | None]) -> list[Shape]:
    shape, axes = list(at(x, 0).shape), _axes(node, x) or []
    rank = len(shape) + len(axes)
    for axis in sorted(_axis(a, rank) for a in axes):
        shape.insert(axis, 1)
    return [tuple(shape)]


def _transpose(node: Node, x: Sequence[Known | None]) -> list[Shape]:
    shape = at(x, 0).shape
    order = node.attributes.get("perm") or [*range(len(shape))][::-1]
    if sorted(order) != [*range(len(shape))]:
        raise Invalid
    return [tuple(shape[i] for i in order)]


def _gather(node: Node, x: Sequence[Known | None]) -> list[Shape]:
    shape, places = at(x, 0).shape, at(x, 1).shape
    axis = _axis(node.attributes.get("axis", 0), len(shape))
    return [(*shape[:axis], *places, *shape[axis + 1 :])]


def _pad(node: Node, x: Sequence[Known | None]) -> list[Shape]:
    shape, pads = list(at(x, 0).shape), [int(one) for one in _needed(x, 1)]
    axes = [int(one) for one in _numbers(x, 3) or range(len(shape))]
    if len(pads) != 2 * len(axes):
        raise Invalid
    for i, axis in enumerate(axes):
        shape[_axis(axis, len(shape))] += pads[i] + pads[i + len(axes)]
    return [tuple(shape)]


def _resize(node: Node, x: Sequence[Known | None]) -> list[Shape]:
    shape = list(at(x, 0).shape)
    axes = [_axis(a, len(shape)) for a in node.attributes.get("axes") or range(len(shape))]
    scales, sizes = _numbers(x, 2), _numbers(x, 3)
    if sizes and node.attributes.get("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise Invalid
    wanted = sizes or [math.floor(shape[a] * one) for a, one in zip(axes, scales or [], strict=True)]
    for axis, side in zip(axes, wanted, strict=True):
        shape[axis] = int(side)
    return [tuple(shape)]


def _blocks(node: Node, x: Sequence[Known | None]) -> list[Shape]:
    count, channels, height, width = at(x, 0).shape
    size = node.attributes["blocksize"]
    if node.operator == "DepthToSpace":
        return [(count, channels // size**2, height * size, width * size)]
    return [(count, channels * size**2, height // size, width // size)]


def _windows(node: Node, shape: Shape, kernel: Sequence[int]) -> Shape:
    """The sides at which a kernel is applied."""
    sides, given = shape[2:], node.attributes
    ones = [1] * len(kernel)
    strides, dilations = given.get("strides") or ones, given.get("dilations") or ones
    pads = given.get("pads") or [0] * (2 * len(kernel))
    if min([*strides, *dilations]) < 1 or min(pads) < 0 or len(sides) != len(kernel):
        raise Invalid
    if given.get("auto_pad", "NOTSET").startswith("SAME"):
        return tuple(-(-side // stride) for side, stride in zip(sides, strides, strict=True))
    room = [side + pads[i] + pads[i + len(kernel)] for i, side in enumerate(sides)]
    return tuple(
        -(-(side - dilation * (k - 1) - 1) // stride) + 1
        if given.get("ceil_mode")
        else (side - dilation * (k - 1) - 1) // stride + 1
        for side, k, stride, dilation in zip(room, kernel, strides, dilations, strict=True)
    )


def _conv(node: Node, x: Sequence[Known | None]) -> list[Shape]:
    shape, weight = at(x, 0).shape, at(x, 1).shape
    return [(shape[0], weight[0], *_windows(node, shape, weight[2:]))]


def _conv_transpose(node: Node, x: Sequence[Known | None]) -> list[Shape]:
    shape, weight, given = at(x, 0).shape, at(x, 1).shape, node.attributes
    rank = len(weight) - 2
    ones, zeros = [1] * rank, [0] * rank
    if given.get("output_shape"):
        sides = given["output_shape"][-rank:]
    else:
        strides, dilations = given.get("strides") or ones, given.get("dilations") or ones
        more = given.get("output_padding") or zeros
        sides = [  # as if there were no `pads`, which make it smaller
            stride * (side - 1) + extra + (k - 1) * dilation + 1
            for side, stride, extra, k, dilation in zip(shape[2:], strides, more, weight[2:], dilations, strict=True)
        ]
        pads = given.get("pads") or zeros * 2
        sides = [side - pads[i] - pads[i + rank] for i, side in enumerate(sides)]
    return [(shape[0], weight[1] * given.get("group", 1), *sides)]


def _pool(node: Node, x: Sequence[Known | None]) -> list[Shape]:
    shape = at(x, 0).shape
    return [(*shape[:2], *_windows(node, shape, node.attributes["kernel_shape"]))]


def _global_pool(node: Node, x: Sequence[Known | None]) -> list[Shape]:
    shape = at(x, 0).shape
    return [(*shape[:2], *(1 for _ in shape[2:]))]


def _matmul(node: Node, x: Sequence[Known | None]) -> list[Shape]:
    a, b = at(x, 0).shape, at(x, 1).shape
    if not a or not b:
        raise Invalid
    left, right = ((1, *a) if len(a) == 1 else a), ((*b, 1) if len(b) == 1 else b)
    if left[-1] != right[-2]:
        raise Invalid
    rows, columns = left[-2:-1] if len(a) > 1 else (), right[-1:] if len(b) > 1 else ()
    return [(*_together([left[:-2], right[:-2]]), *rows, *columns)] if left[:-2] or right[:-2] else [(*rows, *columns)]


def _gemm(node: Node, x: Sequence[Known | None]) -> list[Shape]:
    a, b = at(x, 0).shape, at(x, 1).shape
    a, b = (a[::-1] if node.attributes.get("transA") else a), (b[::-1] if node.attributes.get("transB") else b)
    if len(a) != 2 or len(b) != 2 or a[1] != b[0]:
        raise Invalid
    return [(a[0], b[1])]


def _reduce(node: Node, x: Sequence[Known | None]) -> list[Shape]:
    shape, axes = at(x, 0).shape, _axes(node, x)
    if not axes and node.attributes.get("noop_with_empty_axes"):
        return [shape]
    gone = {_axis(a, len(shape)) for a in axes} if axes else {*range(len(shape))}
    keep = node.attributes.get("keepdims", 1)
    return [tuple(1 if i in gone else side for i, side in enumerate(shape) if keep or i not in gone)]


def _arg(node: Node, x: Sequence[Known | None]) -> list[Shape]:
    shape = at(x, 0).shape
    axis = _axis(node.attributes.get("axis", 0), len(shape))
    return [(*shape[:axis], *((1,) if node.attributes.get("keepdims", 1) else ()), *shape[axis + 1 :])]


def _attention(node: Node, x: Sequence[Known | None]) -> list[Shape]:
    """Images and, for its size alone, the matrix of attention."""
    q, k, v = (at(x, i).shape for i in range(3))
    if len(q) != 4 or len(x) > 4:
        raise Invalid
    return [(*q[:3], v[3]), k, v, (*q[:3], k[2])]


def _dynamic(node: Node, x: Sequence[Known | None]) -> list[Shape]:
    return [at(x, 0).shape, (), ()]


RULES: Mapping[str, Callable[[Node, Sequence[Known | None]], list[Shape]]] = {
    **dict.fromkeys(
        "Abs BatchNormalization Cast CastLike Ceil Clip Cos DequantizeLinear Erf Exp Floor Gelu GroupNormalization "
        "Identity InstanceNormalization LayerNormalization Log LogSoftmax Neg Not QuantizeLinear RMSNormalization "
        "Reciprocal Relu Round Sigmoid Sign Sin Softmax Sqrt Swish Tanh".split(),
        _same,
    ),
    **dict.fromkeys(
        "Add And Div Equal Greater GreaterOrEqual Less LessOrEqual Max Min Mod Mul Or Pow Sub Sum Where".split(),
        _broadcast,
    ),
    **dict.fromkeys("ReduceMax ReduceMean ReduceMin ReduceSum ReduceSumSquare".split(), _reduce),
    "ArgMax": _arg,
    "ArgMin": _arg,
    "Attention": _attention,
    "AveragePool": _pool,
    "Concat": _concat,
    "Constant": lambda node, x: [constant(node).shape],
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "DepthToSpace": _blocks,
    "DynamicQuantizeLinear": _dynamic,
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "Gemm": _gemm,
    "GlobalAveragePool": _global_pool,
    "MatMul": _matmul,
    "Pad": _pad,
    "Reshape": _reshape,
    "Resize": _resize,
    "Shape": lambda node, x: [(len(shape_of(node, x)),)],
    "Size": lambda node, x: [()],
    "Slice": _slice,
    "SpaceToDepth": _blocks,
    "Split": _split,
    "Squeeze": _squeeze,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
