"""`UNet` beside diffusers' `UNet2DModel`: the same parameters, the same output."""

import dataclasses

import pytest
import torch
from diffusers import UNet2DModel
from diffusers.models.embeddings import get_timestep_embedding
from torch import nn

from unistep.networks.adm import UNet, UNetConfig
from unistep.networks.layers import sinusoidal_embedding
from unistep.networks.outline import fields_of

# Class-conditional ImageNet-64, the widths 192, 384, 576, 768 reduced.
IMAGENET = UNetConfig(
    sample_size=16,
    down_block_types=("ResnetDownsampleBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
    up_block_types=("AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D"),
    block_out_channels=(32, 64, 64, 96),
    layers_per_block=3,
    attention_head_dim=32,
    num_class_embeds=10,
)
# Unconditional LSUN-256, the widths 256, 256, 512, 512, 1024, 1024 reduced.
LSUN = UNetConfig(
    sample_size=64,
    down_block_types=("ResnetDownsampleBlock2D",) * 3 + ("AttnDownBlock2D",) * 3,
    up_block_types=("AttnUpBlock2D",) * 3 + ("ResnetUpsampleBlock2D",) * 3,
    block_out_channels=(8, 8, 16, 16, 24, 24),
    attention_head_dim=8,
    norm_num_groups=4,
    attn_norm_num_groups=None,
    resnet_time_scale_shift="default",
)
# The U-Net of DDPM, as diffusers' own defaults have it.
PLAIN = UNetConfig(
    sample_size=16,
    in_channels=1,
    out_channels=2,
    down_block_types=("DownBlock2D", "AttnDownBlock2D"),
    up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    block_out_channels=(16, 32),
    layers_per_block=1,
    downsample_type="conv",
    upsample_type="conv",
    attention_head_dim=8,
    norm_num_groups=8,
    attn_norm_num_groups=None,
    resnet_time_scale_shift="default",
)
# Each differs from PLAIN in what it is named for.
SMALL = dataclasses.replace(PLAIN, in_channels=3, out_channels=3, resnet_time_scale_shift="scale_shift")
LAYOUTS = {
    "imagenet": IMAGENET,
    "lsun": LSUN,
    "plain": PLAIN,
    "scale_shift_without_middle_norm": SMALL,
    "scale_shift_with_middle_norm": dataclasses.replace(SMALL, attn_norm_num_groups=4),
    "additive_with_middle_norm": dataclasses.replace(PLAIN, attn_norm_num_groups=2),
    "no_middle_attention": dataclasses.replace(PLAIN, add_attention=False),
    "single_head": dataclasses.replace(PLAIN, attention_head_dim=None),
    "large_eps": dataclasses.replace(PLAIN, norm_eps=0.5),
    "attention_on_one_side": dataclasses.replace(PLAIN, up_block_types=("UpBlock2D", "UpBlock2D")),
    "attention_at_the_finest": dataclasses.replace(
        PLAIN, down_block_types=("AttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "AttnUpBlock2D")
    ),
    "conv_down_resnet_up": dataclasses.replace(
        PLAIN,
        down_block_types=("AttnDownBlock2D", "ResnetDownsampleBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        upsample_type="resnet",
    ),
    "one_resolution": dataclasses.replace(
        PLAIN, down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",), block_out_channels=(16,)
    ),
}


def randomize(network: nn.Module, generator: torch.Generator) -> None:
    """Every parameter random, those of size zero at the start among them, so that all show in the output."""
    for parameter in network.parameters():
        fan_in = parameter[0].numel() if parameter.ndim > 1 else 4
        nn.init.normal_(parameter, std=fan_in**-0.5, generator=generator)
        if parameter.ndim == 1:
            parameter.data += 0.5


@pytest.fixture(params=LAYOUTS.values(), ids=LAYOUTS)
def pair(request: pytest.FixtureRequest, generator: torch.Generator) -> tuple[UNet, UNet2DModel]:
    ours = UNet(request.param).eval()
    theirs = UNet2DModel(**fields_of(request.param)).eval()
    randomize(ours, generator)
    return ours, theirs


@torch.no_grad()
def test_same_parameters_and_output(pair: tuple[UNet, UNet2DModel], generator: torch.Generator):
    ours, theirs = pair
    shapes = {name: tensor.shape for name, tensor in ours.state_dict().items()}
    assert shapes == {name: tensor.shape for name, tensor in theirs.state_dict().items()}

    theirs.load_state_dict(ours.state_dict(), strict=True)
    size = ours.config.sample_size
    assert size is not None
    x = torch.randn(2, ours.config.in_channels, size, 2 * size, generator=generator)
    c_noise = 250 * torch.tensor([0.002, 80.0]).log()
    labels = torch.tensor([3, 7]) if ours.config.num_class_embeds else None
    expected = theirs(x, c_noise, labels).sample
    assert 0.3 < expected.std() < 30
    torch.testing.assert_close(ours(x, c_noise, labels), expected, rtol=0, atol=1e-5)


def test_state_dict_of_diffusers_loads(pair: tuple[UNet, UNet2DModel]):
    ours, theirs = pair
    weights = theirs.state_dict()
    ours.load_state_dict(weights, strict=True)
    for name, tensor in ours.state_dict().items():
        assert torch.equal(tensor, weights[name]), name


@pytest.mark.parametrize("dim", [32, 192, 256])
def test_same_sinusoids_to_the_bit(dim: int):
    # c_noise reaches 1000: rounding the frequencies otherwise would move the angles by 5e-5.
    c_noise = 250 * torch.tensor([0.002, 0.1, 1.7, 80.0]).log()
    expected = get_timestep_embedding(c_noise, dim, flip_sin_to_cos=True, downscale_freq_shift=0)
    assert torch.equal(sinusoidal_embedding(c_noise, dim), expected)
