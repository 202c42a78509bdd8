"""The calls that diffusers' users write: none fails, and what comes back has the kind that it has there."""

import copy
import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from unistep import CMStochasticIterativeScheduler, ConsistencyModelPipeline
from unistep.errors import UserError

Pipe = ConsistencyModelPipeline
Scheduler = CMStochasticIterativeScheduler


@pytest.fixture(scope="module")
def network(lively: Callable[..., nn.Module]) -> nn.Module:
    return lively(patch_size=1, in_channels=3, out_channels=3, num_class_embeds=5)


@pytest.fixture(scope="module")
def folder(network: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("calls") / "model"
    Pipe(network, Scheduler()).save_pretrained(path)
    return path


@pytest.fixture
def pipe(network: nn.Module) -> Pipe:
    return Pipe(copy.deepcopy(network), Scheduler())


def theirs(network: nn.Module) -> diffusers.UNet2DModel:
    from unistep.networks.outline import fields_of

    config: Any = network.config
    fields = {k: v for k, v in fields_of(config).items() if k != "patch_size"}
    unet = diffusers.UNet2DModel(**fields).eval()
    unet.load_state_dict(network.state_dict())
    return unet


OPENING: dict[str, dict[str, Any]] = {
    "nothing": {},
    "torch_dtype": {"torch_dtype": torch.float16},
    "dtype": {"dtype": torch.bfloat16},
    "name": {"torch_dtype": "float16"},
    "long_name": {"torch_dtype": "torch.bfloat16"},
    "auto": {"torch_dtype": "auto"},
    "dict": {"torch_dtype": {"unet": torch.float16, "default": torch.float32}},
    "dict_default": {"torch_dtype": {"transformer": torch.bfloat16, "default": "float16"}},
    "use_safetensors": {"use_safetensors": True},
    "low_cpu_mem_usage": {"low_cpu_mem_usage": True},
    "slow": {"low_cpu_mem_usage": False},
    "force_download": {"force_download": True},
    "local": {"local_files_only": True, "cache_dir": "x", "token": True, "revision": "main"},
    "none": {"local_files_only": None, "proxies": None, "variant": None, "use_onnx": None, "mirror": None},
    "device_map": {"device_map": "cpu"},
    "device_map_auto": {"device_map": "auto"},
    "device_map_dict": {"device_map": {"": "cpu"}},
    "safety": {"safety_checker": None, "requires_safety_checker": False, "feature_extractor": None},
    "remote": {"trust_remote_code": False, "custom_pipeline": None, "custom_revision": None},
    "memory": {"max_memory": None, "offload_folder": None, "offload_state_dict": False, "disable_mmap": True},
    "scheduler": {"scheduler": Scheduler(num_train_timesteps=20)},
    "their_scheduler": {"scheduler": diffusers.CMStochasticIterativeScheduler(num_train_timesteps=20)},
    "path": {"resume_download": True, "use_flashpack": False, "quantization_config": None},
}


@pytest.mark.parametrize("options", OPENING.values(), ids=OPENING.keys())
def test_models_open(folder: Path, options: dict[str, Any]):
    pipe = Pipe.from_pretrained(folder, **options)
    asked = options.get("torch_dtype", options.get("dtype", torch.float32))
    if isinstance(asked, dict):
        asked = torch.float16
    if asked != "auto":
        assert pipe.dtype == getattr(torch, str(asked).removeprefix("torch."))
    assert len(pipe.scheduler) == (20 if "scheduler" in options else 40)
    assert pipe.name_or_path == pipe.config._name_or_path == str(folder)
    (image,) = pipe(class_labels=1, generator=torch.manual_seed(0)).images
    assert isinstance(image, Image.Image)


def seeded(**options: Any) -> dict[str, Any]:
    return {"generator": torch.Generator().manual_seed(0), "class_labels": 1, "output_type": "pt"} | options


CALLS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "steps": {"num_inference_steps": 2},
    "numpy_steps": {"num_inference_steps": np.int64(2), "batch_size": np.int32(1), "callback_steps": np.int16(1)},
    "tensor_steps": {"num_inference_steps": torch.tensor(2)},
    "timesteps": {"num_inference_steps": None, "timesteps": [22, 0]},
    "tuple_of_timesteps": {"timesteps": (22, 0)},
    "array_of_timesteps": {"num_inference_steps": None, "timesteps": np.array([22, 0])},
    "tensor_of_timesteps": {"timesteps": torch.tensor([22, 0])},
    "float_array": {"timesteps": np.array([22.0, 0.0])},
    "list_of_numpy": {"timesteps": [np.int64(22), np.int64(0)]},
    "range_of_timesteps": {"timesteps": range(20, -1, -10)},
    "label": {"class_labels": 3},
    "numpy_label": {"class_labels": np.int64(3)},
    "list_of_labels": {"class_labels": [3]},
    "tuple_of_labels": {"class_labels": (3,)},
    "array_of_labels": {"class_labels": np.array([3], dtype=np.uint16)},
    "tensor_of_labels": {"class_labels": torch.tensor([3], dtype=torch.int32)},
    "label_of_no_dimension": {"class_labels": torch.tensor(3)},
    "no_label": {"class_labels": None},
    "batch": {"batch_size": 2, "class_labels": [1, 2]},
    "generators": {"batch_size": 2, "class_labels": [1, 2], "generator": [torch.Generator(), torch.Generator()]},
    "no_generator": {"generator": None},
    "seed": {"generator": 0},
    "numpy_seed": {"generator": np.int64(0)},
    "seeds_as_generators": {"batch_size": 2, "class_labels": [1, 2], "generator": [0, 1]},
    "one_seed": {"generator": None, "seeds": 5},
    "array_of_seeds": {"generator": None, "seeds": np.array([5, 6]), "batch_size": 2, "class_labels": None},
    "latents": {"latents": torch.zeros(1, 3, 16, 16)},
    "latents_in_half": {"latents": torch.zeros(1, 3, 16, 16, dtype=torch.float16)},
    "callback": {"callback": lambda i, t, x: None, "callback_steps": 2, "num_inference_steps": 4},
    "sigmas": {"sigmas": np.array([80.0, 1.5])},
    "tensor_of_sigmas": {"sigmas": torch.tensor([80.0, 1.5])},
}


@pytest.mark.parametrize("options", CALLS.values(), ids=CALLS.keys())
def test_images_are_made(pipe: Pipe, options: dict[str, Any]):
    images = pipe(**seeded(**options)).images
    assert isinstance(images, Tensor) and images.shape == (int(options.get("batch_size", 1)), 3, 16, 16)
    assert torch.isfinite(images).all()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"num_inference_steps": 2}, {"num_inference_steps": np.int64(2)}),
        ({"timesteps": [22, 0]}, {"timesteps": np.array([22.0, 0.0])}),
        ({"timesteps": [22, 0]}, {"timesteps": torch.tensor([22, 0])}),
        ({"class_labels": 3}, {"class_labels": np.array([3], dtype=np.uint8)}),
        ({"generator": torch.Generator().manual_seed(9)}, {"generator": 9}),
        ({"generator": torch.Generator().manual_seed(9)}, {"generator": None, "seeds": 9}),
        ({"generator": [torch.Generator().manual_seed(9)]}, {"generator": None, "seeds": [9]}),
        ({"sigmas": [80.0, 1.5]}, {"sigmas": np.array([80.0, 1.5])}),
    ],
)
def test_other_ways_to_say_the_same(pipe: Pipe, one: dict[str, Any], other: dict[str, Any]):
    assert torch.equal(pipe(**seeded(**one)).images, pipe(**seeded(**other)).images)


def test_kinds_of_output(pipe: Pipe):
    assert isinstance(pipe(**seeded(output_type="pil")).images, list)
    array = pipe(**seeded(output_type="np")).images
    assert isinstance(array, np.ndarray) and array.shape == (1, 16, 16, 3)
    result = pipe(**seeded(return_dict=False))
    assert isinstance(result, tuple) and isinstance(result[0], Tensor)
    output = pipe(**seeded())
    assert output["images"] is output[0] is output.images and "images" in output and len(output) == 1
    assert list(dict(output)) == list(output.keys()) == ["images"]
    assert Pipe.numpy_to_pil(array)[0].size == Pipe.numpy_to_pil(array[0])[0].size == (16, 16)
    assert isinstance(pipe.postprocess_image(torch.zeros(2, 3, 4, 4))[1], Image.Image)


def test_the_switches(pipe: Pipe, capsys: pytest.CaptureFixture[str]):
    pipe.enable_attention_slicing()
    pipe.enable_attention_slicing("max")
    pipe.enable_attention_slicing(1)
    pipe.disable_attention_slicing()
    pipe.set_attention_slice(None)
    pipe.enable_xformers_memory_efficient_attention()
    pipe.disable_xformers_memory_efficient_attention()
    pipe.unet.enable_xformers_memory_efficient_attention()
    pipe.maybe_free_model_hooks()
    pipe.remove_all_hooks()
    pipe.reset_device_map()
    pipe.set_progress_bar_config(disable=False, desc="of a user", file=None)
    pipe(**seeded(num_inference_steps=2))
    assert "of a user" in capsys.readouterr().err
    pipe.set_progress_bar_config(disable=True)
    pipe(**seeded(num_inference_steps=2))
    with pipe.progress_bar(total=3) as bar:
        bar.update()
    assert list(pipe.progress_bar([1, 2])) == list(pipe.progress_bar(iterable=range(1, 3))) == [1, 2]
    assert capsys.readouterr().err == ""


@pytest.mark.skipif(torch.cuda.is_available() or torch.backends.mps.is_available(), reason="has an accelerator")
def test_offloading_without_an_accelerator_leaves_the_network_where_it_is(pipe: Pipe, caplog: Any):
    expected = pipe(**seeded()).images
    pipe.enable_model_cpu_offload()
    pipe.enable_sequential_cpu_offload()
    assert pipe.device.type == "cpu" and torch.equal(pipe(**seeded()).images, expected)
    assert caplog.messages == ["there is no accelerator to offload from: the network stays on the CPU"] * 2


@pytest.mark.parametrize(
    ("args", "options", "dtype"),
    [
        (("cpu",), {}, torch.float32),
        ((torch.device("cpu"),), {}, torch.float32),
        ((torch.float16,), {}, torch.float16),
        (("cpu", torch.float16), {}, torch.float16),
        ((None, torch.float16), {}, torch.float16),
        ((), {"device": "cpu", "dtype": torch.float16}, torch.float16),
        ((), {"torch_device": "cpu", "torch_dtype": torch.float16}, torch.float16),
        ((), {"torch_dtype": "bfloat16", "silence_dtype_warnings": True}, torch.bfloat16),
        (("cpu",), {"dtype": "torch.float16"}, torch.float16),
        (("float16",), {}, torch.float16),
        ((), {}, torch.float32),
    ],
)
def test_to(pipe: Pipe, args: tuple[Any, ...], options: dict[str, Any], dtype: torch.dtype):
    assert pipe.to(*args, **options) is pipe
    assert (pipe.device.type, pipe.dtype) == ("cpu", dtype)
    assert (pipe.unet.device, pipe.unet.dtype) == (pipe.device, dtype)


SAVING: dict[str, dict[str, Any]] = {
    "nothing": {},
    "safe_serialization": {"safe_serialization": True},
    "variant": {"variant": "fp16"},
    "shards": {"max_shard_size": "10GB"},
    "bytes": {"max_shard_size": 10**9},
    "push": {"push_to_hub": False, "use_flashpack": False, "token": None, "private": True, "commit_message": "x"},
}


@pytest.mark.parametrize("options", SAVING.values(), ids=SAVING.keys())
@pytest.mark.parametrize("compiled", [False, True])
def test_saved_pipelines_open_here_and_there(pipe: Pipe, tmp_path: Path, options: dict[str, Any], compiled: bool):
    expected = pipe(**seeded()).images
    if compiled:  # and never called, for the checks of types in these tests do not compile
        pipe.unet = torch.compile(pipe.unet, backend="eager")
    pipe.save_pretrained(tmp_path / "m", **options)
    for kind in (Pipe, diffusers.ConsistencyModelPipeline):
        again = kind.from_pretrained(tmp_path / "m", variant=options.get("variant"))
        again.set_progress_bar_config(disable=True)
        torch.testing.assert_close(again(**seeded()).images, expected, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_a_compiled_network_gives_the_same_images(folder: Path):
    """In a process without the checks of types, which do not compile."""
    code = f"""
import torch
from unistep import ConsistencyModelPipeline
pipe = ConsistencyModelPipeline.from_pretrained({str(folder)!r})
call = {{"class_labels": 1, "seeds": 1, "num_inference_steps": 2, "output_type": "pt"}}
expected = pipe(**call).images
pipe.unet = torch.compile(pipe.unet, backend="eager", fullgraph=True)
torch.testing.assert_close(pipe(**call).images, expected)
assert pipe.unet.config.sample_size == 16 and pipe.to(torch.float16).dtype == torch.float16
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_home_folder_has_its_sign(pipe: Pipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    pipe.save_pretrained("~/m")
    pipe.unet.save_pretrained("~/u")
    pipe.scheduler.save_pretrained("~/s")
    pipe.save_config("~/c")
    pipe.to_json_file("~/x.json")
    assert Pipe.from_pretrained("~/m").dtype == torch.float32 and Pipe.load_config("~/c") == Pipe.load_config("~/m")
    assert Scheduler.from_pretrained("~/s").config == Scheduler.from_pretrained("~/m").config
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c", "m", "s", "u", "x.json"]


def test_parts_are_to_be_had_and_shared(pipe: Pipe):
    assert list(pipe.components) == ["unet", "scheduler"]
    assert (
        pipe.config["unet"] == ("diffusers", "UNet2DModel")
        and pipe.config.scheduler[1] == type(pipe.scheduler).__name__
    )
    assert json.loads(pipe.to_json_string())["_class_name"] == "ConsistencyModelPipeline"
    assert pipe.safety_checker is None and pipe.parameters == {}
    for other in (Pipe(**pipe.components), Pipe.from_pipe(pipe), copy.deepcopy(pipe), pickle.loads(pickle.dumps(pipe))):
        assert torch.equal(other(**seeded()).images, pipe(**seeded()).images)
    assert Pipe.from_pipe(pipe).unet.conv_in is pipe.unet.conv_in
    assert len(Pipe.from_pipe(pipe, scheduler=Scheduler(20)).scheduler) == 20
    pipe.register_modules(scheduler=Scheduler(10))
    pipe.scheduler = Scheduler.from_config(pipe.scheduler.config, num_train_timesteps=30)
    assert len(pipe.scheduler) == 30
    assert "UNet2DModel" in repr(pipe)


def test_the_steps_of_a_call_by_hand(pipe: Pipe):
    """As tutorials write the loop."""
    pipe.check_inputs(2, None, None, 1, 16, 1)
    random = torch.Generator().manual_seed(0)
    x = pipe.prepare_latents(1, 3, 16, 16, pipe.unet.dtype, pipe.device, random)
    y = pipe.prepare_class_labels(1, pipe.device, class_labels=1)
    pipe.scheduler.set_timesteps(2, device=pipe.device)
    with torch.no_grad():
        for t in pipe.progress_bar(pipe.scheduler.timesteps):
            output = pipe.unet(pipe.scheduler.scale_model_input(x, t), t, class_labels=y, return_dict=False)[0]
            x = pipe.scheduler.step(output, t, x, generator=random)["prev_sample"]
    expected = pipe(**seeded(num_inference_steps=2, output_type="np")).images
    np.testing.assert_array_equal(pipe.postprocess_image(x, output_type="np"), expected)


# ------------------------------------------------------------------------------------------ diffusers' own parts


@pytest.mark.parametrize("scheduler", [Scheduler, diffusers.CMStochasticIterativeScheduler])
def test_their_network_works_and_saves(network: nn.Module, tmp_path: Path, scheduler: Callable[..., Any]):
    unet, options = theirs(network), {"num_inference_steps": 3}
    pipe = Pipe(unet=unet, scheduler=scheduler(sigma_max=60.0))
    assert pipe.unet is unet and isinstance(pipe.scheduler, Scheduler) and pipe.scheduler.config.sigma_max == 60
    peer = diffusers.ConsistencyModelPipeline(unet, diffusers.CMStochasticIterativeScheduler(sigma_max=60.0))
    peer.set_progress_bar_config(disable=True)
    images = pipe(**seeded(**options)).images
    torch.testing.assert_close(images, peer(**seeded(**options)).images, rtol=0, atol=1e-5)
    pipe.save_pretrained(tmp_path / "m")
    for kind in (Pipe, diffusers.ConsistencyModelPipeline):
        again = kind.from_pretrained(tmp_path / "m")
        again.set_progress_bar_config(disable=True)
        torch.testing.assert_close(again(**seeded(**options)).images, images, rtol=0, atol=1e-5)
    Pipe(torch.compile(unet, backend="eager"), pipe.scheduler).save_pretrained(tmp_path / "m")
    assert Pipe.from_pipe(peer).unet is unet
    pipe.enable_attention_slicing()
    assert pipe.to(torch.float16).dtype == unet.dtype == torch.float16
    torch.testing.assert_close(pipe(**seeded(**options)).images, images, rtol=0, atol=0.02)


def test_their_network_in_place_of_a_folders(folder: Path, network: nn.Module):
    unet = theirs(network)
    pipe = Pipe.from_pretrained(folder, unet=unet, torch_dtype=torch.float16)
    assert pipe.unet is unet and pipe.dtype == torch.float32, "as there: the dtype is that of the parts that are opened"
    ours = Pipe.from_pretrained(folder)
    torch.testing.assert_close(pipe(**seeded()).images, ours(**seeded()).images, rtol=0, atol=1e-5)


def test_their_network_serves_the_verbs(network: nn.Module):
    model = Pipe(theirs(network), Scheduler()).to_model()
    weights = model.denoiser.network.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in network.state_dict().items())


def test_a_network_that_this_package_cannot_compute_is_called_and_not_saved(tmp_path: Path):
    unet = diffusers.UNet2DModel(
        sample_size=8,
        block_out_channels=(32,),
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        act_fn="gelu",
    )
    pipe = Pipe(unet, Scheduler())
    assert pipe(generator=0, output_type="pt").images.shape == (1, 3, 8, 8)
    with pytest.raises(UserError, match="act_fn 'gelu' is not supported"):
        pipe.save_pretrained(tmp_path / "m")
    assert not any(tmp_path.iterdir())


def test_other_things_are_no_parts(pipe: Pipe):
    for wrong in (None, "unet", torch.nn.Linear(2, 2), object()):
        with pytest.raises(UserError):
            Pipe(wrong, Scheduler())
        with pytest.raises(UserError, match="CMStochasticIterativeScheduler"):
            Pipe(pipe.unet, wrong)
    with pytest.raises(UserError, match="EulerDiscreteScheduler"):
        pipe.scheduler = diffusers.EulerDiscreteScheduler()
    with pytest.raises(TypeError, match="did you mean scheduler"):
        pipe.register_modules(schedule=Scheduler())
