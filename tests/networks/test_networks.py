"""The table of networks: rows lead to their classes, and each class back to its row."""

import dataclasses
import subprocess
import sys

import pytest
import torch

from unistep.errors import UserError
from unistep.networks.adm_config import UNetConfig
from unistep.networks.table import NETWORKS, build_network, row_of

SMALL = {
    "adm": {"block_out_channels": (32, 64, 64)},
    "patched-adm": {"block_out_channels": (32, 64, 64), "patch_size": 2},
    "song": {"model_channels": 32, "num_blocks": 1},
}


@pytest.mark.parametrize("row", NETWORKS.values(), ids=lambda row: row.name)
def test_a_row_builds_its_network_and_is_found_by_it(row):
    config = row.config_class()(sample_size=32, **SMALL[row.name])
    network = build_network(config)
    assert type(network) is row.network_class() and network.config == config
    assert row_of(network) is row and row_of(config) is row
    out = network(torch.zeros(2, 3, 32, 32), torch.zeros(2), None, generator=None)
    assert out.shape == (2, 3, 32, 32)
    sizes = [resolution.size * config.outline().patch_size for resolution in config.outline().resolutions]
    assert sizes == [32 >> i for i in range(len(sizes))]


@pytest.mark.parametrize("row", NETWORKS.values(), ids=lambda row: row.name)
def test_a_config_has_what_every_config_has(row):
    names = {field.name for field in dataclasses.fields(row.config_class())}
    assert names >= {"sample_size", "in_channels", "out_channels", "num_class_embeds"}


def test_names_of_classes_differ():
    assert len({row.class_name for row in NETWORKS.values()}) == len(NETWORKS)


def test_an_unknown_network_has_no_row():
    assert row_of(torch.nn.Identity()) is None

    @dataclasses.dataclass(frozen=True)
    class OtherConfig(UNetConfig):
        pass

    with pytest.raises(UserError, match="OtherConfig is the config of no network; adm, patched-adm, song are known"):
        build_network(OtherConfig())


def test_a_config_of_another_network_is_refused():
    with pytest.raises(TypeError, match="UNetConfig is no config of the network song"):
        NETWORKS["song"].build(UNetConfig())


def test_configs_cost_no_import_of_torch():
    code = (
        "import sys; from unistep.networks.table import NETWORKS; [row.config_class()() for row in NETWORKS.values()];"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
