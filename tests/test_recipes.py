"""Every recipe that ships can be trained."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from unistep.build import build_network, build_student, build_teacher, default_plan, network_config, train
from unistep.cli.main import main
from unistep.cli.train import parse_run
from unistep.config import RECIPES, RunConfig, find_recipe, recipe_names
from unistep.data import ImageDataset
from unistep.formats.model import LoadedModel, ModelInfo, precondition


def shape(config: RunConfig) -> tuple[int, int, int]:
    """Channels, height, width of the recipe's images."""
    if config.data.source.startswith("mnist"):
        return 1, 28, 28
    side = config.data.resolution or 64
    return config.data.channels or 3, side, side


def test_all_files_are_recipes():
    assert sorted(p.name for p in RECIPES.iterdir()) == [f"{name}.yaml" for name in recipe_names()]
    assert {"mnist-ect", "mnist-quick"} <= set(recipe_names())


def test_the_list_shows_every_recipe_with_its_description(capsys):
    main(["recipes"])
    shown = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert shown == {name: parse_run([name])[0].description for name in recipe_names()}
    assert all(len(description) > 20 for description in shown.values())


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_is_printed_whole_and_trains_into_a_folder_of_its_name(name, capsys):
    main(["recipes", name])
    assert yaml.safe_load(capsys.readouterr().out) == yaml.safe_load(find_recipe(name).read_text())
    assert parse_run([name])[1] == Path("runs", name)


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_builds_its_networks(name):
    """The student from the teacher's weights, where the recipe says so."""
    config = parse_run([name])[0]
    channels, side, _ = shape(config)
    image = torch.zeros(1, *shape(config), dtype=torch.uint8)
    architecture = network_config(config, ImageDataset(image, torch.tensor([9])))
    assert (architecture.in_channels, architecture.out_channels, architecture.sample_size) == (channels, channels, side)
    teacher = None
    if config.teacher is not None:
        config.teacher.check_split(1)
        null_label = architecture.num_class_embeds if config.teacher.objective.label_dropout else None
        wider = architecture if null_label is None else replace(architecture, num_class_embeds=null_label + 1)
        info = ModelInfo("diffusion", null_label=null_label)
        teacher = LoadedModel(precondition(build_network(wider, 0), info), info, wider, Path(name))
    if config.student is not None:
        config.student.check_split(1)
        _, info = build_student(config, config.student, architecture, teacher)
        if teacher is not None:
            build_teacher(teacher, config.student.objective, torch.device("cpu"))
        assert default_plan(info, 2).nfe == 2


@pytest.mark.slow
@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_trains(name, tmp_path):
    """A step of each stage on ten images, up to the model folder and its samples."""
    channels, *size = shape(parse_run([name])[0])
    np.savez(tmp_path / "images.npz", np.zeros((10, *size, channels), np.uint8), np.arange(10))
    short = [f"--{s}.{field}" for s in ("teacher", "student") for field in ("steps=1", "batch_size=2")]
    config, _ = parse_run([name, f"--data.source={tmp_path / 'images.npz'}", *short])
    model = train(config, tmp_path / "run")
    assert (model / "model_index.json").is_file()
    assert (model.parent / "samples" / "step-00000001.png").is_file()
