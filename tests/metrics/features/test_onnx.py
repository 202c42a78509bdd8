"""Networks in ONNX files: what they declare is what they see."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from unistep.errors import UserError
from unistep.metrics.features.onnx import METADATA_KEY, ONNX
from unistep.metrics.features.protocol import FeatureNetwork
from unistep.metrics.features.resize import clean, legacy_tensorflow

SIZE, DIM, CLASSES = 6, 5, 4
DECLARATION = {
    "size": SIZE,
    "channels": 3,
    "scale": 255,
    "mean": [0.5, 0.4, 0.3],
    "std": [0.2, 0.3, 0.4],
    "resize": "clean",
    "layout": "NCHW",
    "pool": "pool",
    "probabilities": "probabilities",
}
FLOATS = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "float64": TensorProto.DOUBLE}


def weights(channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(channels * SIZE * SIZE, DIM + CLASSES)).astype(np.float32) / 10


def model(
    *, shape: tuple[Any, ...] = ("N", 3, SIZE, SIZE), dtype: str = "float32", channels: int = 3, seed: int = 0
) -> onnx.ModelProto:
    """Outputs: pool [B, 5], probabilities and logits [B, 4], image [B, C, 6, 6], column [B, 5, 1, 1], total [],
    best [B, 1] of whole numbers, list."""
    matrix = numpy_helper.from_array(weights(channels, seed).astype(dtype), "matrix")
    trailing = numpy_helper.from_array(np.array([2, 3], np.int64), "trailing")
    split = numpy_helper.from_array(np.array([DIM, CLASSES], np.int64), "split")
    nodes = [
        helper.make_node("Flatten", ["images"], ["flat"]),
        helper.make_node("MatMul", ["flat", "matrix"], ["product"]),
        helper.make_node("Split", ["product", "split"], ["pool", "logits"], axis=1),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
        helper.make_node("Unsqueeze", ["pool", "trailing"], ["column"]),
        helper.make_node("Identity", ["images"], ["image"]),
        helper.make_node("ReduceSum", ["images"], ["total"], keepdims=0),
        helper.make_node("ArgMax", ["logits"], ["best"], axis=1),
        helper.make_node("SequenceConstruct", ["pool"], ["list"]),
    ]
    kind = FLOATS[dtype]
    inputs = [helper.make_tensor_value_info("images", kind, shape)]
    names = ("pool", "probabilities", "logits", "column", "image", "total")
    outputs = [helper.make_tensor_value_info(name, kind, None) for name in names]
    outputs.append(helper.make_tensor_value_info("best", TensorProto.INT64, None))
    outputs.append(helper.make_tensor_sequence_value_info("list", kind, None))
    graph = helper.make_graph(nodes, "network", inputs, outputs, [matrix, trailing, split])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """write(model, **changes): the path of a model with a declaration beside it; a value of None leaves a field out."""

    def write(network: onnx.ModelProto, **changes: Any) -> Path:
        path = tmp_path / "network.onnx"
        onnx.save(network, path)
        fields = {name: value for name, value in (DECLARATION | changes).items() if value is not None}
        path.with_name("network.onnx.json").write_text(json.dumps(fields))
        return path

    return write


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randint(256, (7, 3, 9, 9), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


def expected(images: Tensor, resize: Callable[[Tensor, int], Tensor] = clean, layout: str = "NCHW") -> np.ndarray:
    x = resize(images, SIZE).numpy().astype(np.float64) / 255
    for channel, (mean, std) in enumerate(zip(DECLARATION["mean"], DECLARATION["std"], strict=True)):
        x[:, channel] = (x[:, channel] - mean) / std
    x = x if layout == "NCHW" else np.moveaxis(x, 1, 3)
    return x.reshape(len(x), -1) @ weights()


def close(found: Tensor, product: np.ndarray, atol: float = 1e-4) -> bool:
    return np.allclose(found.numpy(), product[:, :DIM], rtol=0, atol=atol)


@pytest.mark.parametrize("dtype", FLOATS)
def test_the_network_sees_what_is_declared(write, images: Tensor, dtype: str):
    network = ONNX(write(model(dtype=dtype)))
    assert isinstance(network, FeatureNetwork)
    found = network(images, ["pool", "probabilities"])
    product = expected(images)
    assert close(found["pool"], product, 0.02 if dtype == "float16" else 1e-4)
    odds = np.exp(product[:, DIM:])
    assert np.allclose(found["probabilities"], odds / odds.sum(axis=1, keepdims=True), atol=0.02)
    assert network.info.dims == {"pool": DIM, "probabilities": CLASSES}
    assert found["pool"].dtype == torch.float32
    assert network(images, ["probabilities"]).keys() == {"probabilities"}


def test_layout(write, images: Tensor):
    path = write(model(shape=("N", SIZE, SIZE, 3)), layout="NHWC")
    assert close(ONNX(path)(images, ["pool"])["pool"], expected(images, layout="NHWC"))


def test_numbers_of_all_channels_at_once(write, images: Tensor):
    one = ONNX(write(model(), mean=[0.5], std=[0.25]))(images, ["pool"])["pool"]
    three = ONNX(write(model(), mean=[0.5] * 3, std=[0.25] * 3))(images, ["pool"])["pool"]
    assert torch.equal(one, three)


@pytest.mark.parametrize("batch", ["N", 1, 4])
def test_batches(write, images: Tensor, batch: str | int):
    network = ONNX(write(model(shape=(batch, 3, SIZE, SIZE))))
    many = images.repeat(10, 1, 1, 1)  # more than are computed at once
    assert close(network(many, ["pool"])["pool"], expected(many))
    assert network(images[:0], ["pool"])["pool"].shape == (0, DIM)


def test_grey_images(write, images: Tensor):
    colour = ONNX(write(model()))
    assert colour.info.channels is None
    assert close(colour(images[:, :1], ["pool"])["pool"], expected(images[:, :1].repeat(1, 3, 1, 1)))
    grey = ONNX(write(model(shape=("N", 1, SIZE, SIZE), channels=1), channels=1, mean=[0], std=[1]))
    assert grey.info.channels == 1
    product = (clean(images[:, :1], SIZE) / 255).flatten(1).numpy() @ weights(1)
    assert close(grey(images[:, :1], ["pool"])["pool"], product)
    with pytest.raises(UserError, match="of grey images, and these have 3 channels"):
        grey(images, ["pool"])
    with pytest.raises(UserError, match="these have 2"):
        colour(images[:, :2], ["pool"])


def test_another_resize(write, images: Tensor):
    network = ONNX(write(model()), resize="legacy-tensorflow")
    assert network.info.resize == "legacy-tensorflow"
    assert close(network(images, ["pool"])["pool"], expected(images, legacy_tensorflow))


def test_declared_in_the_metadata(write, images: Tensor):
    network = model()
    helper.set_model_props(network, {METADATA_KEY: json.dumps(DECLARATION)})
    path = write(network, scale=1)
    beside = ONNX(path)
    path.with_name("network.onnx.json").unlink()
    inside = ONNX(path)
    assert close(inside(images, ["pool"])["pool"], expected(images))
    assert not close(beside(images, ["pool"])["pool"], expected(images))  # the file beside it counts
    helper.set_model_props(network, {METADATA_KEY: "[1"})
    onnx.save(network, path)
    with pytest.raises(UserError, match="metadata unistep.* not a JSON object"):
        ONNX(path)


def test_kinds(write, images: Tensor):
    network = ONNX(write(model(), probabilities=None))
    assert network.info.dims == {"pool": DIM}
    for kind in ("probabilities", "spatial"):
        with pytest.raises(UserError, match=f"no {kind}"):
            network(images, [kind])


def test_vectors_with_places_of_one_pixel(write, images: Tensor):
    assert close(ONNX(write(model(), pool="column"))(images, ["pool"])["pool"], expected(images))


def test_identity(write, tmp_path: Path):
    original = ONNX(write(model())).info
    assert original.name == f"onnx:{tmp_path / 'network.onnx'}" and original.label == "network"
    for seed, changes in ((1, {}), (0, {"scale": 256}), (0, {"mean": [0.5, 0.4, 0.31]})):
        assert ONNX(write(model(seed=seed), **changes)).info.digest != original.digest
    named = ONNX(write(model(), label="Mine")).info
    assert named.label == "Mine" and named.key == original.key
    resized = ONNX(write(model(), resize="legacy-tensorflow")).info
    assert resized.digest == original.digest and resized.key != original.key


def test_undeclared_is_refused_with_what_to_write(write, images: Tensor):
    path = write(model())
    declaration = path.with_name("network.onnx.json")
    declaration.unlink()
    with pytest.raises(UserError, match="does not declare its input") as caught:
        ONNX(path)
    message = str(caught.value)
    assert "\n" not in message and str(declaration) in message
    declaration.write_text(message[message.index("{") : message.rindex("}") + 1])
    assert ONNX(path)(images, ["pool"])["pool"].shape == (7, DIM)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scale": None, "std": None}, "lacks scale, std; it is to hold {"),
        ({"size": 6.5}, "size is 6.5; it must be a whole number"),
        ({"size": 0}, "size 0"),
        ({"channels": 4}, "channels 4"),
        ({"scale": 0}, "scale 0"),
        ({"std": [0.2, 0.0, 0.2]}, "give positive numbers"),
        ({"mean": [0.1, 0.2]}, "mean has 2 numbers; give 1 or 3"),
        ({"mean": []}, "mean has 0 numbers"),
        ({"mean": "half"}, "mean is 'half'"),
        ({"resize": "bilinear"}, "resize is 'bilinear'; it must be legacy-tensorflow or clean or none"),
        ({"layout": "CHWN"}, "layout is 'CHWN'"),
        ({"normalise": True}, "unknown field 'normalise'"),
        ({"pool": "features"}, "no output 'features'; declare one of pool, probabilities"),
        ({"pool": "image"}, "output 'image' is float32 [1, 3, 6, 6] for 1 images"),
        ({"pool": "total"}, "output 'total' is float32 []"),
        ({"pool": "best"}, "output 'best' is int64 [1, 1]"),
        ({"pool": "list"}, "output 'list' is list"),
        ({"probabilities": "logits"}, "'logits' holds no probabilities"),
        ({"size": 7}, "cannot compute images of shape"),
        ({"layout": "NHWC"}, "cannot compute images of shape"),
    ],
)
def test_declarations_that_cannot_be(write, changes: dict[str, Any], message: str):
    path = write(model(), **changes)
    with pytest.raises(UserError) as caught:
        ONNX(path)
    assert message in str(caught.value) and str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_files_that_cannot_be(write, tmp_path: Path):
    path = write(model())
    beside = path.with_name("network.onnx.json")
    for content in ("[]", "{", "\0"):
        beside.write_text(content)
        with pytest.raises(UserError, match="network.onnx.json .*JSON"):
            ONNX(path)
    for content in (b"", b"no model at all" * 100, onnx.TensorProto().SerializeToString(), path.read_bytes()[:200]):
        path.write_bytes(content)
        with pytest.raises(UserError, match="network.onnx cannot be opened by onnxruntime") as caught:
            ONNX(path)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="absent.onnx is missing"):
        ONNX(tmp_path / "absent.onnx")
    with pytest.raises(UserError, match="is a folder"):
        ONNX(tmp_path)


def test_interfaces_that_cannot_be(write):
    network = model()
    network.graph.input.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, ["N"]))
    with pytest.raises(UserError, match="takes images .*, more .*; give a network of one batch"):
        ONNX(write(network))


def test_weights_elsewhere_are_refused(write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = write(model())
    onnx.save(model(), path, save_as_external_data=True, location="weights", size_threshold=0)
    assert (tmp_path / "weights").exists()
    monkeypatch.chdir(tmp_path)  # where onnxruntime looks for the weights of a model that it is given as bytes
    for name in (path, path.name):
        with pytest.raises(UserError, match="holds its own weights"):
            ONNX(name)


def test_devices_and_packages_that_are_not_there(write, monkeypatch: pytest.MonkeyPatch):
    path = write(model())
    with pytest.raises(UserError, match="does not compute on mps"):
        ONNX(path, "mps")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match=r"pip install 'unistep\[onnx\]'"):
        ONNX(path)
