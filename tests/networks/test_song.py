import dataclasses
import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from unistep.networks.song import SongUNet, SongUNetConfig

SMALL = SongUNetConfig(
    sample_size=16,
    num_class_embeds=5,
    augment_dim=9,
    model_channels=32,
    channel_mult=(1, 2),
    num_blocks=1,
    attn_resolutions=(8,),
)
NCSNPP: dict[str, Any] = {
    "embedding_type": "fourier",
    "channel_mult_noise": 2,
    "encoder_type": "residual",
    "resample_filter": (1, 3, 3, 1),
}
VARIANTS = {
    "ddpmpp": {},
    "ncsnpp": NCSNPP,
    "ncsnpp-three": NCSNPP | {"channel_mult": (1, 1, 2), "attn_resolutions": (16, 4), "num_blocks": 2},
    "skip": {"encoder_type": "skip", "decoder_type": "skip", "channel_mult": (1, 2, 2)},
    "skip-filtered": NCSNPP | {"encoder_type": "skip", "decoder_type": "skip"},
    "other-widths": {"model_channels": 20, "channel_mult_emb": 2, "in_channels": 1, "out_channels": 2},
}


def build(**changes: Any) -> SongUNet:
    """A small network all of whose weights are random, those that start at zero too."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = SongUNet(dataclasses.replace(SMALL, **changes)).eval()
    generator = torch.Generator().manual_seed(1)
    for parameter in network.parameters():
        nn.init.normal_(
            parameter, std=0.2 if parameter.ndim == 1 else parameter[0].numel() ** -0.5, generator=generator
        )
    return network


def arguments(config: SongUNetConfig) -> dict[str, Any]:
    fields = dataclasses.asdict(config)
    return fields | {"img_resolution": config.sample_size, "label_dim": config.num_class_embeds or 0}


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    spec = importlib.util.spec_from_file_location("edm_reference", Path(__file__).with_name("edm_reference.py"))
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def x(generator: torch.Generator) -> Tensor:
    return torch.randn(3, 3, 16, 16, generator=generator)


C_NOISE = torch.tensor([-1.5, 0.1, 1.1])
LABELS = torch.tensor([4, 0, 2])


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_same_outputs_as_the_published_formulas(variant: str, reference: ModuleType, generator: torch.Generator):
    network = build(**VARIANTS[variant])
    config, weights = network.config, dict(network.state_dict())
    x = torch.randn(3, config.in_channels, 16, 16, generator=generator)
    augment = torch.randn(3, 9, generator=generator)
    one_hot = torch.eye(5)[LABELS]
    expected = reference.song(weights, arguments(config), x, C_NOISE, one_hot)
    assert expected.std() > 0.1
    torch.testing.assert_close(network(x, C_NOISE, LABELS), expected, rtol=1e-5, atol=1e-5)
    expected = reference.song(weights, arguments(config), x, C_NOISE, one_hot, augment)
    torch.testing.assert_close(network(x, C_NOISE, LABELS, augment_labels=augment), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_unconditional(reference: ModuleType, x: Tensor):
    network = build(num_class_embeds=None, augment_dim=0)
    expected = reference.song(dict(network.state_dict()), arguments(network.config), x, C_NOISE)
    torch.testing.assert_close(network(x, C_NOISE), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "parameters", "buffers"),
    [
        # The third is in the log of a training with EDM's code; the paper has 56 and 62 million.
        ({"sample_size": 32, "channel_mult": (2, 2, 2), "augment_dim": 9}, 55_733_891, 32),
        ({"sample_size": 32, "channel_mult": (2, 2, 2), "augment_dim": 9, "num_class_embeds": 10}, 55_735_299, 32),
        ({"sample_size": 64, "channel_mult": (1, 2, 2, 2), "augment_dim": 9}, 61_805_571, 48),
        ({"sample_size": 32, "channel_mult": (2, 2, 2), "augment_dim": 9, **NCSNPP}, 56_397_827, 288),
        ({"sample_size": 64, "channel_mult": (1, 2, 2, 2), "augment_dim": 9, **NCSNPP}, 62_761_091, 368),
    ],
)
def test_parameters_of_the_published_models(changes: dict[str, Any], parameters: int, buffers: int):
    with torch.device("meta"):
        network = SongUNet(SongUNetConfig(**changes))
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert sum(b.numel() for b in network.buffers()) == buffers


@pytest.mark.parametrize("variant", ["ddpmpp", "ncsnpp", "skip"])
def test_every_parameter_takes_part(variant: str, x: Tensor):
    network = build(**VARIANTS[variant])
    network(x, C_NOISE, LABELS, augment_labels=torch.ones(3, 9)).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        gradient = parameter.grad.abs()
        if name.endswith("qkv.bias"):
            gradient[1::3] = 1  # a bias of the keys adds the same to all scores of a query
        elif name == "map_label.weight":
            gradient = gradient[:, LABELS]
        assert gradient.reshape(len(gradient), -1).amax(1).min() > 1e-6, name


def test_output_is_nearly_zero_at_the_start(x: Tensor):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = SongUNet(SMALL)
    output = network(x, C_NOISE, LABELS)
    assert 0 < output.abs().max() < 1e-3


@torch.no_grad()
def test_images_of_a_batch_do_not_mix(x: Tensor):
    network = build()
    together = network(x, C_NOISE, LABELS)
    for i in range(3):
        alone = network(x[i : i + 1], C_NOISE[i : i + 1], LABELS[i : i + 1])
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-4, atol=1e-5)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@torch.no_grad()
def test_generator_decides_the_dropout(x: Tensor):
    network = build(dropout=0.4).train()
    first = network(x, C_NOISE, LABELS, generator=seeded(7))
    assert torch.equal(first, network(x, C_NOISE, LABELS, generator=seeded(7)))
    assert not torch.allclose(first, network(x, C_NOISE, LABELS, generator=seeded(8)), atol=1e-2)
    assert torch.equal(network.eval()(x, C_NOISE, LABELS, generator=seeded(7)), build()(x, C_NOISE, LABELS))


@torch.no_grad()
def test_label_dropout_hides_labels_in_training_alone(reference: ModuleType, x: Tensor):
    network = build(label_dropout=0.5, dropout=0.0)
    kept = network(x, C_NOISE, LABELS)
    hidden = reference.song(
        dict(network.state_dict()), arguments(network.config), x, C_NOISE, torch.zeros(3, 5)
    )  # fmt: skip
    assert (kept - hidden).abs().amax((1, 2, 3)).min() > 1e-2
    seen = set()
    for seed in range(8):
        output = network.train()(x, C_NOISE, LABELS, generator=seeded(seed))
        for i in range(3):
            is_kept = torch.allclose(output[i], kept[i], rtol=1e-4, atol=1e-4)
            assert is_kept or torch.allclose(output[i], hidden[i], rtol=1e-4, atol=1e-4)
            seen.add(is_kept)
    assert seen == {True, False}
    torch.testing.assert_close(network.eval()(x, C_NOISE, LABELS, generator=seeded(0)), kept)


@pytest.mark.parametrize("variant", ["ddpmpp", "ncsnpp", "skip"])
@torch.no_grad()
def test_half_precision_leaves_embeddings_and_heads_alone(variant: str, x: Tensor):
    network = build(**VARIANTS[variant])
    exact = network(x, C_NOISE, LABELS)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    assert network.cast_blocks(torch.bfloat16) is network
    output = network(x, C_NOISE, LABELS)
    assert output.dtype == torch.float32
    assert 0 < (output - exact).abs().max() < 0.1 * exact.abs().max()
    alone = network(x[:1], C_NOISE[:1], LABELS[:1])
    torch.testing.assert_close(alone, output[:1], atol=0.05, rtol=0.05)
    for name, value in network.state_dict().items():
        if name.startswith("map_") or "affine" in name or ("dec." in name and "_aux_" in name):
            assert torch.equal(value, before[name]), name
        else:
            assert value.dtype == torch.bfloat16, name


def test_calls_that_do_not_fit_the_network(x: Tensor):
    with pytest.raises(ValueError, match="needs class_labels"):
        build()(x, C_NOISE)
    with pytest.raises(ValueError, match="unconditional"):
        build(num_class_embeds=None)(x, C_NOISE, LABELS)
    with pytest.raises(ValueError, match="augment_labels must be None"):
        build(augment_dim=0)(x, C_NOISE, LABELS, augment_labels=torch.zeros(3, 9))
    with pytest.raises(ValueError, match="multiples of 2"):
        build()(x[:, :, :15], C_NOISE, LABELS)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"sample_size": 0}, "sample_size"),
        ({"sample_size": 15}, "sample_size"),
        ({"sample_size": 10**9}, "sample_size"),
        ({"in_channels": 0}, "in_channels"),
        ({"out_channels": 10**6}, "out_channels"),
        ({"num_class_embeds": 0}, "num_class_embeds"),
        ({"num_class_embeds": 10**12}, "num_class_embeds"),
        ({"augment_dim": -1}, "augment_dim"),
        ({"model_channels": 10**6}, "model_channels"),
        ({"model_channels": 35}, "model_channels"),
        ({"model_channels": 42}, "model_channels"),
        ({"model_channels": 2}, "model_channels"),
        ({"channel_mult": ()}, "channel_mult"),
        ({"channel_mult": (1,) * 40}, "channel_mult"),
        ({"channel_mult": (1, 0)}, "channel_mult"),
        ({"channel_mult": (1, 10**9)}, "channel_mult"),
        ({"num_blocks": 0}, "num_blocks"),
        ({"num_blocks": 10**9}, "num_blocks"),
        ({"channel_mult_emb": 0}, "channel_mult_emb"),
        ({"channel_mult_noise": 10**9}, "channel_mult_noise"),
        ({"dropout": 1.0}, "dropout"),
        ({"label_dropout": -0.1}, "label_dropout"),
        ({"dropout": float("nan")}, "dropout"),
        ({"embedding_type": "zero"}, "embedding_type"),
        ({"encoder_type": "dense"}, "encoder_type"),
        ({"decoder_type": "residual"}, "decoder_type"),
        ({"resample_filter": (1, 2, 1)}, "resample_filter"),
        ({"resample_filter": ()}, "resample_filter"),
        ({"resample_filter": (1, -1)}, "resample_filter"),
        ({"resample_filter": (1,) * 1000}, "resample_filter"),
    ],
)
def test_configs_out_of_range_name_the_field(changes: dict[str, Any], field: str):
    with pytest.raises(ValueError, match=f"^{field}: "):
        dataclasses.replace(SMALL, **changes)
