"""Blocks that compute their activations again: gradients to the bit, the same masks, less that is kept."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from unistep.networks.adm import UNetConfig
from unistep.networks.block import Block, blocks_of, compile_blocks, recompute_blocks
from unistep.networks.layers import Dropout
from unistep.networks.patched_config import PatchedUNetConfig
from unistep.networks.song_config import SongUNetConfig
from unistep.networks.table import build_network

ADM = UNetConfig(
    sample_size=8,
    in_channels=1,
    out_channels=1,
    block_out_channels=(8, 16),
    down_block_types=("DownBlock2D", "AttnDownBlock2D"),
    up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    norm_num_groups=4,
    attn_norm_num_groups=4,
    attention_head_dim=8,
    num_class_embeds=3,
    dropout=0.3,
)
CONFIGS = [
    ADM,
    PatchedUNetConfig(**(vars(ADM) | {"patch_size": 2})),
    replace(
        SongUNetConfig(),
        sample_size=16,
        in_channels=1,
        out_channels=1,
        model_channels=32,
        num_class_embeds=3,
        label_dropout=0.2,
        dropout=0.3,
    ),
]


@pytest.fixture(params=CONFIGS, ids=lambda config: type(config).__name__)
def network(request) -> nn.Module:
    made, generator = build_network(request.param).train(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in made.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator))
    return made


def recomputing(network: nn.Module) -> nn.Module:
    again = copy.deepcopy(network)
    assert recompute_blocks(again)
    return again


def evaluated(network: nn.Module) -> tuple[Tensor, Tensor, torch.Generator]:
    size = network.config.sample_size
    x = torch.randn(4, 1, size, size, generator=torch.Generator().manual_seed(1)).requires_grad_()
    masks, labels = torch.Generator().manual_seed(2), torch.arange(4) % 3
    first = network(x, torch.linspace(-1, 1, 4), labels, generator=masks)
    # One generator for two evaluations, whose backward passes come after both.
    return first + network(2 * x, torch.linspace(0, 1, 4), labels, generator=masks), x, masks


@pytest.mark.parametrize("autocast", [False, True])
def test_outputs_gradients_and_masks_are_the_same_to_the_bit(network, autocast):
    found = []
    for one in (network, recomputing(network)):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            y, x, masks = evaluated(one)
        y.float().square().sum().backward()
        found.append([y, x.grad, torch.rand(3, generator=masks), *(p.grad for p in one.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert all(bool(value.any()) for value in found[0])


def test_names_stay_and_copies_recompute_too(network):
    again = recomputing(network)
    assert again.state_dict().keys() == network.state_dict().keys()
    assert all(block.recomputes for block in blocks_of(copy.deepcopy(again)))
    assert not any(block.recomputes for block in blocks_of(network))


def kept_by(network: nn.Module) -> int:
    """Bytes that are kept for the backward pass, weights aside."""
    kept, weights = {}, {p.untyped_storage().data_ptr() for p in network.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        evaluated(network)
    return sum(storage.nbytes() for place, storage in kept.items() if place not in weights)


def test_inputs_of_blocks_are_kept_and_not_what_they_make(network):
    assert kept_by(recomputing(network)) < 0.5 * kept_by(network)


class Noisy(Block):
    """Counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.drop, self.calls = nn.Parameter(torch.ones(5)), Dropout(0.5), 0

    def compute(self, x: Tensor, generator: torch.Generator) -> Tensor:
        self.calls += 1
        return (self.drop(x * self.weight, generator) * self.weight).sin()


def test_it_computes_again_only_where_there_is_a_gradient():
    block, masks = Noisy(), torch.Generator().manual_seed(0)
    block.recomputes = True
    x = torch.ones(3, 5, requires_grad=True)
    with torch.no_grad():
        block(x, masks)
    block.requires_grad_(False)
    frozen = block(x, masks)
    block.requires_grad_(True)
    frozen.sum().backward()
    assert block.calls == 2 and block.weight.grad is None
    block(x, masks).sum().backward()
    assert block.calls == 4


def test_a_second_backward_pass_sees_the_same_masks():
    block, masks = Noisy(), torch.Generator().manual_seed(0)
    block.recomputes = True
    y = block(torch.ones(3, 5), masks).sum()
    first, second = (torch.autograd.grad(y, [block.weight], retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second) and first.any()


def test_derivatives_in_forward_mode_are_taken_of_blocks_as_they_are():
    block, x = Noisy(), torch.ones(3, 5)
    block.compiles = True
    found = torch.func.jvp(lambda x: block(x, torch.Generator().manual_seed(0)), (x,), (x,))
    block.compiles = False
    expected = torch.func.jvp(lambda x: block(x, torch.Generator().manual_seed(0)), (x,), (x,))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert block.calls == 2  # which a compiler would not have counted


def test_a_network_without_blocks_has_none():
    assert blocks_of(nn.Identity()) == []
    assert not recompute_blocks(nn.Identity()) and not compile_blocks(nn.Identity())
