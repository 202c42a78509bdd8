"""Exported files as models: opened as others are, and refused in one line where they are damaged or hostile."""

import itertools
import random
import re
import shutil
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import pytest
import torch

import unistep
from unistep.errors import UserError
from unistep.formats.exported.onnx_file import examine
from unistep.formats.exported.pt2_file import load_pt2

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def model(saved) -> Path:
    return saved("consistency", num_class_embeds=3)


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory):
    """exported(to): a file of a network of random weights."""
    folder, made = tmp_path_factory.mktemp("exported"), {}

    def export(to: str = "onnx") -> Path:
        if to not in made:
            ending = {"onnx": ".onnx", "openvino": ".xml", "torch-export": ".pt2"}[to]
            if to == "openvino":
                pytest.importorskip("openvino")
            made[to] = unistep.export(model, folder / f"model{ending}", to=to, batches=[1, 3], progress=False).path
        return made[to]

    return export


@pytest.fixture
def altered(exported, tmp_path):
    """altered(change): a copy of the ONNX file after change(model)."""

    def alter(change) -> Path:
        proto = onnx.load(exported())
        change(proto)
        path = tmp_path / "altered.onnx"
        path.write_bytes(proto.SerializeToString())
        return path

    return alter


# ------------------------------------------------------------------------------------------------ models as others


@pytest.mark.parametrize("to", ["onnx", "openvino"])
def test_an_exported_file_samples_as_the_model_does(model, exported, to):
    ours = unistep.sample(str(exported(to)), num_images=5, steps=2, progress=False).pixels
    theirs = unistep.sample(model, num_images=5, steps=2, progress=False).pixels
    assert (ours.int() - theirs.int()).abs().max() <= 1 and (ours != theirs).float().mean() < 1e-2


def test_the_facts_of_the_model_stay(model, exported):
    ours, theirs = unistep.load(exported()), unistep.load(model)
    assert ours.info == theirs.info and ours.image_shape == theirs.image_shape and ours.num_classes == 3
    report = unistep.inspect(exported())
    assert (report.format, report.parameters) == ("ONNX", unistep.inspect(model).parameters)


def test_it_edits_and_is_evaluated(exported, tmp_path):
    model = unistep.load(exported())
    images = unistep.sample(model, num_images=2, progress=False)
    edited = unistep.edit(model, images, "inpaint", mask="lower", progress=False)
    assert len(edited) == 2


@pytest.mark.parametrize("verb", ["convert", "export"])
def test_weights_cannot_be_taken_out(exported, verb, tmp_path):
    target = tmp_path / ("model" if verb == "convert" else "again.onnx")
    with pytest.raises(UserError, match="exported program, whose weights"):
        getattr(unistep, verb)(exported(), target)
    assert not any(tmp_path.iterdir())


def test_a_sampler_is_no_model(altered):
    def sampler(proto):
        entry = proto.metadata_props[0]
        entry.value = entry.value.replace('"program": "denoiser"', '"program": "sampler"')

    with pytest.raises(UserError, match="samples by a fixed schedule"):
        unistep.load(altered(sampler))


def test_another_program_is_no_model(altered):
    def forget(proto):
        del proto.metadata_props[:]

    with pytest.raises(UserError, match="no description of a model"):
        unistep.load(altered(forget))


# ------------------------------------------------------------------------------------------------------- consent


def test_pt2_runs_no_code_without_consent(exported, monkeypatch):
    def fail(*args, **kwargs):
        raise AssertionError("the file was opened")

    path = exported("torch-export")
    with monkeypatch.context() as patch:
        patch.setattr(torch.export, "load", fail)
        with pytest.raises(UserError, match=r"not opened: it holds a graph .* runs code .*`trust_code=True`"):
            unistep.load(path)
        assert unistep.inspect(path).kind == "consistency"
    assert unistep.load(path, trust_code=True).image_shape == unistep.load(exported()).image_shape


def test_a_compiled_library_is_named(exported, tmp_path):
    path = tmp_path / "aoti.pt2"
    shutil.copy(exported("torch-export"), path)
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("model/data/aotinductor/model/x.so", b"")
    with pytest.raises(UserError, match="compiled library"):
        load_pt2(path)


# ------------------------------------------------------------------------------------------------------- hostile files


def _foreign(proto):
    proto.graph.node[0].domain = "com.evil"


def _foreign_import(proto):
    proto.opset_import.add(domain="com.evil", version=1)


def _loop(proto):
    node = proto.graph.node.add(op_type="Loop", name="loop")
    node.attribute.add(name="body", type=onnx.AttributeProto.GRAPH).g.name = "body"


def _random(proto):
    proto.graph.node.add(op_type="RandomNormal", output=["r"])


def _function(proto):
    proto.functions.add(name="f", domain="")


def _huge_claim(proto):
    proto.graph.initializer[0].dims[:] = [1 << 40, 1 << 20]


def _huge_expand(proto):
    shape = onnx.helper.make_tensor("huge", onnx.TensorProto.INT64, [4], [1 << 20, 1 << 20, 16, 16])
    proto.graph.initializer.append(shape)
    proto.graph.node.add(op_type="Expand", input=["x_t", "huge"], output=["more"])


def _resized(name):
    def change(proto):
        scales = onnx.helper.make_tensor(
            name, onnx.TensorProto.FLOAT, [4], b"\0\0\x80?" * 2 + b"\0@\x1cF" * 2, raw=True
        )
        if name:
            proto.graph.initializer.append(scales)
        else:
            proto.graph.node.append(onnx.helper.make_node("Constant", [], ["scales"], value=scales))
        proto.graph.node.add(op_type="Resize", input=["x_t", "", "scales"], output=["more"])

    return change


def _constant_of_shape(proto):
    proto.graph.node.add(op_type="ConstantOfShape", input=["huge"], output=["more"])


def _outside(location):
    def change(proto):
        tensor = proto.graph.initializer[0]
        size = len(tensor.raw_data)
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, value in (("location", location), ("offset", "0"), ("length", str(size))):
            tensor.external_data.add(key=key, value=value)

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_foreign, "operators of others"),
        (_foreign_import, "operators of others"),
        (_loop, "'Loop'|loops"),
        (_random, "RandomNormal"),
        (_function, "functions"),
        (_huge_claim, "another size than its shape"),
        (_huge_expand, "larger than any"),
        (_resized("scales"), "Resize makes a tensor larger"),
        (_resized(""), "Resize makes a tensor larger"),
        (_constant_of_shape, "the operator 'ConstantOfShape'"),
        (_outside("/etc/passwd"), "weights outside of its folder"),
        (_outside("../secret.bin"), "weights outside of its folder"),
        (_outside("sub/../../secret.bin"), "weights outside of its folder"),
        (_outside("..\\secret.bin"), "weights outside of its folder"),
        (_outside(""), "weights outside of its folder"),
        (_outside("link.bin"), "weights outside of its folder"),
        (_outside("missing.bin"), "needs its weights"),
        (_outside("short.bin"), "cut short"),
    ],
)
def test_hostile_onnx(altered, tmp_path, change, message):
    (tmp_path / "link.bin").symlink_to("/etc/passwd")
    (tmp_path / "short.bin").write_bytes(b"1")
    path = altered(change)
    with pytest.raises(UserError, match=message) as caught:
        unistep.load(path)
    assert "\n" not in str(caught.value)


def test_hostile_openvino(exported, tmp_path):
    source = exported("openvino")
    text, path = source.read_text(), tmp_path / "x.xml"
    shutil.copy(source.with_suffix(".bin"), tmp_path / "x.bin")
    for change, message in (
        (lambda t: t.replace('type="Convolution"', 'type="Evil"'), "the operator 'Evil'"),
        (lambda t: t.replace('version="opset1"', 'version="extension"'), "extension"),
        (lambda t: t.replace("<dim>16</dim>", "<dim>99999999999</dim>"), "larger than any"),
        (lambda t: t.replace('offset="0"', 'offset="99999999"'), "cut short"),
        (lambda t: t.replace("<net ", '<!DOCTYPE net [<!ENTITY a "b">]><net '), "declarations of XML"),
        (lambda t: t[: len(t) // 2], "damaged"),
    ):
        path.write_text(change(text))
        with pytest.raises(UserError, match=message):
            unistep.load(path)
    path.write_text(text)
    (tmp_path / "x.bin").unlink()
    with pytest.raises(UserError, match="needs its weights"):
        unistep.load(path)
    (tmp_path / "x.bin").symlink_to("/etc/passwd")
    with pytest.raises(UserError, match="a link in the place"):
        unistep.load(path)


_FUZZ = """
    import os, resource, sys
    from pathlib import Path
    import torch, unistep
    from unistep.errors import UserError

    resource.setrlimit(resource.RLIMIT_AS, (12 << 30, 12 << 30))
    for path in sorted(Path(sys.argv[1]).glob(sys.argv[2])):
        print(path.name, flush=True)
        try:
            model = unistep.load(path)
            labels = torch.zeros(2, dtype=torch.int64) if model.num_classes else None
            model.denoiser(torch.zeros(2, *model.image_shape), torch.ones(2), labels)
        except UserError as error:
            assert "\\n" not in str(error)
    # Not of getrusage, which counts the process that started this one.
    status = open("/proc/self/status").read() if os.path.exists("/proc/self/status") else "VmHWM: 0"
    print("peak", int(status.split("VmHWM:")[1].split()[0]) // 1000)
"""


def _mutated(data: bytes, rng: random.Random) -> bytes:
    kind, changed = rng.randrange(4), bytearray(data)
    digits = [i for i in rng.sample(range(len(data)), min(2000, len(data))) if 48 <= data[i] < 58]
    if kind == 0:
        return data[: rng.randrange(len(data))]
    if kind == 1 and digits:
        for i in digits[: rng.randrange(1, 6)]:
            changed[i] = 48 + rng.randrange(10)
    elif kind == 2:
        start = rng.randrange(len(data))
        changed[start : start + rng.randrange(1, 64)] = rng.randbytes(rng.randrange(64))
    else:
        for _ in range(rng.randrange(1, 8)):
            changed[rng.randrange(len(data))] = rng.randrange(256)
    return bytes(changed)


@pytest.mark.parametrize(
    ("to", "count"),
    [
        ("onnx", 40),
        pytest.param("onnx", 200, marks=pytest.mark.slow),
        pytest.param("openvino", 200, marks=pytest.mark.slow),
    ],
)
def test_malformed_files(exported, tmp_path, to, count):
    """In a process of their own: none ends it, and its memory stays bounded."""
    source, rng = exported(to), random.Random(count)
    data = source.read_bytes()
    for i in range(count):
        path = tmp_path / f"{i:03}{source.suffix}"
        path.write_bytes(_mutated(data, rng))
        if to == "openvino":
            shutil.copy(source.with_suffix(".bin"), path.with_suffix(".bin"))
    words = [sys.executable, "-c", textwrap.dedent(_FUZZ), str(tmp_path), f"*{source.suffix}"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=170)
    lines = done.stdout.split()
    assert done.returncode == 0, (lines[-1:], done.stderr[-2000:])
    assert int(lines[-1]) < 1000


def test_weights_beside_the_model(exported, tmp_path):
    """As files beyond protobuf's 2 GB have them."""
    proto = onnx.load(exported())
    for entry in proto.metadata_props:  # another tool than `unistep.export` moves them here
        entry.value = re.sub(r'"digest": "[^"]*"', '"digest": ""', entry.value)
    onnx.save(proto, tmp_path / "m.onnx", save_as_external_data=True, location="m.onnx.data", size_threshold=500)
    assert len(examine(tmp_path / "m.onnx").external) > 5
    ours, theirs = unistep.load(tmp_path / "m.onnx"), unistep.load(exported())
    x = torch.randn(2, *ours.image_shape)
    given = (x, torch.ones(2), torch.tensor([0, 2]))
    assert torch.equal(ours.denoiser(*given), theirs.denoiser(*given))


def test_every_cut_is_refused_or_whole(exported, tmp_path):
    """Cuts at all places of the beginning, where the reader of messages has its borders."""
    data, path = exported().read_bytes(), tmp_path / "cut.onnx"
    for end in itertools.chain(range(1, 24), range(len(data) - 8, len(data))):
        path.write_bytes(data[:end])
        with pytest.raises(UserError):
            unistep.load(path)


def test_the_runtime_of_an_exported_file_is_its_own(exported):
    auto = unistep.sample(str(exported()), num_images=2, runtime="auto", progress=False)
    assert torch.equal(auto.pixels, unistep.sample(str(exported()), num_images=2, progress=False).pixels)
    with pytest.raises(UserError, match="not for networks like"):
        unistep.sample(str(exported()), num_images=2, runtime="openvino", progress=False)
