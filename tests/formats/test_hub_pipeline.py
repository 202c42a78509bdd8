"""Pipelines and schedulers on the Hub, by the calls of diffusers' users."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from unistep import CMStochasticIterativeScheduler, ConsistencyModelPipeline
from unistep.errors import UserError

ID = "someone/tiny-cd"
CONFIG = "scheduler/scheduler_config.json"
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def commit(hub: Any, model_folder: Callable[..., Path]) -> str:
    folder = model_folder("consistency")
    files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    return hub.commit(ID, files)


def test_pipelines_open(hub: Any, commit: str, tmp_path: Path):
    options: dict[str, Any] = {"cache_dir": tmp_path, "use_safetensors": True, "revision": "main", "token": False}
    pipe = ConsistencyModelPipeline.from_pretrained(ID, torch_dtype=torch.float16, **options)
    assert pipe.dtype == torch.float16 and pipe.name_or_path == ID
    hub.requests.clear()
    again = ConsistencyModelPipeline.from_pretrained(ID, cache_dir=tmp_path, local_files_only=True)
    assert hub.requests == []
    folder = ConsistencyModelPipeline.download(ID, cache_dir=tmp_path)
    assert Path(folder).name == commit and hub.fetched() == []
    assert again.save_pretrained(tmp_path / "x") is None
    with pytest.raises(UserError, match="use_safetensors"):
        ConsistencyModelPipeline.download(ID, use_safetensors=False, cache_dir=tmp_path)


def test_a_download_is_forced(hub: Any, commit: str, tmp_path: Path):
    ConsistencyModelPipeline.from_pretrained(ID, cache_dir=tmp_path)
    hub.requests.clear()
    ConsistencyModelPipeline.from_pretrained(ID, cache_dir=tmp_path)
    assert hub.fetched() == []
    ConsistencyModelPipeline.from_pretrained(ID, cache_dir=tmp_path, force_download=True, revision=commit)
    assert WEIGHTS in hub.fetched() and CONFIG in hub.fetched()
    hub.requests.clear()
    ConsistencyModelPipeline.download(ID, cache_dir=tmp_path, force_download=True)
    assert WEIGHTS in hub.fetched()
    with pytest.raises(UserError, match="`force_download`.*exclude each other"):
        ConsistencyModelPipeline.from_pretrained(ID, cache_dir=tmp_path, force_download=True, local_files_only=True)


def test_a_forced_download_does_not_fall_back(hub: Any, commit: str, tmp_path: Path):
    ConsistencyModelPipeline.from_pretrained(ID, cache_dir=tmp_path)
    hub.fail("", status=503)
    assert ConsistencyModelPipeline.from_pretrained(ID, cache_dir=tmp_path)
    for call in (ConsistencyModelPipeline.from_pretrained, ConsistencyModelPipeline.load_config):
        with pytest.raises(UserError) as error:
            call(ID, cache_dir=tmp_path, force_download=True)
        assert str(error.value).isprintable()


def test_a_config_comes_alone(hub: Any, commit: str, tmp_path: Path):
    expected = CMStochasticIterativeScheduler().config
    for options in ({"subfolder": "scheduler"}, {}):
        scheduler = CMStochasticIterativeScheduler.from_pretrained(ID, cache_dir=tmp_path, **options)
        assert scheduler.config == expected and hub.fetched() == [CONFIG]
    config, found = ConsistencyModelPipeline.load_config(ID, cache_dir=tmp_path, return_commit_hash=True)
    assert config["_class_name"] == "ConsistencyModelPipeline" and found == commit
    with pytest.raises(UserError, match=r"has no x/scheduler_config\.json"):
        CMStochasticIterativeScheduler.from_pretrained(ID, cache_dir=tmp_path, subfolder="x")
    ConsistencyModelPipeline.download(ID, cache_dir=tmp_path)  # only a whole model is one without the hub
    hub.fail("", status=503)
    again, found = ConsistencyModelPipeline.load_config(ID, cache_dir=tmp_path, return_commit_hash=True)
    assert (again, found) == (config, commit)
    hub.requests.clear()
    CMStochasticIterativeScheduler.from_pretrained(ID, cache_dir=tmp_path, local_files_only=True)
    assert hub.requests == []
    with pytest.raises(UserError, match="not in the cache"):
        CMStochasticIterativeScheduler.from_pretrained(ID, cache_dir=tmp_path / "other", local_files_only=True)


def test_a_subfolder_from_elsewhere_is_no_path_out_of_the_cache(hub: Any, commit: str, tmp_path: Path):
    for folder in ("../../..", "/etc", "..", "scheduler/../../x"):
        with pytest.raises(UserError):
            CMStochasticIterativeScheduler.from_pretrained(ID, cache_dir=tmp_path, subfolder=folder)


def test_pushes(hub: Any, model_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    hub.required_token = "hf_write"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
    pipe = ConsistencyModelPipeline.from_pretrained(model_folder("consistency"))
    options: dict[str, Any] = {"repo_id": "me/m", "commit_message": "First", "private": True, "token": "hf_write"}
    pipe.save_pretrained(tmp_path / "m", push_to_hub=True, **options)
    assert json.loads(hub.files("me/m")["model_index.json"])["_class_name"] == "ConsistencyModelPipeline"
    assert hub.messages[-1] == "First" and "me/m" in hub.private
    pipe.push_to_hub("me/n", "Second", token="hf_write", variant="fp16")
    assert "unet/diffusion_pytorch_model.fp16.safetensors" in hub.files("me/n") and hub.messages[-1] == "Second"
