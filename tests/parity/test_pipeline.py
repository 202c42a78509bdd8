"""`ConsistencyModelPipeline` and its scheduler beside diffusers': the same calls, images, generators and errors."""

import warnings
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from torch import nn

from unistep import CMStochasticIterativeScheduler, ConsistencyModelPipeline
from unistep.networks.adm import UNet, UNetConfig
from unistep.networks.outline import fields_of

# The architectures of ImageNet-64 and LSUN-256, reduced widths.
IMAGENET = UNetConfig(
    sample_size=16,
    down_block_types=("ResnetDownsampleBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
    up_block_types=("AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D"),
    block_out_channels=(32, 64, 64, 96),
    layers_per_block=3,
    attention_head_dim=32,
    num_class_embeds=10,
)
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
CALLS: dict[str, dict[str, Any]] = {
    "one_step": {},
    "two_steps": {"num_inference_steps": None, "timesteps": [22, 0]},
    "card": {"num_inference_steps": None, "timesteps": [18, 0]},
    "four_steps": {"num_inference_steps": 4},
    "uneven": {"num_inference_steps": 7},
    "to_the_end": {"num_inference_steps": None, "timesteps": [39, 0]},
}

Pair = tuple[ConsistencyModelPipeline, diffusers.ConsistencyModelPipeline]


def pair_of(config: UNetConfig, **schedule: Any) -> Pair:
    network = UNet(config).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(1)
    for p in network.parameters():
        nn.init.normal_(p, std=(p[0].numel() if p.ndim > 1 else 4) ** -0.5, generator=generator)
        if p.ndim == 1:
            p += 0.5
    theirs = diffusers.UNet2DModel(**fields_of(config)).eval()
    theirs.load_state_dict(network.state_dict())
    pipe = diffusers.ConsistencyModelPipeline(theirs, diffusers.CMStochasticIterativeScheduler(**schedule))
    pipe.set_progress_bar_config(disable=True)
    return ConsistencyModelPipeline(network, CMStochasticIterativeScheduler(**schedule)), pipe


@pytest.fixture(scope="module", params=[IMAGENET, LSUN], ids=["imagenet", "lsun"])
def pair(request: pytest.FixtureRequest) -> Pair:
    return pair_of(request.param)


@pytest.fixture(scope="module")
def imagenet() -> Pair:
    return pair_of(IMAGENET)


def labels_for(pipe: ConsistencyModelPipeline, batch_size: int) -> list[int] | None:
    config: Any = pipe.unet.config
    return list(range(3, 3 + batch_size)) if config.num_class_embeds else None


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("generators", ["one", "list"])
def test_same_generator_same_images(pair: Pair, call: str, generators: str):
    def make() -> Any:
        return [torch.Generator().manual_seed(5 + i) for i in range(2)][slice(None) if generators == "list" else 0]

    ours, theirs = make(), make()
    options = {"batch_size": 2, "class_labels": labels_for(pair[0], 2), "output_type": "pt", **CALLS[call]}
    image, expected = pair[0](generator=ours, **options).images, pair[1](generator=theirs, **options).images
    assert expected.std() > 0.05
    torch.testing.assert_close(image, expected, rtol=0, atol=1e-5)
    # and the next call would be the same as well
    first = (lambda g: g[0]) if generators == "list" else (lambda g: g)
    assert torch.equal(first(ours).get_state(), first(theirs).get_state())


def test_without_a_generator_the_default_one_draws_noise_and_labels_as_there(imagenet: Pair):
    images = []
    for pipe in imagenet:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            images.append(pipe(batch_size=3, num_inference_steps=2, output_type="pt").images)
    torch.testing.assert_close(*images, rtol=0, atol=1e-5)


@pytest.mark.parametrize("schedule", [{"num_train_timesteps": 201}, {"sigma_min": 0.01, "sigma_max": 40.0, "rho": 5.0}])
def test_other_noise_grids(schedule: dict[str, Any]):
    generators = [torch.Generator().manual_seed(2) for _ in range(2)]
    options = {"class_labels": [4], "num_inference_steps": 3, "output_type": "pt"}
    a, b = (p(generator=g, **options).images for p, g in zip(pair_of(IMAGENET, **schedule), generators, strict=True))
    torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


@pytest.mark.parametrize("output_type", ["np", "pil"])
def test_output_types(imagenet: Pair, output_type: str):
    options = {"batch_size": 2, "class_labels": [0, 9], "output_type": output_type}
    ours, theirs = (p(generator=torch.Generator().manual_seed(1), **options).images for p in imagenet)
    assert type(ours) is type(theirs) and len(ours) == len(theirs) == 2
    if output_type == "np":
        assert ours.dtype == theirs.dtype == np.float32 and ours.shape == theirs.shape
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)
    else:
        assert ours[0].mode == theirs[0].mode == "RGB" and ours[0].size == theirs[0].size
        difference = np.abs(np.asarray(ours[0]).astype(int) - np.asarray(theirs[0]))
        assert difference.max() <= 1 and (difference > 0).mean() < 0.01


def test_latents_callback_and_tuple(imagenet: Pair):
    latents = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    seen: list[list[tuple[int, float, torch.Tensor]]] = [[], []]
    images = []
    for pipe, calls in zip(imagenet, seen, strict=True):
        result = pipe(
            batch_size=2,
            class_labels=torch.tensor([1, 2]),
            num_inference_steps=4,
            generator=torch.Generator().manual_seed(8),
            latents=latents,
            output_type="pt",
            return_dict=False,
            callback=lambda i, t, x, calls=calls: calls.append((i, float(t), x.clone())),
            callback_steps=2,
        )
        assert isinstance(result, tuple) and len(result) == 1
        images.append(result[0])
    torch.testing.assert_close(*images, rtol=0, atol=1e-5)
    assert [c[0] for c in seen[0]] == [c[0] for c in seen[1]] == [0, 2]
    for ours, theirs in zip(*seen, strict=True):
        assert ours[1] == pytest.approx(theirs[1], rel=1e-6)
        torch.testing.assert_close(ours[2], theirs[2].to(ours[2]), rtol=1e-5, atol=1e-4)  # noised images reach 80


@pytest.mark.parametrize(
    "options",
    [
        {"num_inference_steps": None},
        {"num_inference_steps": 41},
        {"num_inference_steps": None, "timesteps": [0, 22]},
        {"num_inference_steps": None, "timesteps": [22, 22, 0]},
        {"num_inference_steps": None, "timesteps": [40, 0]},
        {"latents": torch.zeros(1, 3, 8, 8)},
        {"callback_steps": 0},
        {"callback_steps": None},
        {"output_type": "latent"},
        {"batch_size": 2, "generator": [torch.Generator()]},
        {"batch_size": 2, "class_labels": 3},
    ],
    ids=lambda options: ",".join(f"{k}={v}" for k, v in options.items())[:50],
)
def test_same_errors(imagenet: Pair, options: dict[str, Any]):
    with pytest.raises(Exception) as expected:
        imagenet[1](**options)
    with pytest.raises(type(expected.value)) as ours:
        imagenet[0](**options)
    assert "\n" not in str(ours.value)


def test_schedulers_agree_step_by_step():
    ours, theirs = CMStochasticIterativeScheduler(), diffusers.CMStochasticIterativeScheduler()
    assert ours.init_noise_sigma == theirs.init_noise_sigma and len(ours) == len(theirs)
    torch.testing.assert_close(ours.timesteps, theirs.timesteps, rtol=1e-9, atol=1e-9)
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(timesteps=[30, 12, 0])
    torch.testing.assert_close(ours.timesteps, theirs.timesteps, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(ours.sigmas, theirs.sigmas, rtol=1e-6, atol=0)
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 80
    y = x.clone()
    for a, b in zip(ours.timesteps, theirs.timesteps, strict=True):
        u, v = ours.scale_model_input(x, a), theirs.scale_model_input(y, b)
        torch.testing.assert_close(u, v)
        x = ours.step(u.tanh(), a, x, torch.Generator().manual_seed(1)).prev_sample
        y = theirs.step(v.tanh(), b, y, torch.Generator().manual_seed(1)).prev_sample
        torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-5)
        assert ours.step_index == theirs.step_index


def test_folders_go_both_ways(imagenet: Pair, tmp_path: Path):
    ours, theirs = imagenet
    ours.save_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    call: dict[str, Any] = {"class_labels": [4], "num_inference_steps": None, "timesteps": [22, 0], "output_type": "pt"}
    expected = ours(generator=torch.Generator().manual_seed(0), **call).images
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        there = diffusers.ConsistencyModelPipeline.from_pretrained(tmp_path / "ours")
    there.set_progress_bar_config(disable=True)
    for pipe in (there, ConsistencyModelPipeline.from_pretrained(tmp_path / "theirs")):
        image = pipe(generator=torch.Generator().manual_seed(0), **call).images
        torch.testing.assert_close(image, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_by_name(imagenet: Pair, tmp_path: Path, dtype: str):
    """Of the same noise: diffusers draws it in half precision as well."""
    imagenet[1].save_pretrained(tmp_path / "m")
    noise = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    call: dict[str, Any] = {"batch_size": 2, "class_labels": [3, 4], "latents": noise, "output_type": "pt"}
    theirs = diffusers.ConsistencyModelPipeline.from_pretrained(tmp_path / "m", torch_dtype=getattr(torch, dtype))
    for options in ({"torch_dtype": dtype}, {"dtype": {"unet": dtype}}, {"torch_dtype": f"torch.{dtype}"}):
        ours = ConsistencyModelPipeline.from_pretrained(tmp_path / "m", **options)
        assert ours.dtype == theirs.dtype
        # Theirs has embedding and output head in half precision too.
        difference = (ours(**call).images - theirs(**call).images).abs()
        assert difference.mean() < 0.01 and difference.max() < 0.2
