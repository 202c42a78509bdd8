"""Exported files of the embedded model, opened again: the same quality, in every format."""

import pytest

import unistep

NUM = 1000


def distance(model, tmp_path):
    options = {"reference": "mnist-test", "metrics": ["fd"], "num_images": NUM, "progress": False}
    return unistep.evaluate(model, feature_cache=tmp_path / "features", **options)["fd"].estimate


@pytest.mark.slow
@pytest.mark.parametrize(("to", "dtype"), [("onnx", "fp32"), ("openvino", "fp32"), ("openvino", "fp16")])
def test_the_distance_of_digits_stays(tmp_path, to, dtype):
    pytest.importorskip("openvino" if to == "openvino" else "onnxruntime")
    path = tmp_path / ("m.xml" if to == "openvino" else "m.onnx")
    unistep.export("mnist-student", path, to=to, dtype=dtype, batches=[1, 2], progress=False)
    theirs, ours = distance("mnist-student", tmp_path), distance(str(path), tmp_path)
    assert 0 < abs(ours.value - theirs.value) < 0.2 * 1.96 * theirs.standard_error  # 0 were the images of the other


@pytest.mark.slow
@pytest.mark.parametrize("to", ["torch-export", "aoti"])
def test_programs_of_pytorch_sample(saved, tmp_path, to):
    """Exported, opened by consent, and sampled from."""
    model = saved("consistency", num_class_embeds=3)
    try:
        made = unistep.export(model, tmp_path / "m.pt2", to=to, batches=[1, 3], progress=False)
    except unistep.UserError as error:
        if "C++ compiler" in str(error):
            pytest.skip(str(error))
        raise
    assert max(row.error for row in made.comparisons) < 1e-4
    opened = unistep.load(made.path, trust_code=True)
    ours = unistep.sample(opened, num_images=3, progress=False).pixels
    theirs = unistep.sample(model, num_images=3, progress=False).pixels
    assert (ours.int() - theirs.int()).abs().max() <= 1
