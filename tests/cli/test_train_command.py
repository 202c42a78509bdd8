import json
import re
import shlex
import subprocess
import sys

import numpy as np
import pytest
import yaml
from PIL import Image

from unistep.cli.train import parse_run
from unistep.config import StageConfig, dump, find_recipe, read_values, recipe_names, run_keys
from unistep.config.values import keys_of
from unistep.training import saving

RECIPE = "mnist-quick"
# Were a wrong argument accepted, this would end the command before it trains.
NO_DATA = ["--data.source", "nowhere"]
# Trains in a second, on the images of `photos`.
TINY = ["--data.source", "photos", "--network.block_out_channels", "[8,8]", "--network.attention_head_dim", "8"]
TINY += [f"--{stage}.{key}" for stage in ("teacher", "student") for key in ("steps=1", "batch_size=2")]


@pytest.fixture
def photos(here):
    """`photos/` with six grey images of 8 x 8 pixels."""
    (here / "photos").mkdir()
    for i, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (6, 8, 8), np.uint8)):
        Image.fromarray(pixels).save(here / "photos" / f"{i}.png")
    return here / "photos"


# ------------------------------------------------------------------------------------------------------------ the help


def test_the_help_shows_the_flags_that_are_changed_most(run):
    """Each with its description, and none that is no flag."""
    shown = run("train", "--help").out
    words = {word.rstrip(",.:;)`") for word in shown.split() if word.startswith("--")} - {"--KEY"}
    wanted = {"--output", "--resume", "--seed", "--data.source", "--student.steps", "--student.optimizer.lr"}
    assert wanted <= words
    for flag in words - {"--help", "--student.objective.help", "--resume", "--dry-run"}:
        outcome = run("train", RECIPE, *NO_DATA, flag)
        assert "unknown option" not in outcome.err, flag
    for key in keys_of(StageConfig):
        assert key.text or key.is_section, key.name


def test_help_of_a_recipe_has_all_of_its_keys(run):
    shown = run("train", RECIPE, "--help")
    assert shown.code == 0
    for key in run_keys(read_values(find_recipe(RECIPE))):
        assert key.is_section or f"--{key.name.replace('_', '-')} " in shown.out, key.name
    text = " ".join(shown.out.split())
    assert "(default: 1200)" in text and "(default: 0.0005)" in text  # the recipe's


@pytest.mark.parametrize("section", ["student", "student.objective", "teacher.optimizer", "network", "data"])
def test_help_of_a_section(run, section):
    shown = run("train", RECIPE, f"--{section}.help")
    assert shown.code == 0
    flags = re.findall(r"^  (--\S+)", shown.out, re.MULTILINE)
    assert flags and all(flag.startswith(f"--{section}.") for flag in flags)


def test_help_of_no_section(refused):
    refused(["train", RECIPE, "--student.objectiv.help"], "did you mean --student.objective.help?")


def test_help_is_quick_to_be_there():
    """Without torch, which takes seconds to import."""
    code = (
        "import runpy, sys\n"
        "for words in (['train', '--help'], ['recipes'], ['recipes', 'mnist-quick']):\n"
        "    sys.argv = ['unistep', *words]\n"
        "    try:\n"
        "        runpy.run_module('unistep', run_name='__main__')\n"
        "    except SystemExit:\n"
        "        pass\n"
        "    assert 'torch' not in sys.modules, words\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# -------------------------------------------------------------------------------------------------------- the arguments


@pytest.mark.parametrize("arguments", [[], ["--seed", "1"], ["--output", "x"], ["--"]])
def test_no_recipe(refused, arguments):
    refused(["train", *arguments], "unistep train RECIPE", "unistep train --resume RUN")


@pytest.mark.parametrize("name", ["output", "teacher"])
def test_an_empty_path(refused, name):
    refused(["train", "mnist-quick", f"--{name}", ""], f"--{name} is empty; give a path, or leave it out")


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("mnist-quik", "'mnist-quik' did you mean mnist-quick? `unistep recipes`"),
        ("MNIST-QUICK", "'MNIST-QUICK' did you mean mnist-quick?"),
        ("xyzzy", "'xyzzy' `unistep recipes`"),
        ("", "'' `unistep recipes`"),
        ("mnist-quick.yaml", "mnist-quick.yaml does not exist"),
        ("folder/mine.yml", "folder/mine.yml does not exist"),
    ],
)
def test_a_mistyped_recipe(refused, typed, words):
    refused(["train", typed], *words.split())


FLAGS = [
    ("--steps 3", "--steps did you mean --teacher.steps or --student.steps?"),
    ("--lr 3", "--lr did you mean --teacher.optimizer.lr or --student.optimizer.lr?"),
    ("--batch-size 3", "--batch-size did you mean --teacher.batch-size or --student.batch-size?"),
    ("--batch_size 3", "--batch-size did you mean --teacher.batch-size or --student.batch-size?"),
    ("--epochs 3", "--epochs did you mean --teacher.steps or --student.steps?"),
    ("--guidance 3", "--guidance did you mean --student.objective.guidance?"),
    ("--teachr.steps 3", "--teachr.steps did you mean --teacher.steps?"),
    ("--teacher.optimiser.lr 3", "--teacher.optimiser.lr did you mean --teacher.optimizer.lr?"),
    ("--student.objective.pair mapping", "did you mean --student.objective.pairs?"),
    ("--Teacher.Steps=3", "--Teacher.Steps did you mean --teacher.steps?"),
    ("--data.skip-bd true", "did you mean --data.skip-bad?"),
    ("--teacher.steps", "--teacher.steps needs a value"),
    ("--description --seed 1", "--description needs a value"),
    ("--config other.yaml", "unknown option --config"),
    ("extra words", "unexpected argument extra"),
    ("--teacher.steps abc", "--teacher.steps abc expected int"),
    ("--teacher.steps 1.5", "--teacher.steps 1.5 expected int"),
    ("--teacher.steps 0", "--teacher.steps 0 at least 1"),
    ("--student.steps -3", "--student.steps -3 at least 1"),
    ("--student.batch_size 0", "--student.batch-size 0 at least 1"),
    ("--teacher.accumulation 7", "batch_size 64 7 multiple of 7"),
    ("--teacher.optimizer.lr -1", "--teacher.optimizer.lr -1.0 must be positive"),
    ("--teacher.optimizer.lr fast", "--teacher.optimizer.lr fast expected float"),
    ("--teacher.optimizer.name adma", "--teacher.optimizer.name adma radam, adamw did you mean"),
    ("--teacher.optimizer.betas 1", "--teacher.optimizer.betas [1] expected 2 numbers separated by commas"),
    ("--teacher.optimizer.betas [0.9]", "--teacher.optimizer.betas [0.9] expected 2 numbers"),
    ("--teacher.optimizer 3", "--teacher.optimizer 3 keys of its own --teacher.optimizer.name"),
    ("--teacher.optimizer {nme:3}", "unknown key teacher.optimizer.nme:3 did you mean teacher.optimizer.name?"),
    ("--teacher {step:3}", "unknown key teacher.step:3 did you mean teacher.steps?"),
    ("--teacher.objective.P_std -1", "--teacher.objective.P-std -1.0 must not be negative"),
    ("--student.objective.pairs mappng", "--student.objective.pairs mappng did you mean mapping?"),
    ("--student.objective.rho 0", "--student.objective.rho 0.0 must be positive"),
    ("--student.objective.huber_c -1", "--student.objective.huber-c -1.0 must not be negative"),
    ("--student.timesteps 0,x", "--student.timesteps x expected whole numbers separated by commas or null"),
    ("--student.timesteps 1,22", "--student.timesteps [1, 22] must start with 0"),
    ("--student.timesteps [0,22,22]", "--student.timesteps [0, 22, 22] must increase"),
    ("--student.timesteps [0,40]", "--student.timesteps [0, 40] below 40"),
    ("--student nowhere.yaml", "--student nowhere.yaml keys of its own --student.steps"),
    ("--seed abc", "--seed abc expected int"),
    ("--seed -1", "--seed -1 must be at least 0"),
    ("--seed 9223372036854775808", "--seed 9223372036854775808 must be at most 9223372036854775807"),
    ("--precision fp17", "--precision fp17 did you mean fp16?"),
    ("--sigma_data 0", "--sigma-data 0.0 must be positive"),
    ("--use_labels maybe", "--use-labels maybe expected true or false"),
    ("--teacher null --student.method cd", "--student.method cd needs a teacher"),
    ("--student.teacher student", "--student.teacher student is not an earlier stage"),
    ("--data.channels 2", "--data.channels 2 give 1 3"),
    ("--data.resolution 0", "--data.resolution 0 1 pixel or more"),
    ("--network.norm_num_groups 7", "norm_num_groups 7"),
    ("--network.block_out_channels [64]", "--network.block-out-channels same length"),
    ("--network.name sing", "--network.name sing did you mean song?"),
    ("--student.method etc", "--student.method etc did you mean ect?"),
    ("--skip-to student", "--skip-to is for a run that has begun --resume"),
]  # fmt: skip


@pytest.mark.parametrize(("flags", "words"), FLAGS, ids=[flags for flags, _ in FLAGS])
def test_wrong_flags(refused, flags, words):
    refused(["train", RECIPE, *NO_DATA, *flags.split()], *words.split())


@pytest.mark.parametrize(("flags", "nearest"), [("{steps: 3, stepz: 4}", "steps"), ("{optimizer: {nme: 3}}", "name")])
def test_an_unknown_key_within_a_flag(refused, flags, nearest):
    words = "unknown key teacher.", "did you mean teacher.", f"{nearest}?"
    refused(["train", RECIPE, *NO_DATA, "--teacher", flags], *words)
    refused(["train", RECIPE, *NO_DATA, "--student", flags], *(word.replace("teacher", "student") for word in words))


@pytest.mark.parametrize("flag", ["--use_labels", "--use-labels"])
def test_dashes_and_underscores_are_the_same(here, flag):
    assert not parse_run([RECIPE, flag, "false"])[0].use_labels
    assert not parse_run([RECIPE, f"{flag}=false"])[0].use_labels
    assert parse_run([RECIPE])[0].use_labels


def test_a_switch_may_stand_alone(here):
    assert parse_run([RECIPE, "--data.flip", "--seed", "3"])[0].data.flip


def test_data_and_its_keys_go_together(here):
    for flags in (["--data", "photos", "--data.resolution", "8"], ["--data", "{source: photos, resolution: 8}"]):
        data = parse_run([RECIPE, *flags])[0].data
        assert (data.source, data.resolution) == ("photos", 8)


def test_the_keys_of_the_teacher_in_braces(here):
    config, _ = parse_run([RECIPE, "--teacher", "{steps: 3, batch_size: 4}", "--teacher.batch-size", "5"])
    assert (config.stages[0].steps, config.stages[0].batch_size) == (3, 5)


# --------------------------------------------------------------------------------------------------------- recipe files

STAGES = "stages:\n  teacher: {method: edm}\n  student: {method: ect, init: teacher}\n"
LONE = "stages:\n  teacher:\n    method: edm\n"
FILES = {
    "a nested key": (LONE + "    optimizer: {nme: adamw}\n", "teacher.optimizer.nme teacher.optimizer.name?"),
    "a key of the top": ("stagse: {}\n", "stagse did you mean stages?"),
    "a wrong type": (LONE + "    optimizer: {lr: fast}\n", "--teacher.optimizer.lr fast expected float"),
    "out of range": (LONE + "    steps: -3\n", "--teacher.steps -3 at least 1"),
    "a value for a section": (LONE + "    optimizer: 3\n", "teacher.optimizer 3 keys teacher.optimizer.name"),
    "a value for the network": (STAGES + "network: small\n", "--network 'small' keys --network.name"),
    "a number as a key": ("1: 3\n", "unknown key 1"),
    "no stage": ("seed: 3\n", "nothing to train"),
    "a list": ("- teacher\n", "mine.yaml `key: value`"),
    "text": ("teacher", "mine.yaml `key: value`"),
    "nothing": ("", "mine.yaml `key: value`"),
    "only a comment": ("# later\n", "mine.yaml `key: value`"),
    "an open bracket": ("teacher:\n  optimizer: {lr: [1\n", "mine.yaml not readable YAML line"),
    "a tab": ("teacher:\n\tsteps: 3\n", "mine.yaml not readable YAML line 2"),
    "two documents": ("seed: 1\n---\nseed: 2\n", "mine.yaml not readable YAML line 2"),
    "bytes": (bytes(range(256)), "mine.yaml not readable YAML"),
    "a picture": (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "mine.yaml not readable YAML"),
    "a program": ("seed: !!python/object/apply:os.mkdir ['made']\n", "mine.yaml not readable YAML line 1"),
}


@pytest.mark.parametrize(("text", "words"), FILES.values(), ids=FILES)
def test_wrong_recipe_files(refused, here, text, words):
    (here / "mine.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    refused(["train", "mine.yaml", *NO_DATA], *words.split())
    refused(["recipes", "mine.yaml"], *words.replace("--", "").split())


def test_a_folder_and_another_file_are_no_recipe(refused, here):
    (here / "folder.yaml").mkdir()
    (here / "recipe.txt").write_text(STAGES)
    refused(["train", "folder.yaml"], "folder.yaml does not exist")
    refused(["train", "recipe.txt"], "recipe.txt is a file", ".yaml")


# ------------------------------------------------------------------------------------------------------------- the data


def test_data_that_is_not_there(refused, here, photos):
    refused(["train", RECIPE, "--data.source", "nowhere"], "nowhere: there is no such file")
    refused(["train", RECIPE, "--data.source", "mnits"], "mnits", "did you mean mnist?")
    refused(["train", RECIPE, "--data.source", "photo"], "photo", "did you mean photos?")
    refused(["train", RECIPE, "--data.source", ""], "the name of the dataset is empty")


def test_data_that_is_none(refused, here):
    (here / "empty").mkdir()
    (here / "text.txt").write_text("no image")
    (here / "fake.npz").write_text("no archive")
    refused(["train", RECIPE, "--data.source", "empty"], "empty: no images")
    refused(["train", RECIPE, "--data.source", "text.txt"], "text.txt", "folder of images, a .zip or an .npz")
    refused(["train", RECIPE, "--data.source", "fake.npz"], "fake.npz", "damaged")


def test_a_broken_image_is_named(refused, photos):
    (photos / "3.png").write_bytes(b"not an image")
    refused(["train", RECIPE, *TINY], "photos/3.png", "`skip_bad=True`")


def test_images_that_do_not_fit_the_network(refused, photos):
    refused(["train", RECIPE, *TINY, "--data.resolution", "6"], "6 is not a multiple of 4", "--data.resolution")
    Image.new("L", (8, 4)).save(photos / "wide.png")
    refused(["train", RECIPE, *TINY], "photos", "resolution")


def test_a_teacher_that_does_not_fit(refused, photos, model_folder):
    flags = ["train", RECIPE, *TINY[:-4], "--teacher"]
    refused([*flags, "nowhere"], "nowhere does not exist")
    refused([*flags, "photos"], "photos is not a model folder")
    consistency = [*flags, model_folder("consistency"), "--student.method", "cd"]
    refused(consistency, "is a consistency model; give a diffusion model")
    refused([*flags, model_folder("diffusion")], "(1, 16, 16), the data (1, 8, 8)")


# --------------------------------------------------------------------------------------------------- the run directory


@pytest.fixture
def begun(here):
    """`begun/`, a run that was broken off at once."""
    (here / "begun").mkdir()
    (here / "begun" / "config.yaml").write_text(dump(parse_run([RECIPE, *TINY])[0]))
    return here / "begun"


def test_output_in_the_way(refused, here, photos):
    (here / "file").write_text("mine")
    flags = ["train", RECIPE, *TINY, "--output"]
    refused([*flags, "file"], "file exists and is not a run directory", "choose another --output")
    refused([*flags, "file/run"], "cannot write file/run", "choose another --output")
    refused([*flags, "photos"], "photos exists and is not a run directory", "choose another --output")


def test_output_of_another_run(refused, photos, begun):
    line = refused(
        ["train", RECIPE, *TINY, "--seed", "1", "--output", "begun"],
        "begun holds a run with another config: seed 0 instead of 1;",
    )
    assert "choose another --output, --resume it, or delete it" in line
    (begun / "config.yaml").write_bytes(bytes(range(256)))
    refused(["train", RECIPE, *TINY, "--output", "begun"], "begun holds a run with another config")


def test_resume_of_nothing(refused, here):
    (here / "empty").mkdir()
    (here / "file").write_text("mine")
    for name in ("nowhere", "empty", "file"):
        refused(["train", "--resume", name], f"{name} is not a run directory", f"{name}/config.yaml is missing")
    for arguments in (["--resume="], ["--resume", ""]):
        refused(["train", *arguments], "--resume needs a run directory: unistep train --resume RUN")
    refused(["train", "--resume"], "--resume needs a value")


def test_resume_below_the_home_folder(refused, here, monkeypatch):
    monkeypatch.setenv("HOME", str(here / "home"))
    refused(["train", "--resume", "~/run"], f"{here}/home/run is not a run directory")


def test_resume_stands_without_a_recipe(refused, begun):
    for arguments in (["--resume=begun", "x"], [RECIPE, "--resume", "begun"]):
        refused(["train", *arguments], "--resume stands without a recipe: unistep train --resume RUN")
    refused(["train", "--resume", "begun", "--output", "x"], "--output is for a new run")


def test_resume_of_a_config_that_is_none(refused, begun):
    for text in ("stages: {teacher: {method: edm, stepz: 3}}\n", "teacher: {stepz: 3}\n"):
        (begun / "config.yaml").write_text(text)
        line = "begun/config.yaml: unknown key teacher.stepz; did you mean teacher.steps?"
        refused(["train", "--resume", "begun"], line)
    (begun / "config.yaml").write_text("")
    refused(["train", "--resume=begun"], "begun/config.yaml must hold `key: value` lines")


def test_train_and_resume(run, photos, begun):
    """A comment in its config makes the run no other one; a finished run is not trained again."""
    config = begun / "config.yaml"
    config.write_text("# mine\n" + config.read_text())
    outcome = run("train", "--resume", "begun")
    assert outcome.code == 0, outcome.err
    assert "done: begun/student/model" in outcome.out
    assert "unistep sample begun" in outcome.out
    assert config.read_text().startswith("# mine\n")
    again = run("train", "--resume=begun")
    assert (again.code, again.err.count("finished before")) == (0, 2)


def test_resume_with_changes(run, refused, photos, begun):
    """They are written down; a stage that has ended goes on where it is made longer."""
    assert run("train", "--resume", "begun").code == 0
    refused(["train", "--resume", "begun", "--seed", "1"], "--seed 1: the run has 0, and all its stages share it")
    refused(
        ["train", "--resume", "begun", "--network.norm_num_groups", "4"], "--network.norm-num-groups 4: the run has"
    )
    outcome = run("train", "--resume", "begun", "--student.steps", "3", "--student.optimizer.lr", "1e-4")
    assert outcome.code == 0 and "student: resuming after step 1 of 3" in outcome.err
    held = yaml.safe_load((begun / "config.yaml").read_text())["stages"]["student"]
    assert (held["steps"], held["optimizer"]["lr"]) == (3, 1e-4)
    (entry,) = map(json.loads, (begun / "history.jsonl").read_text().splitlines())
    assert entry["changed"] == {"student.steps": [1, 3], "student.optimizer.lr": [5e-4, 1e-4]}
    lines = [json.loads(line) for line in (begun / "student" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 3]


def test_the_way_out_of_a_divergence_runs_as_it_is_printed(run, photos):
    flags = ["--teacher.optimizer.lr", "1e30", "--teacher.max-skipped", "2", "--teacher.steps", "9"]
    stopped = run("train", RECIPE, *TINY[:-4], *TINY[-2:], "--teacher.batch_size=2", *flags, "--output", "my run")
    assert stopped.code == 2 and "Traceback" not in stopped.err
    line = stopped.err.splitlines()[-1]
    assert line.startswith("unistep: error: teacher diverged by step ")
    program, *words = shlex.split(line[line.index("unistep train --resume") :])
    assert words == ["train", "--resume", "my run", "--teacher.optimizer.lr", "0.0001"]
    assert run(*words).code == 0
    entry = json.loads((photos.parent / "my run" / "history.jsonl").read_text())
    assert entry["changed"] == {"teacher.optimizer.lr": [1e30, 0.0001]}


def test_a_stage_is_ended_early(run, refused, photos, begun):
    """Its newest checkpoint is its model, and the run keeps to that."""
    flags = ["--teacher.steps", "50", "--teacher.checkpoint-every", "1"]
    refused(["train", "--resume", "begun", "--skip-to", "student"], "--skip-to student", "teacher has no checkpoint")
    save_checkpoint = saving.save_checkpoint

    def killed_at_two(folder, step, *arguments):
        save_checkpoint(folder, step, *arguments)
        if step == 2:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(saving, "save_checkpoint", killed_at_two)
        assert run("train", "--resume", "begun", *flags).code == 130
    outcome = run("train", "--resume", "begun", "--skip-to", "student")
    assert outcome.code == 0, outcome.err
    assert (begun / "teacher" / "model").is_dir() and (begun / "student" / "model").is_dir()
    assert yaml.safe_load((begun / "config.yaml").read_text())["stages"]["teacher"]["steps"] == 2
    assert run("train", "--resume", "begun").err.count("finished before") == 2


def test_the_diffusion_model_of_a_run_is_the_teacher(run, photos, begun):
    """Not the student, which the run ends with."""
    assert run("train", "--resume", "begun").code == 0
    flags = ["train", "mnist-cd", *TINY[:2], "--student.steps=1", "--student.batch-size=2"]
    flags += ["--network.block_out_channels", "[8,8]", "--network.attention_head_dim", "8", "--noise-embedding=adm"]
    outcome = run(*flags, "--teacher", "begun", "--output", "cd")
    assert outcome.code == 0, outcome.err
    assert yaml.safe_load((begun.parent / "cd" / "config.yaml").read_text())["stages"].keys() == {"student"}
    assert "teacher: begun/teacher" in (begun.parent / "cd" / "config.yaml").read_text()


# ---------------------------------------------------------------------------------------------------------- --dry-run


def test_a_dry_run_tells_and_writes_nothing(run, here):
    """In 80 columns, without the data."""
    outcome = run("train", RECIPE, *TINY, "--data.source", "nowhere", "--data.resolution=8", "--dry-run")
    assert outcome.code == 0, outcome.err
    for words in ("easy consistency", "one evaluation", "optimizer, its moments", "images a second", "in all"):
        assert words in outcome.out
    assert max(map(len, outcome.out.splitlines())) <= 80
    assert not set(outcome.out) & {"\x1b", "…"}
    assert list(here.iterdir()) == []


@pytest.mark.parametrize("flag", ["--dry-run", "--dry_run"])
def test_a_dry_run_of_a_run_to_resume(refused, begun, flag):
    for arguments in (["--resume", "begun", flag], [flag, "--resume=begun"]):
        refused(["train", *arguments], "--dry-run and --resume exclude each other")


def test_a_dry_run_of_what_does_not_fit(refused):
    refused(["train", RECIPE, "--data.resolution", "9", "--dry-run"], "network", "sample_size 9", "data.resolution")
    lone = ["--network", "null", "--teacher", "absent.pkl"]
    refused(["train", RECIPE, *lone, "--dry-run"], "absent.pkl", "not here", "--network")


# ----------------------------------------------------------------------------------------------------- unistep recipes


def test_recipes_lists_all(run):
    lines = run("recipes").out.splitlines()
    assert [line.split()[0] for line in lines] == recipe_names()
    assert RECIPE in recipe_names()
    for line in lines:
        name, description = line.split(maxsplit=1)
        assert description == yaml.safe_load(find_recipe(name).read_text())["description"]


@pytest.mark.parametrize("name", recipe_names())
def test_recipes_prints_one(run, name):
    assert run("recipes", name).out == find_recipe(name).read_text()


def test_wrong_arguments_of_recipes(refused):
    refused(["recipes", "mnist-quik"], "'mnist-quik'", "did you mean mnist-quick?")
    refused(["recipes", RECIPE, "mnist-ect"], "unexpected argument mnist-ect")
