"""The table of engines, and the blocks by which networks are parted."""

from dataclasses import replace
from typing import Any, get_args
from unittest.mock import Mock

import pytest
from accelerate import Accelerator
from small_unet import small_unet

from unistep.errors import UserError
from unistep.networks.patched_config import PatchedUNetConfig
from unistep.networks.song_config import SongUNetConfig
from unistep.networks.table import build_network
from unistep.training.config import EngineName
from unistep.training.engines import ENGINES, build_engine
from unistep.training.replicated import Replicated


def accelerator(**fields: Any) -> Any:
    return Mock(spec=Accelerator, **({"num_processes": 2, "scaler": None} | fields))


def test_every_engine_is_a_key():
    assert set(get_args(EngineName)) == set(ENGINES)


def test_one_process_has_whole_networks():
    assert isinstance(build_engine("fsdp", accelerator(num_processes=1)), Replicated)


def test_fp16_in_parts_is_refused():
    with pytest.raises(UserError, match="`engine` fsdp does not scale the gradients of fp16; give `precision` bf16"):
        build_engine("fsdp", accelerator(scaler=object()))


@pytest.mark.parametrize(
    "config",
    [
        small_unet(),
        PatchedUNetConfig(
            patch_size=2,
            sample_size=8,
            in_channels=1,
            out_channels=1,
            block_out_channels=(8, 8),
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            norm_num_groups=4,
            attn_norm_num_groups=4,
            attention_head_dim=8,
        ),
        replace(SongUNetConfig(), sample_size=8, in_channels=1, out_channels=1, model_channels=32),
    ],
    ids=lambda config: type(config).__name__,
)
def test_blocks_hold_most_of_the_weights_once(config):
    network: Any = build_network(config)
    parameters = [p for block in network.blocks() for p in block.parameters()]
    assert len({*map(id, parameters)}) == len(parameters)
    own = {*map(id, network.parameters())}
    assert own.issuperset(map(id, parameters))
    assert sum(p.numel() for p in parameters) > 0.8 * sum(p.numel() for p in network.parameters())
