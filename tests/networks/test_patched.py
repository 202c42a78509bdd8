import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unistep.networks.adm import UNet
from unistep.networks.patched import PatchedUNet, PatchedUNetConfig

CONFIG = PatchedUNetConfig(
    sample_size=12,
    in_channels=1,
    out_channels=2,
    down_block_types=("DownBlock2D", "AttnDownBlock2D"),
    up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    block_out_channels=(8, 16),
    layers_per_block=1,
    dropout=0.3,
    attention_head_dim=8,
    norm_num_groups=4,
    attn_norm_num_groups=4,
    num_class_embeds=5,
    patch_size=3,
)


@pytest.fixture
def patched() -> PatchedUNet:
    network = PatchedUNet(CONFIG)
    generator = torch.Generator().manual_seed(1)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2, generator=generator)
    return network


@pytest.fixture
def inputs(generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(2, 1, 12, 18, generator=generator), torch.tensor([-300.0, 40.0]), torch.tensor([4, 1])


@pytest.mark.parametrize("training", [False, True])
def test_is_the_unet_on_folded_images(patched: PatchedUNet, inputs: tuple[Tensor, Tensor, Tensor], training: bool):
    x, c_noise, labels = inputs
    unet = UNet(CONFIG.inner())
    unet.load_state_dict({name.removeprefix("unet."): tensor for name, tensor in patched.state_dict().items()})
    unet.train(training)
    folded = F.pixel_unshuffle(x, 3)
    assert folded.shape == (2, 9, 4, 6)
    expected = unet(folded, c_noise, labels, generator=torch.Generator().manual_seed(3))
    assert expected.shape == (2, 18, 4, 6)
    out = patched.train(training)(x, c_noise, labels, generator=torch.Generator().manual_seed(3))
    assert torch.equal(out, F.pixel_shuffle(expected, 3))
    other = patched(x, c_noise, labels, generator=torch.Generator().manual_seed(4))
    assert torch.equal(out, other) is not training


def test_patch_size_1_is_the_plain_unet():
    config = dataclasses.replace(CONFIG, patch_size=1)
    assert dataclasses.asdict(config.inner()) | {"patch_size": 1} == dataclasses.asdict(config)


def test_sizes_must_be_multiples(patched: PatchedUNet, inputs: tuple[Tensor, Tensor, Tensor]):
    _, c_noise, labels = inputs
    with pytest.raises(ValueError, match="12x13 pixels do not fold into patches of 3x3"):
        patched(torch.zeros(2, 1, 12, 13), c_noise, labels)
    with pytest.raises(ValueError, match="sides must be multiples of 2"):
        patched(torch.zeros(2, 1, 9, 12), c_noise, labels)


def test_labels_must_fit_the_network(patched: PatchedUNet, inputs: tuple[Tensor, Tensor, Tensor]):
    with pytest.raises(ValueError, match="needs class_labels"):
        patched(inputs[0], inputs[1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch_size": 0}, "patch_size: 0 is not at least 1"),
        ({"sample_size": 28}, r"sample_size 28 is not a multiple of 6 \(patch_size 3, 2 resolutions\)"),
        ({"dropout": 2.0}, "dropout: 2.0 is outside"),
    ],
)
def test_config_errors(changes: dict, message: str):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **changes)


def test_size_may_be_left_open():
    assert dataclasses.replace(CONFIG, sample_size=None).inner().sample_size is None
