"""`unistep.export`: nothing is left of what differs from the model, and arguments are checked first."""

import json

import pytest

import unistep
from unistep.errors import UserError
from unistep.exporting import compare as comparison
from unistep.exporting.compare import Bound

pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def model(saved):
    return saved("consistency", num_class_embeds=3)


def test_the_comparison_is_stored_beside_the_file(model, tmp_path):
    made = unistep.export(model, tmp_path / "m.onnx", batches=[1, 3], progress=False)
    record = json.loads((tmp_path / "m.onnx.export.json").read_text())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.onnx", "m.onnx.export.json"]
    assert record["comparisons"] == made.to_dict()["comparisons"] and len(made.comparisons) == 6
    assert {row.noise for row in made.comparisons} == {"low", "middle", "high"}
    assert len(made.table()) == 7 and made.num_bytes == (tmp_path / "m.onnx").stat().st_size


def test_nothing_is_left_of_a_program_that_differs(model, tmp_path, monkeypatch):
    monkeypatch.setitem(comparison.BOUNDS, "fp32", Bound(-1.0, 60.0))
    with pytest.raises(UserError, match=r"differs from the model in onnxruntime .* nothing was written"):
        unistep.export(model, tmp_path / "m.onnx", batches=[1], progress=False)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"out": "m.txt"}, "ends in .onnx"),
        ({"out": "m.pt2", "to": "aoti", "dtype": "fp16"}, "`dtype` fp16 is not written"),
        ({"out": "m.xml", "to": "openvino", "opset": 18}, "`opset` 18 is for ONNX"),
        ({"out": "m.onnx", "opset": 3}, "`opset` 3 must be at least"),
        ({"out": "m.onnx", "batches": [0]}, "`batches` 0 must be at least 1"),
        ({"out": "m.onnx", "program": "denoiser", "steps": 2}, "`steps` is for a sampler"),
        ({"out": "m.onnx", "program": "edit", "sigmas": [80.0]}, "`sigmas` is for a sampler"),
        ({"out": "m.onnx", "to": "onxn"}, "must be one of onnx"),
    ],
)
def test_mistakes(model, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        unistep.export(model, progress=False, **options)
    assert not any(tmp_path.iterdir())


def test_an_edit_of_a_diffusion_model(saved, tmp_path):
    with pytest.raises(UserError, match="edits need a consistency model"):
        unistep.export(saved(), tmp_path / "m.onnx", program="edit", progress=False)


@pytest.mark.slow
def test_an_edit_paints_as_edit_does(model, tmp_path):
    made = unistep.export(model, tmp_path / "m.onnx", program="edit", steps=2, batches=[1, 3], progress=False)
    assert [name.partition(" ")[0] for name in made.inputs] == ["image", "mask", "noise", "class_labels"]
    assert all(row.within for row in made.comparisons)
