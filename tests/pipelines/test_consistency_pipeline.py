"""What `ConsistencyModelPipeline` does beyond diffusers': seeds, noise levels, precision, channels, refusals."""

import copy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from unistep import CMStochasticIterativeScheduler, ConsistencyModelPipeline
from unistep.core.parameterization import ConsistencyScaling, Preconditioned
from unistep.errors import UserError
from unistep.samplers.consistency import sample_multistep


@pytest.fixture(scope="module")
def pipe(lively: Callable[..., nn.Module]) -> ConsistencyModelPipeline:
    network = lively(patch_size=1, in_channels=3, out_channels=3, num_class_embeds=5)
    return ConsistencyModelPipeline(network, CMStochasticIterativeScheduler())


def test_import_of_the_package_is_light():
    import subprocess
    import sys

    code = "import sys, unistep; assert 'torch' not in sys.modules; unistep.ConsistencyModelPipeline"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_sigmas_are_the_samplers(pipe: ConsistencyModelPipeline):
    levels = [80.0, 3.0, 0.4]
    noises = torch.randn(4, 2, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    image = pipe(
        batch_size=2, class_labels=[1, 4], sigmas=levels, generator=torch.Generator().manual_seed(3), output_type="pt"
    ).images
    left = iter(noises[1:])
    expected = sample_multistep(
        Preconditioned(pipe.unet, ConsistencyScaling()),
        noises[0],
        levels,
        torch.tensor([1, 4]),
        random=lambda x: next(left),
    )
    assert isinstance(image, Tensor)
    torch.testing.assert_close(image, expected / 2 + 0.5, rtol=0, atol=2e-6)


@pytest.mark.slow
def test_calls_from_many_threads_give_what_they_give_one_after_the_other(pipe: ConsistencyModelPipeline):
    def call(seed: int) -> Tensor:
        images = pipe(seeds=[seed], class_labels=seed % 5, num_inference_steps=1 + seed % 4, output_type="pt").images
        assert isinstance(images, Tensor)
        return images

    kinds = [call(seed) for seed in range(20)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda i: call(i % 20), range(8 * 50)))
    assert all(torch.equal(image, kinds[i % 20]) for i, image in enumerate(found))


def test_a_call_leaves_the_scheduler_at_its_end_and_a_callback_sees_where_it_stands(pipe: ConsistencyModelPipeline):
    steps: list[int | None] = []
    pipe(num_inference_steps=4, seeds=[0], callback=lambda *_: steps.append(pipe.scheduler.step_index))
    assert steps == [1, 2, 3, 4] and pipe.scheduler.step_index == 4
    assert pipe.scheduler.num_inference_steps == len(pipe.scheduler.timesteps) == 4
    inner: list[Tensor] = []

    def nested(step: int, t: Tensor, x: Tensor) -> None:
        pipe(num_inference_steps=2, seeds=[1])
        inner.append(x)

    call: dict[str, Any] = {"num_inference_steps": 4, "seeds": [0], "output_type": "pt"}
    assert torch.equal(pipe(**call).images, pipe(**call, callback=nested).images) and len(inner) == 4


def test_seeds_make_each_image_its_own(pipe: ConsistencyModelPipeline):
    call: dict[str, Any] = {"num_inference_steps": 3, "output_type": "pt"}
    many = pipe(batch_size=3, seeds=[7, 8, 9], **call).images
    for i, seed in enumerate((7, 8, 9)):
        alone = pipe(seeds=[seed], **call).images
        torch.testing.assert_close(alone[0], many[i], rtol=0, atol=1e-5)
        generator = [torch.Generator().manual_seed(seed)]
        assert torch.equal(alone, pipe(generator=generator, **call).images)


def test_labels_come_from_the_generator(pipe: ConsistencyModelPipeline):
    seen: list[Tensor] = []
    hook = pipe.unet.register_forward_pre_hook(lambda module, args: seen.append(args[2]))
    for seed in (1, 1, 2):
        pipe(batch_size=64, generator=torch.Generator().manual_seed(seed))
    hook.remove()
    assert torch.equal(seen[0], seen[1]) and not torch.equal(seen[0], seen[2])
    assert set(seen[0].tolist()) == set(range(5))


def test_no_global_random_state_is_touched_with_a_generator(pipe: ConsistencyModelPipeline):
    before = torch.random.get_rng_state()
    pipe(num_inference_steps=2, generator=torch.Generator().manual_seed(0))
    pipe(num_inference_steps=2, seeds=[0])
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (2, "LA"), (3, "RGB"), (4, "RGBA"), (5, None)])
def test_any_number_of_channels(lively: Callable[..., nn.Module], channels: int, mode: str | None):
    network = lively(patch_size=1, in_channels=channels, out_channels=channels)
    pipe = ConsistencyModelPipeline(network, CMStochasticIterativeScheduler())
    array = pipe(seeds=[1], output_type="np").images
    assert isinstance(array, np.ndarray) and array.shape == (1, 16, 16, channels)
    if mode is None:
        with pytest.raises(UserError, match="5 channels"):
            pipe(seeds=[1])
        return
    (image,) = pipe(seeds=[1]).images
    assert image.mode == mode
    rounded = np.round(array[0] * 255).astype(np.uint8).squeeze()
    np.testing.assert_array_equal(np.asarray(image), rounded)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("output_type", ["pil", "np", "pt"])
def test_every_output_type_in_every_precision(pipe: ConsistencyModelPipeline, dtype: torch.dtype, output_type: str):
    half = ConsistencyModelPipeline(copy.deepcopy(pipe.unet), CMStochasticIterativeScheduler()).to(dtype)
    assert half.dtype == dtype
    embedding, head = half.unet.get_submodule("time_embedding"), half.unet.get_submodule("conv_out")
    assert {p.dtype for part in (embedding, head) for p in part.parameters()} == {torch.float32}
    call: dict[str, Any] = {"class_labels": [2], "seeds": [4], "num_inference_steps": 2, "output_type": output_type}
    a, b = half(**call).images, pipe(**call).images
    error = np.abs(np.asarray(a[0], dtype=float) - np.asarray(b[0], dtype=float)).max()
    assert 0 < error < (0.1 if output_type != "pil" else 25)


def test_precision_goes_and_comes(pipe: ConsistencyModelPipeline):
    other = ConsistencyModelPipeline(copy.deepcopy(pipe.unet), CMStochasticIterativeScheduler())
    assert other.to("cpu", torch.float16).dtype == torch.float16
    assert other.to(dtype=torch.bfloat16).dtype == torch.bfloat16
    assert other.to("fp32").dtype == torch.float32
    assert {p.dtype for p in other.unet.parameters()} == {torch.float32}
    assert other.to("auto").dtype in (torch.float32, torch.bfloat16)
    with pytest.raises(UserError, match="float64"):
        other.to(torch.float64)
    with pytest.raises(UserError, match="nowhere"):
        other.to("nowhere")


def test_output_can_be_taken_in_every_way(pipe: ConsistencyModelPipeline):
    output = pipe(seeds=[1])
    assert output[0] is output["images"] is output.images is output.to_tuple()[0]
    (images,) = output
    assert images is output.images


def test_timesteps_must_begin_where_the_noise_is(pipe: ConsistencyModelPipeline):
    with pytest.raises(UserError, match=r"must end with 0, the index of sigma_max 80.*\[39, 22, 0\]"):
        pipe(num_inference_steps=None, timesteps=[39, 22])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"num_inference_steps": 0}, "num_inference_steps"),
        ({"num_inference_steps": None, "timesteps": []}, "timesteps"),
        ({"num_inference_steps": None, "timesteps": [5, -3]}, "timesteps"),
        ({"sigmas": [70.0, 1.0]}, "sigma_max 80"),
        ({"sigmas": [80.0, float("nan")]}, "descend"),
        ({"sigmas": [80.0], "timesteps": [0]}, "one of"),
        ({"seeds": [1, 2]}, "seeds"),
        ({"seeds": [1], "generator": torch.Generator()}, "one of"),
        ({"class_labels": [5]}, "0 to 4"),
        ({"class_labels": [-1]}, "0 to 4"),
        ({"class_labels": [1, 2]}, "2 `class_labels`"),
        ({"class_labels": torch.tensor([0.5])}, "integers"),
        ({"class_labels": 2, "batch_size": 2}, "Batch size must be 1"),
    ],
)
def test_one_line_errors(pipe: ConsistencyModelPipeline, options: dict[str, Any], words: str):
    with pytest.raises(UserError, match=words) as error:
        pipe(**options)
    assert "\n" not in str(error.value)


def test_nothing_is_nan_where_the_last_level_is_below_sigma_min():
    scheduler = CMStochasticIterativeScheduler(sigma_min=0.0021)
    scheduler.set_timesteps(2)
    x = torch.full((1, 1, 2, 2), 80.0)
    for t in scheduler.timesteps:
        x = scheduler.step(scheduler.scale_model_input(x, t), t, x, torch.Generator().manual_seed(0))[0]
    assert torch.isfinite(x).all()


def test_scheduler_refuses_indices_and_foreign_timesteps():
    scheduler = CMStochasticIterativeScheduler()
    x = torch.zeros(1, 1, 2, 2)
    with pytest.raises(UserError, match="integer indices"):
        scheduler.step(x, 3, x)
    with pytest.raises(UserError, match="not one of"):
        scheduler.scale_model_input(x, 12.25)
    with pytest.raises(UserError, match="one of"):
        scheduler.set_timesteps(2, timesteps=[22, 0])


def test_save_and_open_again(pipe: ConsistencyModelPipeline, tmp_path: Path):
    half = ConsistencyModelPipeline(copy.deepcopy(pipe.unet), CMStochasticIterativeScheduler(201, sigma_max=40.0))
    half.to(torch.float16).save_pretrained(tmp_path / "m")
    again = ConsistencyModelPipeline.from_pretrained(tmp_path / "m", torch_dtype=torch.float16)
    assert again.dtype == torch.float16 and again.scheduler.config == half.scheduler.config
    call: dict[str, Any] = {"seeds": [3], "class_labels": [1], "num_inference_steps": 2, "output_type": "pt"}
    torch.testing.assert_close(again(**call).images, half(**call).images, rtol=0, atol=5e-3)  # the file is all fp16


@pytest.mark.parametrize("setting", [{"s_noise": 1.007}, {"clip_denoised": False}])
def test_what_a_folder_cannot_keep_is_not_saved(
    pipe: ConsistencyModelPipeline, setting: dict[str, Any], tmp_path: Path
):
    other = ConsistencyModelPipeline(pipe.unet, CMStochasticIterativeScheduler(**setting))
    with pytest.raises(UserError, match=next(iter(setting))):
        other.save_pretrained(tmp_path / "m")
    assert not any(tmp_path.iterdir())


def test_a_model_whose_sampler_does_not_clamp(saved: Callable[..., Path], tmp_path: Path):
    """The pipeline does not either, and the folder that it writes keeps that."""
    path = saved("consistency", info={"clip": False})
    pipe = ConsistencyModelPipeline.from_pretrained(path)
    assert not pipe.scheduler.config.clip_denoised and not pipe.to_model().info.clip
    pipe.save_pretrained(tmp_path / "m")
    again = ConsistencyModelPipeline.from_pretrained(tmp_path / "m")
    assert not again.scheduler.config.clip_denoised and not again.info.clip
    assert ConsistencyModelPipeline.from_pretrained(saved("consistency")).scheduler.config.clip_denoised


def test_a_diffusion_model_is_refused(model_folder: Callable[..., Path]):
    with pytest.raises(UserError, match="is a diffusion model"):
        ConsistencyModelPipeline.from_pretrained(model_folder("diffusion"))


def test_two_names_of_the_precision(model_folder: Callable[..., Path]):
    with pytest.raises(UserError, match="two names"):
        ConsistencyModelPipeline.from_pretrained(model_folder(), dtype="fp32", torch_dtype="bf16")
    with pytest.raises(UserError, match="fp8"):
        ConsistencyModelPipeline.from_pretrained(model_folder(), dtype="fp8")


def test_opens_what_load_opens(tmp_path, model_folder, golden):
    run = tmp_path / "run" / "student"
    run.mkdir(parents=True)
    (run / "model").symlink_to(model_folder())
    assert ConsistencyModelPipeline.from_pretrained(tmp_path / "run").info.kind == "consistency"
    checkpoint = golden.path("openai_unet_uncond_additive.pt")
    pipe = ConsistencyModelPipeline.from_pretrained(checkpoint, attention_head_dim=32, sample_size=64)
    assert (pipe.unet.config.attention_head_dim, pipe.unet.config.sample_size) == (32, 64)
