"""`unistep edit` as a user meets it."""

import os
import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import unistep
from unistep.cli.main import COMMANDS
from unistep.editing.model import EditModel
from unistep.editing.tasks import TASKS
from unistep.errors import UserError
from unistep.formats.model import ModelInfo
from unistep.runtime.interrupt import Interrupted

SIDE = 16
KNOWN = ["inpaint", "outpaint", "upscale", "deblur", "compressed-sensing"]
NOISED = ["denoise", "jpeg", "strokes", "vary"]
NEEDS = {"inpaint": ["--mask", "lower"], "deblur": ["--blur", 1]}


def picture(side: int = SIDE, seed: int = 0, mode: str = "L") -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((side, side), Image.Resampling.BICUBIC).convert(mode)


def pixels(name: str | Path) -> np.ndarray:
    with Image.open(name) as image:
        assert image.format == "PNG"
        return np.asarray(image).astype(int)


@pytest.fixture
def model(model_folder: Callable[..., Path], here: Path) -> Path:
    return Path(shutil.copytree(model_folder(), here / "model"))


@pytest.fixture
def edit(run: Any, model: Path, here: Path) -> Any:
    """edit("inpaint", ...): of in.png with that model, in few steps."""
    picture().save(here / "in.png")
    return lambda task, *more, given="in.png": run("edit", task, "--model", "model", *_input(given), *more)


def _input(given: Any) -> list[Any]:
    return [] if given is None else ["--input", *([given] if isinstance(given, str | Path) else given)]


def test_is_a_command():
    assert "edit" in COMMANDS


# ---------------------------------------------------------------------------------------------------- tasks


@pytest.mark.parametrize("task", [*KNOWN, *NOISED])
def test_every_task(edit: Any, task: str):
    outcome = edit(task, *NEEDS.get(task, []), "--output", "out.png", "--steps", 2)
    assert outcome.code == 0, outcome
    assert f"1 image, {2 + TASKS[task].default.settle} evaluations each: out.png\n" in outcome.out
    if task == "upscale":  # what the model makes larger has 4 pixels
        assert "in.png is 16x16: reduced to 4x4" in outcome.err
    assert pixels("out.png").shape == (16, 16)
    assert sorted(os.listdir()) == ["in.png", "model", "out.png"]


@pytest.mark.parametrize("task", ["inpaint", "upscale", "deblur", "compressed-sensing", "denoise", "jpeg"])
def test_degrade_compares(edit: Any, task: str):
    outcome = edit(task, *NEEDS.get(task, []), "--output", "out.png", "--degrade", "--steps", 2)
    assert outcome.code == 0, outcome
    assert "PSNR against the input: " in outcome.out


def test_the_known_half_stays(edit: Any):
    assert edit("inpaint", "--mask", "lower", "--output", "out.png").code == 0
    before, after = pixels("in.png"), pixels("out.png")
    assert (before[:8] == after[:8]).all() and (before[8:] != after[8:]).any()


def test_upscaled_patches_keep_their_means(edit: Any):
    picture(4).save("small.png")
    assert edit("upscale", "--output", "out.png", given="small.png").code == 0
    means = pixels("out.png").reshape(4, 4, 4, 4).mean((1, 3))
    assert abs(means - pixels("small.png")).max() <= 1


def test_parts_of_other_proportions(edit: Any):
    Image.fromarray(np.arange(16, dtype=np.uint8).reshape(2, 8) * 16).save("small.png")
    assert edit("upscale", "--factor", "8x2", "--output", "out.png", given="small.png").code == 0
    means = pixels("out.png").reshape(2, 8, 8, 2).mean((1, 3))
    assert abs(means - pixels("small.png")).max() <= 1


def test_outpaint_puts_the_picture_amid(edit: Any):
    picture(10).save("small.png")
    assert edit("outpaint", "--margin", "6,2,0,4", "--output", "out.png", given="small.png").code == 0
    assert (pixels("out.png")[2:12, 6:] == pixels("small.png")).all()


def test_colour(run: Any, model_folder: Callable[..., Path], here: Path):
    picture(mode="RGB").save("in.png")
    folder = model_folder(in_channels=3, out_channels=3)
    outcome = run("edit", "colorize", "--model", folder, "--input", "in.png", "--output", "out.png", "--sheet", "s.png")
    assert outcome.code == 0, outcome
    weights = np.array([0.2989, 0.5870, 0.1140]) / 0.9999
    assert abs((pixels("out.png") - pixels("in.png")) @ weights).max() <= 1


def test_colorize_needs_colours(refused: Any, model: Path):
    picture().save("in.png")
    refused(
        ["edit", "colorize", "--model", "model", "--input", "in.png", "--output", "o.png"], "model of colour images"
    )


def test_the_embedded_model(run: Any, here: Path):
    picture(28).save("in.png")
    outcome = run("edit", "inpaint", "--mask", "centre", "--input", "in.png", "--output", "out.png", "--sigmas", 5)
    assert outcome.code == 0, outcome
    assert "1 image, 1 evaluation each and 80 to guess the class: out.png\n" in outcome.out


def test_settling(edit: Any):
    few = edit("upscale", "--output", "out.png", "--sigmas", "2,1", "--settle", 3)
    assert few.code == 0 and "5 evaluations each" in few.out, few
    none = edit("upscale", "--output", "out.png", "--steps", 2, "--settle", 0)
    assert none.code == 0 and "2 evaluations each" in none.out, none


def test_noise_is_estimated(edit: Any):
    noise = np.random.default_rng(0).normal(0, 0.2 * 127.5, (SIDE, SIDE))
    Image.fromarray((128 + noise).clip(0, 255).astype(np.uint8)).save("in.png")
    outcome = edit("denoise", "--output", "out.png")
    found = float(outcome.err.split("estimated at sigma ")[1])
    assert found == pytest.approx(0.2, rel=0.3)


def test_artefacts_are_estimated(edit: Any):
    """The harder the compression, the higher the level; of a PNG nobody can tell."""
    found = []
    for quality in (5, 60):
        picture().save("in.jpg", quality=quality)
        outcome = edit("jpeg", "--output", "out.png", given="in.jpg")
        assert outcome.code == 0, outcome
        found.append(float(outcome.err.split("noise of sigma ")[1]))
    assert found[0] > 1.5 * found[1] > 0
    assert edit("jpeg", "--output", "out.png").err == ""


def test_noise_that_a_file_has_cut_off_is_given_anew(edit: Any):
    """So that even one step draws, and candidates differ."""
    noise = np.random.default_rng(0).normal(0, 0.2 * 127.5, (SIDE, SIDE))
    Image.fromarray(noise.clip(0, 255).astype(np.uint8)).save("in.png")
    assert edit("denoise", "--sigma", 0.2, "--candidates", 2, "--output", "out.png").code == 0
    assert (pixels("out.png") != pixels("out-2.png")).any()


def test_strength_is_how_far_a_variation_goes(edit: Any):
    for name, strength in (("near.png", 0.05), ("far.png", 0.7)):
        assert edit("vary", "--strength", strength, "--output", name).code == 0
    near, far = (abs(pixels(name) - pixels("in.png")).mean() for name in ("near.png", "far.png"))
    assert near < 2 and far > 5 * near


# ---------------------------------------------------------------------------------------------------- masks, files


def test_a_mask_file_and_a_folder_of_masks(edit: Any, here: Path):
    painted = np.zeros((32, 32), np.uint8)
    painted[:, 16:] = 255
    Path("in").mkdir()
    Path("masks").mkdir()
    for i in range(2):
        picture(seed=i).save(f"in/{i}.png")
        Image.fromarray(painted if i else painted.T).save(f"masks/{i}.bmp")
    assert edit("inpaint", "--mask", "masks/1.bmp", "--output", "one/", given="in").code == 0
    assert edit("inpaint", "--mask", "masks", "--output", "own/", given="in").code == 0
    assert (pixels("one/0.png")[:, :8] == pixels("in/0.png")[:, :8]).all()
    assert (pixels("own/0.png")[:8] == pixels("in/0.png")[:8]).all()
    assert (pixels("own/0.png")[:, :8] != pixels("in/0.png")[:, :8]).any()
    assert (pixels("own/1.png") == pixels("one/1.png")).all()


def test_what_is_erased_is_painted(edit: Any):
    erased = picture(mode="RGBA")
    erased.paste((0, 0, 0, 0), (0, 0, 16, 8))
    erased.save("erased.png")
    assert edit("inpaint", "--output", "out.png", given="erased.png").code == 0
    assert (pixels("out.png")[8:] == pixels("in.png")[8:]).all() and (pixels("out.png")[:8] != 255).any()


def test_candidates_go_beside_each_other(edit: Any):
    assert (
        edit("inpaint", "--mask", "lower", "--candidates", 3, "--output", "out.png", "--sheet", "sheet.png").code == 0
    )
    made = [pixels(name) for name in ("out.png", "out-2.png", "out-3.png")]
    assert all((a[8:] != b[8:]).any() for a, b in zip(made, made[1:], strict=False))
    sheet = pixels("sheet.png")
    assert sheet.shape[1] > 5 * 160  # before, known and three


def test_a_folder_in_a_folder_out(edit: Any):
    Path("in/below").mkdir(parents=True)
    picture(40, 1).save("in/a.jpg")
    picture(16, 2).save("in/below/b.png")
    outcome = edit("inpaint", "--mask", "lower", "--output", "out", given=["in", "in.png"])
    assert outcome.code == 0, outcome
    assert sorted(str(p.relative_to("out")) for p in Path("out").rglob("*.png")) == ["a.png", "below/b.png", "in.png"]
    assert "note: in/a.jpg is 40x40: reduced to 16x16" in outcome.err
    # Image i has noise number i, in company or alone with its class.
    outcome = edit("inpaint", "--mask", "lower", "--output", "first.png", given="in/a.jpg")
    assert (pixels("first.png") == pixels("out/a.png")).all()


def test_tiles_of_several_sizes(edit: Any):
    Path("in").mkdir()
    for i, side in enumerate((20, 16, 20)):
        picture(side, i).save(f"in/{i}.png")
    assert edit("inpaint", "--mask", "lower", "--fit", "tiles", "--output", "out/", "--steps", 2, given="in").code == 0
    for i, side in enumerate((20, 16, 20)):
        assert pixels(f"out/{i}.png").shape == (side, side)
        assert (pixels(f"out/{i}.png")[: side // 2] == pixels(f"in/{i}.png")[: side // 2]).all()


def test_padding_is_cut_off(edit: Any):
    picture(32).resize((32, 16)).save("wide.png")
    outcome = edit("vary", "--fit", "pad", "--output", "out.png", given="wide.png")
    assert pixels("out.png").shape == (8, 16)
    assert "a margin fills 16x16 and is cut off again" in outcome.err


# ---------------------------------------------------------------------------------------------------- paths


def test_walk_begins_and_ends_with_its_seeds(edit: Any, model: Path):
    from unistep import ConsistencyModelPipeline
    from unistep.core.random import ImageRandom

    assert edit("walk", "--seeds", "3,8", "--frames", 4, "--output", "walk.gif", given=None).code == 0
    pipe = ConsistencyModelPipeline.from_pretrained(model)
    # The image of a seed, in a batch as large as a tile.
    latents = ImageRandom([3, 8, *range(14)]).randn(1, 16, 16)
    images: Any = pipe(16, latents=latents, output_type="np").images
    with Image.open("walk.gif") as gif:
        assert gif.n_frames == 5 and gif.size == (256, 256)
        first = np.asarray(gif.convert("L").resize((16, 16), Image.Resampling.NEAREST)).astype(int)
        gif.seek(4)
        last = np.asarray(gif.convert("L").resize((16, 16), Image.Resampling.NEAREST)).astype(int)
    assert abs(first - images[0, ..., 0] * 255).max() <= 1
    assert abs(last - images[1, ..., 0] * 255).max() <= 1


def test_a_loop_has_no_seam(edit: Any):
    outcome = edit("walk", "--stops", 3, "--frames", 4, "--loop", "--output", "w.png", given=None)
    assert "12 frames" in outcome.out
    assert "9 frames" in edit("walk", "--stops", 3, "--frames", 4, "--output", "w.png", given=None).out


def test_interpolation_of_images(edit: Any, model_folder: Callable[..., Path]):
    """With little noise the ends are the images."""
    picture(seed=5).save("b.png")
    arguments = ["interpolate", "--frames", 3, "--output", "i.gif"]
    assert edit(*arguments, "--sigma", 0.01, given=["in.png", "b.png"]).code == 0
    with Image.open("i.gif") as gif:
        assert gif.n_frames == 4
        first = np.asarray(gif.convert("L").resize((16, 16), Image.Resampling.NEAREST)).astype(int)
    assert abs(first - pixels("in.png")).mean() < 4
    teacher = model_folder("diffusion", sample_size=16)
    assert edit(*arguments, "--teacher", teacher, given=["in.png", "b.png"]).code == 0


def test_mp4(edit: Any):
    pytest.importorskip("imageio_ffmpeg")
    assert edit("walk", "--stops", 2, "--frames", 2, "--output", "w.mp4", given=None).code == 0
    assert b"ftyp" in Path("w.mp4").read_bytes()[:16]


# ---------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["edit"], ["TASK is missing"]),
        (["edit", "inpain", "--input", "in.png", "--output", "o.png"], ["did you mean inpaint?"]),
        (["edit", "inpaint", "--output", "o.png"], ["--input is missing"]),
        (["edit", "inpaint", "--input", "in.png"], ["--output is missing"]),
        (["edit", "inpaint", "--input", "im.png", "--output", "o.png"], ["im.png", "did you mean in.png?"]),
        (["edit", "inpaint", "--input", "in.png", "--output", "o.png"], ["no transparent part", "--mask"]),
        (["edit", "inpaint", "--input", "in.png", "--mask", "m.png", "--output", "o.png"], ["--mask m.png", "lower"]),
        (["edit", "inpaint", "--input", "in.png", "--mask", "box:1,2", "--output", "o.png"], ["4 whole numbers"]),
        (["edit", "inpaint", "--input", "in.png", "--mask", "box:0,0,16,17", "--output", "o.png"], ["does not lie"]),
        (["edit", "inpaint", "--input", "in.png", "--mask", "bad.png", "--output", "o.png"], ["bad.png"]),
        (
            ["edit", "inpaint", "--input", "bad.png", "--mask", "lower", "--output", "o.png"],
            ["bad.png", "not an image"],
        ),
        (["edit", "inpaint", "--input", "in.png", "bad.png", "--mask", "lower", "--output", "o/"], ["bad.png"]),
        (
            ["edit", "inpaint", "--input", "wide.png", "--mask", "lower", "--fit", "resize", "--output", "o.png"],
            ["crop"],
        ),
        (["edit", "inpaint", "--input", "in.png", "--mask", "lower", "--output", "in.png"], ["overwrite the input"]),
        (["edit", "inpaint", "--input", "in.png", "wide.png", "--mask", "lower", "--output", "o.png"], ["folder"]),
        (["edit", "inpaint", "--input", "in.png", "in.png", "--mask", "lower", "--output", "o/"], ["both become"]),
        (["edit", "inpaint", "--input", "in.png", "--mask", "lower", "--output", "o.jpg"], ["cannot write .jpg"]),
        (["edit", "vary", "--input", "in.png", "--mask", "lower", "--output", "o.png"], ["--mask is for inpaint"]),
        (["edit", "vary", "--input", "in.png", "--degrade", "--output", "o.png"], ["--degrade is for"]),
        (["edit", "vary", "--input", "in.png", "--settle", 2, "--output", "o.png"], ["--settle is for inpaint"]),
        (["edit", "inpaint", "--input", "in.png", "--settle", -1, "--output", "o.png"], ["--settle"]),
        (["edit", "vary", "--input", "in.png", "--strength", "2", "--output", "o.png"], ["strength 2"]),
        (["edit", "vary", "--input", "in.png", "--sigma", "99", "--output", "o.png"], ["--sigma 99", "80"]),
        (["edit", "vary", "--input", "in.png", "--sigma", "1", "--strength", "0.5", "--output", "o.png"], ["exclude"]),
        (["edit", "vary", "--input", "in.png", "--class_labels", "1", "--output", "o.png"], ["no classes"]),
        (["edit", "upscale", "--input", "in.png", "--factor", "3", "--output", "o.png"], ["--factor 3", "2, 4, 8, 16"]),
        (["edit", "upscale", "--input", "in.png", "--factor", "x", "--output", "o.png"], ["--factor x"]),
        (["edit", "deblur", "--input", "in.png", "--output", "o.png"], ["--blur is missing"]),
        (["edit", "outpaint", "--input", "in.png", "--margin", "8", "--output", "o.png"], ["--margin 8"]),
        (["edit", "outpaint", "--input", "in.png", "--margin", "0", "--output", "o.png"], ["some painted"]),
        (["edit", "jpeg", "--input", "in.png", "--candidates", "2", "--output", "o.png"], ["--steps 2"]),
        (["edit", "denoise", "--input", "in.png", "--timesteps", "3", "--output", "o.png"], ["--steps"]),
        (["edit", "compressed-sensing", "--input", "in.png", "--share", "1.5", "--output", "o.png"], ["--share 1.5"]),
        (["edit", "compressed-sensing", "--input", "in.png", "--timesteps", "9,3", "--output", "o.png"], ["must rise"]),
        (["edit", "--input", "in.png", "inpaint", "--output", "o.png"], ["TASK is missing", "--input", "first"]),
        (
            ["edit", "inpaint", "--input", "in.png", "--mask", "box:0,0,99,99", "--output", "o.png"],
            ["--mask box:0,0,99,99", "TOP,LEFT"],
        ),
        (
            ["edit", "inpaint", "--input", "in.png", "--mask", "lower", "--share", "0.3", "--output", "o.png"],
            ["--share is for the --mask random"],
        ),
        (
            ["edit", "inpaint", "--input", "wide.png", "--mask", "lower", "--sigmas", "nan", "--output", "o.png"],
            ["--sigmas [nan]"],
        ),
        (["edit", "vary", "--input", "wide.png", "--sigmas", "inf,1", "--output", "o.png"], ["--sigmas [inf, 1]"]),
        (["edit", "jpeg", "--input", "in.png", "--quality", "5", "--output", "o.png"], ["--quality", "--degrade"]),
        (["edit", "walk", "--seeds", "1,2", "--seed", "3", "--output", "o.png"], ["--seed and --seeds exclude"]),
        (["edit", "walk", "--fps", "3", "--output", "o.png"], ["--fps is for animations", "o.png"]),
        (["edit", "walk", "--fit", "pad", "--output", "o.png"], ["--fit pad is for images"]),
        (["edit", "walk", "--output", "o/"], [".gif"]),
        (["edit", "walk", "--output", "o.gif", "--seeds", "1"], ["2 images at least"]),
        (["edit", "walk", "--output", "o.gif", "--frames", "9999", "--stops", "900"], ["--frames 9999"]),
        (["edit", "walk", "--output", "o.gif", "--input", "in.png"], ["interpolate goes between images"]),
        (["edit", "walk", "--output", "o.gif", "--sheet", "s.png"], ["--sheet"]),
        (["edit", "interpolate", "--output", "o.gif"], ["--input A B, or --seeds"]),
        (["edit", "interpolate", "--output", "o.gif", "--input", "in.png"], ["2 images at least"]),
        (["edit", "interpolate", "--output", "o.gif", "--input", "in.png", "wide.png", "--teacher", "model"], ["ODE"]),
    ],
)
def test_refusals(refused: Any, model: Path, arguments: list[object], words: list[str]):
    picture().save("in.png")
    picture().resize((32, 16)).save("wide.png")
    Path("bad.png").write_bytes(b"not an image")
    refused([*arguments, *(["--model", "model"] if len(arguments) > 1 else [])], *words)


@pytest.mark.parametrize("after", [0, 2])
def test_a_signal_leaves_whole_files(edit: Any, monkeypatch: pytest.MonkeyPatch, after: int):
    from unistep.editing.tasks import task as module

    monkeypatch.setattr(module, "_CHUNK", 1)
    made, make = [], module.make

    def stopped(*arguments: Any, **options: Any) -> Any:
        if len(made) == after:
            raise Interrupted(signal.SIGTERM)
        made.append(options["numbers"])
        return make(*arguments, **options)

    monkeypatch.setattr(module, "make", stopped)
    Path("in").mkdir()
    for i in range(3):
        picture(seed=i).save(f"in/{i}.png")
    outcome = edit("vary", "--output", "out/", "--steps", 1, given="in")
    assert outcome.code == 128 + signal.SIGTERM and outcome.out == ""
    kept = "what was written so far is whole; repeat the command for the rest" if after else "nothing was written"
    assert outcome.err == f"stopped by SIGTERM; {kept}\n"
    written = list(Path("out").glob("*")) if after else []
    assert Path("out").exists() == bool(after) and [pixels(p).shape for p in written] == [(SIDE, SIDE)] * after


def test_help_lists_the_tasks(run: Any):
    out = run("edit", "--help").out
    assert all(f"  {task.name}" in out and task.text in out for task in TASKS.values())


# ---------------------------------------------------------------------------------------------------- anything


MODES = ["1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "CMYK", "YCbCr", "LAB", "HSV", "I", "I;16", "F"]
FORMATS = ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "TGA"]


def an_image(random_: random.Random, path: Path) -> None:
    """A file of any size, mode and format, one in five of them damaged, or none at all."""
    side = lambda: random_.choice([1, 2, 3, 15, 16, 17, 31, 40, random_.randint(1, 90), 300])  # noqa: E731
    size = (side(), side())
    noise = np.random.default_rng(random_.randrange(2**32)).integers(0, 256, (size[1], size[0], 4), dtype=np.uint8)
    image = Image.fromarray(noise)
    for mode in (random_.choice(MODES), "RGB"):
        try:
            options = {}
            if random_.random() < 0.3:
                exif = Image.Exif()
                exif[0x0112] = random_.randint(0, 9)
                options = {"exif": exif}
            image.convert("RGB" if mode in ("P", "PA") else mode).convert(mode).save(
                path, format=random_.choice(FORMATS), **options
            )
            break
        except (OSError, ValueError, KeyError, TypeError):  # the format has no such mode
            continue
    if not path.exists():
        image.convert("RGB").save(path, format="PNG")
    content, damage = bytearray(path.read_bytes()), random_.random()
    if damage < 0.08:
        content = content[: random_.randrange(len(content))]
    elif damage < 0.16:
        for _ in range(random_.randint(1, 20)):
            content[random_.randrange(len(content))] = random_.randrange(256)
    elif damage < 0.2:
        content = bytearray(random_.choice([b"", b"GIF89a", b"\0" * 100, b"%PDF-1.4", b"{}", b"BM" + b"\xff" * 60]))
    path.write_bytes(content)


@pytest.mark.parametrize("part", [0, *(pytest.param(part, marks=pytest.mark.slow) for part in range(1, 5))])
@pytest.mark.filterwarnings("ignore::UserWarning:PIL", "ignore::PIL.Image.DecompressionBombWarning")
def test_anything_gives_a_result_or_one_line(here: Path, monkeypatch: Any, part: int):
    """A hundred inputs; the model is a formula, all else is real."""

    def denoiser(x: Any, sigma: Any, labels: Any = None) -> Any:
        return (x / (1 + sigma)[:, None, None, None]).roll(1, -1)

    loaded, results = unistep.load(), 0
    for number in range(100):
        random_ = random.Random(part * 100 + number)
        channels = random_.choice([1, 3])
        model = EditModel(denoiser, ModelInfo(), (channels, SIDE, SIDE), 0, torch.device("cpu"))
        folder = here / str(number)
        folder.mkdir()
        an_image(random_, folder / "in.bin")
        an_image(random_, folder / "mask.bin")
        mask = random_.choice(
            [None, "lower", "centre", "random", "box:1,2,3,4", "box:9,9,9,9", str(folder / "mask.bin")]
        )
        task = random_.choice([name for name in TASKS if TASKS[name].kind != "path"])
        fit = random_.choice(["crop", "resize", "pad", "tiles"])
        degrade = random_.random() < 0.5 and task not in ("outpaint", "strokes", "vary")
        options: dict[str, Any] = {
            "mask": mask if task == "inpaint" else None,
            "factor": random_.choice(["2", "4x2", "16", "5"]) if task == "upscale" else None,
            "margin": random_.choice([None, "1,0,0,5", "20"]) if task == "outpaint" else None,
            "blur": 1.0 if task == "deblur" else None,
            "degrade": degrade,
        }
        places = {"output": folder / "out.png", "sheet": folder / "sheet.png"}
        monkeypatch.setattr("unistep.editing.model.edit_model", lambda opened, model=model: model)
        try:
            unistep.edit(loaded, folder / "in.bin", task, steps=1, fit=fit, progress=False, **places, **options)
        except UserError as error:
            assert 10 < len(str(error)) < 500 and "\n" not in str(error), str(error)
            assert sorted(os.listdir(folder)) == ["in.bin", "mask.bin"]
        else:
            results += 1
            shape = pixels(folder / "out.png").shape
            assert len(shape) == (2 if channels == 1 else 3)
            if fit in ("crop", "resize"):
                assert shape[:2] == (SIDE, SIDE)
            assert pixels(folder / "sheet.png").ndim == 3
    assert 25 < results < 90  # both ends of the fuzz are worth something
