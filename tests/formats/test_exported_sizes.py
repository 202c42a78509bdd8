"""Sizes of the tensors of exported files: those of the runtimes, and bounded whatever the file asks for."""

import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest

import unistep
from unistep.errors import UserError
from unistep.formats.exported.onnx_file import examine
from unistep.formats.exported.onnx_rules import RULES
from unistep.formats.exported.onnx_shapes import _Known, _ordered, check_sizes
from unistep.formats.exported.openvino_shapes import check_shapes, check_values
from unistep.formats.exported.operators import ONNX_OPERATORS
from unistep.formats.exported.sizes import limits

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

ONE = {"w": np.ones((1, 1, 1, 1), np.float32)}
FLOAT, INT = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64
IMAGE = (1, 8, 8)
LIMITS = limits(IMAGE, 1000)


def op(operator, inputs, output, **attributes):
    return onnx.helper.make_node(operator, inputs.split(",") if inputs else [], [output], **attributes)


def doubled(operator="Concat", times=40):
    """Each operation takes the result of the one before it twice."""
    more = {"axis": 1} if operator == "Concat" else {}
    return [
        op(operator, f"{'x' if i == 0 else i - 1},{'x' if i == 0 else i - 1}", str(i), **more) for i in range(times)
    ]


def graph(nodes, values=None, sides=("B", *IMAGE), results=("y",)):
    """The bytes of a model with an input `x`, and constants by name."""
    given = [onnx.helper.make_tensor_value_info("x", FLOAT, list(sides))]
    made = [onnx.helper.make_tensor_value_info(name, FLOAT, None) for name in results]
    stored = [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in (values or {}).items()]
    model = onnx.helper.make_model(
        onnx.helper.make_graph(nodes, "g", given, made, stored), opset_imports=[onnx.helper.make_opsetid("", 18)]
    )
    model.ir_version = 10
    return model.SerializeToString()


def check(tmp_path, data):
    path = tmp_path / "m.onnx"
    path.write_bytes(data)
    check_sizes(examine(path).graph, LIMITS, path)


def ints(*values):
    return np.array(values, np.int64)


TIMES = [op("Shape", "x", "s"), op("Mul", "s,f", "t")]
ROW = [op("Reshape", "x,r", "row"), op("Reshape", "x,c", "column")]
LINES = {"r": ints(1, -1), "c": ints(-1, 1)}

HOSTILE = {
    "an expanded constant": ([op("Expand", "one,s", "y")], {"one": np.float32(1), "s": ints(1 << 20, 1 << 20)}),
    "an expanded image": ([op("Expand", "x,s", "y")], {"s": ints(1, 1 << 24, 8, 8)}),
    "an expansion to a computed shape": ([*TIMES, op("Expand", "x,t", "y")], {"f": ints(1, 1 << 22, 1, 1)}),
    "a shape in pieces": (
        [op("Shape", "x", "s", start=2), op("Concat", "f,s", "t", axis=0), op("Expand", "x,t", "y")],
        {"f": ints(1, 1 << 30)},
    ),
    "a constant of a computed shape": (
        [*TIMES, op("ReduceMean", "x", "m", keepdims=0), op("Expand", "m,t", "y")],
        {"f": ints(1, 1 << 12, 1 << 6, 1)},
    ),
    "a concatenation of itself, again and again": (doubled(), {}),
    "an outer sum": ([*ROW, op("Add", "row,column", "a"), op("Reshape", "a,r", "b"), op("Reshape", "a,c", "d"),
                      op("Add", "b,d", "y")], LINES),
    "an outer product": ([*ROW, op("MatMul", "column,row", "a"), op("Reshape", "a,r", "b"), op("Reshape", "a,c", "d"),
                          op("MatMul", "d,b", "y")], LINES),
    "a square of the batch": ([*ROW, op("MatMul", "column,row", "y")], LINES),
    "a padding": ([op("Pad", "x,p", "y")], {"p": ints(0, 0, 0, 0, 0, 0, 1 << 20, 1 << 20)}),
    "a padding that is computed": ([*TIMES, op("Concat", "z,t", "p", axis=0), op("Pad", "x,p", "y")],
                                   {"z": ints(0, 0, 0, 0), "f": ints(0, 0, 1 << 16, 1 << 16)}),
    "a padding of one axis": ([op("Pad", "x,p,,a", "y")], {"p": ints(0, 1 << 40), "a": ints(3)}),
    "a resizing by factors": ([op("Resize", "x,,s", "y")], {"s": np.array([1, 1, 1e4, 1e4], np.float32)}),
    "a resizing to sizes": ([op("Resize", "x,,,s", "y")], {"s": ints(1, 1, 1 << 20, 1 << 20)}),
    "a resizing to computed sizes": ([*TIMES, op("Resize", "x,,,t", "y")], {"f": ints(1, 1, 1 << 12, 1 << 12)}),
    "several resizings": (
        [op("Resize", "x,,s", "a"), op("Resize", "a,,s", "b"), op("Resize", "b,,s", "y")],
        {"s": np.array([1, 1, 60, 60], np.float32)},
    ),
    "a transposed convolution": ([op("ConvTranspose", "x,w", "y", strides=[1 << 16, 1 << 16])],
                                 {"w": np.ones((1, 1, 1, 1), np.float32)}),
    "a transposed convolution of many groups": ([op("ConvTranspose", "x,w", "y", group=1 << 30)],
                                                {"w": np.ones((1, 1, 1, 1), np.float32)}),
    "a convolution in a wide frame": ([op("Conv", "x,w", "y", pads=[1 << 20] * 4)], ONE),
    "a pooling in a wide frame": ([op("AveragePool", "x", "y", kernel_shape=[1, 1], pads=[1 << 20] * 4)], {}),
    "a gathering of one part": (
        [op("Expand", "zero,s", "i"), op("Gather", "x,i", "y", axis=1)],
        {"zero": ints(0), "s": ints(1 << 19)},
    ),
    "many constants": (
        [op("Expand", "one,s", str(i)) for i in range(20)] + [op("Sum", ",".join(map(str, range(20))), "y")],
        {"one": np.float32(1), "s": ints(1 << 19)},
    ),
    "many at a time": (
        [op("Expand", "x,s", str(i)) for i in range(50)] + [op("Sum", ",".join(map(str, range(50))), "y")],
        {"s": ints(1, 1 << 14, 8, 8)},
    ),
    "a slice from behind": (
        [op("Expand", "x,s", "a"), op("Slice", "a,b,e,i,t", "c"), op("Concat", "c,c,c,c,c", "y", axis=1)],
        {"s": ints(1, 1 << 16, 8, 8), "b": ints(-1), "e": ints(-(1 << 62)), "i": ints(1), "t": ints(-1)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_onnx_sizes(tmp_path, name):
    with pytest.raises(
        UserError, match="larger than any|more memory than those of any model|grows faster than"
    ) as caught:
        check(tmp_path, graph(*HOSTILE[name]))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("nodes", "values", "message"),
    [
        ([op("Cast", "x", "i", to=INT), op("Expand", "x,i", "y")], {}, "whose size depends on images"),
        ([op("ArgMax", "x", "i"), op("Reshape", "i,r", "s"), op("Resize", "x,,,s", "y")], {"r": ints(-1)}, "depends"),
        ([op("ReduceMax", "x", "m", keepdims=0), op("Cast", "m", "i", to=INT), op("Reshape", "x,i", "y")], {}, "depe"),
        ([op("Tile", "x,s", "y")], {"s": ints(1, 9, 9, 9)}, "the operator 'Tile'"),
        ([op("ConstantOfShape", "s", "y")], {"s": ints(9, 9)}, "the operator 'ConstantOfShape'"),
        ([op("Range", "a,b,c", "y")], {"a": ints(0), "b": ints(9), "c": ints(1)}, "the operator 'Range'"),
        ([op("NonZero", "x", "y")], {}, "the operator 'NonZero'"),
        ([op("Einsum", "x,x", "y", equation="abcd,efgh->abcdefgh")], {}, "the operator 'Einsum'"),
        ([op("Relu", "z", "y"), op("Relu", "y", "z")], {}, "operations in a circle"),
        ([op("Relu", "x", "y"), op("Abs", "x", "y")], {}, "two operations make one tensor"),
        ([op("Relu", "nothing", "y")], {}, "a tensor that there is not"),
        ([op("Reshape", "x,s", "y")], {"s": ints(-1, -1)}, "Reshape has no size"),
        ([op("Reshape", "x,s", "y")], {"s": ints(-5)}, "Reshape has no size"),
        ([op("Pad", "x,p", "y")], {"p": ints(*[-9] * 8)}, "Pad has no size"),
        ([op("Concat", "x,x", "y", axis=1 << 40)], {}, "Concat has no size"),
        ([op("Split", "x,p", "y", axis=0)], {"p": ints(-1)}, "Split has no size"),
        ([op("Conv", "x,w", "y", strides=[0, 0])], {"w": np.ones((1, 1, 1, 1), np.float32)}, "Conv has no size"),
        ([op("Mod", "x,f", "y")], {"f": np.zeros((1, 1, 1, 1, 1, 1, 1, 1, 1), np.float32)}, "no shape|no size"),
    ],
)  # fmt: skip
def test_sizes_that_are_none(tmp_path, nodes, values, message):
    with pytest.raises(UserError, match=message) as caught:
        check(tmp_path, graph(nodes, values))
    assert "\n" not in str(caught.value)


def test_inputs_of_any_size(tmp_path):
    with pytest.raises(UserError, match="an input of any size"):
        check(tmp_path, graph([op("Relu", "x", "y")], sides=("B", 1, "H", "W")))


def test_deep_and_wide_graphs_are_checked_in_time(tmp_path):
    """Two thousand operations on tensors of the size of the image."""
    names = ["x", *map(str, range(2000)), "y"]
    check(tmp_path, graph([op("Relu", a, b) for a, b in zip(names, names[1:], strict=False)]))


# ------------------------------------------------------------------------------------------- sizes are those that arise

TAKEN = [
    ([op("Slice", "x,b,e,a,s", "y")], {"b": ints(-2), "e": ints(-100), "a": ints(2), "s": ints(-3)}),
    ([op("Slice", "x,b,e", "y")], {"b": ints(0, 0, 2, 1), "e": ints(9, 9, 1 << 60, -1)}),
    ([op("Squeeze", "x,a", "y")], {"a": ints(1)}),
    ([op("Squeeze", "x,a", "z"), op("Unsqueeze", "z,b", "y")], {"a": ints(1), "b": ints(0, -1)}),
    ([op("Transpose", "x", "y")], {}),
    ([op("Flatten", "x", "y", axis=2)], {}),
    ([op("Gather", "x,i", "y", axis=2)], {"i": ints(1, 1, 3).reshape(1, 3)}),
    ([op("Pad", "x,p,,a", "y")], {"p": ints(1, -2, 3, 0), "a": ints(2, 3)}),
    ([op("Pad", "x,p", "y", mode="reflect")], {"p": ints(0, 0, 1, 2, 0, 0, 3, 1)}),
    ([op("Resize", "x,,s", "y")], {"s": np.array([1, 1, 1.3, 0.4], np.float32)}),
    ([op("Resize", "x,,,s", "y", axes=[2, 3])], {"s": ints(3, 11)}),
    ([op("SpaceToDepth", "x", "y", blocksize=2)], {}),
    ([op("SpaceToDepth", "x", "z", blocksize=4), op("DepthToSpace", "z", "y", blocksize=2)], {}),
    ([op("Conv", "x,w", "y", strides=[2, 1], pads=[1, 0, 2, 1])], {"w": np.ones((3, 1, 3, 2), np.float32)}),
    ([op("Conv", "x,w", "y", strides=[3, 3], auto_pad="SAME_UPPER")], {"w": np.ones((3, 1, 3, 2), np.float32)}),
    ([op("Conv", "x,w", "y", dilations=[2, 3])], {"w": np.ones((3, 1, 3, 2), np.float32)}),
    ([op("ConvTranspose", "x,w", "y", strides=[2, 3], pads=[1, 0, 1, 1])], {"w": np.ones((1, 4, 3, 2), np.float32)}),
    ([op("ConvTranspose", "x,w", "y", strides=[2, 2], output_padding=[1, 1])], {"w": np.ones((1, 4, 3, 3), "f4")}),
    ([op("AveragePool", "x", "y", kernel_shape=[3, 2], strides=[2, 2])], {}),
    ([op("GlobalAveragePool", "x", "y")], {}),
    ([op("MatMul", "x,w", "y")], {"w": np.ones((4, 1, 8, 5), np.float32)[0]}),
    ([op("MatMul", "x,w", "y")], {"w": np.ones(8, np.float32)}),
    ([op("Flatten", "x", "f"), op("Gemm", "f,w", "y", transB=1)], {"w": np.ones((3, 64), np.float32)}),
    ([op("ReduceMean", "x,a", "y", keepdims=0)], {"a": ints(2, -1)}),
    ([op("ReduceSum", "x", "y")], {}),
    ([op("ReduceMax", "x,a", "y", noop_with_empty_axes=1)], {"a": ints()}),
    ([op("Shape", "x", "s", start=1, end=3), op("Expand", "one,s", "y")], {"one": np.float32(1)}),
    ([op("Size", "x", "s"), op("Reshape", "s,r", "t"), op("Div", "t,d", "u"), op("Concat", "u,d", "v", axis=0),
      op("Reshape", "x,v", "y")], {"r": ints(1), "d": ints(4)}),
    ([op("Shape", "x", "s"), op("Gather", "s,i", "h"), op("Unsqueeze", "h,z", "u"), op("Concat", "u,m", "v", axis=0),
      op("Reshape", "x,v", "y")], {"i": ints(2).reshape(()), "z": ints(0), "m": ints(-1)}),
    ([op("Reshape", "x,s", "y")], {"s": ints(0, 2, -1)}),
    ([op("Where", "b,x,w", "y")], {"b": np.ones((2, 1, 1, 1, 1), bool), "w": np.ones((3, 1, 1), np.float32)}),
    ([op("Sum", "x,w,w", "y")], {"w": np.ones((3, 1, 1), np.float32)}),
]  # fmt: skip


@pytest.mark.parametrize(("nodes", "values"), TAKEN, ids=lambda one: one[-1].op_type if isinstance(one, list) else "")
def test_sizes_are_those_of_onnxruntime(tmp_path, nodes, values):
    import onnxruntime

    data, path = graph(nodes, values), tmp_path / "m.onnx"
    path.write_bytes(data)
    known = _Known(examine(path).graph, path, 3)
    for node in _ordered(examine(path).graph, path):
        known.add(node)
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    (made,) = session.run(["y"], {"x": np.zeros((3, *IMAGE), np.float32)})
    assert known.tensors["y"].shape == made.shape
    check_sizes(examine(path).graph, LIMITS, path)


def test_every_operator_has_a_rule():
    assert set(RULES) == ONNX_OPERATORS


def shapes_agree(path: Path, batch: int = 3) -> int:
    """The number of tensors of a file whose sizes are stated in it and are those that are found."""
    found = _Known(examine(path).graph, path, batch)
    for node in _ordered(examine(path).graph, path):
        found.add(node)
    count = 0
    for info in onnx.load(path).graph.value_info:
        sides = [
            side.dim_value or (batch if side.dim_param == "batch" else -1) for side in info.type.tensor_type.shape.dim
        ]
        if info.type.tensor_type.HasField("shape") and -1 not in sides and info.name in found.tensors:
            assert found.tensors[info.name].shape == tuple(sides), info.name
            count += 1
    return count


_FIELDS = {
    "patched": {},
    "attention": {"down_block_types": ("AttnDownBlock2D", "DownBlock2D"), "num_class_embeds": None},
}


@pytest.mark.slow
@pytest.mark.parametrize("program", ["denoiser", "sampler", "edit"])
@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
@pytest.mark.parametrize("opset", [18, 21, 23])
def test_every_export_is_taken(saved, tmp_path, program, dtype, opset):
    from unistep.exporting.make import make_program
    from unistep.exporting.onnx import write_onnx

    model = unistep.load(saved("consistency", **_FIELDS["attention" if opset == 21 else "patched"]))
    made = make_program(model, program, dtype=dtype, **({} if program == "denoiser" else {"steps": 2}))
    write_onnx(made, tmp_path / "m.onnx", {}, opset=opset)
    check(tmp_path, (tmp_path / "m.onnx").read_bytes())
    assert shapes_agree(tmp_path / "m.onnx") > 50


# ------------------------------------------------------------------------------------------------------------- OpenVINO


def openvino_graph(build, path):
    """Writes a graph that `build` makes of the opset and an input."""
    openvino = pytest.importorskip("openvino")
    from openvino import opset13 as ops

    x = ops.parameter([-1, *IMAGE], np.float32, "x")
    made = build(ops, x)
    openvino.save_model(openvino.Model([made], [x], "m"), str(path), compress_to_fp16=False)


def doubled_openvino(ops, x, axis=1):
    for _ in range(40):
        x = ops.concat([x, x], axis)
    return x


def times(ops, x, *factors):
    return ops.multiply(ops.shape_of(x), ints(*factors))


OPENVINO = {
    "an expanded image": lambda ops, x: ops.broadcast(x, ints(1, 1 << 30, 8, 8), broadcast_spec="BIDIRECTIONAL"),
    "an expansion to a computed shape": lambda ops, x: ops.broadcast(x, times(ops, x, 1, 1 << 30, 1, 1)),
    "a concatenation of itself": doubled_openvino,
    "a padding": lambda ops, x: ops.pad(x, ints(0, 0, 0, 0), ints(0, 0, 1 << 20, 1 << 20), "constant"),
    "a padding that is computed": lambda ops, x: ops.pad(
        x, ints(0, 0, 0, 0), times(ops, x, 0, 0, 1 << 16, 1 << 16), "constant"
    ),
    "a resizing": lambda ops, x: ops.interpolate(x, ints(1 << 20, 1 << 20), "nearest", "sizes", axes=ints(2, 3)),
    "an outer product": lambda ops, x: ops.matmul(
        ops.reshape(x, ints(-1, 1), False), ops.reshape(x, ints(1, -1), False), False, False
    ),
    "an outer sum": lambda ops, x: ops.add(
        ops.reshape(x, ints(-1, 1), False), ops.reshape(x, ints(1, -1), False)
    ),
}  # fmt: skip


def check_openvino(path):
    import openvino

    check_values(ET.parse(path).getroot(), path)
    check_shapes(openvino.Core().read_model(str(path)), LIMITS, path)


@pytest.mark.parametrize("name", OPENVINO)
def test_hostile_openvino_sizes(tmp_path, name):
    openvino_graph(OPENVINO[name], tmp_path / "m.xml")
    with pytest.raises(UserError, match="larger than any of a model|more memory than those of any|grows faster than"):
        check_openvino(tmp_path / "m.xml")


def value_graph(tmp_path, layers, sized="Reshape"):
    """The element of a graph whose input has the shape that the last of `layers` makes: (operator, sources, values)."""
    net, stored = ET.Element("net"), b""
    inside, edges = ET.SubElement(net, "layers"), ET.SubElement(net, "edges")
    for i, (kind, sources, values) in enumerate([("Parameter", (), None), *layers, (sized, (0, len(layers)), None)]):
        layer = ET.SubElement(inside, "layer", id=str(i), type=kind)
        if kind == "Const":
            given = {"element_type": "i64", "shape": str(len(values)), "offset": str(len(stored))}
            ET.SubElement(layer, "data", given | {"size": str(8 * len(values))})
            stored += ints(*values).tobytes()
        for port, source in enumerate(sources):
            edge = {"from-layer": str(source), "from-port": "0", "to-layer": str(i), "to-port": str(port)}
            ET.SubElement(edges, "edge", edge)
    (tmp_path / "m.bin").write_bytes(stored)
    return net


def stored(*values):
    return "Const", (), values


SHAPE = ("ShapeOf", (0,), None)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([stored(1), stored(1 << 28), ("Broadcast", (1, 2), None), ("ReduceSum", (3, 1), None)], "more numbers"),
        ([SHAPE, *(("Concat", (i, i), None) for i in range(1, 40)), stored(0), ("Gather", (40, 41, 41), None)], "more"),
        ([stored(1), SHAPE, ("Broadcast", (1, 2), None)], "more numbers"),
        ([SHAPE, ("Multiply", (1, 1), None), ("Multiply", (2, 2), None), ("Multiply", (3, 3), None)], "more numbers"),
        ([("ReduceMax", (0,), None), ("Convert", (1,), None)], "a size by the operation Parameter"),
        ([stored(0), stored(1 << 30), stored(1), ("Range", (1, 2, 3), None)], "a size by the operation Range"),
        ([stored(1), ("Tile", (1, 1), None)], "a size by the operation Tile"),
        ([("Add", (2, 2), None), ("Add", (1, 1), None)], "operations in a circle"),
    ],
)
@pytest.mark.parametrize("sized", ["Reshape", "Broadcast", "Pad", "Interpolate", "Slice"])
def test_values_that_shapes_follow_from(tmp_path, layers, message, sized):
    """OpenVINO computes them when it reads the file, so that they are counted before."""
    with pytest.raises(UserError, match=message):
        check_values(value_graph(tmp_path, layers, sized), tmp_path / "m.xml")


def test_values_of_exported_models(tmp_path):
    rank = [SHAPE, ("ShapeOf", (1,), None), stored(1), ("Subtract", (2, 3), None), ("Broadcast", (3, 4), None)]
    check_values(value_graph(tmp_path, rank), tmp_path / "m.xml")
    part = [SHAPE, stored(0), ("Gather", (1, 2, 2), None), stored(-1), ("Concat", (3, 4), None)]
    check_values(value_graph(tmp_path, part), tmp_path / "m.xml")
