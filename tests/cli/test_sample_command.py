import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unistep.errors import UserError
from unistep.formats.model import ModelInfo
from unistep.formats.model_folder.folder import load_model, save_model
from unistep.generation.generate import generate
from unistep.generation.plan import DiffusionPlan, make_plan
from unistep.generation.write import check_output

ONE = ["sample", "--num-images", "1"]


@pytest.fixture(scope="module")
def consistency(model_folder):
    """An unconditional consistency model of 1 x 16 x 16 images."""
    return str(model_folder("consistency"))


@pytest.fixture(scope="module")
def diffusion(model_folder):
    return str(model_folder("diffusion"))


@pytest.fixture(scope="module")
def distilled(lively, tmp_path_factory):
    """A diffusion model that progressive distillation brought down to 4 steps."""
    path = tmp_path_factory.mktemp("models") / "distilled"
    info = ModelInfo("diffusion", solver="progressive", steps=4, sigma_min=0.02, sigma_max=50.0, rho=5.0)
    save_model(path, lively(), info, card="A model of random weights.\n")
    return str(path)


@pytest.fixture(scope="module")
def conditional(model_folder):
    """A consistency model of three classes."""
    return str(model_folder("consistency", num_class_embeds=3))


def arrays(path) -> dict[str, np.ndarray]:
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


# ------------------------------------------------------------------------------------------------------- what is right


def test_without_arguments_but_a_number(run, here):
    """The embedded model, a grid."""
    outcome = run(*ONE)
    assert outcome.code == 0
    assert "1 image, 1 evaluation each" in outcome.out and "samples.png" in outcome.out
    with Image.open("samples.png") as picture:
        assert picture.format == "PNG" and picture.mode == "L"
    assert os.listdir(here) == ["samples.png"]


@pytest.mark.parametrize("flag", [["--num-images", "3"], ["--num_images", "3"], ["--num-images=3"], ["--num_images=3"]])
def test_dashes_and_underscores_are_the_same(run, consistency, flag):
    assert run("sample", consistency, *flag, "--output", "a.npz").code == 0
    assert arrays("a.npz")["arr_0"].shape == (3, 16, 16, 1)


def test_the_model_may_come_anywhere(run, consistency):
    for i, arguments in enumerate([[consistency, *ONE[1:]], [*ONE[1:], consistency], [*ONE[1:], "--", consistency]]):
        assert run("sample", "--output", f"{i}.npz", *arguments).code == 0
    images = [arrays(f"{i}.npz")["arr_0"] for i in range(3)]
    assert images[0].shape == (1, 16, 16, 1)
    assert np.array_equal(images[0], images[1]) and np.array_equal(images[0], images[2])


def test_class_labels(run, conditional):
    for given, made in (("2", [2, 2, 2, 2]), ("0,2", [0, 2, 0, 2]), ("[1, 0, 2]", [1, 0, 2, 1])):
        run("sample", conditional, "--num-images", 4, "--class-labels", given, "--output", "a.npz")
        assert arrays("a.npz")["arr_1"].tolist() == made


def test_a_distilled_model_takes_the_steps_it_was_distilled_for(run, distilled):
    """Of its own solver, unless the flags say otherwise; a grid in four evaluations an image."""
    outcome = run("sample", distilled, "--num-images", "3", "--output", "own.npz")
    assert outcome.code == 0 and "4 evaluations each" in outcome.out
    model = load_model(Path(distilled))
    plan = DiffusionPlan("progressive", 4, 0.02, 50.0, 5.0)
    (expected,) = generate(model.denoiser, plan, model.image_shape, range(3))
    assert np.array_equal(arrays("own.npz")["arr_0"], expected.permute(0, 2, 3, 1).numpy())
    for given, chosen in (
        ({}, plan),
        ({"steps": 2}, DiffusionPlan("progressive", 2, 0.02, 50.0, 5.0)),
        ({"solver": "euler"}, DiffusionPlan("euler", 4, 0.02, 50.0, 5.0)),
        ({"solver": "heun", "steps": 18}, DiffusionPlan("heun", 18, 0.02, 50.0, 5.0)),
    ):
        assert make_plan(model.info, **given) == chosen
    plain = ModelInfo("diffusion")
    assert make_plan(plain) == DiffusionPlan("heun", 18)
    assert make_plan(plain, solver="progressive", steps=8) == DiffusionPlan("progressive", 8)


def test_noise_levels_in_three_ways(run, consistency):
    """Index 0 of the grid is sigma_max, so these are the same step."""
    for i, flags in enumerate([["--steps", "1"], ["--timesteps", "0"], ["--sigmas", "80"], ["--timesteps", "0,22"]]):
        outcome = run(*ONE, consistency, *flags, "--output", f"{i}.npz")
        assert (outcome.code, "2 evaluations" in outcome.out) == (0, i == 3)
    first, second, third, fourth = (arrays(f"{i}.npz")["arr_0"] for i in range(4))
    assert np.array_equal(first, second) and np.array_equal(first, third)
    assert not np.array_equal(first, fourth)


def test_the_ends_of_the_range_of_seeds(run, consistency):
    for i, seed in enumerate((0, 2**63 - 1)):
        assert run(*ONE, consistency, "--seed", seed, "--output", f"{i}.npz").code == 0
    assert not np.array_equal(arrays("0.npz")["arr_0"], arrays("1.npz")["arr_0"])


def test_more_columns_than_images(run, consistency):
    """No empty places, and above all no picture of a gigabyte."""
    assert run("sample", consistency, "--num-images", 2, "--columns", 10_000).code == 0
    with Image.open("samples.png") as picture:
        assert picture.width / picture.height == pytest.approx((2 * 18 + 2) / (18 + 2))


@pytest.mark.parametrize("name", ["new/folders/a.png", "new/a.npz", "new/folder", "old.png", "dotted.name/", "A.PNG"])
def test_places_that_are_right(run, here, consistency, name):
    (here / "old.png").write_text("replaced")
    assert run(*ONE, consistency, "--output", name).code == 0
    assert (here / name).exists() and (here / name).stat().st_size > 100
    assert not list(here.rglob("*.tmp"))
    folder = (here / name).is_dir()
    assert folder == (name in ("new/folder", "dotted.name/"))
    assert not folder or (here / name / "000000.png").is_file()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere names of files are text")
def test_a_name_that_no_encoding_can_print(run, consistency):
    name = os.fsdecode(b"k\xe4fer.npz")
    outcome = run(*ONE, consistency, "--output", name)
    assert outcome.code == 0
    assert "k\\udce4fer.npz" in outcome.out and os.path.exists(name)


# ------------------------------------------------------------------------------------------------------ wrong arguments

FLAGS = [
    ("--num-imags 3", "--num-imags did you mean --num-images?"),
    ("--numimages=3", "--numimages did you mean --num-images?"),
    ("--Steps 3", "--Steps did you mean --steps?"),
    ("-n 3", "unknown option -n"),
    ("--num-images", "--num-images needs a value"),
    ("--num-images --steps 1", "--num-images needs a value"),
    ("--num-images=", "--num-images '' expected int"),
    ("--num-images 0", "--num-images 0 at least 1"),
    ("--num-images -1", "--num-images -1 at least 1"),
    ("--num-images abc", "--num-images abc expected int"),
    ("--num-images 1.5", "--num-images 1.5 expected int"),
    ("--num-images 1000000000000", "--num-images 1000000000000 at most 10000000"),
    ("--batch-size 0", "--batch-size 0 at least 1"),
    ("--batch-size 1000000000000", "--batch-size 1000000000000 at most"),
    ("--columns 0", "--columns 0 at least 1"),
    ("--columns 1000000000000", "--columns 1000000000000 at most"),
    ("--steps 0", "--steps 0 at least 1"),
    ("--steps -1", "--steps -1 at least 1"),
    ("--steps 1000000000", "--steps 1000000000 at most 10000"),
    ("--steps 40", "steps 40 between 1 and 39"),
    ("--steps two", "--steps two expected int"),
    ("--timesteps 1,22", "timesteps [1, 22] must start with 0"),
    ("--timesteps -1", "timesteps [-1] must start with 0"),
    ("--timesteps 0,22,22", "timesteps [0, 22, 22] must increase"),
    ("--timesteps 0,22,3", "timesteps [0, 22, 3] must increase"),
    ("--timesteps 0,40", "timesteps [0, 40] below 40"),
    ("--timesteps 0,x", "--timesteps 0,x whole numbers separated by commas, as 0,22"),
    ("--timesteps 0,1.5", "--timesteps 0,1.5 whole numbers"),
    ("--timesteps 0,", "--timesteps 0, whole numbers"),
    ("--timesteps=", "--timesteps '' whole numbers"),
    ("--sigmas 1,0.5", "[1, 0.5] must start at sigma_max 80"),
    ("--sigmas 80,90", "[80, 90] descend"),
    ("--sigmas 80,-1", "[80, -1] not fall below 0"),
    ("--sigmas 80,nan", "[80, nan] descend"),
    ("--sigmas x", "--sigmas x numbers separated by commas, as 80,0.8"),
    ("--steps 2 --timesteps 0,22", "--steps and --timesteps exclude each other"),
    ("--timesteps 0 --sigmas 80", "--timesteps and --sigmas exclude each other"),
    ("--solver hun", "--solver hun did you mean heun?"),
    ("--solver euler", "--solver euler is for diffusion models"),
    ("--solver heun", "--solver heun is for diffusion models"),
    ("--rho 7", "--rho 7 for diffusion models leave it out"),
    ("--s-churn 0", "--s-churn 0 for diffusion models leave it out"),
    ("--s-noise 1", "--s-noise 1 for diffusion models leave it out"),
    ("--clip --no-clip", "--clip and --no-clip exclude each other"),
    ("--no-clip=1", "--no-clip takes no value"),
    ("--clip false", "--clip takes no value"),
    ("--no-clib", "--no-clib did you mean --no-clip?"),
    ("--columns 3", "--columns is for a .png grid new/a.npz leave it out"),
    ("--seed abc", "--seed abc expected int"),
    ("--seed -1", "--seed -1 at least 0"),
    ("--seed 9223372036854775808", "--seed 9223372036854775808 at most 9223372036854775807"),
    ("--device abacus", "--device abacus cpu, cuda"),
    ("--device cpu:1", "--device cpu:1"),
    ("another", "unexpected argument another"),
]  # fmt: skip


@pytest.mark.parametrize(("flags", "words"), FLAGS, ids=[flags for flags, _ in FLAGS])
def test_wrong_flags(refused, consistency, flags, words):
    """Files that many images are kept in on their way must not appear either."""
    refused(["sample", consistency, "--output", "new/a.npz", "--num-images", "100", *flags.split()], *words.split())


@pytest.mark.parametrize("given", ["3", "-1", "0,3", "99999999999999999999"])
def test_classes_that_the_model_does_not_have(refused, conditional, given):
    refused([*ONE, conditional, "--class-labels", given], f"--class-labels {given[-20:].split(',')[-1]}", "0 to 2")


@pytest.mark.parametrize("given", ["cat", "1.0", "0,,1", ""])
def test_classes_that_are_no_numbers(refused, conditional, given):
    refused([*ONE, conditional, "--class-labels", given], f"--class-labels {given or repr('')}", "as 0,1,2")


def test_classes_for_a_model_without(refused, consistency):
    refused([*ONE, consistency, "--class-labels", "0"], "--class-labels 0", "no classes", "leave it out")


CHURN = [
    ("--s-churn -1", "--s-churn -1 at least 0"),
    ("--s-churn nan", "--s-churn nan a number"),
    ("--s-churn inf", "--s-churn inf at most"),
    ("--s-min 0.05", "--s-min has no effect without churn --s-churn above 0"),
    ("--s-churn 0 --s-max 50", "--s-max has no effect without churn"),
    ("--s-churn 5 --s-min 3 --s-max 2", "--s-min 3 is above --s-max 2"),
    ("--s-churn 5 --s-min 90", "no noise level of the 5 steps between --s-min 90"),
    ("--s-churn 5 --s-noise 11", "--s-noise 11 at most 10"),
    ("--s-churn 5 --solver euler", "--s-churn is for the solvers heun and dpm2 not for euler"),
    ("--s-noise 1 --solver ancestral", "--s-noise is for the solvers heun and dpm2 not for ancestral"),
    ("--s-churn 5 --solver progressive", "--s-churn is for the solvers heun and dpm2 not for progressive"),
    ("--rho 0", "--rho 0 at least 0.1"),
    ("--rho inf", "--rho inf at most 1000"),
    ("--rho x", "--rho x expected float"),
]


@pytest.mark.parametrize(("flags", "words"), CHURN, ids=[flags for flags, _ in CHURN])
def test_wrong_flags_of_a_solver(refused, diffusion, flags, words):
    refused(["sample", diffusion, "--output", "new/a.npz", "--steps", 5, *flags.split()], *words.split())


def test_a_rho_that_changes_no_level(refused, diffusion):
    for steps in (1, 2):
        refused([*ONE, diffusion, "--steps", steps, "--rho", 3], "--rho 3 has no effect", f"{steps} step")


def test_flags_of_a_solver_change_the_images(run, diffusion):
    """Each of them, and in both ways of writing it."""
    common, made = [*ONE, diffusion, "--steps", 5, "--output"], {}
    for flags in ("", "--rho 3", "--no-clip", "--s-churn 5", "--s_churn=5 --s_min=1", "--s-churn 5 --s-noise 1.2"):
        assert run(*common, f"{len(made)}.npz", *flags.split()).code == 0
        made[flags] = arrays(f"{len(made)}.npz")["arr_0"].tobytes()
    assert len(set(made.values())) == len(made)
    alike = {"--clip": "", "--rho 7": "", "--s-churn 0": "", "--s-churn 5 --s-max inf": "--s-churn 5"}
    for flags, same in alike.items():
        assert run(*common, "again.npz", *flags.split()).code == 0
        assert arrays("again.npz")["arr_0"].tobytes() == made[same]


def test_help_has_both_flags_of_a_switch_that_is_neither_on_nor_off(run):
    assert "--clip, --no-clip" in run("sample", "--help").out


def test_flags_of_the_other_kind_of_model(refused, diffusion):
    for flag, value in (("--timesteps", "0,22"), ("--sigmas", "80")):
        refused([*ONE, diffusion, flag, value], flag, "for consistency models", "--steps")


# -------------------------------------------------------------------------------------------------------- wrong models


def test_models_that_are_none(refused, here):
    (here / "empty").mkdir()
    (here / "photos").mkdir()
    (here / "photos" / "a.png").write_text("an image")
    (here / "file.txt").write_text("mine")
    (here / "begun").mkdir()
    (here / "begun" / "config.yaml").write_text("seed: 0\n")
    for name, words in {
        "nowhere": "nowhere does not exist",
        "empty": "empty not a model folder model_index.json",
        "photos": "photos not a model folder model_index.json",
        "file.txt": "file.txt",
        "begun": "begun is a run without a checkpoint yet; resume its training",
        "": "MODEL is empty",
    }.items():
        refused([*ONE, name], *words.split())


@pytest.mark.parametrize("damaged", ["model_index.json", "unet/config.json", "scheduler/scheduler_config.json"])
def test_a_damaged_model_folder(refused, here, consistency, damaged):
    import shutil

    shutil.copytree(consistency, here / "model")
    (here / "model" / damaged).write_text("{")
    refused([*ONE, "model"], f"model/{damaged}")
    (here / "model" / damaged).unlink()
    refused([*ONE, "model"], "model", "model_index.json" if damaged == "model_index.json" else damaged)


def test_weights_cut_short(refused, here, consistency):
    import shutil

    shutil.copytree(consistency, here / "model")
    weights = here / "model" / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    refused([*ONE, "model"], "model/unet/diffusion_pytorch_model.safetensors")


# -------------------------------------------------------------------------------------------------------- wrong places


@pytest.mark.parametrize("name", ["a.jpg", "a.JPG", "a.pt", "a.npy", "new/a.zip", "run-0.5"])
def test_a_suffix_that_cannot_be_written(refused, consistency, name):
    suffix = name[name.rindex(".") :]
    refused([*ONE, consistency, "--output", name], f"--output {name}", f"cannot write {suffix};", ".png", ".npz")


def test_output_in_the_way(refused, here, consistency):
    for folder in ("folder.png", "folder.npz", "photos"):
        (here / folder).mkdir()
    (here / "photos" / "000000.png").write_text("mine")
    (here / "file").write_text("mine")
    (here / "link").symlink_to("link")
    for name, words in {
        "folder.png": "--output folder.png is a folder; give another name",
        "folder.npz": "--output folder.npz is a folder; give another name",
        "photos": "photos holds 000000.png choose another --output",
        "file": "--output file is a file; give a .png",
        "file/a.png": "cannot write file/a.png file is not a folder; choose another --output",
        "file/new/images": "cannot write file/new/images file is not a folder; choose another --output",
        "link": "--output link",
        "link/a.npz": "cannot write link/a.npz",
        "": "--output is empty",
        "x" * 300 + ".png": "is no path: it is too long; give a shorter one",
    }.items():
        refused([*ONE, consistency, "--output", name], *words.split())


def test_no_permission(refused, here, consistency, monkeypatch):
    """As told by the system, which root has everything permitted by."""
    (here / "theirs").mkdir()
    (here / "old.png").write_text("theirs")
    access = os.access
    monkeypatch.setattr(
        os, "access", lambda path, mode: os.path.basename(path) not in ("theirs", "old.png") and access(path, mode)
    )
    for name in ("theirs/a.png", "theirs/new/a.npz", "theirs/images", "theirs", "old.png"):
        refused([*ONE, consistency, "--output", name], f"cannot write {name}", "no permission", "choose another")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_is_read_only(refused, here, consistency):
    (here / "theirs").mkdir(mode=0o500)
    refused([*ONE, consistency, "--output", "theirs/a.png"], "cannot write theirs/a.png", "no permission")


def test_places_are_looked_at_before_any_work(here):
    (here / "file").write_text("mine")
    for name in ("file", "file/a.png", "a.jpg", ""):
        with pytest.raises(UserError):
            check_output(name)
    for name in ("a.png", "new/a.npz", "images", ".", "new/dotted.name/"):
        assert str(check_output(name)) == name.rstrip("/")
    assert os.listdir(here) == ["file"]


@pytest.mark.parametrize("name", ["old.png", "old.npz"])
def test_a_full_disk_leaves_the_old_file(refused, here, consistency, name, monkeypatch):
    import zipfile

    (here / name).write_text("old")

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    monkeypatch.setattr(zipfile.ZipFile, "open", full)
    monkeypatch.setattr(np, "savez", full)
    refused([*ONE, consistency, "--output", name], f"cannot write {name}: No space left", "choose another --output")


def test_errors_leave_an_old_file(refused, here, consistency):
    (here / "samples.png").write_text("old")
    refused([*ONE, consistency, "--timesteps", "0,99"], "timesteps")
    refused([*ONE, consistency, "--sigmas", "80,90"], "descend")
    refused([*ONE, "nowhere"], "nowhere")
    assert (here / "samples.png").read_text() == "old"


def test_guidance_of_a_diffusion_model(run, saved, here):
    teacher = saved("diffusion", null_label=3, num_class_embeds=4)
    done = run("sample", str(teacher), "--num-images", 2, "--guidance", 2, "--steps", 1, "--output", "a.png")
    assert done.code == 0, done.err
    done = run("sample", "--num-images", 2, "--guidance", 2)
    assert done.code == 2 and "--guidance 2" in done.err and "null class" in done.err
