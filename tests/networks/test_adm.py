import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from unistep.networks.adm import UNet, UNetConfig
from unistep.networks.layers import Dropout

CONFIG = UNetConfig(
    sample_size=8,
    down_block_types=("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
    up_block_types=("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
    block_out_channels=(8, 16),
    layers_per_block=1,
    attention_head_dim=8,
    norm_num_groups=4,
    attn_norm_num_groups=4,
)


def build(**changes: Any) -> UNet:
    """A small network all of whose weights are random, those that start at zero too."""
    network = UNet(dataclasses.replace(CONFIG, **changes))
    generator = torch.Generator().manual_seed(1)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2, generator=generator)
    return network


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def x(generator: torch.Generator) -> Tensor:
    return torch.randn(2, 3, 8, 8, generator=generator)


@pytest.fixture
def c_noise() -> Tensor:
    return torch.tensor([-300.0, 40.0])


def test_output_is_zero_at_the_start(x: Tensor, c_noise: Tensor):
    assert torch.equal(UNet(CONFIG)(x, c_noise), torch.zeros_like(x))


@pytest.mark.parametrize("scale_shift", ["default", "scale_shift"])
def test_images_of_a_batch_do_not_mix(x: Tensor, c_noise: Tensor, scale_shift: str):
    network = build(num_class_embeds=5, resnet_time_scale_shift=scale_shift).eval()
    labels = torch.tensor([4, 1])
    both = network(x, c_noise, labels)
    assert both.shape == x.shape
    for i in range(2):
        alone = network(x[i : i + 1], c_noise[i : i + 1], labels[i : i + 1])
        torch.testing.assert_close(both[i : i + 1], alone, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(both, network(x, c_noise.flip(0), labels), atol=1e-2)
    assert not torch.allclose(both, network(x, c_noise, labels.flip(0)), atol=1e-2)


def test_every_parameter_takes_part(x: Tensor, c_noise: Tensor):
    network = build(num_class_embeds=2)
    network(x, c_noise, torch.tensor([0, 1])).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        # A bias of the keys adds the same to all scores of a query, and softmax does not see it.
        if not name.endswith("to_k.bias"):
            assert parameter.grad.abs().max() > 1e-4, name


def dropped(network: UNet, run: Callable[[], object]) -> list[Tensor]:
    """Where each dropout of the network put zeros during `run`."""
    masks: list[Tensor] = []
    hooks = [
        module.register_forward_hook(lambda module, inputs, output: masks.append((output == 0) & (inputs[0] != 0)))
        for module in network.modules()
        if isinstance(module, Dropout)
    ]
    run()
    for hook in hooks:
        hook.remove()
    return masks


def test_student_and_target_drop_the_same_units(x: Tensor, c_noise: Tensor):
    student, target = build(dropout=0.4).train(), build(dropout=0.4).train()
    for parameter in target.parameters():
        parameter.data *= 0.9
    of_student = dropped(student, lambda: student(x, c_noise, generator=seeded(7)))
    of_target = dropped(target, lambda: target(x + 0.1, c_noise - 1, generator=seeded(7)))
    of_other = dropped(target, lambda: target(x, c_noise, generator=seeded(8)))
    assert len(of_student) == 10  # one a residual block
    for i, mask in enumerate(of_student):
        assert mask.any()
        assert torch.equal(mask, of_target[i])
        assert not torch.equal(mask, of_other[i])


def test_generator_decides_the_output_in_training(x: Tensor, c_noise: Tensor):
    student = build(dropout=0.4).train()
    target = copy.deepcopy(student)
    first = student(x, c_noise, generator=seeded(7))
    assert torch.equal(first, target(x, c_noise, generator=seeded(7)))
    assert not torch.allclose(first, target(x, c_noise, generator=seeded(8)), atol=1e-2)


def test_dropout_leaves_evaluation_alone(x: Tensor, c_noise: Tensor):
    network = build(dropout=0.4)
    plain = build(dropout=0.0).train()(x, c_noise, generator=seeded(7))
    assert torch.equal(network.eval()(x, c_noise, generator=seeded(7)), plain)
    assert torch.equal(network.train()(x, c_noise), plain)  # no generator, no dropout


def test_labels_must_fit_the_network(x: Tensor, c_noise: Tensor):
    with pytest.raises(ValueError, match="needs class_labels"):
        build(num_class_embeds=5)(x, c_noise)
    with pytest.raises(ValueError, match="is unconditional: class_labels must be None"):
        build()(x, c_noise, torch.tensor([0, 1]))


@pytest.mark.parametrize("size", [(7, 8), (8, 7), (9, 9)])
def test_sizes_must_be_multiples(size: tuple[int, int], c_noise: Tensor):
    with pytest.raises(ValueError, match=rf"{size[0]}x{size[1]} pixels .* multiples of 2$"):
        build()(torch.zeros(2, 3, *size), c_noise)


def test_other_sizes_than_the_configs(c_noise: Tensor):
    assert build()(torch.zeros(2, 3, 6, 10), c_noise).shape == (2, 3, 6, 10)


def test_channels_last_images_give_the_same(x: Tensor, c_noise: Tensor):
    network = build().eval()
    out = network(x.to(memory_format=torch.channels_last), c_noise)
    assert out.is_contiguous()
    assert torch.equal(out, network(x, c_noise))


def test_blocks_in_low_precision(x: Tensor, c_noise: Tensor):
    network = build(num_class_embeds=5).eval()
    labels = torch.tensor([4, 1])
    full = network(x, c_noise, labels)
    low = network.cast_blocks(torch.bfloat16)
    whole = {name.split(".")[0] for name, tensor in low.state_dict().items() if tensor.dtype == torch.float32}
    assert whole == {"time_embedding", "class_embedding", "conv_in", "conv_norm_out", "conv_out"}
    out = low(x, c_noise, labels)
    assert out.dtype == torch.float32
    error = (out - full).norm() / full.norm()
    assert 1e-5 < error < 0.05
    everything = copy.deepcopy(low).to(torch.bfloat16)(x, c_noise, labels)
    assert everything.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block_out_channels": (8,)}, r"block_out_channels \(1\).* must have the same length"),
        ({"up_block_types": ("UpBlock2D",)}, r"up_block_types \(1\) must have the same length"),
        ({"down_block_types": ("DownBlock2D", "UpBlock2D")}, "down_block_types: unknown block 'UpBlock2D'; known are"),
        ({"up_block_types": ("AttnUpBlock2D", "Up")}, "up_block_types: unknown block 'Up'; known are UpBlock2D"),
        ({"block_out_channels": (8, 18)}, "18 is not a multiple of norm_num_groups 4"),
        ({"block_out_channels": (8, 0)}, "0 is not a multiple of norm_num_groups 4"),
        ({"block_out_channels": (), "down_block_types": (), "up_block_types": ()}, "at least one resolution"),
        ({"block_out_channels": (7, 16), "norm_num_groups": 1}, "the first, 7, must be even"),
        ({"attn_norm_num_groups": 32}, "the last, 16, is not a multiple of attn_norm_num_groups 32"),
        ({"attention_head_dim": 12}, "attention_head_dim: 12 does not divide the width 16"),
        ({"attention_head_dim": 64}, "attention_head_dim: 64 does not divide the width 16"),
        ({"down_block_types": ("AttnDownBlock2D",) * 2, "attention_head_dim": 16}, "16 does not divide the width 8"),
        ({"attention_head_dim": 0}, "attention_head_dim: 0 is neither at least 1 nor null"),
        ({"resnet_time_scale_shift": "spatial"}, "'spatial' is neither 'default' nor 'scale_shift'"),
        ({"downsample_type": "pool"}, "downsample_type: 'pool' is neither 'conv' nor 'resnet'"),
        ({"upsample_type": ""}, "upsample_type: '' is neither 'conv' nor 'resnet'"),
        ({"dropout": 1.0}, r"dropout: 1.0 is outside \[0, 1\)"),
        ({"dropout": -0.1}, "dropout: -0.1 is outside"),
        ({"layers_per_block": 0}, "layers_per_block: 0 is not at least 1"),
        ({"norm_num_groups": 0}, "norm_num_groups: 0 is not at least 1"),
        ({"num_class_embeds": 0}, "num_class_embeds: 0 is neither at least 1 nor null"),
    ],
)
def test_config_errors(changes: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message) as caught:
        dataclasses.replace(CONFIG, **changes)
    assert "\n" not in str(caught.value)


def test_widths_that_do_not_attend_need_no_heads():
    config = dataclasses.replace(
        CONFIG,
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
        add_attention=False,
        attention_head_dim=64,
        attn_norm_num_groups=32,
    )
    assert not [name for name in UNet(config).state_dict() if "attentions" in name]
