"""Every argument of diffusers' two classes, by signature, documentation and source: taken here, or refused by name.

A value that asks for nothing special is given to each; those that are refused with another value are in tables of their
own, tested beside them.
"""

import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from torch import nn

from unistep import CMStochasticIterativeScheduler, ConsistencyModelPipeline
from unistep.errors import UserError

Pipe, Scheduler = ConsistencyModelPipeline, CMStochasticIterativeScheduler
PAIRS = {
    "pipeline": (diffusers.ConsistencyModelPipeline, Pipe),
    "scheduler": (diffusers.CMStochasticIterativeScheduler, Scheduler),
}
PAGE = (Path(__file__).parents[2] / "docs" / "diffusers.md").read_text()
# For classes that inherit from diffusers' own; the page says that they are not here.
MACHINERY = {"extract_init_dict", "get_config_dict", "register_for_auto_class", "register_to_config"}
# The pipeline's `from_config` cannot make a network, and the rest are constants of the machinery.
MACHINERY_OF = {
    "pipeline": {"from_config", "has_compatibles", "ignore_for_config"},
    "scheduler": {"ignore_for_config"},
}
UNDOCUMENTED = {"hpu_migration", "sdp_on_bf16"}  # of `to`, for Gaudi accelerators


def methods(kind: str) -> Iterator[str]:
    theirs, ours = PAIRS[kind]
    for name in dir(theirs):
        if (not name.startswith("_") or name in ("__init__", "__call__")) and callable(getattr(theirs, name)):
            if hasattr(ours, name):
                yield name


def arguments(function: Callable[..., Any]) -> list[str]:
    """The names of a function's arguments: in its signature, its documentation, and what it takes out of `kwargs`."""
    function = inspect.unwrap(getattr(function, "__func__", function))
    found = dict.fromkeys(inspect.signature(function).parameters)
    text = (inspect.getdoc(function) or "") + "\n"
    if section := re.search(r"^(?:Args|Arguments|Parameters):\n((?:    .*\n|\n)*)", text, re.MULTILINE):
        found |= dict.fromkeys(re.findall(r"^    (\w+) ?\(", section[1], re.MULTILINE))
    found |= dict.fromkeys(re.findall(r"\bkwargs\.pop\(\s*\"(\w+)\"", inspect.getsource(function)))
    return [name for name in found if name not in ("self", "cls", "args", "kwargs") and name not in UNDOCUMENTED]


ALL = [
    (kind, method, argument)
    for kind, (theirs, _) in PAIRS.items()
    for method in methods(kind)
    for argument in arguments(getattr(theirs, method))
]

_X = torch.zeros(1, 3, 16, 16)
_PUSH: dict[str, Any] = {
    "repo_id": "me/m", "commit_message": "x", "private": None, "token": None, "create_pr": False,
    "safe_serialization": True, "variant": None, "subfolder": None,
}  # fmt: skip
_LOAD: dict[str, Any] = {
    "cache_dir": "x", "force_download": False, "proxies": None, "output_loading_info": False, "token": None,
    "local_files_only": True, "revision": "main", "subfolder": None, "return_unused_kwargs": False,
    "return_commit_hash": False, "local_dir": None, "local_dir_use_symlinks": "auto", "mirror": None, "user_agent": {},
}  # fmt: skip
_OPEN: dict[str, Any] = {
    "dtype": torch.float32, "torch_dtype": torch.float32, "custom_pipeline": None, "force_download": False,
    "cache_dir": "x", "proxies": None, "output_loading_info": False, "local_files_only": True, "token": None,
    "revision": "main", "custom_revision": None, "mirror": None, "device_map": "cpu", "max_memory": None,
    "offload_folder": None, "offload_state_dict": False, "low_cpu_mem_usage": True, "use_safetensors": True,
    "use_onnx": False, "variant": None, "disable_mmap": False, "provider": None, "sess_options": None,
    "provider_options": None, "load_connected_pipeline": False, "quantization_config": None, "use_flashpack": False,
    "trust_remote_code": False,
}  # fmt: skip
HARMLESS: dict[str, dict[str, Any]] = {
    "pipeline.__call__": {
        "batch_size": 1, "class_labels": 1, "num_inference_steps": 1, "timesteps": [0], "generator": torch.Generator(),
        "latents": _X, "output_type": "pt", "return_dict": False, "callback": print, "callback_steps": 1,
    },
    "pipeline.check_inputs": {
        "num_inference_steps": 1, "timesteps": [0], "latents": _X, "batch_size": 1, "img_size": 16, "callback_steps": 1,
    },
    "pipeline.prepare_latents": {
        "batch_size": 1, "num_channels": 3, "height": 16, "width": 16, "dtype": torch.float32, "device": "cpu",
        "generator": None, "latents": _X,
    },
    "pipeline.prepare_class_labels": {"batch_size": 1, "device": "cpu", "class_labels": [1]},
    "pipeline.postprocess_image": {"sample": _X, "output_type": "pt"},
    "pipeline.numpy_to_pil": {"images": np.zeros((1, 4, 4, 3))},
    "pipeline.from_pretrained": _OPEN,
    "pipeline.download": {k: v for k, v in _OPEN.items() if "dtype" not in k},
    "pipeline.from_pipe": {
        "torch_dtype": torch.float32, "dtype": torch.float32, "custom_pipeline": None, "custom_revision": None,
        "trust_remote_code": False,
    },
    "pipeline.save_pretrained": {
        "safe_serialization": True, "variant": None, "max_shard_size": "10GB", "push_to_hub": False,
        "use_flashpack": False, **_PUSH,
    },
    "pipeline.push_to_hub": _PUSH,
    "pipeline.load_config": _LOAD,
    "pipeline.save_config": {"push_to_hub": False, **dict.fromkeys(_PUSH)},
    "pipeline.to": {
        "dtype": torch.float32, "device": "cpu", "silence_dtype_warnings": True,
    },
    "pipeline.enable_attention_slicing": {"slice_size": "auto"},
    "pipeline.set_attention_slice": {"slice_size": 1},
    "pipeline.enable_model_cpu_offload": {"gpu_id": None, "device": None},
    "pipeline.enable_sequential_cpu_offload": {"gpu_id": None, "device": None},
    "pipeline.enable_xformers_memory_efficient_attention": {"attention_op": None},
    "pipeline.set_use_memory_efficient_attention_xformers": {"valid": False, "attention_op": None},
    "pipeline.progress_bar": {"iterable": [1], "total": 1},
    "scheduler.__init__": {
        "num_train_timesteps": 40, "sigma_min": 0.002, "sigma_max": 80.0, "sigma_data": 0.5, "s_noise": 1.0, "rho": 7.0,
        "clip_denoised": True,
    },
    "scheduler.set_timesteps": {"num_inference_steps": 2, "device": "cpu", "timesteps": [22, 0]},
    "scheduler.step": {"model_output": _X, "sample": _X, "generator": None, "return_dict": True},
    "scheduler.scale_model_input": {"sample": _X},
    "scheduler.add_noise": {"original_samples": _X, "noise": _X},
    "scheduler.set_begin_index": {"begin_index": 0},
    "scheduler.index_for_timestep": {"schedule_timesteps": torch.tensor([1.0, 2.0])},
    "scheduler.sigma_to_t": {"sigmas": 80.0},
    "scheduler.get_scalings": {"sigma": torch.tensor(1.0)},
    "scheduler.get_scalings_for_boundary_condition": {"sigma": torch.tensor(1.0)},
    "scheduler.from_config": {"config": {"rho": 7.0}, "return_unused_kwargs": False},
    "scheduler.from_pretrained": _LOAD,
    "scheduler.load_config": _LOAD,
    "scheduler.save_config": {"push_to_hub": False, **dict.fromkeys(_PUSH)},
    "scheduler.save_pretrained": {"push_to_hub": False},
}  # fmt: skip
# Arguments that belong together with one that a call needs anyway.
NEEDED: dict[str, dict[str, Any]] = {
    "pipeline.__call__": {"class_labels": 1, "generator": torch.Generator(), "output_type": "pt"},
    "pipeline.check_inputs": HARMLESS["pipeline.check_inputs"],
    "pipeline.prepare_latents": HARMLESS["pipeline.prepare_latents"],
    "pipeline.prepare_class_labels": {"batch_size": 1, "device": "cpu"},
    "pipeline.postprocess_image": {"sample": _X},
    "pipeline.push_to_hub": {"repo_id": "me/m"},
    "pipeline.set_use_memory_efficient_attention_xformers": {"valid": False},
    "pipeline.progress_bar": {"total": 1},
    "scheduler.step": {"model_output": _X, "sample": _X},
    "scheduler.scale_model_input": {"sample": _X},
    "scheduler.add_noise": {"original_samples": _X, "noise": _X},
}
# Refused whatever is given, with their own sentence.
ALWAYS_REFUSED = {"pipeline.enable_group_offload": "as a whole", "scheduler.push_to_hub": "pipeline"}


@pytest.fixture(scope="module")
def folder(lively: Callable[..., nn.Module], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("arguments") / "model"
    network = lively(patch_size=1, in_channels=3, out_channels=3, num_class_embeds=5)
    Pipe(network, Scheduler()).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def opened(folder: Path) -> ConsistencyModelPipeline:
    return Pipe.from_pretrained(folder)


@pytest.fixture
def bound(
    folder: Path, opened: ConsistencyModelPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str, str, dict[str, Any]], Any]:
    """Calls a method of ours by name, with the places and objects that it needs; the hub is the folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("unistep.formats.hub.download.fetch_folder", lambda *a, **k: folder)
    monkeypatch.setattr("unistep.formats.hub.push.push_folder", lambda *a, **k: "page")

    def call(kind: str, method: str, options: dict[str, Any]) -> Any:
        ours = PAIRS[kind][1]
        options = NEEDED.get(f"{kind}.{method}", {}) | options
        if method in ("from_pretrained", "load_config"):
            return getattr(ours, method)(folder, **options)
        if method == "download":
            return ours.download("me/m", **options)
        if method in ("from_config", "numpy_to_pil"):
            return getattr(ours, method)(**({"config": {}} if method == "from_config" else {}) | options)
        if method == "__init__":
            return ours(**options)
        target = opened if kind == "pipeline" else Scheduler()
        if method == "from_pipe":
            return ours.from_pipe(target, **options)
        if method in ("save_pretrained", "save_config"):
            return getattr(target, method)("saved", **options)
        if kind == "scheduler" and method in ("step", "scale_model_input", "index_for_timestep"):
            times = options.get("schedule_timesteps", target.timesteps)
            options["timestep"] = times[0]
        if method == "set_timesteps" and not options.keys() & {"num_inference_steps", "timesteps"}:
            options["num_inference_steps"] = 2
        if kind == "scheduler" and method == "add_noise":
            options["timesteps"] = target.timesteps[:1]
        return getattr(target, method)(**options)

    return call


# What `bound` gives by itself.
GIVEN = {
    "pretrained_model_name_or_path", "pretrained_model_name", "save_directory", "pipeline", "timestep", "unet",
    "scheduler", "json_file_path",
}  # fmt: skip


@pytest.mark.parametrize(("kind", "method", "argument"), ALL, ids=lambda value: str(value))
def test_an_argument_is_taken(bound: Any, kind: str, method: str, argument: str):
    name = f"{kind}.{method}"
    if name in ALWAYS_REFUSED:
        given = ["x"] if argument == "repo_id" else []
        with pytest.raises(UserError, match=ALWAYS_REFUSED[name]):
            bound(kind, method, {argument: "x"} if given else {"repo_id": "a/b", argument: None})
        return
    if argument in GIVEN or (kind, method, argument) == ("scheduler", "add_noise", "timesteps"):
        return
    assert argument in HARMLESS.get(name, {}), f"{name} of diffusers has {argument}: take it, or refuse it by name"
    bound(kind, method, {argument: HARMLESS[name][argument]})


@pytest.mark.parametrize("name", HARMLESS)
def test_all_arguments_together_are_taken(bound: Any, name: str):
    kind, _, method = name.partition(".")
    asked = arguments(getattr(PAIRS[kind][0], method))
    options = {k: v for k, v in HARMLESS[name].items() if k in asked}
    for pair in (("num_inference_steps", "timesteps"), ("torch_dtype", "dtype")):
        if method not in ("check_inputs", "__call__") and set(pair) <= set(options):
            options.pop(pair[0])
    bound(kind, method, options)


@pytest.mark.parametrize("kind", PAIRS)
def test_every_method_is_here_or_said_not_to_be(kind: str):
    theirs, ours = PAIRS[kind]
    names = {n for n in dir(theirs) if not n.startswith("_") and not hasattr(ours, n)}
    # Properties are attributes of our instances.
    missing = {n for n in names if not isinstance(inspect.getattr_static(theirs, n), property)}
    assert missing - MACHINERY_OF[kind] <= MACHINERY
    assert sorted(n for n in MACHINERY if f"`{n}`" not in PAGE) == []
    instance = Scheduler() if kind == "scheduler" else None
    assert all(hasattr(instance, n) for n in names - missing) or kind == "pipeline"


def test_properties_of_a_pipeline(opened: ConsistencyModelPipeline):
    theirs = diffusers.ConsistencyModelPipeline
    properties = [n for n in dir(theirs) if isinstance(inspect.getattr_static(theirs, n), property)]
    assert len(properties) >= 5 and [n for n in properties if not hasattr(opened, n)] == []


@pytest.mark.parametrize(("kind", "method"), dict.fromkeys((k, m) for k, m, _ in ALL), ids=lambda value: str(value))
def test_arguments_have_their_order_and_defaults(kind: str, method: str):
    """Of those that diffusers has in the signature, and so may be given by position."""
    if f"{kind}.{method}" in ALWAYS_REFUSED:
        return
    theirs, ours = (inspect.signature(getattr(cls, method)).parameters for cls in PAIRS[kind])
    there = [p for p in theirs.values() if p.kind == p.POSITIONAL_OR_KEYWORD]
    here = [p for p in ours.values() if p.kind == p.POSITIONAL_OR_KEYWORD][: len(there)]
    assert [p.name for p in here] == [p.name for p in there]
    for a, b in zip(here, there, strict=True):
        assert a.default == b.default or (a.default is a.empty and b.default is None), a.name
