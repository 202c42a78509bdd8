import dataclasses
import functools
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from unistep.core.parameterization import ConsistencyScaling, EDMScaling, Preconditioned
from unistep.errors import UserError
from unistep.formats.openai import diffusers_to_openai, openai_config, openai_to_diffusers, read_openai
from unistep.networks.adm import UNet, UNetConfig
from unistep.networks.patched import PatchedUNetConfig

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
        (b"<!DOCTYPE html><title>404</title>", "is not a PyTorch file of tensors alone: it is damaged"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is not a PyTorch file of tensors alone: it is damaged"),
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
        ({"state": {0: torch.zeros(3)}, "param_groups": []}, "its entry 'state' is no tensor of floats"),
        ({"weight": torch.zeros(3, dtype=torch.int64)}, "its entry 'weight' is no tensor of floats"),
        ({3: torch.zeros(3)}, "its entry 3 is no tensor of floats"),
        ({"conv_in.weight": torch.zeros(3)}, "in_layers.2.weight is missing: not a U-Net of OpenAI's"),
    ],
)
def test_other_contents(tmp_path: Path, value: Any, message: str):
    torch.save(value, tmp_path / "opt.pt")
    with pytest.raises(UserError, match=f"opt.pt.*{message}"):
        read_openai(tmp_path / "opt.pt")


def test_no_file(tmp_path: Path):
    with pytest.raises(UserError, match=r"cannot read .*none.pt: No such file"):
        read_openai(tmp_path / "none.pt")
    with pytest.raises(UserError, match=f"cannot read {tmp_path}: Is a directory"):
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
