"""`unistep.search`: the schedules of the command line, from Python, in a result that shows itself."""

import json
import re
import shutil
from pathlib import Path

import jaxtyping
import numpy as np
import pytest
import torch

import unistep
from unistep.cli.main import main
from unistep.errors import UserError
from unistep.formats.model_folder.folder import load_model
from unistep.searching import sampler_schedules as module
from unistep.workflows.models import EMBEDDED_TEACHER


@pytest.fixture
def model(model_folder, tmp_path, monkeypatch) -> Path:
    """Of 28x28 images, by the name `model`, in the folder that the search runs in; and 200 images."""
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (200, 28, 28, 1), dtype=np.uint8)
    np.savez(tmp_path / "data.npz", pixels)
    return Path(shutil.copytree(model_folder(sample_size=28, patch_size=7), tmp_path / "model"))


def search(model="model", **options):
    options = {"reference": "data.npz", "num_images": 32, "feature_cache": "cache", "progress": False} | options
    return unistep.search(model, **options)


def record(folder: str = "search") -> dict:
    return json.loads(Path(folder, "search.json").read_text())


@pytest.mark.slow
def test_the_timesteps_are_those_of_the_command_line(model):
    flags = ["--steps", "2..3", "--num-images", "32", "--seed", "3", "--feature-cache", "other", "--no-progress"]
    main(["search", "model", "--reference", "data.npz", *flags])
    result = search(steps=[2, 3], seed=3)
    expected = record()
    assert json.loads(json.dumps(result.to_dict())) == expected
    assert search(load_model(model), steps=range(2, 4), seed=3).to_dict()["found"] == result.to_dict()["found"]
    assert result.files == () and not Path("curve.png").exists()


def test_the_levels_of_an_edit_are_those_of_the_command_line(model):
    words = ["--task", "inpaint", "--mask", "lower", "--images", "data.npz", "--num-images", "20", "--steps", "1"]
    main(["search", "model", *words, "--settle", "1"])
    options = {"task": "inpaint", "mask": "lower", "num_images": 20, "steps": 1, "settle": 1, "reference": None}
    result = search(images="data.npz", **options)
    assert json.loads(json.dumps(result.to_dict())) == record()
    with np.load("data.npz") as file:
        pixels = torch.from_numpy(file["arr_0"]).permute(0, 3, 1, 2)
    assert search(images=pixels, **options)[1] == result[1]
    assert result.options(1) == {"mask": "lower", "sigmas": list(result[1].schedule), "settle": 1}
    edited = unistep.edit("model", pixels[:2], "inpaint", **result.options(1), progress=False)
    assert len(edited) == 2


def test_a_result_is_a_mapping_and_shows_itself(model):
    result = search(steps="2,3", output="here")
    assert list(result) == [2, 3] and result[2].steps == 2 and 4 not in result
    with pytest.raises(KeyError, match="4; there are 2, 3 steps"):
        result[4]
    assert result.options(2) == {"timesteps": list(result[2].timesteps)}
    images = unistep.sample("model", num_images=2, **result.options(3), progress=False)
    assert images.evaluations == 3
    assert repr(result).startswith("SearchResult(FD-MNIST; 2 steps: 0,") and "\n" not in repr(result)
    assert "<td>evenly spaced</td>" in result._repr_html_() and "32 fresh images" in result._repr_html_()
    assert [path.name for path in result.files] == ["search.json", "curve.png"]
    assert result._repr_png_() == Path("here/curve.png").read_bytes()
    assert [path.read_bytes() for path in result.save("there")] == [path.read_bytes() for path in result.files]


def test_what_was_found_is_kept_in_the_model(model, monkeypatch):
    monkeypatch.setattr(module, "worth_keeping", lambda found, better: found.steps == 3)
    result = search(steps=[2, 3], write=True)
    assert result.kept == (3,) and result.kept_in == Path("model/scheduler/scheduler_config.json")
    assert load_model(model).info.schedules == (result[3].timesteps,) and load_model(model).info.timesteps is None
    opened = load_model(model)
    again = search(opened, steps=3, write=True)
    assert again.kept_in is not None and again.kept_in.resolve() == result.kept_in.resolve()


OF_TASK = {"task": "upscale", "reference": None, "images": "data.npz"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 1}, "`steps` 1: one step begins at sigma_max and has nothing to choose"),
        ({"steps": []}, "`steps` is empty"),
        ({"steps": 40}, "`steps` 40: the model's grid has 39 levels above sigma_min; give fewer"),
        ({"reference": None}, "`reference` is missing; give a dataset or statistics"),
        ({"metric": "psnr"}, "`metric` psnr compares edits with images; give `task` and `images`"),
        ({"metric": "copies"}, "`metric` copies: must be one of fd, sfd, kd"),
        ({"mask": "lower"}, "`mask` is for the search for an edit's levels; give `task`, or leave it out"),
        ({"lpips_vgg": "vgg.pth"}, "`lpips_vgg` is for the search for an edit's levels; give `task`, or leave it out"),
        ({"num_images": 19}, "`num_images` 19 must be at least 20"),
        ({"output": ""}, "`output` is empty; give a folder"),
        ({"output": "data.npz"}, "`output` data.npz is a file; give a folder"),
        ({"model": EMBEDDED_TEACHER}, f"{EMBEDDED_TEACHER} is a diffusion model, whose solver takes any number of"),
        ({"model": None, "write": True}, "`write`: the embedded model is part of the package"),
        ({"task": "upscale"}, "`reference` is not for `task`"),
        ({"task": "upscale", "reference": None}, "`images` is missing"),
        (
            {"task": "upscale", "reference": None, "images": torch.zeros(50, 1, 8, 8, dtype=torch.uint8)},
            "`images` are uint8 [50, 1, 8, 8]; give uint8 [N, 1, 28, 28], or files",
        ),
        ({"task": "denoise", "reference": None}, "`task` denoise: must be one of inpaint, outpaint"),
        ({**OF_TASK, "features": "mnist"}, "`features` is for `metric` class, not for psnr; leave it out"),
        ({**OF_TASK, "resize": "clean", "metric": "lpips"}, "`resize` is for `metric` class, not for lpips"),
        ({**OF_TASK, "lpips_vgg": "v.pth"}, "`lpips_vgg` is for `metric` lpips, not for psnr; leave it out"),
        ({"reference": None, "metric": "is", "resolution": 8}, "`resolution` is for the images of a `reference`"),
        ({"output": "."}, "`output` . holds data.npz, which is of no search; give a new folder"),
        ({"output": 5}, "`output` 5 must be a path"),
    ],
)
def test_refused_before_anything_is_made(model, monkeypatch, options, message):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # its errors would come first
    monkeypatch.setattr(module, "generate", None)
    with pytest.raises(UserError, match=f"^{re.escape(message)}"):
        search(**options)
    assert sorted(path.name for path in model.parent.iterdir()) == ["data.npz", "model"]
