"""The names of classes are said, kept with every model of a run, and taken where classes are given."""

import json
import logging

import numpy as np
import pytest
import torch
from PIL import Image

import unistep
from unistep.errors import UserError
from unistep.formats.model import ModelInfo
from unistep.formats.model_folder.folder import load_model
from unistep.generation.settings import run_settings
from unistep.pipelines.consistency_model import ConsistencyModelPipeline
from unistep.workflows.runs.classes import kept_names

NETWORK = {"block_out_channels": [8, 8], "attention_head_dim": 8}
SHORT = {"steps": 2, "batch_size": 2, "checkpoint_every": 1}


def photos(folder, names, count=3):
    rng = np.random.default_rng(0)
    for name in names:
        (folder / name).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(folder / name / f"{i}.png")
    return folder


def train(data, output, **others):
    arguments = {"network": NETWORK, "teacher": SHORT, "student": SHORT, "progress": False, **others}
    return unistep.train("mnist-quick", data=data, output=output, **arguments)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("classes")
    train(photos(folder / "photos", ["cat", "dog", "bird"]), folder / "run")
    return folder


def test_names_are_said_when_training_begins(tmp_path, caplog):
    caplog.set_level(logging.INFO, "unistep")
    train(photos(tmp_path / "photos", ["cat", "dog"], 1), tmp_path / "run", teacher={**SHORT, "steps": 1})
    assert f"{tmp_path / 'photos'} has 2 classes: 0 cat, 1 dog" in caplog.messages


@pytest.mark.parametrize("path", ["run", "run/teacher", "run/student/model"])
def test_names_are_kept_with_the_model(run, path):
    report = unistep.inspect(run / path)
    assert report.class_names == ("bird", "cat", "dog")
    assert report.to_dict()["class_names"] == ["bird", "cat", "dog"]
    assert dict(report.rows())["classes"] == "3\n0 bird\n1 cat\n2 dog"


def test_names_are_kept_by_all_that_writes_models(run, tmp_path):
    model = unistep.load(run / "run")
    unistep.convert(model, tmp_path / "converted")
    pipe = ConsistencyModelPipeline.from_pretrained(run / "run")
    pipe.save_pretrained(tmp_path / "saved")
    for name in ("converted", "saved"):
        assert load_model(tmp_path / name).info.class_names == ("bird", "cat", "dog")


def test_classes_by_name(run, tmp_path):
    model = unistep.load(run / "run")
    by_name = unistep.sample(model, num_images=3, class_labels=["dog", 0, "1"], progress=False)
    by_number = unistep.sample(model, num_images=3, class_labels=[2, 0, 1], progress=False)
    assert torch.equal(by_name.pixels, by_number.pixels) and by_name.labels.tolist() == [2, 0, 1]
    edits = [unistep.edit(model, by_name, "inpaint", mask="lower", class_labels=c, progress=False) for c in ("dog", 2)]
    assert torch.equal(edits[0].images, edits[1].images)
    pipe = ConsistencyModelPipeline.from_model(model)
    images = [pipe(1, class_labels=c, seeds=[0], output_type="pt").images for c in ("dog", 2)]
    assert torch.equal(*(torch.as_tensor(image) for image in images))
    for call in (
        lambda: unistep.sample(model, class_labels="dgo"),
        lambda: unistep.edit(model, by_name, "inpaint", mask="lower", class_labels="dgo", progress=False),
        lambda: unistep.evaluate(model, reference="mnist", class_labels="dgo"),
        lambda: pipe(1, class_labels="dgo"),
    ):
        with pytest.raises(UserError, match="did you mean dog"):
            call()


def test_other_classes_do_not_go_on(run):
    before = sorted(path.name for path in (run / "run").rglob("*"))
    (run / "photos/cat").rename(run / "photos/zebra")
    try:
        with pytest.raises(UserError, match="class 1 was cat and is dog"):
            unistep.train(resume=run / "run", student={"steps": 3}, progress=False)
    finally:
        (run / "photos/zebra").rename(run / "photos/cat")
    assert [name for name in sorted(path.name for path in (run / "run").rglob("*")) if name not in before] in (
        [],
        ["history.jsonl"],
    )


def test_a_model_of_other_names_is_said(run, tmp_path, caplog):
    data = photos(tmp_path / "photos", ["bird", "cow", "dog"], 1)
    train(data, tmp_path / "run", teacher=str(run / "run/teacher/model"))
    assert "calls 1 classes otherwise than the data: class 1 is cat there and cow here" in caplog.text


def test_a_run_without_labels_reads_none(tmp_path):
    data = photos(tmp_path / "photos", ["train", "test"], 2)  # splits, whose labels would be refused
    train(data, tmp_path / "run", use_labels=False)
    assert unistep.inspect(tmp_path / "run").num_classes == 0
    with pytest.raises(UserError, match="splits"):
        train(data, tmp_path / "other")


def test_names_that_are_the_numbers_are_not_kept():
    digits = unistep.open_dataset("mnist-test")
    assert kept_names(digits) == ()


def test_names_that_are_too_long_are_not_kept(caplog):
    dataset = unistep.data.ImageDataset(
        torch.zeros(1, 1, 2, 2, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64), ["x" * 500_000]
    )
    assert kept_names(dataset) == ()
    assert "are not kept" in caplog.text


def test_names_are_as_many_as_classes(run, tmp_path):
    import shutil

    shutil.copytree(run / "run/student/model", tmp_path / "model")
    file = tmp_path / "model/scheduler/scheduler_config.json"
    values = json.loads(file.read_text())
    values["_unistep"]["class_names"] = ["cat"]
    file.write_text(json.dumps(values))
    with pytest.raises(UserError, match="class_names are 1, and the network has 3 classes"):
        load_model(tmp_path / "model")


def test_names_change_no_settings_of_images(run):
    from unistep.generation.plan import default_plan

    info = ModelInfo(class_names=("cat",))
    one, other = (run_settings("w", i, default_plan(i), (1, 2, 2), 1, None, 0, "float32") for i in (info, ModelInfo()))
    assert one == other
