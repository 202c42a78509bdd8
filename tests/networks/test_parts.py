"""A network is its embedding, trunk and head, one after the other."""

import pytest
import torch

from unistep.networks.adm import UNet, UNetConfig
from unistep.networks.patched import PatchedUNet
from unistep.networks.patched_config import PatchedUNetConfig
from unistep.networks.song import SongUNet
from unistep.networks.song_config import SongUNetConfig

_ADM = {
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": (16, 32),
    "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
    "layers_per_block": 1,
    "attention_head_dim": 16,
    "norm_num_groups": 8,
    "attn_norm_num_groups": 8,
    "num_class_embeds": 3,
}
NETWORKS = {
    "adm": lambda: UNet(UNetConfig(sample_size=8, resnet_time_scale_shift="scale_shift", **_ADM)),
    "patched": lambda: PatchedUNet(PatchedUNetConfig(sample_size=16, patch_size=2, **_ADM)),
    "song": lambda: SongUNet(
        SongUNetConfig(sample_size=16, in_channels=1, out_channels=1, model_channels=16, num_class_embeds=3)
    ),
    "song, a head at every resolution": lambda: SongUNet(
        SongUNetConfig(
            sample_size=16, in_channels=1, out_channels=1, model_channels=16, num_class_embeds=3, decoder_type="skip"
        )
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_a_network_is_its_parts(name: str):
    torch.manual_seed(0)
    network = NETWORKS[name]().eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    size = network.config.sample_size
    x, c_noise, labels = torch.randn(2, 1, size, size), torch.tensor([1000.0, -300.0]), torch.tensor([0, 2])
    parts = network.head(network.trunk(x, network.embed(c_noise, labels)))
    assert torch.equal(parts, network(x, c_noise, labels))
