"""What a pipeline cannot honour is one sentence that names it; a misspelt name is an error, and not passed over."""

import copy
import inspect
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from unistep import CMStochasticIterativeScheduler, ConsistencyModelPipeline
from unistep.errors import UserError
from unistep.pipelines.options import DOWNLOADING, LOADING, OPENING, PUSHING

ROOT = Path(__file__).parents[2]
Pipe = ConsistencyModelPipeline


@pytest.fixture(scope="module")
def pipe(lively: Callable[..., nn.Module]) -> Pipe:
    network = lively(patch_size=1, in_channels=3, out_channels=3, num_class_embeds=5)
    return Pipe(network, CMStochasticIterativeScheduler())


OPENING_REFUSED: list[dict[str, Any]] = [
    {"device_map": "balanced"},
    {"device_map": "sequential"},
    {"device_map": {"unet": "cpu", "scheduler": "cuda"}},
    {"device_map": "nowhere"},
    {"device_map": "meta"},
    {"device_map": "cpu", "device": "cpu"},
    {"custom_pipeline": "clip_guided"},
    {"custom_revision": "main"},
    {"proxies": {"http": "foo.bar:3128"}},
    {"mirror": "tuna"},
    {"output_loading_info": True},
    {"max_memory": {0: "1GB"}},
    {"offload_folder": "x"},
    {"offload_state_dict": True},
    {"quantization_config": object()},
    {"use_flashpack": True},
    {"use_onnx": True},
    {"safety_checker": object()},
    {"subfolder": "model"},
    {"torch_dtype": "x"},
    {"torch_dtype": 16},
    {"torch_dtype": {"unet": "x"}},
    {"torch_dtype": torch.float64},
    {"torch_dtype": torch.float16, "dtype": torch.float32},
    {"dtype": "x"},
    {"use_safetensors": False},
    {"unet": object()},
    {"scheduler": object()},
    {"variant": "fp16"},
]


@pytest.mark.parametrize("options", OPENING_REFUSED, ids=lambda options: ",".join(options))
def test_options_of_opening(model_folder: Callable[..., Path], options: dict[str, Any]):
    with pytest.raises(UserError) as error:
        Pipe.from_pretrained(model_folder(), **options)
    line = str(error.value)
    assert line.isprintable() and any(word in line for word in (*options, str(options.get("torch_dtype")), "object"))


def test_the_dtype_is_named_and_not_the_device(model_folder: Callable[..., Path], pipe: Pipe):
    for call in (
        lambda: Pipe.from_pretrained(model_folder(), torch_dtype="x"),
        lambda: pipe.to(torch_dtype="x"),
        lambda: pipe.to(dtype="x"),
        lambda: pipe.to("cpu", "x"),
    ):
        with pytest.raises(UserError, match="dtype.*'x' is no precision") as error:
            call()
        assert "device" not in str(error.value)
    with pytest.raises(UserError, match="`device` x"):
        pipe.to("x")


@pytest.mark.skipif(torch.cuda.is_available(), reason="has CUDA")
def test_cuda_where_there_is_none_is_one_line(model_folder: Callable[..., Path], pipe: Pipe):
    for call in (
        lambda: Pipe.from_pretrained(model_folder(), device_map="cuda"),
        lambda: pipe.to("cuda"),
        lambda: pipe.to(torch_device="cuda:1"),
        lambda: pipe.to(0),
        lambda: pipe.enable_model_cpu_offload(device="cuda"),
        lambda: pipe.scheduler.set_timesteps(2, device="cuda"),
    ):
        with pytest.raises(UserError, match="give one that this machine has") as error:
            call()
        assert "\n" not in str(error.value)


def test_a_folder_of_pickles_and_use_safetensors(model_folder: Callable[..., Path], tmp_path: Path, golden: Any):
    import shutil

    from safetensors.torch import load_file

    shutil.copytree(model_folder(), tmp_path / "m")
    weights = tmp_path / "m" / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(weights), weights.with_suffix(".bin"))
    weights.unlink()
    assert Pipe.from_pretrained(tmp_path / "m", use_safetensors=False)
    for path in (tmp_path / "m", golden.path("openai_unet_uncond_additive.pt")):
        with pytest.raises(UserError, match="`use_safetensors=True`.*no safetensors"):
            Pipe.from_pretrained(path, use_safetensors=True)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda p: p.to("cpu", torch.float16, 3), "at most two"),
        (lambda p: p.to(torch.float16, "cpu"), "make sure the first"),
        (lambda p: p.to("cpu", device="cpu"), "only pass one"),
        (lambda p: p.to(torch.float16, dtype=torch.float16), "only pass one"),
        (lambda p: p.to(dtype=torch.float16, torch_dtype=torch.float16), "only pass one"),
        (lambda p: p.save_pretrained("x", safe_serialization=False), "safe_serialization"),
        (lambda p: p.save_pretrained("x", max_shard_size="1KB"), "max_shard_size"),
        (lambda p: p.save_pretrained("x", max_shard_size="much"), "max_shard_size"),
        (lambda p: p.save_pretrained("x", max_shard_size=0), "max_shard_size"),
        (lambda p: p.save_pretrained("x", variant="../x"), "variant"),
        (lambda p: p.save_pretrained("x", push_to_hub=True), "repo_id"),
        (lambda p: p.save_pretrained("x", create_pr=True), "create_pr"),
        (lambda p: p.save_pretrained("x", use_flashpack=True), "use_flashpack"),
        (lambda p: p.push_to_hub("a/b", create_pr=True), "create_pr"),
        (lambda p: p.push_to_hub("a/b", subfolder="x"), "subfolder"),
        (lambda p: p.save_config("x", push_to_hub=True), "push_to_hub"),
        (lambda p: p.enable_group_offload(torch.device("cuda")), "as a whole"),
        (lambda p: p.enable_model_cpu_offload(gpu_id=-1), "gpu_id"),
        (lambda p: p.enable_attention_slicing("most"), "slice_size"),
        (lambda p: p.enable_attention_slicing(0), "slice_size"),
        (lambda p: p.enable_xformers_memory_efficient_attention(attention_op=object()), "attention_op"),
        (lambda p: p.progress_bar(), "has to be defined"),
        (lambda p: p.unet.enable_gradient_checkpointing(), "gradient checkpointing"),
        (lambda p: p.unet.save_pretrained("x", push_to_hub=True), "push_to_hub"),
        (lambda p: p.unet.save_pretrained("x", safe_serialization=False), "safe_serialization"),
        (lambda p: Pipe.from_pipe(object()), "no network"),
        (lambda p: Pipe.from_pipe(p, custom_pipeline="x"), "custom_pipeline"),
        (lambda p: Pipe.download("a/b", custom_pipeline="x"), "custom_pipeline"),
        (lambda p: Pipe.download("a/b", force_download=True, local_files_only=True), "force_download"),
        (lambda p: Pipe.load_config("no/such/place"), "no file or folder"),
        (lambda p: p(num_inference_steps=2.5), "num_inference_steps"),
        (lambda p: p(num_inference_steps=True), "num_inference_steps"),
        (lambda p: p(batch_size=np.float32(1)), "batch_size"),
        (lambda p: p(timesteps=5), "timesteps"),
        (lambda p: p(timesteps="22"), "timesteps"),
        (lambda p: p(timesteps=np.array([39, 22])), "must end with 0"),
        (lambda p: p(generator="x"), "generator"),
        (lambda p: p(generator=np.random.default_rng(0)), "generator"),
        (lambda p: p(generator=2.5), "generator"),
        (lambda p: p(generator=True), "generator"),
        (lambda p: p(generator=[None]), "generator"),
        (lambda p: p(generator=2**64), "generator"),
        (lambda p: p(seeds=5, batch_size=2), "seed of one image"),
        (lambda p: p(seeds=[1.5]), "seeds"),
        (lambda p: p(class_labels=[0.5]), "integers"),
        (lambda p: p(class_labels=[True]), "integers"),
        (lambda p: p(class_labels=np.array([2**63], dtype=np.uint64)), "0 to 4"),
        (lambda p: p(class_labels=np.int64(1), batch_size=2), "Batch size must be 1"),
        (lambda p: p(latents=np.zeros((1, 3, 8, 8), np.float32)), "`latents` is a ndarray; give a tensor"),
        (lambda p: p(latents=[0.0]), "`latents` is a list"),
        (lambda p: p(callback=3), "callback"),
        (lambda p: p(callback_steps=2.0), "callback_steps"),
    ],
)
def test_one_sentence(pipe: Pipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Any, words: str):
    monkeypatch.chdir(tmp_path)
    # Types that no signature has are refused where the check of types is not, which users do not run.
    from jaxtyping import TypeCheckError

    with pytest.raises((UserError, TypeCheckError)) as error:
        call(pipe)
    if isinstance(error.value, UserError):
        assert words in str(error.value) and str(error.value).isprintable()
    else:
        assert words.split()[0] in str(error.value) or "generator" in str(error.value)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda p: Pipe.from_pretrained("x", use_safetensor=True), "'use_safetensor'; did you mean use_safetensors"),
        (lambda p: Pipe.from_pretrained("x", torch_type=torch.float16), "did you mean torch_dtype"),
        (lambda p: Pipe.from_pretrained("x", custom_pipline=None), "did you mean custom_pipeline"),
        (lambda p: Pipe.from_pipe(p, schedulr=None), "did you mean scheduler"),
        (lambda p: Pipe.download("a/b", revisionn="x"), "did you mean revision"),
        (lambda p: Pipe.load_config("x", revisionn="x"), "did you mean revision"),
        (lambda p: p.save_config("x", repoid="x"), "did you mean repo_id"),
        (lambda p: p.set_progress_bar_config(disable_=True), "did you mean disable"),
        (lambda p: p.register_modules(vae=None), "'vae'"),
        (lambda p: p(num_inference_step=2), "num_inference_step"),
        (lambda p: p(callback_on_step_end=print), "callback_on_step_end"),
        (lambda p: p.save_pretrained("x", safe_serialisation=True), "safe_serialisation"),
        (lambda p: p.to(dtpye=torch.float16), "dtpye"),
        (lambda p: p.unet(torch.zeros(1, 3, 16, 16), 1.0, torch.tensor([1]), return_dic=True), "return_dic"),
    ],
)
def test_misspelt_names_are_errors(pipe: Pipe, call: Any, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TypeError, match=words):
        call(pipe)
    assert not any(tmp_path.iterdir())


def test_a_refused_call_changes_nothing(pipe: Pipe):
    with pytest.raises(UserError):
        pipe.to("cpu", "x")
    with pytest.raises(UserError):
        pipe.register_modules(scheduler=object())
    assert pipe.dtype == torch.float32 and len(pipe.scheduler) == 40


def test_every_refused_option_is_documented():
    page = (ROOT / "docs" / "diffusers.md").read_text()
    refused = {row.name for table in (DOWNLOADING, LOADING, OPENING, PUSHING) for row in table if row.refusal}
    assert sorted(name for name in refused if f"`{name}`" not in page) == []
    assert all(row.taken for table in (DOWNLOADING, LOADING, OPENING, PUSHING) for row in table)


def test_no_option_is_in_a_table_and_in_the_signature():
    for table in (DOWNLOADING, LOADING, OPENING, PUSHING):
        names = [row.name for row in table]
        assert len(set(names)) == len(names)
    assert not {row.name for row in OPENING} & set(inspect.signature(Pipe.from_pretrained).parameters)


def test_threads_do_not_meet(pipe: Pipe):
    """Calls of every kind, while others switch the progress bar and move the public scheduler."""
    pipe = Pipe(copy.deepcopy(pipe.unet), CMStochasticIterativeScheduler())
    kinds: list[dict[str, Any]] = [
        {"num_inference_steps": 1},
        {"num_inference_steps": 4},
        {"num_inference_steps": None, "timesteps": [22, 0]},
        {"timesteps": np.array([39, 20, 0])},
        {"sigmas": [80.0, 2.0, 0.5]},
        {"batch_size": 2, "class_labels": [1, 2], "num_inference_steps": 3},
    ]

    def call(i: int) -> Tensor:
        options = {"class_labels": i % 5, "output_type": "pt"} | kinds[i % len(kinds)]
        return pipe(generator=torch.Generator().manual_seed(i % 30), **options).images

    def disturb(i: int) -> None:
        pipe.set_progress_bar_config(disable=True, desc=str(i))
        pipe.scheduler.set_timesteps(1 + i % 7)

    alone = [call(i) for i in range(30)]
    with ThreadPoolExecutor(8) as pool:
        others = [pool.submit(disturb, i) for i in range(60)]
        together = list(pool.map(call, range(90)))
        for other in others:
            other.result()
    assert all(torch.equal(image, alone[i % 30]) for i, image in enumerate(together))
