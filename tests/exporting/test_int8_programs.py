"""Programs in int8: operations that lose most stay in floats, and what is worse than asked is not handed over."""

import json

import pytest
import torch

import unistep
from unistep.errors import UserError
from unistep.exporting import int8
from unistep.exporting.cases import Cases
from unistep.exporting.int8 import Calibration, check_evaluations
from unistep.exporting.make import make_program


@pytest.fixture(scope="module")
def model(saved):
    return unistep.load(saved("consistency", num_class_embeds=3))


class Shifted:
    """A program and an error, an `Engine`."""

    device, name = torch.device("cpu"), "shifted"

    def __init__(self, of, error):
        self.of, self.error = of, error

    def __call__(self, *inputs):
        self.of.seen.append(inputs)
        return self.of.reference(*inputs) + self.error


class Rounded:
    """A program of operations of known errors, a `Quantizer`: engines add the errors of those in int8."""

    def __init__(self, reference, errors):
        self.reference, self.errors, self.operations = reference, errors, list(errors)
        self.seen = []

    def engine(self, kept):
        error = sum(value for name, value in self.errors.items() if name not in kept)

        return Shifted(self, error)

    def write(self, kept, path, metadata):
        raise NotImplementedError


def test_the_worst_operations_stay_in_floats(model):
    """Of errors whose sum is above 0.02, the one that 40 dB allow, two have to go."""
    reference = make_program(model, "denoiser")
    errors = {"a": 0.001, "b": 0.2, "c": 0.004, "d": 0.05, "e": 0.002}
    assert Calibration(reference, model.info).choose(Rounded(reference, errors)) == ["b", "d"]


def test_a_model_that_cannot_be_in_int8(model):
    reference = make_program(model, "denoiser")
    with pytest.raises(UserError, match="no operation of this model can be in int8 at 40 dB"):
        Calibration(reference, model.info).choose(Rounded(reference, {"a": 0.5, "b": 0.6}))


def test_calibration_and_quality_share_no_image(model):
    """Nor do those that operations are tried on, and those that decide how many stay."""
    reference = make_program(model, "denoiser")
    calibration, quantizer = Calibration(reference, model.info), Rounded(reference, {"a": 1e-4})
    seen = [inputs[0] for inputs in calibration.inputs()]
    calibration.choose(quantizer)
    chosen = {id(inputs[0]): inputs[0] for inputs in quantizer.seen}.values()
    compared = [inputs[0] for _, _, _, inputs in Cases(reference, model.info, [1, 2, 5, 16])]
    keys = [[image.numpy().tobytes() for batch in batches for image in batch] for batches in (seen, chosen, compared)]
    assert len(seen) == 7 and all(keys)
    assert not set(keys[0]) & set(keys[1]) and not set(keys[2]) & set(keys[0] + keys[1])


def test_programs_of_many_evaluations(model):
    check_evaluations(make_program(model, "sampler", steps=int8.MOST_EVALUATIONS))
    with pytest.raises(UserError, match="is not quantized; at most 4 are"):
        check_evaluations(make_program(model, "sampler", steps=5))


@pytest.mark.slow
@pytest.mark.parametrize(("to", "ending"), [("onnx", ".onnx"), ("openvino", ".xml")])
@pytest.mark.parametrize("steps", [None, 2])
def test_int8_files(tmp_path, monkeypatch, to, ending, steps):
    """Of trained weights: random ones of a narrow network lose more. A denoiser opens as other models do."""
    pytest.importorskip("nncf" if to == "openvino" else "onnxruntime")
    from unistep.workflows import export_digits

    monkeypatch.setattr(export_digits, "measure_digits", lambda *given: (2.0, 2.0))  # minutes, and tried below
    given = {"to": to, "steps": steps, "progress": False}
    made = unistep.export("mnist-student", tmp_path / f"m{ending}", dtype="int8", batches=[1, 2], **given)
    whole = unistep.export("mnist-student", tmp_path / f"f{ending}", batches=[1], **given)
    assert all(row.psnr >= 35 for row in made.comparisons) and min(row.psnr for row in made.comparisons) < 80
    assert made.num_bytes < whole.num_bytes
    assert json.loads((tmp_path / f"m{ending}.export.json").read_text())["dtype"] == "int8"
    if steps is None:
        opened = unistep.load(made.path)
        assert unistep.sample(opened, num_images=3, progress=False).pixels.shape[0] == 3
        assert opened.denoiser(torch.zeros(1, *opened.image_shape), torch.ones(1), torch.tensor([1])).isfinite().all()


@pytest.mark.slow
def test_digits_that_are_worse_are_not_handed_over(tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    from unistep.workflows import export, export_digits

    monkeypatch.setattr(int8.Calibration, "choose", lambda self, quantizer: [])
    monkeypatch.setattr(export_digits, "measure_digits", lambda *given: (2.2, 2.0))
    with pytest.raises(UserError, match=r"distance of 5,000 digits grows from 2\.000 to 2\.200, by more than 5%"):
        unistep.export("mnist-student", tmp_path / "m.onnx", dtype="int8", batches=[1], progress=False)
    assert not any(tmp_path.iterdir())
    assert export.NUM_DIGITS == 5000
