"""Every embedded model opens by its name, is small and makes images, and its card says how it came about."""

import shutil

import pytest
import torch
import yaml

import unistep
from unistep.config import find_recipe
from unistep.data.bundled import BUNDLED
from unistep.errors import UserError
from unistep.formats.embedded import EMBEDDED_MODELS, EMBEDDED_NAMES, embedded_at, embedded_model
from unistep.formats.open import names_a_model, open_model
from unistep.workflows.models import name_of, own_schedule_file

LIMIT = 8 << 20
ROWS = pytest.mark.parametrize("row", EMBEDDED_MODELS.values(), ids=EMBEDDED_MODELS)
STUDENTS = [row for row in EMBEDDED_MODELS.values() if row.teacher]


@ROWS
def test_it_opens_by_every_name(row):
    for name in row.names:
        assert names_a_model(name)
        assert open_model(name, "meta").path == row.folder
        assert unistep.inspect(name) == unistep.inspect(str(row.folder))
    assert open_model(row.name, "meta").info.kind == ("consistency" if row.teacher else "diffusion")
    assert embedded_at(row.folder) is row


@ROWS
def test_it_knows_the_classes_of_its_data(row):
    data = BUNDLED[yaml.safe_load(find_recipe(row.recipe).read_text())["data"]["source"]]
    model = open_model(row.name, "meta")
    assert model.image_shape == (data.channels, data.size, data.size)
    assert tuple(model.info.class_names or ()) in ((), data.class_names)
    assert model.num_classes == len(data.class_names)


@ROWS
def test_it_is_small(row):
    assert sum(path.stat().st_size for path in row.folder.rglob("*") if path.is_file()) <= LIMIT


@ROWS
def test_its_card_says_how_it_came_about_and_how_good_it_is(row):
    card = (row.folder / "README.md").read_text()
    facts = [
        "license: apache-2.0",
        "## Origin",
        f"unistep train {row.recipe}",
        "## Measured quality",
        "Frechet distance",
        "Licence",
    ]
    assert [fact for fact in facts if fact not in card] == []


@ROWS
def test_it_makes_different_images_of_its_classes(row):
    images = unistep.sample(row.name, num_images=4, steps=1 if row.teacher else 4, seed=3, progress=False)
    pixels = images.pixels.float()
    assert pixels.shape[1:] == open_model(row.name, "meta").image_shape
    assert (pixels.flatten(1).std(1) > 15).all()
    assert torch.cdist(pixels.flatten(1), pixels.flatten(1)).fill_diagonal_(torch.inf).min() > 100


@pytest.mark.parametrize("row", STUDENTS, ids=lambda row: row.name)
def test_a_student_has_a_schedule_of_two_steps_and_a_teacher_of_the_same_images(row):
    student, teacher = open_model(row.name, "meta"), open_model(row.teacher, "meta")
    assert student.info.timesteps is not None
    assert (student.image_shape, student.num_classes) == (teacher.image_shape, teacher.num_classes)
    assert EMBEDDED_MODELS[row.teacher].teacher == ""


@pytest.mark.parametrize("row", STUDENTS, ids=lambda row: row.name)
def test_diffusers_class_opens_it_by_its_name(row):
    pipe = unistep.ConsistencyModelPipeline.from_pretrained(row.name)
    made = pipe(num_inference_steps=1, generator=torch.Generator().manual_seed(0)).images[0]
    assert made.size == open_model(row.name, "meta").image_shape[1:][::-1]


def test_the_first_row_is_taken_where_none_is_named():
    first = next(iter(EMBEDDED_MODELS.values()))
    assert name_of(None) == str(first.folder)
    assert unistep.load().path == first.folder


def test_names_are_there_once():
    assert len(set(EMBEDDED_NAMES)) == len(EMBEDDED_NAMES)


def test_a_folder_of_the_same_name_has_precedence(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(EMBEDDED_MODELS["mnist-teacher"].folder, "mnist")
    assert embedded_model("mnist") is None
    assert open_model("mnist", "meta").info.kind == "diffusion"
    assert open_model("mnist-student", "meta").info.kind == "consistency"


def test_a_name_much_like_one_is_pointed_out():
    with pytest.raises(UserError, match=r"mnist-techer does not exist; did you mean the embedded mnist-teacher\?"):
        open_model("mnist-techer")


@ROWS
def test_its_schedules_stay_as_they_are(row):
    with pytest.raises(UserError, match=f"part of the package.*unistep convert {row.name} FOLDER"):
        own_schedule_file(row.name, open_model(row.name, "meta"))


def test_in_an_evaluation_a_dataset_has_precedence_and_the_student_is_named_in_full():
    options = {"reference": "mnist-test", "metrics": ["fd"], "progress": False}
    images = unistep.evaluate("mnist-test", **options)
    model = unistep.evaluate("mnist-student", num_images=200, **options)
    assert images["fd"].value < 0.01 < model["fd"].value
