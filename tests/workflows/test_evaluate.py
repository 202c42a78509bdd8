"""`unistep.evaluate`: the numbers of the command line, of anything that has images, in a report that shows itself."""

import json
import logging
import math
import re

import jaxtyping
import numpy as np
import pytest
import torch

import unistep
from unistep.cli.main import main
from unistep.data import ImageDataset
from unistep.errors import UserError
from unistep.metrics.report import Report
from unistep.workflows.models import load


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def digits() -> torch.Tensor:
    return unistep.open_dataset("mnist-test").images


@pytest.fixture
def files(here, digits):
    for name, images in (("real", digits[:600]), ("fake", digits[1000:1400] // 2)):
        np.savez(here / f"{name}.npz", arr_0=images.permute(0, 2, 3, 1).numpy())
    return here


def evaluate(samples, reference=None, **options) -> Report:
    return unistep.evaluate(samples, reference=reference, feature_cache="cache", progress=False, **options)


def numbers(report: Report) -> dict[str, tuple[float, float]]:
    return {name: (result.value, result.estimate.standard_error) for name, result in report.items()}


def command(*words: object) -> dict[str, tuple[float, float]]:
    main(["evaluate", *map(str, words), "--feature-cache", "other"])
    with open("metrics.json") as file:
        found = json.load(file)["metrics"]
    return {name: (entry["value"], entry["standard_error"]) for name, entry in found.items()}


def test_files_have_the_numbers_of_the_command_line(files):
    report = evaluate("fake.npz", "real.npz")
    assert numbers(report) == command("fake.npz", "--reference", "real.npz")
    assert len(report) == 8


def test_a_model_has_the_numbers_of_the_command_line(files):
    options = {"num_images": 60, "steps": 2, "class_labels": [1, 2], "seed": 3, "metrics": ["kd", "pr"]}
    flags = ["--num-images", 60, "--steps", 2, "--class-labels", "1,2", "--seed", 3, "--metrics", "kd,pr"]
    expected = command("--reference", "real.npz", *flags)
    assert numbers(evaluate(None, "real.npz", **options)) == expected
    assert numbers(evaluate(load(), "real.npz", **options)) == expected


def test_images_in_memory_have_the_numbers_of_their_files(files, digits):
    expected = numbers(evaluate("fake.npz", "real.npz", metrics=["fd", "kd"]))
    fake, real = digits[1000:1400] // 2, digits[:600]
    assert numbers(evaluate(fake, real, metrics=["fd", "kd"])) == expected
    assert numbers(evaluate(ImageDataset(fake), ImageDataset(real), metrics=["fd", "kd"])) == expected
    few = evaluate(fake, real, metrics=["fd"], num_images=300)
    assert few["fd"].notes["count"] == 300 and few["fd"].value != expected["fd"][0]


def test_the_outcome_of_sample_is_evaluated(files):
    images = unistep.sample(num_images=60, steps=2, seed=3, progress=False)
    own = evaluate(images, "real.npz", metrics=["kd"])
    made = evaluate(None, "real.npz", metrics=["kd"], num_images=60, steps=2, seed=3)
    assert numbers(own) == numbers(made)
    assert own.samples["name"] == "samples"


def test_a_report_is_a_mapping_and_shows_itself(files, caplog):
    caplog.set_level(logging.WARNING, "unistep")
    report = evaluate("fake.npz", "real.npz", metrics=["fd", "kd", "nn"], num_images=100)
    assert (
        list(report) == ["fd", "kd", "copies", "copies_in_reference", "copies_near"]
        and "fd" in report
        and "sfd" not in report
    )
    assert float(report["fd"]) == report["fd"].value and report["fd"].interval[0] < report["fd"].value
    with pytest.raises(KeyError, match="sfd; there are fd, kd"):
        report["sfd"]
    assert repr(report).startswith("Report(FD-MNIST ") and "±" in repr(report) and "\n" not in repr(report)
    table = report._repr_html_()
    assert "<td>FD-MNIST</td>" in table and "100 images of fake.npz against real.npz" in table
    assert [r.message.partition(":")[0] for r in caplog.records] == ["FD-MNIST is biased"]
    assert report.warnings[0] in table
    assert report.files == () and not (files / "metrics.json").exists()
    written = report.save("one.json")
    assert [path.name for path in written] == ["one.json", "one-neighbours.png"]
    assert all(path.exists() for path in written)
    assert json.loads(written[0].read_text()) == json.loads(json.dumps(report.to_dict()))
    with pytest.raises(UserError, match="cannot write real.npz/x.json"):
        report.save("real.npz/x.json")


def test_statistics_can_be_saved(files):
    whole = evaluate("fake.npz", "real.npz", metrics=["fd"], save_reference="stats.npz", output="all.json")
    assert [path.name for path in whole.files] == ["all.json"] and (files / "all.json").exists()
    again = evaluate("fake.npz", "stats.npz")
    assert numbers(again)["fd"] == numbers(whole)["fd"] and "kd" not in again


def test_a_score_that_needs_no_reference(files):
    report = evaluate("fake.npz", metrics=["is"])
    assert list(report) == ["is"] and report.reference is None and math.isfinite(report["is"].value)


@pytest.mark.parametrize(
    ("samples", "options", "message"),
    [
        (np.zeros((4, 1, 28, 28)), {}, "`samples` is a ndarray; give a path, a model, or uint8 images as a tensor"),
        (torch.zeros(4, 1, 28, 28), {}, "samples: the images are torch.float32 from 0 to 0, metrics take uint8"),
        ("fake.npz", {"steps": 2}, "`steps` is for models, and fake.npz holds images; leave it out"),
        ("fake.npz", {"seed": 0}, "`seed` is for models, and fake.npz holds images; leave it out"),
        ("fake.npz", {"dtype": "fp16"}, "`dtype` is for models, and fake.npz holds images; leave it out"),
        ("fake.npz", {"metrics": ["fdd"]}, "`metrics` fdd is unknown; did you mean fd"),
        ("fake.npz", {"num_images": 1}, "`num_images` 1 must be at least 2"),
        ("fake.npz", {"resize": "lanczos"}, "`resize` lanczos: must be one of legacy-tensorflow, clean"),
        ("fake.npz", {"channels": 2}, "`channels` 2 must be one of 1, 3"),
        ("fake.npz", {"output": "x.txt"}, "`output` x.txt: give a file that ends in .json"),
    ],
)
def test_refused(files, monkeypatch, samples, options, message):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # its errors would come first
    with pytest.raises(UserError, match=f"^{re.escape(message)}"):
        evaluate(samples, "real.npz", **options)
    assert not (files / "cache").exists()


@pytest.mark.parametrize("reference", [3, 2.5, b"real.npz", [], {}, {"real.npz"}, np.zeros(3), object(), ..., "a\0b"])
def test_a_reference_of_another_type(files, monkeypatch, reference):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(UserError, match="^`reference` [^\n]*$"):
        evaluate("fake.npz", reference)


@pytest.mark.parametrize("options", [{"resolution": 14}, {"channels": 3}, {"skip_bad": True}])
def test_changes_to_files_are_refused_where_none_are_read(files, digits, options):
    (field,) = options
    with pytest.raises(UserError, match=f"^`{field}` is for images of files, and none are read; leave it out$"):
        evaluate(digits[:20], digits[20:40], metrics=["fd"], **options)


def test_what_is_for_names_is_refused_beside_a_loaded_model(files):
    with pytest.raises(UserError, match="`dtype` is for a model given by name"):
        evaluate(load(), "real.npz", dtype="bf16")
