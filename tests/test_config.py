import dataclasses
import json
import typing
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from unistep.cli.train import parse_run
from unistep.config import RunConfig, StageConfig, differences, dump, find_recipe, read_values, recipe_names, run_config
from unistep.config.resolve import run_keys, to_values, with_teacher
from unistep.config.values import convert, leaves
from unistep.errors import UserError
from unistep.objectives.methods import METHODS

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
stages:
  student:
    method: cd
    init: "007"
    ema_decays: [0.9, 0.99, 0.0]
    optimizer: {lr: 1e-7, betas: [0.0, 0.5], clip_grad_norm: 1}
    objective: {step: euler, weighting: 1/(t-r), huber_c: 0, P_mean: 1}
    timesteps: [0]
"""
TEACHER, STUDENT = "  teacher: {method: edm}\n", "  student: {method: ect, init: teacher}\n"
BOTH = f"stages:\n{TEACHER}{STUDENT}"
CHAIN = "stages:\n  base: {method: edm}\n  middle: {method: ect, init: base}\n  last-one: {method: ict, init: middle}\n"
TEXTS = {
    "odd": ODD,
    "teacher only": f"stages:\n{TEACHER}",
    "student only": "stages: {student: {method: ct}}",
    "both": BOTH,
    "three": CHAIN,
} | {name: find_recipe(name).read_text() for name in recipe_names()}


@pytest.fixture
def parse(tmp_path):
    """parse(text, *flags): the config that `unistep train` makes of a recipe."""

    def run(text: str, *flags: str) -> RunConfig:
        path = tmp_path / "recipe.yaml"
        path.write_text(text)
        return parse_run([str(path), *flags])[0]

    return run


def stages_of(text: str, **changes: str) -> str:
    """A recipe of both stages in which a stage has further keys: stages_of("", student="steps: 3")."""
    keys = {"teacher": "method: edm", "student": "method: ect, init: teacher"}
    lines = [f"  {name}: {{{key}{', ' + changes[name] if name in changes else ''}}}" for name, key in keys.items()]
    return "\n".join([text, "stages:", *lines])


def sections(config: object, name: str = "config") -> Iterator[tuple[str, object]]:
    yield name, config
    for f in dataclasses.fields(config):  # pyright: ignore
        value = getattr(config, f.name)
        for i, inner in enumerate(value if isinstance(value, tuple) else (value,)):
            if dataclasses.is_dataclass(inner):
                yield from sections(inner, f"{name}.{f.name}{f'.{i}' if isinstance(value, tuple) else ''}")


def held(config: RunConfig) -> dict[str, typing.Any]:
    """What the dump says, by dotted key."""
    values = yaml.safe_load(dump(config))
    return dict(leaves({key: value for key, value in values.items() if key != "stages"} | values["stages"]))


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_dump_is_read_back_unchanged(parse, text):
    """Else a resumed run would be taken for another."""
    config = parse(text)
    again = parse(dump(config))
    assert again == config and differences(config, again) == []
    assert dump(again) == dump(config)  # 1 and 1.0 are equal, their texts are not


def test_what_the_text_says_is_what_the_config_holds(parse):
    values = yaml.safe_load(ODD)
    said = dict(leaves({key: value for key, value in values.items() if key != "stages"} | values["stages"]))
    found = held(parse(ODD))
    assert {key: found[key] for key in said} == said | {"student.optimizer.lr": 1e-7}  # YAML 1.1 reads 1e-7 as text


@pytest.mark.parametrize("text", [ODD, TEXTS["teacher only"], TEXTS["cifar10-ct"]])
def test_a_dump_of_before_a_key_was_known_is_the_same_run(parse, text):
    """Any key may be new one day, that of a section or within one; what is missing has its default."""
    config = parse(text)
    whole = to_values(config)
    defaults = {key.name: key.default for key in run_keys(whole) if not key.is_section}
    removed = 0
    for key, value in list(leaves({k: v for k, v in whole.items() if k != "stages"})) + list(leaves(whole["stages"])):
        default = defaults.get(key, ...)
        if value == (list(default) if isinstance(default, tuple) else default) and not key.endswith(".method"):
            *path, last = key.split(".")
            section = whole["stages"] if path and path[0] in whole["stages"] else whole
            for name in path:
                section = section[name]
            del section[last]
            removed += 1
    assert removed > 20
    assert differences(run_config(whole), config) == []
    del whole["evaluation"]  # a section as a whole
    assert run_config(whole) == config


def test_which_stage_is_measured(parse):
    assert parse(BOTH).evaluated is None
    assert parse(BOTH, "--evaluate-every", "5").evaluated.name == "student"
    assert parse(f"evaluate_every: 5\n{TEXTS['teacher only']}").evaluated.name == "teacher"


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_can_be_given_as_flags(parse, name):
    """Every key is a flag, in every section, and a flag leaves its neighbours alone."""
    config = parse(TEXTS[name])
    flags = [
        f"--{key}={value if isinstance(value, str) else json.dumps(value)}"
        for key, value in held(config).items()
        if value is not None and not key.endswith(".method")
    ]
    stages = "\n".join(f"  {stage.name}: {{method: {stage.method}, init: x}}" for stage in config.stages)
    nulls = [f"--{stage.name}.init=null" for stage in config.stages if stage.init is None]
    assert parse(f"stages:\n{stages}", *flags, *nulls) == config


def test_a_flag_overrides_the_recipe_and_nothing_else(parse):
    config = parse(TEXTS["mnist-embedded"])
    student = config.stage("student")
    objective = dataclasses.replace(student.objective, guidance=2.0)
    stages = (*config.stages[:-1], dataclasses.replace(student, objective=objective))
    expected = dataclasses.replace(config, stages=stages)
    assert expected != config
    assert parse(TEXTS["mnist-embedded"], "--student.objective.guidance", "2") == expected
    assert parse(TEXTS["mnist-embedded"], "--stages.student.objective.guidance=2") == expected


def test_frozen_all_the_way_down(parse):
    config = parse("network: {}\n" + stages_of("", student="timesteps: [0, 23], schedules: [[0, 5, 9]]"))
    names = []
    for name, section in sections(config):
        names.append(name)
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(section, dataclasses.fields(section)[0].name, None)
    assert "config.stages.1.objective" in names and "config.network" in names
    hash(config)  # a list within could be changed in place


# -------------------------------------------------------------------------------------------------------------- methods


@pytest.mark.parametrize("name", METHODS)
def test_the_published_numbers_are_the_defaults_of_a_method(parse, name):
    text = f"stages: {{student: {{method: {name}, init: x}}}}"
    assert parse(text).stage("student").objective == METHODS[name].config()
    field = "P_mean" if hasattr(METHODS[name].config(), "P_mean") else "rho"
    changed = parse(text, f"--student.objective.{field}", "3")
    assert changed.stage("student").objective == METHODS[name].config(**{field: 3.0})


def test_another_method_has_its_own_numbers(parse):
    """Those that the recipe gives are of its method; those of flags are of the new one, in any order."""
    text = stages_of("", student="objective: {P_mean: -0.5, q: 4}")
    flags = ["--student.objective.start_scales", "20", "--student.method", "pd", "--student.objective.end_scales=5"]
    assert parse(text, *flags).stage("student").objective == METHODS["pd"].config(start_scales=20, end_scales=5)
    assert parse(text, "--student.method", "ect").stage("student").objective.q == 4


def test_another_network_has_its_own_numbers(parse):
    text = f"network: {{name: patched-adm, patch_size: 2}}\n{BOTH}"
    assert parse(text, "--network.patch-size", "4").network.patch_size == 4
    song = parse(text, "--network.name=song", "--network.model_channels", "16").network
    assert type(song).__name__ == "SongUNetConfig" and song.model_channels == 16


# --------------------------------------------------------------------------------------------------------------- stages


def test_any_number_of_stages(parse):
    config = parse(CHAIN)
    assert [stage.name for stage in config.stages] == ["base", "middle", "last-one"]
    assert parse(CHAIN, "--last-one.steps", "7").stage("last-one").steps == 7
    assert parse(CHAIN, "--last_one.batch_size", "7").stage().batch_size == 7
    assert [config.seed_of(stage) for stage in config.stages] == [0, 1, 2]


def test_a_student_has_the_same_seed_whether_its_teacher_is_trained_given_or_missing(parse):
    both = parse(BOTH, "--seed", "5")
    given = parse(BOTH, "--seed", "5", "--teacher", "model")
    alone = parse("stages: {student: {method: ct}}", "--seed", "5")
    assert [config.seed_of(config.stage("student")) for config in (both, given, alone)] == [6, 6, 6]
    assert both.seed_of(both.stage("teacher")) == 5


def test_a_stage_is_left_out_by_null(parse):
    assert [stage.name for stage in parse(BOTH, "--student", "null").stages] == ["teacher"]
    (student,) = parse(BOTH, "--teacher", "null").stages
    assert (student.init, student.teacher) == (None, None)


def test_a_teacher_that_is_given_takes_the_place_of_the_recipes(parse):
    (student,) = parse(BOTH, "--teacher", "runs/a").stages
    assert (student.init, student.teacher) == ("runs/a", None)
    (student,) = parse(TEXTS["mnist-cd"], "--teacher", "runs/a").stages
    assert (student.init, student.teacher) == ("runs/a", "runs/a")
    (student,) = parse(TEXTS["cifar10-cd"], "--teacher=other.pkl").stages
    assert (student.init, student.teacher) == ("other.pkl", "other.pkl")
    middle, last = parse(CHAIN.replace("base", "teacher"), "--teacher", "x").stages
    assert (middle.init, last.init) == ("x", "middle")
    with pytest.raises(UserError, match="--teacher x: no stage of the recipe begins from a model or has a teacher"):
        parse("stages: {student: {method: ct}}", "--teacher", "x")


def test_only_the_teacher_is_replaced_where_a_stage_begins_from_another_model():
    values = {"stages": {"student": {"method": "cd", "init": "a", "teacher": "b"}}}
    (student,) = run_config(with_teacher(values, "c")).stages
    assert (student.init, student.teacher) == ("a", "c")


def test_the_teacher_is_the_model_that_a_stage_begins_from(parse):
    """Unless another is named; and only where the method needs one."""
    assert parse(BOTH).stage("student").taught_by is None
    assert parse(stages_of("", student="objective: {step: euler}")).stage("student").taught_by == "teacher"
    (student,) = parse("stages: {student: {method: cd, init: a, teacher: b}}").stages
    assert student.taught_by == "b"


def test_a_stage_is_refused_that_cannot_be_named():
    for name in ("data", "seed", "Student", "a.b", "", "1"):
        with pytest.raises(UserError, match="cannot be the name of a stage"):
            RunConfig(stages=(StageConfig(name=name, method="ct"),))
    with pytest.raises(UserError, match="there are two of the name a"):
        RunConfig(stages=(StageConfig(name="a", method="ct"), StageConfig(name="a", method="ct")))


def test_a_config_of_another_method_is_refused():
    with pytest.raises(UserError, match="ContinuousConfig is no config of `method` ect"):
        StageConfig(name="student", method="ect", objective=METHODS["sct"].config())


# ------------------------------------------------------------------------------------------------------------- mistakes


UNKNOWN_KEYS = [
    ("stage: {}", "stage", "stages"),
    ("stages: {teacher: {method: edm, step: 3}}", "teacher.step", "teacher.steps"),
    ("stages: {t: {method: edm, optimizer: {warmup: 1}}}", "t.optimizer.warmup", "t.optimizer.warmup_steps"),
    ("stages: {student: {method: ct, objective: {P_men: 1}}}", "student.objective.P_men", "student.objective.P_mean"),
    (stages_of("", teacher="objective: {guidance: 2}"), "teacher.objective.guidance", "student.objective.guidance"),
    (f"seed: {{a: 1}}\n{BOTH}", "seed.a", "seed"),
    (f"network: {{layersperblock: 1}}\n{BOTH}", "network.layersperblock", "network.layers_per_block"),
]


@pytest.mark.parametrize(("text", "wrong", "right"), UNKNOWN_KEYS, ids=[wrong for _, wrong, _ in UNKNOWN_KEYS])
def test_an_unknown_key_names_the_nearest(parse, text, wrong, right, tmp_path):
    with pytest.raises(UserError) as refused:
        parse(text)
    assert str(refused.value) == f"{tmp_path / 'recipe.yaml'}: unknown key {wrong}; did you mean {right}?"


def test_an_unknown_flag_names_the_nearest(parse):
    with pytest.raises(UserError) as refused:
        parse(TEXTS["teacher only"], "--teacher.objective.label-drop", "0.1")
    line = "unknown option --teacher.objective.label-drop; did you mean --teacher.objective.label-dropout?"
    assert str(refused.value) == line


# What the recipe says, and all words that the one line must hold.
WRONG_VALUES = [
    (stages_of("", student="objective: {distance: psuedo-huber}"),
     "--student.objective.distance did you mean pseudo-huber?"),
    (stages_of("", student="objective: {weighting: 1/(t-s)}"),
     "--student.objective.weighting 1/(t-s) did you mean 1/(t-r)?"),
    (stages_of("", teacher="optimizer: {name: adam}"), "--teacher.optimizer.name adam must be one of radam adamw"),
    (stages_of("precision: bf61"), "--precision bf61 did you mean bf16?"),
    (stages_of("", teacher="steps: many"), "--teacher.steps many expected int"),
    (stages_of("", teacher="optimizer: {betas: [0.9]}"), "--teacher.optimizer.betas [0.9] expected 2 numbers"),
    (stages_of("", teacher="optimizer: {clip_grad_norm: high}"),
     "--teacher.optimizer.clip-grad-norm high expected float or null"),
    (stages_of("", student="timesteps: [0, x]"), "--student.timesteps x expected whole numbers"),
    (stages_of("data: {resolution: big}"), "--data.resolution big expected int or null"),
    (stages_of("", student="teacher: 7"), "--student.teacher 7 expected text or null"),
    (stages_of("use_labels: maybe"), "--use-labels maybe expected true or false"),
    (stages_of("data: mnist"), "recipe.yaml --data mnist keys --data.source"),
    (stages_of("", teacher="objective: 3"), "recipe.yaml --teacher.objective 3 keys of its own"),
    (stages_of("data:"), "recipe.yaml --data has no value"),
    (stages_of("", teacher="steps: null"), "recipe.yaml --teacher.steps has no value"),
    (stages_of("", teacher="steps: 0"), "--teacher.steps 0 must be at least 1"),
    (stages_of("", teacher="optimizer: {lr: .nan}"), "--teacher.optimizer.lr nan must be positive"),
    (stages_of("", student="timesteps: [0, 40]"), "timesteps [0, 40] must be below 40"),
    (stages_of("", student="timesteps: [3, 20]"), "timesteps [3, 20] must start with 0"),
    (stages_of("", student="schedules: [[0, 40]]"), "--student.schedules [0, 40] must be below 40"),
    (stages_of("", student="schedules: [0, 9]"), "--student.schedules [0, 9]: expected lists as [[0, 9], [0, 9, 19]]"),
    (
        stages_of("", student="timesteps: [0, 9], schedules: [[0, 9, 19], [0, 8]]"),
        "--student.schedules there are two of 2 steps; keep one",
    ),
    (stages_of("", student="num_train_timesteps: 2"), "--student.num-train-timesteps 2 must be at least 3"),
    (stages_of("", student="dropout: 1"), "--student.dropout 1.0 is outside [0, 1)"),
    (stages_of("sigma_data: 0"), "--sigma-data 0.0 must be positive"),
    (stages_of("evaluate_every: -1"), "--evaluate-every -1 must be at least 0"),
    (stages_of("evaluation: {num_images: 3}"), "--evaluation.num-images 3 must be at least 20"),
    (stages_of("evaluation: {metric: fid}"), "--evaluation.metric fid must be one of kd fd"),
    (stages_of("evaluation: {steps: 40}"), "steps 40 must lie between 1 and 39"),
    (stages_of("data: {channels: 2}"), "--data.channels 2 give 1 3"),
    (stages_of("network: {down_block_types: [Foo, DownBlock2D, DownBlock2D]}"),
     "--network.down-block-types 'Foo' known are DownBlock2D"),
    (stages_of("network: {block_out_channels: [64]}"), "--network.block-out-channels (1) same length"),
    (stages_of("network: {name: sing}"), "--network.name sing did you mean song?"),
    (stages_of("").replace("ect", "etc"), "--student.method etc did you mean ect?"),
    ("stages: {student: {init: x}}", "student.method is missing give one of edm pd"),
    ("stages: {student: 3}", "student 3 keys of its own student.method"),
    ("stages: 3", "stages 3 keys of its own"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "words"), WRONG_VALUES, ids=[text for text, _ in WRONG_VALUES])
def test_a_wrong_value_is_one_line(parse, text, words):
    with pytest.raises(UserError) as refused:
        parse(text)
    line = str(refused.value)
    assert "\n" not in line and "class" not in line
    assert [word for word in words.split() if word not in line] == []


STAGES_THAT_DO_NOT_FIT = [
    ("seed: 1", "nothing to train"),
    ("stages: {}", "nothing to train"),
    ("stages: {student: {method: ect, init: student}}", "--student.init student is not an earlier stage"),
    ("stages: {a: {method: ect, init: b}, b: {method: edm}}", "--a.init b is not an earlier stage"),
    ("stages: {student: {method: cd}}", "--student.method cd needs a teacher; set --student.teacher"),
    ("stages: {student: {method: ect, objective: {guidance: 2}}}", "--student.objective.guidance 2 needs a teacher"),
    ("stages: {student: {method: scd}}", "--student.method scd needs a teacher"),
    ("stages: {student: {method: pd}}", "--student.method pd needs a teacher"),
    ("data: {flip: true}\nstages: {t: {method: edm, objective: {augment: 0.1}}}", "set --data.flip to false"),
    (stages_of("", student="objective: {guidance: 2}"), "set --teacher.objective.label-dropout above 0"),
    (CHAIN + "  more: {method: cd, teacher: middle}", "--more.teacher middle trains a consistency model"),
    ("stages: {s: {method: pd, init: x, steps: 3}}", "--s.steps 3 are too few for 7 phases; give at least 9"),
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
        parse(f"description: !!python/object/apply:os.mkdir ['{tmp_path / 'made'}']\n{BOTH}")
    with pytest.raises(UserError, match="unknown key teacher.class_path"):
        parse(stages_of("", teacher="class_path: os.mkdir, init_args: {}"))
    assert not Path(tmp_path / "made").exists()


def test_files_and_names_that_do_not_exist():
    with pytest.raises(UserError, match=r"^unknown recipe 'mnist-quik'; did you mean mnist-quick\? `unistep recipes`"):
        find_recipe("mnist-quik")
    with pytest.raises(UserError, match=r"^recipe file nothing.yaml does not exist$"):
        find_recipe("nothing.yaml")


# ------------------------------------------------------------------------------------------------------ the former form

FORMER = """
network: {patch_size: 2, block_out_channels: [8, 8], down_block_types: [DownBlock2D, DownBlock2D],
          up_block_types: [UpBlock2D, UpBlock2D], attention_head_dim: 8, norm_num_groups: 8, attn_norm_num_groups: 8}
teacher: {steps: 3, objective: {label_dropout: 0.1}}
student:
  steps: 5
  objective: {pairs: mapping, distance: pseudo-huber, huber_c: 0.0, weighting: 1/(t-r), guidance: 1.5}
"""


def test_the_form_of_before_stages_had_names_is_read(parse):
    config = parse(FORMER)
    teacher, student = config.stages
    assert (teacher.name, teacher.method, teacher.steps, teacher.objective.label_dropout) == ("teacher", "edm", 3, 0.1)
    assert (student.name, student.method, student.init, student.taught_by) == ("student", "ect", "teacher", "teacher")
    assert student.objective == METHODS["ect"].config(guidance=1.5, sigma_min=0.002)
    assert type(config.network).__name__ == "PatchedUNetConfig"


@pytest.mark.parametrize(
    ("text", "method", "init", "teacher"),
    [
        ("student: {from_teacher: false}", "ct", None, None),
        ("teacher_model: a.pkl\nstudent: {progressive: {start_scales: 8}}", "pd", "a.pkl", "a.pkl"),
        ("teacher_model: a.pkl\nstudent: {continuous: {}}", "sct", "a.pkl", None),
        (
            "teacher_model: a\nsong: {}\nstudent: {from_teacher: false, continuous: {velocity: teacher}}",
            "scd",
            None,
            "a",
        ),
        ("teacher_model: a\nstudent: {objective: {step: heun, target: ema, distance: lpips}}", "cd", "a", "a"),
    ],
)
def test_methods_of_the_former_form(parse, text, method, init, teacher):
    (student,) = parse(text).stages
    assert (student.method, student.init, student.teacher) == (method, init, teacher)


def test_mistakes_in_the_former_form_are_one_line(parse):
    for text in ("student: {objective: {}, continuous: {}}", "student: 3", "student: {objective: {q: 0.5}}"):
        with pytest.raises(
            UserError, match=r"recipe.yaml has the form of before `stages`, and is not valid in it \(.*\)"
        ):
            parse(text)
    with pytest.raises(UserError, match="unknown key teacher.stepz; did you mean teacher.steps"):
        parse("teacher: {stepz: 3}")


@pytest.mark.parametrize(
    ("hint", "value", "plain"),
    [
        (int, np.int64(5), 5),
        (int | None, torch.tensor(5), 5),
        (float, np.float32(0.5), 0.5),
        (float, np.int32(2), 2.0),
        (bool, np.bool_(True), True),
        (tuple[int, ...], np.array([0, 22]), (0, 22)),
        (tuple[int, ...], [np.int64(0), np.int64(22)], (0, 22)),
        (tuple[float, float], torch.tensor([0.5, 1.0]), (0.5, 1.0)),
    ],
)
def test_numbers_of_numpy_and_torch(hint, value, plain):
    found = convert(hint, value, "steps")
    assert (found, type(found)) == (plain, type(plain))
    assert not isinstance(found, tuple) or [type(one) for one in found] == [type(one) for one in plain]


@pytest.mark.parametrize("value", [np.float64(5.5), np.bool_(True), np.array([5]), np.array("5")])
def test_numbers_of_numpy_of_another_kind(value):
    with pytest.raises(UserError, match="`steps` .*: expected int"):
        convert(int, value, "steps")


@pytest.mark.parametrize(
    ("yaml", "words"),
    [
        ("{steps: 1, batch_size: 1, optimizer: {warmup_steps: 99999999999999999999999999}}", "give a smaller number"),
        ("{steps: 1, batch_size: 1, objective: ''}", "it has keys of its own"),
        ("{steps: 1, batch_size: 1, objective: 0}", "it has keys of its own"),
        ("{steps: 1, batch_size: 1, objective: []}", "it has keys of its own"),
    ],
)
def test_values_that_stand_for_nothing_or_do_not_fit(yaml, words, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(f"data: {{source: mnist}}\nstages:\n  student: {yaml[:-1]}, method: ict}}\n")
    with pytest.raises(UserError, match=words):
        run_config(read_values(path))
