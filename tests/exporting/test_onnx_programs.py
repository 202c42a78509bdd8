"""Programs in ONNX files: they compute what the model does, in any batch, and describe themselves."""

import json

import pytest
import torch

import unistep
from unistep.core.random import ImageRandom, image_seeds
from unistep.engines.engine import EngineDenoiser
from unistep.engines.onnxruntime import OnnxRuntimeEngine
from unistep.exporting.make import make_program
from unistep.exporting.metadata import metadata_of
from unistep.exporting.onnx import write_onnx
from unistep.formats.exported.description import KEY

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def model(saved):
    return unistep.load(saved("consistency", num_class_embeds=10))


@pytest.fixture(scope="module")
def written(model, tmp_path_factory):
    """written(name, **options): the ONNX file of a program of a network of random weights."""
    made = {}
    folder = tmp_path_factory.mktemp("onnx")

    def write(name, **options):
        key = f"{name}{options}"
        if key not in made:
            program = make_program(model, name, **options)
            made[key] = folder / f"{len(made)}.onnx"
            write_onnx(program, made[key], metadata_of(model, program, source="cat"))
        return made[key]

    return write


def test_a_sampler_makes_the_images_of_sample(model, written):
    """The noise of docs/randomness.md is all that it needs."""
    engine = OnnxRuntimeEngine(written("sampler", steps=2))
    random = ImageRandom(image_seeds(7, range(5)))
    noise = torch.stack([random.randn(*model.image_shape), random.randn(*model.image_shape)], dim=1)
    labels = [3, 1, 4, 1, 5]
    images = engine(noise, torch.tensor(labels, dtype=torch.int32))
    expected = unistep.sample(model, num_images=5, steps=2, seed=7, class_labels=labels, progress=False).pixels
    assert images.dtype == torch.uint8
    assert (images.permute(0, 3, 1, 2) != expected).float().mean() < 1e-2


@pytest.mark.parametrize("batch", [1, 3])
def test_a_denoiser_is_one(model, written, batch):
    denoiser = EngineDenoiser(OnnxRuntimeEngine(written("denoiser")))
    x_t, sigma = 5 * torch.randn(batch, *model.image_shape), torch.linspace(0.1, 5, batch)
    labels = torch.arange(batch)
    with torch.no_grad():
        assert torch.allclose(denoiser(x_t, sigma, labels), model.denoiser(x_t, sigma, labels), atol=1e-4)


def test_the_file_describes_itself(written):
    proto = onnx.load(written("sampler", steps=2))
    found = json.loads(next(entry.value for entry in proto.metadata_props if entry.key == KEY))
    assert [found["program"], found["draws"], found["classes"], found["source"]] == ["sampler", 2, 10, "cat"]
    assert len(found["plan"]["sigmas"]) == 2 and found["plan"]["sigmas"][0] == pytest.approx(80)
    assert proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"


def test_the_file_names_no_place_of_the_machine(written):
    content = written("sampler", steps=2).read_bytes()
    assert b"/site-packages" not in content and b"unistep/networks" not in content
