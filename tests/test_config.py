import dataclasses
import json
import typing
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from unistep.cli.train import parse_run
from unistep.config import RunConfig, completed, config_keys, dump, find_recipe, recipe_names
from unistep.errors import UserError

# Values that text may spoil: small and whole floats, one-element and long tuples, text that looks like something else.
ODD = """
description: "yes: #1, 'quoted'"
seed: 4294967295
precision: fp32
sigma_data: 1.0
use_labels: false
data: {source: "0123", resolution: 32, channels: 1, flip: true, memory_limit: 0, cache_dir: "1.5"}
network:
  block_out_channels: [32]
  down_block_types: [DownBlock2D]
  up_block_types: [UpBlock2D]
  attention_head_dim: null
  norm_eps: 1.0e-12
teacher_model: "007"
student:
  ema_decays: [0.9, 0.99, 0.0]
  optimizer: {lr: 1e-7, betas: [0.0, 0.5], clip_grad_norm: 1}
  objective: {step: euler, weighting: 1/(t-r), huber_c: 0, P_mean: 1}
  timesteps: [0]
"""
TEXTS = {
    "odd": ODD,
    "teacher only": "teacher: {}",
    "student only": "student: {from_teacher: false}",
    "both": "teacher: {}\nstudent: {}",
} | {name: find_recipe(name).read_text() for name in recipe_names()}


@pytest.fixture
def parse(tmp_path):
    """parse(text, *flags): the config that `unistep train` makes of a recipe."""

    def run(text: str, *flags: str) -> RunConfig:
        path = tmp_path / "recipe.yaml"
        path.write_text(text)
        return parse_run([str(path), *flags])[0]

    return run


def sections(config: object, name: str = "config") -> Iterator[tuple[str, object]]:
    yield name, config
    for f in dataclasses.fields(config):  # pyright: ignore
        if dataclasses.is_dataclass(value := getattr(config, f.name)):
            yield from sections(value, f"{name}.{f.name}")


def leaves(values: dict, prefix: str = "") -> Iterator[tuple[str, typing.Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_dump_is_read_back_unchanged(parse, text):
    """Else `--resume` would take the run for another."""
    config = parse(text)
    again = parse(dump(config))
    assert again == config
    assert dump(again) == dump(config)  # 1 and 1.0 are equal, their texts are not


def test_what_the_text_says_is_what_the_config_holds(parse):
    found = dict(leaves(yaml.safe_load(dump(parse(ODD)))))
    said = dict(leaves(yaml.safe_load(ODD)))
    assert {key: found[key] for key in said} == said | {"student.optimizer.lr": 1e-7}  # YAML 1.1 reads 1e-7 as text


@pytest.mark.parametrize("text", [ODD, TEXTS["teacher only"], TEXTS["cifar10-ct"]])
def test_a_dump_of_before_a_key_was_known_is_completed(parse, text):
    """Any key may be new one day, that of a section or within one; what is there is left as it is."""
    whole = yaml.safe_load(dump(parse(text)))
    assert completed(whole) == whole
    count = len(list(leaves(whole)))
    bare = yaml.safe_load(dump(parse("teacher: {}\nstudent: {}")))
    for key, value in list(leaves(whole)):
        *path, last = key.split(".")
        section, default = whole, bare
        for name in path:
            section, default = section[name], (default or {}).get(name)
        if default is not None and default.get(last, ...) == value:
            del section[last]
    assert len(list(leaves(whole))) < count - 20
    del whole["evaluation"]  # a section as a whole
    assert completed(whole) == yaml.safe_load(dump(parse(text)))


def test_which_stage_is_measured(parse):
    both = "teacher: {}\nstudent: {}\n"
    assert parse(both).evaluated is None
    assert parse(both, "--evaluate-every", "5").evaluated == "student"
    assert parse("teacher: {}\nevaluate_every: 5").evaluated == "teacher"


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_can_be_given_as_flags(parse, name):
    """Every key is a flag, in every section, and a flag leaves its neighbours alone."""
    config = parse(TEXTS[name])
    values = {key: value for key, value in leaves(yaml.safe_load(dump(config))) if value is not None}
    flags = [f"--{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in values.items()]
    sections = "\n".join(f"{name}: {{}}" for name in ("teacher", "student") if getattr(config, name) is not None)
    assert parse(sections, *flags) == config


def test_a_flag_overrides_the_recipe_and_nothing_else(parse):
    config = parse(TEXTS["mnist-embedded"])
    objective = dataclasses.replace(config.student.objective, guidance=2.0)
    expected = dataclasses.replace(config, student=dataclasses.replace(config.student, objective=objective))
    assert expected != config
    assert parse(TEXTS["mnist-embedded"], "--student.objective.guidance", "2") == expected


def test_frozen_all_the_way_down(parse):
    config = parse("network: {}\nteacher: {}\nstudent: {timesteps: [0, 23], objective: {}}")
    names = []
    for name, section in sections(config):
        names.append(name)
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(section, dataclasses.fields(section)[0].name, None)
    assert "config.student.objective" in names
    hash(config)  # a list within could be changed in place


UNKNOWN_KEYS = [
    ("teachers: {}", "teachers", "teacher"),
    ("teacher: {step: 3}", "teacher.step", "teacher.steps"),
    ("teacher: {optimizer: {warmup: 1}}", "teacher.optimizer.warmup", "teacher.optimizer.warmup_steps"),
    ("student: {objective: {P_men: 1}}", "student.objective.P_men", "student.objective.P_mean"),
    ("teacher: {objective: {guidance: 2}}", "teacher.objective.guidance", "student.objective.guidance"),
    ("teacher: {}\nseed: {a: 1}", "seed.a", "seed"),
    ("teacher: {}\nnetwork: {patchsize: 1}", "network.patchsize", "network.patch_size"),
]


@pytest.mark.parametrize(("text", "wrong", "right"), UNKNOWN_KEYS, ids=[wrong for _, wrong, _ in UNKNOWN_KEYS])
def test_an_unknown_key_names_the_nearest(parse, text, wrong, right, tmp_path):
    with pytest.raises(UserError) as refused:
        parse(text)
    assert str(refused.value) == f"{tmp_path / 'recipe.yaml'}: unknown key {wrong}; did you mean {right}?"
    assert right in config_keys()


def test_an_unknown_flag_names_the_nearest(parse):
    with pytest.raises(UserError) as refused:
        parse("teacher: {}", "--teacher.objective.label-drop", "0.1")
    line = "unknown option --teacher.objective.label_drop; did you mean --teacher.objective.label_dropout?"
    assert str(refused.value) == line


# What the recipe says, and all words that the one line must hold.
WRONG_VALUES = [
    ("student: {objective: {distance: psuedo-huber}}", "--student.objective.distance did you mean pseudo-huber?"),
    ("student: {objective: {weighting: 1/(t-s)}}", "--student.objective.weighting 1/(t-s) did you mean 1/(t-r)?"),
    ("teacher: {optimizer: {name: adam}}", "--teacher.optimizer.name adam must be one of radam adamw"),
    ("precision: bf61", "--precision bf61 did you mean bf16?"),
    ("teacher: {steps: many}", "--teacher.steps many expected int"),
    ("teacher: {optimizer: {betas: [0.9]}}", "--teacher.optimizer.betas [0.9] expected 2 elements"),
    ("teacher: {optimizer: {clip_grad_norm: high}}", "--teacher.optimizer.clip_grad_norm high expected float or null"),
    ("student: {timesteps: [0, x]}", "--student.timesteps x expected int"),
    ("data: {resolution: big}", "--data.resolution big expected int or null"),
    ("teacher_model: 7", "--teacher_model 7 expected str or null"),
    ("use_labels: maybe", "--use_labels maybe expected bool"),
    ("data: mnist", "recipe.yaml data 'mnist' must hold keys data.source"),
    ("teacher: {objective: 3}", "recipe.yaml teacher.objective 3 must hold keys"),
    ("data:", "recipe.yaml data has no value"),
    ("teacher: {steps: null}", "recipe.yaml teacher.steps has no value"),
    ("teacher: {steps: 0}", "steps 0 must be at least 1"),
    ("teacher: {optimizer: {lr: .nan}}", "lr nan must be positive"),
    ("student: {timesteps: [0, 40]}", "timesteps [0, 40] must be below 40"),
    ("student: {timesteps: [3, 20]}", "timesteps [3, 20] must start with 0"),
    ("student: {num_train_timesteps: 2}", "num_train_timesteps 2 must be at least 3"),
    ("sigma_data: 0", "sigma_data 0.0 must be positive"),
    ("evaluate_every: -1", "evaluate_every -1 must be at least 1, or 0 for never"),
    ("evaluation: {num_images: 3}", "evaluation.num_images 3 must be at least 20"),
    ("evaluation: {metric: fid}", "--evaluation.metric fid must be one of kd fd"),
    ("evaluation: {steps: 40}\nstudent: {}", "steps 40 must lie between 1 and 39"),
    ("data: {channels: 2}", "data.channels 2 give 1 3"),
    ("network: {down_block_types: [Foo, DownBlock2D, DownBlock2D]}", "down_block_types 'Foo' known are DownBlock2D"),
    ("network: {block_out_channels: [64]}", "block_out_channels (1) same length"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "words"), WRONG_VALUES, ids=[text for text, _ in WRONG_VALUES])
def test_a_wrong_value_is_one_line(parse, text, words):
    stages = [f"{stage}: {{}}" for stage in ("teacher", "student") if not text.startswith(f"{stage}:")]
    with pytest.raises(UserError) as refused:
        parse("\n".join([text, *stages]))
    line = str(refused.value)
    assert "\n" not in line and "class" not in line
    assert [word for word in words.split() if word not in line] == []


STAGES_THAT_DO_NOT_FIT = [
    ("seed: 1", "nothing to train"),
    ("teacher: {}\nteacher_model: x", "teacher and teacher_model exclude each other"),
    ("student: {}", "student.from_teacher needs a teacher; set it to false"),
    ("student: {from_teacher: false, objective: {step: heun}}", "student.objective.step heun needs a teacher"),
    ("student: {from_teacher: false, objective: {guidance: 2}}", "student.objective.guidance 2.0 needs a teacher"),
    ("student: {from_teacher: false, continuous: {velocity: teacher}}", "student.continuous.velocity teacher needs"),
    ("student: {from_teacher: false, progressive: {}}", "student.progressive needs a teacher"),
    ("student: {objective: {}, continuous: {}}", "objective and continuous exclude each other"),
    ("network: {}\nsong: {}\nteacher: {}", "network and song exclude each other"),
    ("data: {flip: true}\nteacher: {objective: {augment: 0.1}}", "set data.flip to false"),
    ("teacher: {}\nstudent: {objective: {guidance: 2}}", "set teacher.objective.label_dropout above 0"),
]


@pytest.mark.parametrize(("text", "message"), STAGES_THAT_DO_NOT_FIT, ids=[m for _, m in STAGES_THAT_DO_NOT_FIT])
def test_stages_that_do_not_fit_are_refused(parse, text, message):
    with pytest.raises(UserError, match=f"^[^\n]*{message}[^\n]*$"):
        parse(text)


@pytest.mark.parametrize("text", ["", "- teacher", "teacher", "a: [", "\t- :", "\x00"])
def test_what_is_no_recipe_is_refused_by_its_name(parse, text, tmp_path):
    with pytest.raises(
        UserError, match=r"^[^\n]*(is not readable YAML|must hold `key: value` lines)[^\n]*$"
    ) as refused:
        parse(text)
    assert str(refused.value).startswith(str(tmp_path / "recipe.yaml"))


def test_nothing_in_a_recipe_is_executed(parse, tmp_path):
    with pytest.raises(UserError, match="is not readable YAML"):
        parse(f"description: !!python/object/apply:os.mkdir ['{tmp_path / 'made'}']\nteacher: {{}}")
    with pytest.raises(UserError, match="unknown key teacher.class_path"):
        parse("teacher: {class_path: os.mkdir, init_args: {}}")
    assert not Path(tmp_path / "made").exists()


def test_files_and_names_that_do_not_exist():
    with pytest.raises(UserError, match=r"^unknown recipe 'mnist-quik'; did you mean mnist-quick\?; `unistep recipes`"):
        find_recipe("mnist-quik")
    with pytest.raises(UserError, match=r"^recipe file nothing.yaml does not exist$"):
        find_recipe("nothing.yaml")
