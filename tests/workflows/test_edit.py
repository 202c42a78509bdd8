"""`unistep.edit` does what the command line does, and its results save and show themselves."""

import io
import logging
import os
from pathlib import Path
from typing import Any

import jaxtyping
import numpy as np
import pytest
import torch
from PIL import Image

import unistep
from unistep.cli.main import main
from unistep.core.pixels import psnr
from unistep.editing.tasks import TASKS
from unistep.errors import UserError
from unistep.formats.embedded import EMBEDDED_MODELS
from unistep.images.read import read_picture

SIDE = 16


def picture(side: int = SIDE, seed: int = 0, mode: str = "L") -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((side, side), Image.Resampling.BICUBIC).convert(mode)


def pixels(path: Path | bytes) -> np.ndarray:
    with Image.open(io.BytesIO(path) if isinstance(path, bytes) else path) as image:
        return np.asarray(image)


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """An empty folder to work in, with two pictures."""
    monkeypatch.chdir(tmp_path)
    for i, name in enumerate(("a.png", "b.png")):
        picture(seed=i).save(name)
    return tmp_path


@pytest.fixture
def grey(model_folder) -> Path:
    return model_folder()


def edit(model: Any, image: Any, task: Any, **options: Any) -> Any:
    return unistep.edit(model, image, task, progress=False, **options)


# ---------------------------------------------------------------------------------------------- as the command line

CASES: dict[str, dict[str, Any]] = {
    "inpaint": {"mask": "lower", "candidates": 2},
    "outpaint": {"margin": [1, 2, 3, 4]},
    "colorize": {"degrade": True, "steps": 2},
    "upscale": {"factor": "2x4", "degrade": True, "timesteps": [10, 20]},
    "deblur": {"blur": 1.0, "sigmas": [2.0, 0.5]},
    "compressed-sensing": {"share": 0.4, "settle": 1, "seed": 3},
    "denoise": {"sigma": 0.3},
    "jpeg": {"degrade": True, "quality": 7},
    "strokes": {"strength": 0.4},
    "vary": {"sigma": 2.0, "candidates": 2, "seeds": [7, 9]},
    "interpolate": {"frames": 2, "fps": 7.0},
    "walk": {"seeds": [3, 8, 5], "frames": 2, "loop": True},
}


def test_every_task_is_tried():
    assert set(CASES) == set(TASKS)


def flags_of(options: dict[str, Any]) -> list[str]:
    flags = []
    for name, value in options.items():
        text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
        flags += [f"--{name.replace('_', '-')}", *([] if value is True else [text])]
    return flags


@pytest.mark.parametrize("task", CASES)
def test_python_makes_what_the_command_line_makes(here, model_folder, task):
    model = model_folder(in_channels=3, out_channels=3) if task == "colorize" else model_folder()
    inputs, options = [] if task == "walk" else ["a.png", "b.png"], CASES[task]
    output = "out.gif" if task in ("interpolate", "walk") else "out"
    given = ["--input", *inputs] if inputs else []
    main(["edit", task, "--model", str(model), *given, "--output", output, *flags_of(options)])
    before = set(here.rglob("*"))
    result = edit(model, inputs or None, task, **options)
    assert set(here.rglob("*")) == before  # nothing is written
    if output == "out":
        assert sorted(p.name for p in (here / output).iterdir()) == sorted(
            f"{name}{rank}.png" for name in "ab" for rank in ("", "-2")[: options.get("candidates", 1)]
        )
        for item in result:
            assert (pixels(here / output / f"{item.name}.png") == np.asarray(item.pil()[0])).all()
    else:
        assert result.save("own.gif").read_bytes() == (here / output).read_bytes()


def test_images_of_any_kind(here, grey):
    """Files, folders, Pillow images, pixels and the images of a run are the same images."""
    model = unistep.load(grey)
    expected = edit(model, ["a.png", "b.png"], "inpaint", mask="lower", steps=1).images
    stack = torch.stack([read_picture(name, (1, SIDE, SIDE)).pixels for name in ("a.png", "b.png")])
    for given in (str(here), [picture(), Path("b.png")], stack, list(stack), (one for one in stack)):
        assert torch.equal(edit(model, given, "inpaint", mask="lower", steps=1).images, expected)
    made = unistep.sample(model, num_images=2, progress=False)
    assert edit(model, made, "vary", steps=1).images.shape == (2, 1, SIDE, SIDE)
    painted = Image.new("L", (SIDE, SIDE))
    painted.paste(255, (0, SIDE // 2, SIDE, SIDE))
    assert torch.equal(edit(model, "a.png", "inpaint", mask=painted, steps=1).images, expected[:1])


def test_a_seed_an_image_goes_with_it(here, grey):
    both = edit(grey, ["a.png", "b.png"], "denoise", degrade=True, seeds=[5, 6], steps=2)
    turned = edit(grey, ["b.png", "a.png"], "denoise", degrade=True, seeds=[6, 5], steps=2)
    assert (both.images.int() - turned.images.flip(0).int()).abs().max() <= 1  # at other places of the batch


def test_a_teacher_by_name_or_loaded(here, model_folder, grey):
    teacher = model_folder("diffusion")
    options = {"frames": 1, "class_labels": None}
    named = edit(grey, ["a.png", "b.png"], "interpolate", teacher=teacher, **options)
    loaded = edit(grey, ["a.png", "b.png"], "interpolate", teacher=unistep.load(teacher), **options)
    assert torch.equal(named.frames, loaded.frames)


@pytest.mark.parametrize("name", [row.name for row in EMBEDDED_MODELS.values() if row.teacher])
def test_the_embedded_teacher_is_that_of_the_embedded_model(name):
    two = unistep.sample(name, num_images=2, class_labels=[1, 2], progress=False)
    options = {"frames": 1, "class_labels": [1]}
    found = edit(name, two.pixels, "interpolate", teacher="embedded", **options)
    named = edit(name, two.pixels, "interpolate", teacher=EMBEDDED_MODELS[name].teacher, **options)
    assert torch.equal(found.frames, named.frames)


# ------------------------------------------------------------------------------------------------------- results


def test_a_result_of_several_images(here, grey):
    result = edit(grey, ["a.png", "b.png"], "inpaint", mask="lower", candidates=3, steps=1, degrade=True)
    assert repr(result) == "EditResult(2 images of 16x16, 3 candidates each)"
    assert repr(result[1]) == "EditedImage(b: 3 candidates of 16x16)"
    assert len(result) == 2 and [item.name for item in result] == ["a", "b"]
    assert result.candidates.shape == (2, 3, 1, SIDE, SIDE) and torch.equal(result.images, result.candidates[:, 0])
    assert result.residual.shape == (2, 3) and result.class_labels is None
    assert torch.equal(result.measurement[:, :, : SIDE // 2], result.images[:, :, : SIDE // 2])
    originals = torch.stack([item.original for item in result])
    assert result.psnr == pytest.approx(psnr(result.images, originals).mean().item())
    assert result.measurement_psnr == pytest.approx(psnr(result.measurement, originals).mean().item())
    assert [image.size for image in result.pil()] == [(SIDE, SIDE)] * 2
    assert result.output is None and result.sheet is None
    assert result.save(here / "out") == here / "out"
    assert sorted(os.listdir("out")) == sorted(f"{name}{rank}.png" for name in "ab" for rank in ("", "-2", "-3"))
    sheet = pixels(result.save_sheet(here / "sheet.png"))
    assert (sheet == pixels(result._repr_png_())).all()
    with pytest.raises(UserError, match=r"x\.png is one file for 2 images; give a folder"):
        result.save("x.png")


def test_a_result_of_one_image(here, grey):
    result = edit(grey, "a.png", "vary", output="out.png", sheet="sheet.png")
    assert repr(result) == "EditResult(1 image of 16x16)" and result.psnr is None
    assert (pixels(here / "out.png") == np.asarray(result.pil()[0])).all()
    assert (result.output, result.sheet) == (Path("out.png"), Path("sheet.png"))


def test_results_of_several_sizes(here, grey):
    picture(24, 3).save("c.png")
    result = edit(grey, ["a.png", "c.png"], "vary", fit="tiles", steps=1)
    assert repr(result) == "EditResult(2 images of several sizes)"
    assert [tuple(item.image.shape) for item in result] == [(1, SIDE, SIDE), (1, 24, 24)]
    assert [image.size for image in result.pil()] == [(SIDE, SIDE), (24, 24)]
    with pytest.raises(UserError, match="several sizes; take them one by one"):
        _ = result.images


def test_the_frames_of_a_walk(here, grey):
    walk = edit(grey, None, "walk", stops=3, frames=2, output="w.png")
    assert repr(walk) == "EditResult(5 frames of 16x16)" and len(walk) == len(walk.frames) == 5
    assert torch.equal(walk.images, walk.frames) and len(walk.pil()) == 5 and walk.evaluations == 1
    assert (pixels(walk.output) == pixels(walk._repr_png_())).all()
    with Image.open(walk.save("w.gif")) as gif:
        assert gif.n_frames == 5
    for wanted in ("candidates", "residual", "class_labels", "measurement"):
        with pytest.raises(UserError, match="take `frames`"):
            getattr(walk, wanted)
    with pytest.raises(UserError, match="no sheet"):
        walk.save_sheet("s.png")


# ----------------------------------------------------------------------------------------------- notes, refusals


def test_notes_about_images_that_the_model_does_not_make(here, caplog):
    picture(60, mode="RGB").save("photo.png")
    picture(28).save("digit.png")
    digits, tiles = "the embedded model makes grey digits of 28x28 pixels", '`fit="tiles"` keeps the size'
    for image, fit, notes in (
        ("photo.png", "crop", {digits, tiles}),
        ("photo.png", "tiles", {digits}),
        ("digit.png", "crop", set()),
    ):
        caplog.clear()
        with caplog.at_level(logging.INFO, "unistep"):
            edit(None, image, "vary", steps=1, fit=fit, class_labels=3)
        assert {note for note in (digits, tiles) if note in caplog.text} == notes


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        ("sense", {}, "`task` sense is unknown; did you mean compressed-sensing?"),
        ("inpant", {}, "did you mean inpaint?"),
        ("vary", {"mask": "lower"}, "`mask` is for inpaint, not for vary; leave it out"),
        ("inpaint", {"mask": "lower", "strength": 0.5}, "`strength` is for jpeg, strokes, vary, not for inpaint"),
        ("walk", {"candidates": 2}, "`candidates` is for inpaint, .*, not for walk"),
        ("vary", {"measurement": torch.zeros(1, 4)}, "`measurement` is for an operator"),
        ("vary", {"seeds": [1, 2]}, "2 `seeds` are given for 1 images"),
        ("vary", {"seeds": [-1]}, "`seeds` -1 must be at least 0"),
        ("vary", {"output": ""}, "`output` is empty"),
        ("vary", {"output": "b.png", "sheet": "./b.png"}, "`sheet` b.png would overwrite a result; give another"),
        ("vary", {"output": "b.png", "sheet": "b-2.png", "candidates": 2}, "`sheet` b-2.png would overwrite a result"),
        ("vary", {"output": "a.png"}, "`output` a.png would overwrite the input a.png; give another"),
        ("vary", {"output": "x.jpg"}, "`output` x.jpg: cannot write .jpg; give a .png or a folder, as x.jpg/"),
        ("vary", {"sheet": "x.jpg"}, "`sheet` x.jpg: give a file that ends in .png"),
        ("vary", {"class_labels": [0, 1]}, "no classes"),
        ("vary", {"dtype": "fp32", "model": "loaded"}, "`dtype` is for a model given by name"),
        ("strokes", {"sigmas": [1.0], "sigma": 1.0}, "give the first level, and so does"),
        ("inpaint", {"mask": "lower", "output": 5}, "`output` 5 must be a path"),
        ("vary", {"seed": 0, "seeds": [1]}, "`seed` and `seeds` exclude each other"),
        (3, {}, "`task` is neither the name of a task nor an operator"),
    ],
)
def test_refusals_leave_nothing(here, grey, task, options, message):
    before = sorted(here.rglob("*"))
    model = unistep.load(options.pop("model") and grey) if "model" in options else grey
    with pytest.raises(UserError, match=message):
        edit(model, "a.png", [task] if task == 3 else task, **options)
    assert sorted(here.rglob("*")) == before


@pytest.mark.parametrize("mask", [5, b"lower", np.zeros((SIDE, SIDE)), torch.zeros(SIDE, SIDE)])
def test_masks_of_other_types(here, grey, monkeypatch, mask):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # its errors would come first
    with pytest.raises(UserError, match=f"`mask` is of type {type(mask).__name__}; give an image"):
        edit(grey, "a.png", "inpaint", mask=mask)


def test_levels_are_refused_before_anything_is_said(here, caplog):
    picture(64, mode="RGB").save("photo.png")
    with caplog.at_level(logging.INFO, "unistep"), pytest.raises(UserError, match="`sigmas`"):
        edit(None, "photo.png", "inpaint", mask="lower", sigmas=[float("nan")])
    assert not caplog.records


def test_a_measurement_that_is_not_finite_is_refused(here, grey):
    from unistep.editing.operators import SuperResolution

    operator = SuperResolution((2, 2))
    y = operator.A(torch.zeros(1, 1, SIDE, SIDE))
    y.view(-1)[3] = float("nan")
    with pytest.raises(UserError, match="`measurement` has values that are not finite"):
        edit(grey, None, operator, measurement=y)
    with pytest.raises(UserError, match="`measurement` is int64; give floats or uint8"):
        edit(grey, None, operator, measurement=torch.zeros_like(y, dtype=torch.int64))


def test_a_place_that_fills_up_leaves_whole_files(here, grey, monkeypatch):
    """What is written before a failure is whole, and no temporary file stays."""
    from unistep.editing import result as module

    saved: list[Path] = []
    save_png = module.save_png

    def once(image: Image.Image, path: Path) -> Path:
        if saved:
            raise OSError(28, "No space left on device")
        saved.append(path)
        return save_png(image, path)

    monkeypatch.setattr(module, "save_png", once)
    with pytest.raises(UserError, match="cannot write out/b.png: No space left on device; choose another `output`"):
        edit(grey, ["a.png", "b.png"], "vary", output="out/", steps=1)
    assert os.listdir("out") == ["a.png"] and pixels(here / "out/a.png").shape == (SIDE, SIDE)
