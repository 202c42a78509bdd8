"""Every recipe that ships can be trained."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from unistep.cli.main import main
from unistep.cli.train import parse_run
from unistep.config import RECIPES, RunConfig, find_recipe, recipe_names
from unistep.formats.edm.adm import adm_config
from unistep.formats.empty import without_weights
from unistep.formats.model import LoadedModel, precondition
from unistep.formats.openai.layout import diffusers_to_openai, openai_config
from unistep.generation.plan import default_plan
from unistep.networks.song import SongUNetConfig
from unistep.workflows.parts import build_network, build_student, build_teacher, shaped_network, teacher_parts
from unistep.workflows.train import train


def shape(config: RunConfig) -> tuple[int, int, int]:
    """Channels, height, width of the recipe's images."""
    if config.data.source.startswith("mnist"):
        return 1, 28, 28
    side = config.data.resolution or 64
    return config.data.channels or 3, side, side


def test_all_files_are_recipes():
    assert sorted(p.name for p in RECIPES.iterdir()) == [f"{name}.yaml" for name in recipe_names()]
    assert {"mnist-embedded", "mnist-quick"} <= set(recipe_names())


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


def stand_in(name: str, config: RunConfig) -> LoadedModel | None:
    """The teacher of a recipe, without weights: its own, or where it names a file that of the data set's `edm`."""
    if config.teacher is None and config.teacher_model is None:
        return None
    trained = config if config.teacher is not None else parse_run([f"{name.partition('-')[0]}-edm"])[0]
    classes = 10 if config.use_labels else 0
    channels, side, _ = shape(config)
    architecture = shaped_network(trained if config.architecture is None else config, channels, side, classes)
    assert architecture is not None
    architecture, info = teacher_parts(trained, architecture)
    return LoadedModel(precondition(build_network(architecture, 0), info), info, architecture, Path(name))


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_builds_its_networks(name):
    """The student from the teacher's weights, where the recipe says so."""
    config = parse_run([name])[0]
    channels, side, _ = shape(config)
    with without_weights():
        teacher = stand_in(name, config)
        architecture = shaped_network(config, channels, side, 10 if config.use_labels else 0)
        if architecture is not None:
            assert (architecture.in_channels, architecture.sample_size) == (channels, side)
        if config.teacher is not None:
            config.teacher.check_split(1)
        if config.student is not None:
            config.student.check_split(1)
            student, info = build_student(config, config.student, architecture, teacher)
            assert student.network.config.out_channels == channels
            if teacher is not None:
                build_teacher(teacher, config.student.method, torch.device("meta"))
            assert default_plan(info, 2).nfe == 2


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_knows_its_images_without_the_data(name):
    """What a dry run goes by."""
    config = parse_run([name])[0]
    network = config.architecture
    if network is None:  # the teacher's
        return
    channels, side, _ = shape(config)
    if not config.data.source.startswith("mnist"):
        assert (network.in_channels, network.sample_size) == (channels, side)


@pytest.mark.parametrize("name", ["imagenet64-cd", "lsun256-cd"])
def test_the_network_is_that_of_openais_teacher(name):
    """Read from the published checkpoint's tensors, which would be of these names and shapes."""
    config = parse_run([name])[0]
    with without_weights():
        network = build_network(shaped_network(config, *shape(config)[:2], 1000 * config.use_labels), 0)
        published = openai_config(diffusers_to_openai(network.state_dict(), network.config))
    assert replace(published, sample_size=network.config.sample_size) == network.config
    assert sum(p.numel() for p in network.parameters()) == {"i": 295_899_267, "l": 526_304_771}[name[0]]


@pytest.mark.parametrize("name", ["imagenet64-ect", "imagenet64-sct"])
def test_the_network_is_that_of_edms_teacher(name):
    config = parse_run([name])[0]
    arch = SongUNetConfig(  # as the published file describes itself
        sample_size=64,
        num_class_embeds=1000,
        model_channels=192,
        channel_mult=(1, 2, 3, 4),
        num_blocks=3,
        attn_resolutions=(32, 16, 8),
        dropout=0.1,
    )
    with without_weights():
        network = build_network(shaped_network(config, 3, 64, 1000), 0)
    assert network.config == adm_config(arch)


SMALL = {
    "network": ["block_out_channels=[32,32]", "layers_per_block=1", "attention_head_dim=32"],
    "song": ["model_channels=32", "channel_mult=[1,1]", "num_blocks=1", "attn_resolutions=[]"],
}
BLOCKS = ["down_block_types=[DownBlock2D,DownBlock2D]", "up_block_types=[UpBlock2D,UpBlock2D]"]


@pytest.mark.slow
@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_trains(name, tmp_path):
    """A step of each stage on ten images, up to the model folder and its samples; networks are made small."""
    original = parse_run([name])[0]
    channels, *size = shape(original)
    size = [min(side, 32) for side in size]
    np.savez(tmp_path / "images.npz", np.zeros((10, *size, channels), np.uint8), np.arange(10))
    flags = [f"--data.source={tmp_path / 'images.npz'}"]
    if not original.data.source.startswith("mnist"):
        flags.append(f"--data.resolution={size[0]}")
    for stage in ("teacher", "student"):
        if getattr(original, stage) is not None:
            flags += [f"--{stage}.{field}" for field in ("steps=9", "batch_size=2", "accumulation=1")]
    edm = parse_run([f"{name.partition('-')[0]}-edm"])[0]
    key = "song" if (original.song or (original.network is None and edm.song)) else "network"
    small = [f"--{key}.{field}" for field in SMALL[key] + (BLOCKS if key == "network" else [])]
    small.append(f"--{key}.sample_size={size[0]}")
    if original.song is not None:  # the recipe of the teacher may train another
        same = ("embedding_type", "channel_mult_noise", "encoder_type", "resample_filter")
        small += [f"--song.{name}={json.dumps(getattr(original.song, name))}".replace('"', "") for name in same]
    if original.teacher_model is not None:
        folder = tmp_path / "teacher"
        teacher_flags = [f for f in flags if not f.startswith("--student")] + ["--teacher.steps=1"]
        train(parse_run([f"{name.partition('-')[0]}-edm", *teacher_flags, "--teacher.batch_size=2", *small])[0], folder)
        flags.append(f"--teacher_model={folder}")
    if original.network is not None or original.song is not None:
        flags += small
    if getattr(original.student and original.student.method, "distance", None) == "lpips":
        flags.append("--student.objective.distance=l2")
    model = train(parse_run([name, *flags])[0], tmp_path / "run")
    assert (model / "model_index.json").is_file()
    assert list((model.parent / "samples").glob("step-*.png"))
