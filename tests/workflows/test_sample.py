"""`unistep.sample` and `unistep.load` from Python: the same images as everywhere, and results that show themselves."""

import io
import logging

import numpy as np
import pytest
import torch
from PIL import Image

import unistep
from unistep.errors import UserError
from unistep.generation.generate import generate
from unistep.generation.plan import default_plan
from unistep.workflows.models import ModelSource


@pytest.fixture(scope="module")
def model():
    return unistep.load()


@pytest.fixture(scope="module")
def images(model):
    return unistep.sample(model, num_images=5, steps=2, seed=3, class_labels=[0, 1, 2, 3, 4])


def test_the_images_are_the_models(model, images):
    plan = default_plan(model.info, 2)
    (expected,) = generate(model.denoiser, plan, model.image_shape, range(5), seed=3, labels=torch.arange(5))
    assert torch.equal(images.pixels, expected)
    assert (len(images), images.seed, images.evaluations, images.labels.tolist()) == (5, 3, 2, [0, 1, 2, 3, 4])


@pytest.mark.parametrize("kind", ["name", "source", "pipeline"])
def test_a_model_by_name_or_as_a_pipeline_makes_the_same(images, model, kind):
    given = {
        "name": None,
        "source": ModelSource(None, {"kind": "consistency"}),
        "pipeline": unistep.ConsistencyModelPipeline.from_model(model),
    }[kind]
    again = unistep.sample(given, num_images=5, steps=2, seed=3, class_labels=[0, 1, 2, 3, 4], progress=False)
    assert torch.equal(again.pixels, images.pixels)


@pytest.mark.parametrize("name", ["a.npz", "folder", "a.png"])
def test_what_is_saved_is_what_was_made(images, tmp_path, name):
    path = images.save(tmp_path / name)
    written = unistep.sample(
        num_images=5, steps=2, seed=3, class_labels=[0, 1, 2, 3, 4], output=tmp_path / f"b{name}", batch_size=2
    )
    assert path == tmp_path / name and path.exists() and written.path == tmp_path / f"b{name}"
    if name == "a.npz":
        with np.load(path) as a, np.load(written.path) as b:
            assert np.array_equal(a["arr_0"], b["arr_0"]) and np.array_equal(a["arr_1"], b["arr_1"])
    if name == "a.png":
        assert path.read_bytes() == written.path.read_bytes()
    assert torch.equal(written.pixels, images.pixels) and torch.equal(written[2], images[2])


def test_images_show_themselves(images):
    assert repr(images) == "Images(5 grey images of 28x28, seed=3)"
    with Image.open(io.BytesIO(images._repr_png_())) as picture:
        assert picture.format == "PNG" and picture.width >= 300
    assert [(image.mode, image.size) for image in images.pil()] == [("L", (28, 28))] * 5
    assert len(list(images)) == 5


def test_a_grid_that_was_written_in_parts_has_no_single_images(images):
    from dataclasses import replace
    from pathlib import Path

    with pytest.raises(UserError, match=r"a\.png is a grid; write an \.npz or a folder"):
        _ = replace(images, made=None, path=Path("a.png")).pixels


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_images": 0}, "`num_images` 0 must be at least 1"),
        ({"steps": 2, "sigmas": [80]}, "`steps` and `sigmas` exclude each other; give one"),
        ({"class_labels": 10}, "`class_labels` 10: this model has the classes 0 to 9"),
        ({"solver": "heun"}, "`solver` heun is for diffusion models"),
        ({"output": "a.jpg"}, "`output` a.jpg: cannot write .jpg"),
        ({"dtype": "bf16"}, "`dtype` is for a model given by name; give it to `unistep.load`"),
        ({"device": "cpu"}, "`device` is for a model given by name; give it to `unistep.load`"),
    ],
)
def test_mistakes_name_the_parameter(model, arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        unistep.sample(model, **{"num_images": 1, **arguments})
    assert message in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_printed_and_notes_are_logged(capsys, caplog):
    with caplog.at_level(logging.INFO, "unistep"):
        unistep.sample(num_images=1, dtype="auto")
    assert capsys.readouterr() == ("", "")
    assert [record.message[:10] for record in caplog.records] == ["dtype auto"]


def test_a_loaded_model_computes_in_its_precision():
    model = unistep.load(dtype="bf16")
    images = unistep.sample(model, num_images=2, class_labels=1)
    same = unistep.sample(num_images=2, class_labels=1, dtype="bf16")
    assert torch.equal(images.pixels, same.pixels)
    assert not torch.equal(images.pixels, unistep.sample(num_images=2, class_labels=1).pixels)


def test_a_model_shows_itself_in_a_line(model):
    assert repr(model).startswith("LoadedModel(consistency model of 28x28 grey images, 10 classes, path='")
    assert repr(model).endswith("mnist')")
