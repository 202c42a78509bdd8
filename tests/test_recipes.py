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
from unistep.config.values import plain
from unistep.data.bundled import BUNDLED
from unistep.formats.edm.adm import adm_config
from unistep.formats.empty import without_weights
from unistep.formats.model import LoadedModel
from unistep.formats.openai.layout import diffusers_to_openai, openai_config
from unistep.generation.plan import default_plan
from unistep.networks.song import SongUNetConfig
from unistep.objectives.methods import METHODS
from unistep.workflows.runs.build import build_model, build_objective
from unistep.workflows.runs.design import ImageKind, ModelDesign, design_stages
from unistep.workflows.runs.network import build_network, shaped_network
from unistep.workflows.train import train

NAMED_BY_USE = ("cifar10-cmt", "cifar10-cpu", "cifar10-minutes", "emoji", "mnist-cmt", "mnist-embedded", "mnist-quick")


def shape(config: RunConfig) -> tuple[int, int, int]:
    """Channels, height, width of the recipe's images."""
    if (bundled := BUNDLED.get(config.data.source)) is not None:
        return bundled.channels, bundled.size, bundled.size
    side = config.data.resolution or 64
    return config.data.channels or 3, side, side


def test_all_files_are_recipes():
    assert sorted(p.name for p in RECIPES.iterdir()) == [f"{name}.yaml" for name in recipe_names()]
    assert {"cifar10-cpu", "cifar10-minutes", "emoji", "mnist-embedded", "mnist-quick"} <= set(recipe_names())


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


@pytest.mark.parametrize("name", [name for name in recipe_names() if name not in NAMED_BY_USE])
def test_a_recipe_trains_by_the_method_of_its_name(name):
    """Last, where a teacher is trained before; its objective holds what differs from the published numbers alone."""
    assert parse_run([name])[0].stages[-1].method == name.partition("-")[2]
    for stage in yaml.safe_load(find_recipe(name).read_text())["stages"].values():
        published = plain(METHODS[stage["method"]].config())
        assert [key for key, value in stage.get("objective", {}).items() if published[key] == value] == []


def stand_ins(name: str, config: RunConfig, images: ImageKind) -> dict[str, LoadedModel]:
    """The models that a recipe names, without weights: that of the data set's `edm`, with the recipe's network."""
    if not config.models:
        return {}
    trained = replace(parse_run([f"{name.partition('-')[0]}-edm"])[0], network=config.network)
    (design,) = design_stages(trained, images, {})
    model = LoadedModel(build_model(trained, design), design.info, design.network, Path(name))
    return dict.fromkeys(config.models, model)


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_builds_its_models_and_objectives(name):
    """Each from the weights of another, where the recipe says so."""
    config = parse_run([name])[0]
    channels, side, _ = shape(config)
    images = ImageKind(side, channels, 10 if config.use_labels else 0)
    with without_weights():
        models = stand_ins(name, config, images)
        designs = design_stages(config, images, {key: ModelDesign.of(model) for key, model in models.items()})
        for design in designs:
            design.stage.check_split(1)
            init, teacher = (models.get(key or "") for key in (design.stage.init, design.stage.taught_by))
            student = build_model(config, design, init)
            assert (student.network.config.out_channels, student.network.config.sample_size) == (channels, side)
            denoiser = None if teacher is None else teacher.denoiser
            build_objective(config, design, student, teacher=denoiser, perceptual=torch.nn.Identity())
            models[design.stage.name] = LoadedModel(student, design.info, design.network, Path(design.stage.name))
    assert default_plan(designs[-1].info, 2).nfe == (3 if name.endswith("-edm") else 2)


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_knows_its_images_without_the_data(name):
    """What a dry run goes by."""
    config = parse_run([name])[0]
    network = config.network
    channels, side, _ = shape(config)
    if config.data.source not in BUNDLED:
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
    if original.data.source not in BUNDLED:
        flags.append(f"--data.resolution={size[0]}")
    kind = "song" if isinstance(original.network, SongUNetConfig) else "network"
    small = [f"--network.{field}" for field in SMALL[kind] + (BLOCKS if kind == "network" else [])]
    small.append(f"--network.sample_size={size[0]}")
    if kind == "song":  # the recipe of the teacher may train another
        same = ("embedding_type", "channel_mult_noise", "encoder_type", "resample_filter")
        values = {field: getattr(original.network, field) for field in same}
        small += [f"--network.{field}={json.dumps(value)}".replace('"', "") for field, value in values.items()]
    if original.models:
        teacher = [*flags, *small, "--teacher.steps=1", "--teacher.batch_size=2"]
        config, _ = parse_run([f"{name.partition('-')[0]}-edm", *teacher])
        train(config, output=tmp_path / "teacher", progress=False)
        flags.append(f"--teacher={tmp_path / 'teacher'}")
    for stage in original.stages:
        flags += [f"--{stage.name}.{field}" for field in ("steps=9", "batch_size=2", "accumulation=1")]
        if stage.objective.needs_perceptual:
            flags.append(f"--{stage.name}.objective.distance=l2")
    flags.append("--compile=none")  # the compiler cannot trace the tests' checks of types
    config, _ = parse_run([name, *flags, *small])
    run = train(config, output=tmp_path / "run", progress=False)
    assert run.model().info.method is not None
    assert run.preview is not None
