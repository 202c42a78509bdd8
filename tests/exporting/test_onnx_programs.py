"""Programs in ONNX files: they compute what the model does, in any batch, and describe themselves."""

import json

import pytest
import torch

import unistep
from unistep.core.random import ImageRandom, image_seeds
from unistep.engines.engine import EngineDenoiser
from unistep.engines.onnxruntime import OnnxRuntimeEngine
from unistep.exporting.make import make_program
from unistep.exporting.metadata import KEY, metadata_of
from unistep.exporting.onnx import write_onnx

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """written(name, **options): the ONNX file of a program of the embedded model."""
    made, model = {}, unistep.load()
    folder = tmp_path_factory.mktemp("onnx")

    def write(name, **options):
        key = f"{name}{options}"
        if key not in made:
            program = make_program(model, name, **options)
            made[key] = folder / f"{len(made)}.onnx"
            write_onnx(program, made[key], metadata_of(model, program, source="mnist"))
        return made[key]

    return write


def test_a_sampler_makes_the_images_of_sample(written):
    """The noise of docs/randomness.md is all that it needs."""
    engine = OnnxRuntimeEngine(written("sampler", steps=2))
    random = ImageRandom(image_seeds(7, range(5)))
    noise = torch.stack([random.randn(1, 28, 28), random.randn(1, 28, 28)], dim=1)
    labels = [3, 1, 4, 1, 5]
    images = engine(noise, torch.tensor(labels, dtype=torch.int32))
    expected = unistep.sample(num_images=5, steps=2, seed=7, class_labels=labels, progress=False).pixels
    assert images.dtype == torch.uint8
    assert (images.permute(0, 3, 1, 2) != expected).float().mean() < 1e-3


@pytest.mark.parametrize("batch", [1, 3])
def test_a_denoiser_is_one(written, batch):
    model, denoiser = unistep.load(), EngineDenoiser(OnnxRuntimeEngine(written("denoiser")))
    x_t, sigma = 5 * torch.randn(batch, 1, 28, 28), torch.linspace(0.1, 5, batch)
    labels = torch.arange(batch)
    with torch.no_grad():
        assert torch.allclose(denoiser(x_t, sigma, labels), model.denoiser(x_t, sigma, labels), atol=1e-4)


def test_the_file_describes_itself(written):
    model = onnx.load(written("sampler", steps=2))
    found = json.loads(next(entry.value for entry in model.metadata_props if entry.key == KEY))
    assert [found["program"], found["draws"], found["classes"], found["source"]] == ["sampler", 2, 10, "mnist"]
    assert found["plan"]["sigmas"] == pytest.approx([80, 1.0717], rel=1e-4)
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"


def test_the_file_names_no_place_of_the_machine(written):
    content = written("sampler", steps=2).read_bytes()
    assert b"/site-packages" not in content and b"unistep/networks" not in content
