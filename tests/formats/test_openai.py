import dataclasses
import functools
import json
import math
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from unistep.core.parameterization import ConsistencyScaling, EDMScaling, Preconditioned
from unistep.errors import UserError
from unistep.formats.describe import describe
from unistep.formats.empty import without_weights
from unistep.formats.model import LoadedModel, ModelInfo, precondition
from unistep.formats.model_folder.folder import load_model, save_model
from unistep.formats.openai.file import info_of_name, load_openai, read_openai
from unistep.formats.openai.layout import (
    diffusers_to_openai,
    openai_config,
    openai_to_diffusers,
    usual_sample_size,
)
from unistep.formats.openai.save import dropped_by_openai, save_openai
from unistep.networks.adm import UNet, UNetConfig
from unistep.networks.patched import PatchedUNet, PatchedUNetConfig
from unistep.networks.song import SongUNet, SongUNetConfig

CHECKPOINTS = ["openai_unet_class_scale_shift", "openai_unet_uncond_additive"]
SCALE_SHIFT = UNetConfig(
    sample_size=None,
    down_block_types=("ResnetDownsampleBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
    up_block_types=("AttnUpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D"),
    block_out_channels=(32, 64, 96),
    layers_per_block=1,
    attention_head_dim=32,
    num_class_embeds=1000,
)
ADDITIVE = dataclasses.replace(
    SCALE_SHIFT,
    down_block_types=("ResnetDownsampleBlock2D",) * 2 + ("AttnDownBlock2D",) * 2,
    up_block_types=("AttnUpBlock2D",) * 2 + ("ResnetUpsampleBlock2D",) * 2,
    block_out_channels=(32, 32, 64, 64),
    resnet_time_scale_shift="default",
    num_class_embeds=None,
)
# `resblock_updown` off: convolutions `op` and `conv`, beside attention and beside none; other image channels.
CONV = dataclasses.replace(
    SCALE_SHIFT,
    in_channels=1,
    out_channels=2,
    down_block_types=("AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D"),
    block_out_channels=(32, 32, 64),
    layers_per_block=2,
    downsample_type="conv",
    upsample_type="conv",
    num_class_embeds=None,
)
ONE_RESOLUTION = dataclasses.replace(
    CONV, down_block_types=("AttnDownBlock2D",), up_block_types=("AttnUpBlock2D",), block_out_channels=(32,)
)


def random_openai(config: UNetConfig) -> dict[str, Tensor]:
    """A checkpoint in OpenAI's layout with random weights."""
    return dict(_random_openai(config))


@functools.cache
def _random_openai(config: UNetConfig) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    network = UNet(config)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1, generator=generator)
    return diffusers_to_openai(network.state_dict(), config)


@pytest.mark.parametrize(("name", "expected"), [(CHECKPOINTS[0], SCALE_SHIFT), (CHECKPOINTS[1], ADDITIVE)])
def test_published_outputs(golden: Any, name: str, expected: UNetConfig):
    config, state = read_openai(golden.path(f"{name}.pt"), attention_head_dim=32)
    assert config == expected
    network = UNet(config).eval()
    network.load_state_dict(state, strict=True)

    values = golden.tensors(f"{name}_values.npz")
    labels = values.get("class_labels")

    def check(out: Tensor, expected: Tensor) -> None:
        torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())

    with torch.no_grad():
        check(network(values["x"], values["t"], labels), values["net_out"])
        consistency = Preconditioned(network, ConsistencyScaling())
        check(consistency(values["x_t"], values["sigma"], labels), values["consistency_out"])
        denoiser = Preconditioned(network, EDMScaling())
        check(denoiser(values["x_t"], values["sigma"], labels), values["edm_denoised"])


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_published_files_round_trip(golden: Any, name: str):
    original = torch.load(golden.path(f"{name}.pt"), weights_only=True)
    config, state = read_openai(golden.path(f"{name}.pt"), 32)
    back = diffusers_to_openai(state, config)
    assert back.keys() == original.keys()
    for key, tensor in original.items():
        assert back[key].dtype == tensor.dtype == torch.float16
        assert back[key].shape == tensor.shape, key
        assert torch.equal(back[key], tensor), key


@pytest.mark.parametrize(
    "config", [SCALE_SHIFT, ADDITIVE, CONV, ONE_RESOLUTION], ids=["scale_shift", "additive", "conv", "one_resolution"]
)
def test_config_is_read_off_the_tensors(config: UNetConfig):
    state = random_openai(config)
    assert openai_config(state, 32) == config
    network = UNet(config)
    network.load_state_dict(openai_to_diffusers(state, config), strict=True)
    back = diffusers_to_openai(network.state_dict(), config)
    assert back.keys() == state.keys()
    assert all(torch.equal(back[key], tensor) for key, tensor in state.items())


def test_what_tensors_do_not_tell_is_an_argument(golden: Any):
    path = golden.path(f"{CHECKPOINTS[0]}.pt")
    config, _ = read_openai(str(path), attention_head_dim=16, sample_size=64)
    assert config == dataclasses.replace(SCALE_SHIFT, attention_head_dim=16, sample_size=64)


def test_qkv_is_three_by_heads_by_channels():
    state = random_openai(SCALE_SHIFT)
    qkv = state["middle_block.1.qkv.weight"]
    assert qkv.shape == (3 * 96, 96, 1, 1)
    converted = openai_to_diffusers(state, SCALE_SHIFT)
    for i, name in enumerate(("to_q", "to_k", "to_v")):
        weight = converted[f"mid_block.attentions.0.{name}.weight"]
        assert torch.equal(weight, qkv[96 * i : 96 * (i + 1), :, 0, 0])


def test_names_of_the_published_layout():
    conv = random_openai(CONV).keys()
    assert {
        "input_blocks.2.1.proj_out.bias",  # attends: second block of the first resolution
        "input_blocks.3.0.op.weight",
        "input_blocks.7.0.skip_connection.weight",  # third resolution is wider
        "output_blocks.2.1.conv.weight",  # does not attend: the step up comes second
        "output_blocks.8.1.norm.weight",
        "middle_block.1.qkv.bias",
    } <= conv
    assert "output_blocks.8.2.conv.weight" not in conv
    residual = random_openai(SCALE_SHIFT).keys()
    assert {"input_blocks.4.0.in_layers.2.weight", "output_blocks.1.2.out_layers.3.bias"} <= residual


def test_conversion_keeps_the_dtype_and_shares_no_memory(golden: Any, tmp_path: Path):
    _, state = read_openai(golden.path(f"{CHECKPOINTS[0]}.pt"), 32)
    assert {tensor.dtype for tensor in state.values()} == {torch.float16}
    save_file(state, tmp_path / "unet.safetensors")  # refuses tensors of one storage


def test_files_of_old_torch_are_read(golden: Any, tmp_path: Path):
    original = torch.load(golden.path(f"{CHECKPOINTS[0]}.pt"), weights_only=True)
    torch.save(original, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    config, _ = read_openai(tmp_path / "old.pt", 32)
    assert config == SCALE_SHIFT


def drop(key: str) -> Any:
    return lambda state: state.pop(key)


def put(key: str, *shape: int) -> Any:
    return lambda state: state.update({key: torch.zeros(shape)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop("time_embed.2.bias"), "tensor time_embed.2.bias is missing"),
        (drop("middle_block.1.qkv.weight"), "tensor middle_block.1.qkv.weight is missing"),
        (drop("input_blocks.3.0.skip_connection.bias"), "tensor input_blocks.3.0.skip_connection.bias is missing"),
        (drop("input_blocks.0.0.weight"), "tensor input_blocks.0.0.weight is missing"),
        (drop("out.2.weight"), "tensor out.2.weight is missing"),
        (drop("output_blocks.0.0.in_layers.2.weight"), "tensor output_blocks.0.0.in_layers.2.weight is missing"),
        (drop("output_blocks.5.0.in_layers.2.weight"), "output_blocks has 5 blocks and steps up after .*1, 3"),
        (drop("output_blocks.1.2.in_layers.2.weight"), "output_blocks has 6 blocks and steps up after .*3"),
        (put("encoder.weight", 3), "unexpected tensor encoder.weight:"),
        (put("input_blocks.1.1.qkv.weight", 96, 32, 1, 1), "tensor input_blocks.1.1.norm.weight is missing"),
        (put("input_blocks.9.0.in_layers.0.weight", 3), "unexpected tensor input_blocks.9.0.in_layers.0.weight"),
        (put("out.0.bias", 31), r"tensor out.0.bias has shape \[31\], expected \[32\]"),
        (put("label_emb.weight", 10, 96), r"tensor label_emb.weight has shape \[10, 96\], expected \[10, 128\]"),
        (put("time_embed.0.weight", 128, 16), r"tensor time_embed.0.weight has shape \[128, 16\], expected \[128, 32"),
        (
            put("middle_block.1.qkv.weight", 288, 96, 1),
            r"qkv.weight has shape \[288, 96, 1\], expected \[288, 96, 1, 1\]; 1-d convolutions are guided-diffusion's",
        ),
        (put("out.2.weight", 3), r"tensor out.2.weight has shape \[3\], which a weight of this U-Net cannot have"),
        (put("label_emb.weight"), r"tensor label_emb.weight has shape \[\], which"),
        (put("output_blocks.4.0.in_layers.2.weight", 33, 96, 3, 3), "33 is not a multiple of norm_num_groups 32"),
    ],
)
def test_damaged_checkpoints(tmp_path: Path, change: Any, message: str):
    state = random_openai(SCALE_SHIFT)
    change(state)
    path = tmp_path / "model.pt"
    torch.save(state, path)
    with pytest.raises(UserError, match=f"model.pt: .*{message}") as caught:
        read_openai(path, 32)
    assert "\n" not in str(caught.value)


def test_head_channels_must_divide_the_widths(golden: Any):
    path = golden.path(f"{CHECKPOINTS[0]}.pt")
    with pytest.raises(UserError, match=r"shift.pt: attention_head_dim: 64 does not divide the width 96"):
        read_openai(path)


class Payload:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("executed"),)


@pytest.mark.parametrize("zipped", [True, False])
def test_nothing_in_a_file_is_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zipped: bool):
    monkeypatch.chdir(tmp_path)
    torch.save({"weight": Payload()}, "model.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match="model.pt is not a PyTorch file of tensors alone"):
        read_openai("model.pt")
    assert not Path("executed").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not a PyTorch file of tensors alone: it is damaged"),
        (b"<!DOCTYPE html><title>404</title>", "cannot be read: it is a web page and not the file itself"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is a git-lfs pointer and not the file itself"),
        (pickle.dumps([1, 2], protocol=2), "is not a PyTorch file of tensors alone: it is damaged"),
    ],
    ids=["empty", "web page", "git-lfs pointer", "pickle"],
)
def test_other_files(tmp_path: Path, content: bytes, message: str):
    path = tmp_path / "model.pt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read_openai(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("length", [10, 1000, 50_000, -40])
def test_downloads_that_broke_off(golden: Any, tmp_path: Path, length: int):
    path = tmp_path / "model.pt"
    path.write_bytes(golden.path(f"{CHECKPOINTS[1]}.pt").read_bytes()[:length])
    with pytest.raises(UserError, match="model.pt is not a PyTorch file of tensors alone: it is damaged"):
        read_openai(path)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.zeros(3), "holds no state dict"),
        ({}, "holds no state dict"),
        ({"state": {0: torch.zeros(3)}, "param_groups": []}, "its entry state .dict. is no dense tensor of floats"),
        ({"weight": torch.zeros(3, dtype=torch.int64)}, "its entry weight .torch.int64. is no dense tensor of floats"),
        ({3: torch.zeros(3)}, "holds no state dict"),
        ({"conv_in.weight": torch.zeros(3)}, "in_layers.2.weight is missing: not a U-Net of OpenAI's"),
    ],
)
def test_other_contents(tmp_path: Path, value: Any, message: str):
    torch.save(value, tmp_path / "opt.pt")
    with pytest.raises(UserError, match=f"opt.pt.*{message}"):
        read_openai(tmp_path / "opt.pt")


def test_no_file(tmp_path: Path):
    with pytest.raises(UserError, match=r"none.pt is missing; give the .pt file of a model"):
        read_openai(tmp_path / "none.pt")
    with pytest.raises(UserError, match=f"{tmp_path} is a folder; give the .pt file of a model"):
        read_openai(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"norm_num_groups": 16}, "norm_num_groups 16 has no counterpart"),
        ({"norm_eps": 1e-6}, "norm_eps 1e-06 has no counterpart"),
        ({"add_attention": False}, "add_attention False has no counterpart"),
        ({"attn_norm_num_groups": None}, "attn_norm_num_groups None has no counterpart"),
        ({"attn_norm_num_groups": 16}, "attn_norm_num_groups 16 has no counterpart"),
        ({"up_block_types": ("AttnUpBlock2D",) * 3}, "up_block_types .* the same resolutions on the way down and up"),
        ({"upsample_type": "conv"}, "resampling .* one of the two everywhere"),
        ({"down_block_types": ("DownBlock2D", *SCALE_SHIFT.down_block_types[1:])}, "resampling .* one of the two"),
    ],
)
def test_networks_openai_does_not_have(changes: dict[str, Any], message: str):
    config = dataclasses.replace(SCALE_SHIFT, **changes)
    with pytest.raises(UserError, match=message):
        diffusers_to_openai(UNet(config).state_dict(), config)


def test_folded_images_have_no_counterpart():
    fields = {field.name: getattr(SCALE_SHIFT, field.name) for field in dataclasses.fields(SCALE_SHIFT)}
    config = PatchedUNetConfig(**fields, patch_size=2)
    with pytest.raises(UserError, match="patch_size 2 has no counterpart"):
        diffusers_to_openai({}, config)


def test_norm_of_the_middle_may_be_left_to_the_others():
    config = dataclasses.replace(ADDITIVE, attn_norm_num_groups=None)
    assert openai_config(random_openai(config), 32) == ADDITIVE


def test_weights_of_another_network():
    state = UNet(SCALE_SHIFT).state_dict()
    with pytest.raises(UserError, match=r"tensor conv_in.bias is missing"):
        diffusers_to_openai({name: tensor for name, tensor in state.items() if name != "conv_in.bias"}, SCALE_SHIFT)
    with pytest.raises(UserError, match=r"unexpected tensor teacher: the weights do not belong to the config"):
        diffusers_to_openai(state | {"teacher": torch.zeros(1)}, SCALE_SHIFT)
    with pytest.raises(UserError, match=r"tensor conv_out.bias has shape \[4\], expected \[3\]"):
        diffusers_to_openai(state | {"conv_out.bias": torch.zeros(4)}, SCALE_SHIFT)


# ------------------------------------------------------------------------------------------------- the published sizes

# The flags of `scripts/launch.sh`, and the config that diffusers' conversion of the same files has.
IMAGENET_64 = {"width": 192, "mults": (1, 2, 3, 4), "blocks": 3, "attends": (1, 2, 3), "classes": 1000}
LSUN_256 = {"width": 256, "mults": (1, 1, 2, 2, 4, 4), "blocks": 2, "attends": (3, 4, 5), "classes": None}
IMAGENET_64_CONFIG = UNetConfig(
    sample_size=64,
    down_block_types=("ResnetDownsampleBlock2D",) + ("AttnDownBlock2D",) * 3,
    up_block_types=("AttnUpBlock2D",) * 3 + ("ResnetUpsampleBlock2D",),
    block_out_channels=(192, 384, 576, 768),
    layers_per_block=3,
    num_class_embeds=1000,
)
LSUN_256_CONFIG = UNetConfig(
    sample_size=256,
    down_block_types=("ResnetDownsampleBlock2D",) * 3 + ("AttnDownBlock2D",) * 3,
    up_block_types=("AttnUpBlock2D",) * 3 + ("ResnetUpsampleBlock2D",) * 3,
    block_out_channels=(256, 256, 512, 512, 1024, 1024),
    layers_per_block=2,
    resnet_time_scale_shift="default",
)


def published_shapes(
    width: int, mults: tuple[int, ...], blocks: int, attends: tuple[int, ...], classes: int | None
) -> dict[str, tuple[int, ...]]:
    """Names and shapes of `UNetModel(..., resblock_updown=True)` of `cm/unet.py`, written down from its constructor.

    Scale-shift norms go with classes, as in the published models. It shares nothing with the code under test.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    emb = 4 * width

    def layer(name: str, *weight: int, bias: bool = True) -> None:
        shapes[f"{name}.weight"] = weight
        if bias:
            shapes[f"{name}.bias"] = weight[:1]

    def res(name: str, c_in: int, c_out: int) -> None:
        layer(f"{name}.in_layers.0", c_in)
        layer(f"{name}.in_layers.2", c_out, c_in, 3, 3)
        layer(f"{name}.emb_layers.1", 2 * c_out if classes else c_out, emb)
        layer(f"{name}.out_layers.0", c_out)
        layer(f"{name}.out_layers.3", c_out, c_out, 3, 3)
        if c_in != c_out:
            layer(f"{name}.skip_connection", c_out, c_in, 1, 1)

    def attention(name: str, c: int) -> None:
        layer(f"{name}.norm", c)
        layer(f"{name}.qkv", 3 * c, c, 1, 1)
        layer(f"{name}.proj_out", c, c, 1, 1)

    layer("time_embed.0", emb, width)
    layer("time_embed.2", emb, emb)
    if classes:
        layer("label_emb", classes, emb, bias=False)
    layer("input_blocks.0.0", width, 3, 3, 3)
    skips, c, n = [width], width, 1
    for level, mult in enumerate(mults):
        for _ in range(blocks):
            res(f"input_blocks.{n}.0", c, mult * width)
            c = mult * width
            if level in attends:
                attention(f"input_blocks.{n}.1", c)
            skips.append(c)
            n += 1
        if level < len(mults) - 1:
            res(f"input_blocks.{n}.0", c, c)
            skips.append(c)
            n += 1
    res("middle_block.0", c, c)
    attention("middle_block.1", c)
    res("middle_block.2", c, c)
    n = 0
    for level, mult in reversed(list(enumerate(mults))):
        for i in range(blocks + 1):
            res(f"output_blocks.{n}.0", c + skips.pop(), mult * width)
            c = mult * width
            if level in attends:
                attention(f"output_blocks.{n}.1", c)
            if level and i == blocks:
                res(f"output_blocks.{n}.{2 if level in attends else 1}", c, c)
            n += 1
    layer("out.0", c)
    layer("out.2", 3, width, 3, 3)
    return shapes


@pytest.mark.parametrize(
    ("flags", "config", "parameters"),
    [(IMAGENET_64, IMAGENET_64_CONFIG, 295_899_267), (LSUN_256, LSUN_256_CONFIG, 526_304_771)],
    ids=["imagenet64", "lsun256"],
)
def test_published_layouts_map_one_to_one(flags: dict[str, Any], config: UNetConfig, parameters: int):
    shapes = published_shapes(**flags)
    state = {name: torch.empty(shape, device="meta", dtype=torch.float16) for name, shape in shapes.items()}
    found = openai_config(state)
    assert dataclasses.replace(found, sample_size=usual_sample_size(found)) == config
    with without_weights():
        network = UNet(config)
    network.load_state_dict(openai_to_diffusers(state, config), strict=True, assign=True)
    assert sum(p.numel() for p in network.parameters()) == sum(map(math.prod, shapes.values())) == parameters
    back = diffusers_to_openai(network.state_dict(), config)
    assert {name: tuple(tensor.shape) for name, tensor in back.items()} == shapes


# ---------------------------------------------------------------------------------------------------------- load_openai


def saved(path: Path, state: dict[str, Any]) -> Path:
    torch.save(state, path)
    return path


@pytest.mark.parametrize(("name", "shape"), [(CHECKPOINTS[0], (3, 64, 64)), (CHECKPOINTS[1], (3, 128, 128))])
def test_opens_as_a_model(golden: Any, name: str, shape: tuple[int, int, int]):
    values = golden.tensors(f"{name}_values.npz")
    for kind, result in (("consistency", "consistency_out"), ("diffusion", "edm_denoised")):
        model = load_openai(golden.path(f"{name}.pt"), kind=kind, attention_head_dim=32)
        out = model.denoiser(values["x_t"], values["sigma"], values.get("class_labels"))
        torch.testing.assert_close(out, values[result], rtol=1e-5, atol=1e-5 * values[result].abs().max().item())
        assert model.info == ModelInfo(kind=kind)
    assert model.image_shape == shape
    assert model.num_classes == (1000 if "class_labels" in values else 0)
    assert (model.format, model.dtype, model.method) == ("OpenAI .pt", torch.float16, None)
    assert model.path == golden.path(f"{name}.pt")
    parameters = list(model.denoiser.parameters())
    assert not model.denoiser.training
    assert all(p.dtype == torch.float32 and not p.requires_grad for p in parameters)


@pytest.mark.parametrize(
    ("name", "kind", "levels", "timesteps", "method"),
    [
        ("edm_imagenet64_ema.pt", "diffusion", 40, None, "EDM denoising"),
        ("cd_imagenet64_l2.pt", "consistency", 40, (0, 22), "consistency distillation, l2"),
        ("cd_imagenet64_lpips.pt", "consistency", 40, (0, 22), "consistency distillation, LPIPS"),
        ("ct_imagenet64.pt", "consistency", 201, (0, 106), "consistency training"),
        ("edm_bedroom256_ema.pt", "diffusion", 40, None, "EDM denoising"),
        ("cd_bedroom256_l2.pt", "consistency", 40, (0, 18), "consistency distillation, l2"),
        ("cd_bedroom256_lpips.pt", "consistency", 40, (0, 17), "consistency distillation, LPIPS"),
        ("ct_bedroom256.pt", "consistency", 151, (0, 67), "consistency training"),
        ("edm_cat256_ema.pt", "diffusion", 40, None, "EDM denoising"),
        ("cd_cat256_l2.pt", "consistency", 40, (0, 18), "consistency distillation, l2"),
        ("cd_cat256_lpips.pt", "consistency", 40, (0, 17), "consistency distillation, LPIPS"),
        ("ct_cat256.pt", "consistency", 151, (0, 62), "consistency training"),
    ],
)
def test_the_names_of_the_published_files(
    name: str, kind: Any, levels: int, timesteps: tuple[int, ...] | None, method: str
):
    info, notes = info_of_name(name)
    assert info == ModelInfo(kind=kind, num_train_timesteps=levels, timesteps=timesteps, method=method)
    assert len(notes) == 1 and method in notes[0] and "name" in notes[0]
    assert info_of_name(name, kind) == (info, notes)
    # What the user says goes before the name, all of which is then in doubt.
    other = "consistency" if kind == "diffusion" else "diffusion"
    assert info_of_name(name, other) == (ModelInfo(kind=other), [])


@pytest.mark.parametrize("name", ["ema_0.9999_050000.pt", "edm.pt", "cd_mine.pt", "my_cd_imagenet64_l2.pt"])
def test_other_names_tell_nothing(name: str):
    info, (note,) = info_of_name(name)
    assert info == ModelInfo()
    assert "taken for a consistency model" in note


def test_names_with_more_than_they_need():
    assert info_of_name("ct_imagenet64_l2.pt")[0].num_train_timesteps == 201
    assert info_of_name("cd_imagenet64.pt")[0].timesteps is None
    assert info_of_name("cd_cat256_l2 (1).pt")[0].timesteps == (0, 18)


def test_what_was_assumed_is_said(golden: Any, tmp_path: Path):
    path = tmp_path / "edm_imagenet64_ema.pt"
    path.write_bytes(golden.path(f"{CHECKPOINTS[0]}.pt").read_bytes())
    model = load_openai(path, attention_head_dim=32)
    assert model.info.kind == "diffusion"
    assert [" ".join(note.split()[:8]) for note in model.notes] == [
        "images of 64 pixels, where attention begins at",
        "by its name the file is of EDM",
    ]
    model = load_openai(path, attention_head_dim=32, kind="consistency", sample_size=32)
    assert (model.info.kind, model.image_shape, model.notes) == ("consistency", (3, 32, 32), ())


def test_size_of_the_images(tmp_path: Path):
    plain = dataclasses.replace(CONV, in_channels=2, down_block_types=("DownBlock2D",) * 3)
    plain = dataclasses.replace(plain, up_block_types=("UpBlock2D",) * 3)
    assert usual_sample_size(plain) is None
    assert usual_sample_size(CONV) == 32
    assert usual_sample_size(ADDITIVE) == 128
    path = saved(tmp_path / "plain.pt", random_openai(plain))
    model = load_openai(path, attention_head_dim=32)
    assert model.image_shape == (2, 64, 64)
    assert "nothing determines the size" in model.notes[0]
    with pytest.raises(UserError, match=r"plain.pt: sample_size 30 is not a multiple of 4"):
        load_openai(path, attention_head_dim=32, sample_size=30)
    with pytest.raises(UserError, match=r"plain.pt: sample_size: 0 is neither at least 1 nor null"):
        load_openai(path, attention_head_dim=32, sample_size=0)


def test_attention_that_cannot_begin_at_32_pixels():
    kinds = ("AttnDownBlock2D",) + ("DownBlock2D",) * 6
    ups = ("UpBlock2D",) * 6 + ("AttnUpBlock2D",)
    deep = dataclasses.replace(CONV, down_block_types=kinds, up_block_types=ups, block_out_channels=(32,) * 7)
    assert usual_sample_size(deep) is None  # 32 pixels cannot be halved six times


def test_on_the_meta_device_no_weight_is_looked_at(golden: Any, tmp_path: Path):
    state = random_openai(SCALE_SHIFT) | {"out.2.bias": torch.full((3,), torch.nan)}
    path = saved(tmp_path / "model.pt", state)
    model = load_openai(path, "meta", attention_head_dim=32)
    assert {p.device.type for p in model.denoiser.parameters()} == {"meta"}
    assert sum(p.numel() for p in model.denoiser.parameters()) == 2_316_867
    with pytest.raises(UserError, match="model.pt: tensor conv_out.bias has values that are not finite"):
        load_openai(path, attention_head_dim=32)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_weights_that_are_not_finite(tmp_path: Path, value: float):
    state = random_openai(SCALE_SHIFT)
    broken = state["middle_block.1.qkv.weight"].clone()
    broken[100, 5] = value  # in the second third: keys
    path = saved(tmp_path / "model.pt", state | {"middle_block.1.qkv.weight": broken})
    with pytest.raises(
        UserError, match=r"model.pt: tensor mid_block.attentions.0.to_k.weight has values .* not finite"
    ):
        load_openai(path, attention_head_dim=32)


def test_networks_that_learn_their_variance(tmp_path: Path):
    path = saved(tmp_path / "iddpm.pt", random_openai(dataclasses.replace(SCALE_SHIFT, out_channels=6)))
    with pytest.raises(UserError, match=r"iddpm.pt: makes 6 channels of 3: .* learns its variance"):
        load_openai(path, attention_head_dim=32)


def test_tensors_larger_than_the_file(tmp_path: Path):
    """A stride of 0 makes a tensor of any size of one number: building the network would take all memory."""
    state = {name: torch.zeros(1).expand(tensor.shape) for name, tensor in random_openai(SCALE_SHIFT).items()}
    path = saved(tmp_path / "bomb.pt", state)
    assert path.stat().st_size < 200_000
    with pytest.raises(UserError, match=r"bomb.pt: its tensors claim more bytes than the file has"):
        load_openai(path, attention_head_dim=32)


@pytest.mark.parametrize("tensor", [torch.zeros(3, device="meta"), torch.zeros(3, 3).to_sparse()])
def test_tensors_without_values(tmp_path: Path, tensor: Tensor):
    path = saved(tmp_path / "model.pt", random_openai(SCALE_SHIFT) | {"out.2.bias": tensor})
    with pytest.raises(UserError, match=r"model.pt(: its entry out.2.bias .* is no dense tensor| is not a PyTorch)"):
        load_openai(path, attention_head_dim=32)


def test_state_dicts_among_other_things(tmp_path: Path):
    state = random_openai(SCALE_SHIFT)
    for name in ("state_dict", "model", "ema", "anything"):
        path = saved(tmp_path / "model.pt", {name: state, "step": 3, "optimizer": {"lr": 0.1}})
        config, weights = read_openai(path, 32)
        assert config == SCALE_SHIFT
        assert torch.equal(weights["conv_out.bias"], state["out.2.bias"])
    saved(path, {"model": state, "ema": state})
    with pytest.raises(UserError, match=r"model.pt holds several networks \(model, ema\)"):
        read_openai(path, 32)


def test_dtype_is_that_of_most_weights(tmp_path: Path):
    state = {name: tensor.bfloat16() for name, tensor in random_openai(SCALE_SHIFT).items()}
    state["time_embed.0.weight"] = state["time_embed.0.weight"].double()
    model = load_openai(saved(tmp_path / "model.pt", state), attention_head_dim=32)
    assert model.dtype == torch.bfloat16
    assert {p.dtype for p in model.denoiser.parameters()} == {torch.float32}


# ---------------------------------------------------------------------------------------------------------- save_openai


def as_model(network: nn.Module, info: ModelInfo | None = None) -> LoadedModel:
    config: Any = network.config
    info = info or ModelInfo()
    return LoadedModel(precondition(network, info), info, config, Path("somewhere"))


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_written_as_read(golden: Any, tmp_path: Path, name: str):
    original = torch.load(golden.path(f"{name}.pt"), weights_only=True)
    model = load_openai(golden.path(f"{name}.pt"), attention_head_dim=32)
    save_openai(tmp_path / "new" / "again.pt", model)
    again = torch.load(tmp_path / "new" / "again.pt", weights_only=True)
    assert again.keys() == original.keys()
    assert all(torch.equal(again[n], original[n]) and again[n].dtype == torch.float16 for n in original)
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["again.pt"]
    # No tensor brings along a storage larger than itself.
    weights = sum(t.numel() * t.element_size() for t in original.values())
    assert (tmp_path / "new" / "again.pt").stat().st_size < 1.05 * weights


def test_written_in_another_dtype(golden: Any, tmp_path: Path):
    model = load_openai(golden.path(f"{CHECKPOINTS[1]}.pt"), attention_head_dim=32)
    save_openai(tmp_path / "fp32.pt", model, dtype=torch.float32)
    state = torch.load(tmp_path / "fp32.pt", weights_only=True)
    assert {t.dtype for t in state.values()} == {torch.float32}
    again = load_openai(tmp_path / "fp32.pt", attention_head_dim=32)
    for name, weight in model.denoiser.state_dict().items():
        assert torch.equal(again.denoiser.state_dict()[name], weight)


def test_a_fold_of_one_pixel_is_a_plain_unet(tmp_path: Path):
    fields = {f.name: getattr(ONE_RESOLUTION, f.name) for f in dataclasses.fields(ONE_RESOLUTION)}
    network = PatchedUNet(PatchedUNetConfig(**fields | {"out_channels": 1}, patch_size=1))
    save_openai(tmp_path / "model.pt", as_model(network))
    again = load_openai(tmp_path / "model.pt", attention_head_dim=32)
    assert torch.equal(again.denoiser.network.conv_in.weight, network.unet.conv_in.weight)


def test_what_openai_cannot_hold(tmp_path: Path):
    fields = {f.name: getattr(SCALE_SHIFT, f.name) for f in dataclasses.fields(SCALE_SHIFT)}
    with without_weights():
        adm = UNet(SCALE_SHIFT)
        patched = PatchedUNet(PatchedUNetConfig(**fields, patch_size=2))
        song = SongUNet(SongUNetConfig(sample_size=8, model_channels=32, channel_mult=(1,), num_blocks=1))
        groups = UNet(dataclasses.replace(SCALE_SHIFT, norm_num_groups=16))
    for network, info, message in (
        (patched, ModelInfo(), "hold ADM U-Nets alone, and this model is a PatchedUNet"),
        (song, ModelInfo(kind="diffusion"), "hold ADM U-Nets alone, and this model is a SongUNet"),
        (groups, ModelInfo(), "norm_num_groups 16 has no counterpart"),
        (adm, ModelInfo(sigma_data=0.25), "has sigma_data 0.5 alone, and this model has 0.25"),
        (adm, ModelInfo(noise_embedding="edm"), "has noise_embedding adm alone, and this model has edm"),
        (adm, ModelInfo(kind="diffusion", preconditioning="vp"), "has preconditioning edm alone, .* has vp"),
    ):
        with pytest.raises(UserError, match=f"model.pt: .*{message}.*give a target without an ending"):
            save_openai(tmp_path / "model.pt", as_model(network, info))
    assert list(tmp_path.iterdir()) == []


def test_weights_that_the_dtype_cannot_hold(tmp_path: Path):
    network = UNet(SCALE_SHIFT)
    network.conv_out.bias.data.fill_(70_000)
    save_openai(tmp_path / "bf16.pt", as_model(network), dtype=torch.bfloat16)
    (tmp_path / "fp16.pt").write_bytes(b"an older file")
    with pytest.raises(UserError, match=r"fp16.pt: tensor out.2.bias has values that are not finite as float16"):
        save_openai(tmp_path / "fp16.pt", as_model(network), dtype=torch.float16)
    assert (tmp_path / "fp16.pt").read_bytes() == b"an older file"


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("writing failed\nat 0x1")])
def test_a_write_that_fails_leaves_the_older_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception):
    path = tmp_path / "model.pt"
    path.write_bytes(b"an older file")

    def half(state: Any, file: Path) -> None:
        file.write_bytes(b"half")
        raise error

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(UserError, match=r"cannot write .*model.pt: (No space left on device|writing failed)$"):
        save_openai(path, as_model(UNet(SCALE_SHIFT)))
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"model.pt": b"an older file"}


def test_places_that_cannot_be_written(tmp_path: Path):
    model = as_model(UNet(ONE_RESOLUTION))
    (tmp_path / "folder.pt").mkdir()
    (tmp_path / "file").touch()
    for path in (tmp_path / "folder.pt", tmp_path / "file" / "model.pt"):
        with pytest.raises(UserError, match=f"cannot write {path}: "):
            save_openai(path, model)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder.pt"]


def test_what_a_state_dict_does_not_say():
    with without_weights():
        usual = UNet(
            dataclasses.replace(SCALE_SHIFT, sample_size=64, block_out_channels=(64, 64, 64), attention_head_dim=64)
        )
        other = UNet(SCALE_SHIFT)
    assert dropped_by_openai("model.pt", as_model(usual)) == ([], [])
    # The name gives a schedule that the model does not have; nothing of the model is lost.
    assert dropped_by_openai("cd_imagenet64_l2.pt", as_model(usual)) == ([], [])
    assert dropped_by_openai("edm_imagenet64_ema.pt", as_model(usual)) == (['kind="consistency"'], [])
    assert dropped_by_openai("model.pt", as_model(usual, ModelInfo(kind="diffusion"))) == (['kind="diffusion"'], [])
    model = as_model(
        other, ModelInfo(sigma_min=0.01, num_train_timesteps=201, timesteps=(0, 106), schedules=((0, 3, 9),))
    )
    arguments, lost = dropped_by_openai("model.pt", model)
    assert arguments == ["attention_head_dim=32"]
    assert lost == ["sigma_min 0.01", "num_train_timesteps 201", "timesteps 0,106", "timesteps 0,3,9"]
    assert dropped_by_openai("ct_imagenet64.pt", model)[1] == ["sigma_min 0.01", "timesteps 0,3,9"]
    one_head = dataclasses.replace(SCALE_SHIFT, attention_head_dim=None, sample_size=32)
    with without_weights():
        assert dropped_by_openai("m.pt", as_model(UNet(one_head))) == (["sample_size=32"], ["attention_head_dim null"])
    narrow = dataclasses.replace(one_head, block_out_channels=(32, 64, 64), sample_size=64)
    with without_weights():
        assert dropped_by_openai("m.pt", as_model(UNet(narrow))) == (["attention_head_dim=64"], [])


# ------------------------------------------------------------------------------------------------------ number of heads


def plain_attention(state: dict[str, Tensor], name: str, x: Tensor, heads: int) -> Tensor:
    """Attention of the published code with a number of heads: channels of qkv are (three, heads, channels)."""
    n, c, h, w = x.shape
    normed = nn.functional.group_norm(x, 32, state[f"{name}.norm.weight"], state[f"{name}.norm.bias"])
    qkv = nn.functional.conv2d(normed, state[f"{name}.qkv.weight"], state[f"{name}.qkv.bias"])
    q, k, v = qkv.reshape(n, 3, heads, c // heads, h * w).unbind(1)
    weights = (torch.einsum("nhct,nhcs->nhts", q, k) / math.sqrt(c // heads)).softmax(dim=-1)
    out = torch.einsum("nhts,nhcs->nhct", weights, v).reshape(n, c, h, w)
    return x + nn.functional.conv2d(out, state[f"{name}.proj_out.weight"], state[f"{name}.proj_out.bias"])


@torch.no_grad()
def test_one_number_of_heads_at_every_resolution(tmp_path: Path):
    state = random_openai(SCALE_SHIFT)
    path = saved(tmp_path / "x.pt", state)
    model = load_openai(path, num_heads=4, sample_size=16)
    network = model.denoiser.network
    blocks = {
        "input_blocks.3.1": network.get_submodule("down_blocks.1.attentions.0"),
        "middle_block.1": network.get_submodule("mid_block.attentions.0"),
        "output_blocks.3.1": network.get_submodule("up_blocks.1.attentions.1"),
    }
    for name, block in blocks.items():
        x = torch.randn(2, state[f"{name}.norm.weight"].numel(), 4, 4, generator=torch.Generator().manual_seed(1))
        torch.testing.assert_close(block(x), plain_attention(state, name, x, 4), rtol=1e-5, atol=1e-5)
    assert model.notes == load_openai(path, attention_head_dim=32, sample_size=16).notes

    save_model(tmp_path / "folder", network, model.info, card="")
    again = load_model(tmp_path / "folder")
    assert again.config == model.config and (again.config.num_heads, again.config.attention_head_dim) == (4, None)
    x, sigma, labels = torch.ones(1, 3, 16, 16), torch.ones(1), torch.zeros(1, dtype=torch.int64)
    torch.testing.assert_close(again.denoiser(x, sigma, labels), model.denoiser(x, sigma, labels))
    other = load_openai(path, attention_head_dim=32, sample_size=16)
    assert not torch.allclose(other.denoiser(x, sigma, labels), model.denoiser(x, sigma, labels))
    # diffusers has no such field, and would compute something else.
    assert json.loads((tmp_path / "folder" / "model_index.json").read_text())["unet"] == ["unistep", "UNet2DModel"]
    assert dropped_by_openai("x.pt", again)[0] == ["num_heads=4", "sample_size=16"]
    assert "4 heads" in dict(describe(again).rows())["attention"]


def test_heads_of_one_width_are_a_size(tmp_path: Path):
    path = saved(tmp_path / "x.pt", random_openai(ONE_RESOLUTION))
    config, _ = read_openai(path, None, num_heads=4)
    assert (config.attention_head_dim, config.num_heads) == (8, None)


def test_the_assumed_size_of_heads_is_said_once(golden: Any, tmp_path: Path):
    wide = dataclasses.replace(SCALE_SHIFT, block_out_channels=(64, 64, 64), attention_head_dim=64)
    state = random_openai(wide)

    def assumed(path: Path, **options: Any) -> int:
        notes = load_openai(saved(path, state), "meta", sample_size=16, **options).notes
        return sum("attention heads of 64 channels are assumed" in note for note in notes)

    assert assumed(tmp_path / "x.pt") == 1
    assert assumed(tmp_path / "x.pt", attention_head_dim=64) == assumed(tmp_path / "x.pt", num_heads=2) == 0
    assert assumed(tmp_path / "cd_imagenet64_l2.pt") == 0  # a published file, whose heads are published too


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_heads": 4, "attention_head_dim": 32}, "`num_heads` 4 and `attention_head_dim` 32 exclude each other"),
        ({"num_heads": 5}, "x.pt: num_heads: 5 does not divide the width 64 of a resolution that attends"),
        ({"num_heads": 0}, "x.pt: num_heads: 0 is neither at least 1 nor null"),
        ({"num_heads": -4}, "x.pt: num_heads: -4 is neither at least 1 nor null"),
        ({"num_heads": 10**30}, "does not divide the width"),
        ({}, "attention_head_dim: 64 does not divide the width 96.*, or give `num_heads`"),
    ],
)
def test_numbers_of_heads_that_do_not_fit(options: dict[str, int], message: str, tmp_path: Path):
    path = saved(tmp_path / "x.pt", random_openai(SCALE_SHIFT))
    with pytest.raises(UserError, match=message):
        load_openai(path, **options)
