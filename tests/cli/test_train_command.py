import numpy as np
import pytest
import yaml
from PIL import Image

from unistep.cli.train import parse_run
from unistep.config import dump, find_recipe, recipe_names

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


def test_help_of_the_stages(run):
    """They have keys that `train --help` does not list."""
    for stage in ("teacher", "student"):
        outcome = run("train", f"--{stage}.help")
        assert outcome.code == 0
        assert f"--{stage}.optimizer.lr" in outcome.out


def test_every_flag_in_the_help_is_one(run):
    """What is only the parser's own, such as --config, is not shown."""
    words = run("train", "--help").out.split()
    flags = {word.rstrip(",.`") for word in words if word.startswith("--") and word != "--key"}
    assert {"--output", "--resume", "--seed", "--data.source", "--network.help"} <= flags
    for flag in flags:
        if flag.endswith("help"):
            continue
        outcome = run("train", flag)  # without a recipe
        assert "unknown option" not in outcome.err


# -------------------------------------------------------------------------------------------------------- the arguments


@pytest.mark.parametrize("arguments", [[], ["--seed", "1"], ["--output", "x"], ["--"]])
def test_no_recipe(refused, arguments):
    refused(["train", *arguments], "unistep train RECIPE", "unistep train --resume RUN")


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
    ("--steps 3", "--steps did you mean --teacher.steps?"),
    ("--teachr.steps 3", "--teachr.steps did you mean --teacher.steps?"),
    ("--teacher.optimiser.lr 3", "--teacher.optimiser.lr did you mean --teacher.optimizer.lr?"),
    ("--student.objective.pair mapping", "did you mean --student.objective.pairs?"),
    ("--Teacher.Steps=3", "--Teacher.Steps did you mean --teacher.steps?"),
    ("--data.skip-bd true", "did you mean --data.skip_bad?"),
    ("--teacher.steps", "--teacher.steps needs a value"),
    ("--description --seed 1", "--description needs a value"),
    ("--config other.yaml", "unknown option --config"),
    ("extra words", "unexpected argument extra words"),
    ("--teacher.steps abc", "--teacher.steps abc expected int"),
    ("--teacher.steps 1.5", "--teacher.steps 1.5 expected int"),
    ("--teacher.steps 0", "teacher steps 0 at least 1"),
    ("--student.steps -3", "student steps -3 at least 1"),
    ("--student.batch_size 0", "student batch_size 0 at least 1"),
    ("--teacher.accumulation 7", "batch_size 64 7 multiple of 7"),
    ("--teacher.optimizer.lr -1", "teacher lr -1.0 must be positive"),
    ("--teacher.optimizer.lr fast", "--teacher.optimizer.lr fast expected float"),
    ("--teacher.optimizer.name adma", "--teacher.optimizer.name adma radam, adamw did you mean"),
    ("--teacher.optimizer.betas 1", "--teacher.optimizer.betas 1 expected list in brackets"),
    ("--teacher.optimizer.betas [0.9]", "--teacher.optimizer.betas [0.9] 2 elements"),
    ("--teacher.optimizer 3", "--teacher.optimizer 3 keys of its own --teacher.optimizer.name"),
    ("--teacher.optimizer {nme:3}", "--teacher.optimizer {nme:3} keys of its own"),
    ("--teacher {step:3}", "--teacher {step:3} keys of its own --teacher.steps"),
    ("--teacher.objective.P_std -1", "P_std -1.0 must not be negative"),
    ("--student.objective.pairs mappng", "--student.objective.pairs mappng did you mean mapping?"),
    ("--student.objective.rho 0", "student rho 0.0 must be positive"),
    ("--student.objective.huber_c -1", "student huber_c -1.0 must not be negative"),
    ("--student.timesteps 0,22", "--student.timesteps 0,22 list of int or null in brackets"),
    ("--student.timesteps [1,22]", "student timesteps [1, 22] must start with 0"),
    ("--student.timesteps [0,22,22]", "student timesteps [0, 22, 22] must increase"),
    ("--student.timesteps [0,40]", "student timesteps [0, 40] below 40"),
    ("--student nowhere.yaml", "--student nowhere.yaml keys of its own --student.steps"),
    ("--seed abc", "--seed abc expected int"),
    ("--seed -1", "seed -1 between 0 and 9223372036854775807"),
    ("--seed 9223372036854775808", "seed 9223372036854775808 between 0 and 9223372036854775807"),
    ("--precision fp17", "--precision fp17 did you mean fp16?"),
    ("--sigma_data 0", "sigma_data 0.0 must be positive"),
    ("--use_labels maybe", "--use_labels maybe expected bool"),
    ("--teacher null", "student.from_teacher needs a teacher"),
    ("--teacher_model x", "teacher and teacher_model exclude each other"),
    ("--data photos", "--data photos keys of its own --data.source"),
    ("--data.channels 2", "data.channels 2 give 1 3"),
    ("--data.resolution 0", "data.resolution 0 1 pixel or more"),
    ("--network.norm_num_groups 7", "norm_num_groups 7"),
    ("--network.block_out_channels [64]", "block_out_channels same length"),
]  # fmt: skip


@pytest.mark.parametrize(("flags", "words"), FLAGS, ids=[flags for flags, _ in FLAGS])
def test_wrong_flags(refused, flags, words):
    refused(["train", RECIPE, *NO_DATA, *flags.split()], *words.split())


@pytest.mark.parametrize(("flags", "nearest"), [("{steps: 3, stepz: 4}", "steps"), ("{optimizer: {nme: 3}}", "name")])
def test_an_unknown_key_within_a_flag(refused, flags, nearest):
    refused(
        ["train", RECIPE, *NO_DATA, "--teacher", flags], "unknown key teacher.", "did you mean teacher.", f"{nearest}?"
    )


@pytest.mark.parametrize("flag", ["--use_labels", "--use-labels"])
def test_dashes_and_underscores_are_the_same(here, flag):
    assert not parse_run([RECIPE, flag, "false"])[0].use_labels
    assert not parse_run([RECIPE, f"{flag}=false"])[0].use_labels
    assert parse_run([RECIPE])[0].use_labels


# --------------------------------------------------------------------------------------------------------- recipe files

STAGES = "teacher: {}\nstudent: {}\n"
FILES = {
    "a nested key": ("teacher:\n  optimizer:\n    nme: adamw\n", "teacher.optimizer.nme teacher.optimizer.name?"),
    "a key of the top": ("teachr: {}\n", "teachr did you mean teacher?"),
    "a wrong type": ("teacher:\n  optimizer:\n    lr: fast\n", "--teacher.optimizer.lr fast expected float"),
    "out of range": ("teacher:\n  steps: -3\n", "teacher steps -3 at least 1"),
    "a value for a section": ("teacher: 3\n", "teacher 3 keys teacher.steps"),
    "a value for the network": (STAGES + "network: small\n", "network 'small' keys network.sample_size"),
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
    if "YAML" in words or "unknown key" in words:
        refused(["recipes", "mine.yaml"], *words.split())


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
    refused(["train", RECIPE, *TINY, "--data.resolution", "6"], "6 is not a multiple of 4", "data.resolution")
    Image.new("L", (8, 4)).save(photos / "wide.png")
    refused(["train", RECIPE, *TINY], "photos", "resolution")


def test_a_teacher_that_does_not_fit(refused, photos, model_folder):
    flags = ["train", RECIPE, *TINY[:-4], "--teacher", "null", "--teacher_model"]
    refused([*flags, "nowhere"], "nowhere does not exist")
    refused([*flags, "photos"], "photos is not a model folder")
    refused([*flags, model_folder("consistency")], "is a consistency model; give a diffusion model")
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
        ["train", RECIPE, *TINY, "--seed", "1", "--output", "begun"], "begun holds a run with another config"
    )
    assert "choose another --output" in line
    (begun / "config.yaml").write_bytes(bytes(range(256)))
    refused(["train", RECIPE, *TINY, "--output", "begun"], "begun holds a run with another config")


def test_resume_of_nothing(refused, here):
    (here / "empty").mkdir()
    (here / "file").write_text("mine")
    for name in ("nowhere", "empty", "file"):
        refused(["train", "--resume", name], f"{name} is not a run directory", f"{name}/config.yaml is missing")
    for arguments in (["--resume"], ["--resume="], ["--resume", ""]):
        refused(["train", *arguments], "--resume needs a run directory: unistep train --resume RUN")


def test_resume_stands_alone(refused, begun):
    for arguments in (["--resume", "begun", "--seed", "1"], ["--resume=begun", "x"], [RECIPE, "--resume", "begun"]):
        refused(["train", *arguments], "--resume RUN stands alone")


def test_resume_of_a_config_that_is_none(refused, begun):
    (begun / "config.yaml").write_text("teacher: {stepz: 3}\n")
    refused(["train", "--resume", "begun"], "begun/config.yaml: unknown key teacher.stepz; did you mean teacher.steps?")
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
    assert (again.code, again.out.count("finished before")) == (0, 2)


# ---------------------------------------------------------------------------------------------------------- --dry-run


def test_a_dry_run_tells_and_writes_nothing(run, here):
    """In 80 columns, without the data."""
    outcome = run("train", RECIPE, *TINY, "--data.source", "nowhere", "--data.resolution=8", "--dry-run")
    assert outcome.code == 0, outcome.err
    for words in ("easy consistency", "one evaluation", "optimizer, two moments", "images a second", "in all"):
        assert words in outcome.out
    assert max(map(len, outcome.out.splitlines())) <= 80
    assert not set(outcome.out) & {"\x1b", "…"}
    assert list(here.iterdir()) == []


@pytest.mark.parametrize("flag", ["--dry-run", "--dry_run"])
def test_a_dry_run_of_a_run_to_resume(refused, flag):
    for arguments in (["--resume", "begun", flag], [flag, "--resume=begun"], [RECIPE, flag, "--resume", "begun"]):
        refused(["train", *arguments], "--dry-run and --resume exclude each other")


def test_a_dry_run_of_what_does_not_fit(refused):
    refused(["train", RECIPE, "--data.resolution", "9", "--dry-run"], "network", "sample_size 9", "data.resolution")
    lone = ["--teacher", "null", "--network", "null", "--teacher_model", "absent.pkl"]
    refused(["train", RECIPE, *lone, "--dry-run"], "teacher_model absent.pkl", "not here", "song.*")


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
    refused(["recipes", RECIPE, "mnist-ect"], "recipes takes one name, not 2")
