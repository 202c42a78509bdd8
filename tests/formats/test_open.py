import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from unistep.errors import UserError
from unistep.formats.edm import file as edm
from unistep.formats.hub import download as hub
from unistep.formats.hub.address import is_hub_name
from unistep.formats.location import locate
from unistep.formats.model import LoadedModel
from unistep.formats.open import names_a_model, open_model
from unistep.formats.table import FILE_SUFFIXES, FORMATS, recognise
from unistep.workflows.models import EMBEDDED, is_model, open_any

ModelFolder = Callable[..., Path]


@pytest.fixture(autouse=True)
def no_hub(monkeypatch: pytest.MonkeyPatch):
    """Nothing here may ask the hub, but where a test says how it answers."""

    def fetch(model_id: str, **options: Any) -> Path:
        raise AssertionError(f"{model_id} was looked for on the hub")

    monkeypatch.setattr(hub, "fetch_folder", fetch)


@pytest.fixture
def checkpoint(golden: Any) -> Path:
    return golden.path("openai_unet_uncond_additive.pt")


def refusal(name: str | Path, **options: Any) -> str:
    """The message, which is one line and names the thing."""
    with pytest.raises(UserError) as caught:
        open_model(name, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert str(name) in message
    return message


# ------------------------------------------------------------------------------------------------------- what opens how


@pytest.mark.parametrize(
    ("name", "old"),
    [("model.ckpt", False), ("model.pkl", False), ("a/b", False), ("model.pth", True), ("model.pkl", True)],
)
def test_pytorch_files_of_any_name(checkpoint: Path, tmp_path: Path, name: str, old: bool):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    if old:
        torch.save(torch.load(checkpoint, weights_only=True), path, _use_new_zipfile_serialization=False)
    else:
        path.write_bytes(checkpoint.read_bytes())
    model = open_model(path, "meta", attention_head_dim=32, sample_size=64, kind="diffusion")
    assert (model.format, model.path, model.image_shape) == ("OpenAI .pt", path, (3, 64, 64))
    assert model.info.kind == "diffusion"
    assert open_model(str(path), "meta", attention_head_dim=32).info.kind == "consistency"


def test_an_old_file_of_another_pickle_protocol(checkpoint: Path, tmp_path: Path):
    state = torch.load(checkpoint, weights_only=True)
    torch.save(state, tmp_path / "model.pt", _use_new_zipfile_serialization=False, pickle_protocol=4)
    row = recognise(locate(tmp_path / "model.pt", ""))
    assert row is not None and row.name == "openai"


def test_head_channels_are_64_by_default(checkpoint: Path, tmp_path: Path):
    assert open_model(checkpoint, "meta").config.attention_head_dim == 64
    assert "attention_head_dim: 0 is neither" in refusal(checkpoint, attention_head_dim=0)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("name", ["teacher.pkl", "teacher.pt"])
def test_plain_pickles_are_edm_networks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_folder: ModelFolder, name: str, protocol: int
):
    path = tmp_path / name
    path.write_bytes(pickle.dumps({"ema": 1}, protocol=protocol))
    assert "holds no network of EDM's" in refusal(path)

    opened = open_model(model_folder("diffusion"))
    calls = []

    def load(path: Path, device: Any) -> LoadedModel:
        calls.append((path, device))
        return opened

    monkeypatch.setattr(edm, "load_edm", load)
    assert open_model(path, "meta") is opened
    assert calls == [(path, "meta")]
    assert "is a diffusion model; leave it out" in refusal(path, kind="consistency")


def test_model_folders(model_folder: ModelFolder, lively: Callable[..., nn.Module]):
    for kind in ("consistency", "diffusion"):
        model = open_model(model_folder(kind), kind=kind)
        assert (model.info.kind, model.format) == (kind, "model folder")
        assert torch.equal(next(model.denoiser.network.parameters()), next(lively().parameters()))
    assert "is a consistency model; leave it out" in refusal(model_folder(), kind="diffusion")
    assert "variant fp16" in refusal(model_folder(), variant="fp16")


def test_a_path_goes_before_the_hub(model_folder: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "openai").mkdir()
    (tmp_path / "openai" / "cats").symlink_to(model_folder())
    monkeypatch.chdir(tmp_path)
    assert open_model("openai/cats").path == Path("openai/cats")


def test_models_of_the_hub(model_folder: ModelFolder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.chdir(tmp_path)
    calls = []

    def fetch(model_id: str, **options: Any) -> Path:
        calls.append((model_id, options))
        return model_folder()

    monkeypatch.setattr(hub, "fetch_folder", fetch)
    options = {"revision": "main", "token": "secret", "cache_dir": tmp_path, "local_files_only": True, "variant": None}
    model = open_model("openai/diffusers-cd_cat256_l2", **options)
    assert calls == [("openai/diffusers-cd_cat256_l2", options)]
    assert model.path == model_folder()
    assert "is a consistency model; leave it out" in refusal("owner/name", kind="diffusion")

    def fail(model_id: str, **options: Any) -> Path:
        raise UserError("no such model")

    monkeypatch.setattr(hub, "fetch_folder", fail)
    assert refusal("owner/name") == "there is no file or folder owner/name; as a model of the hub: no such model"


@pytest.mark.parametrize(
    ("name", "is_id"),
    [
        ("openai/diffusers-cd_cat256_l2", True),
        ("a/b.c", True),
        ("a/model.pt", False),
        ("a/model.pkl", False),
        ("a/b/c", False),
        ("a", False),
        ("/a", False),
        ("a/", False),
        ("./a", False),
        ("../a", False),
        ("a/..", False),
        ("~/a", False),
        ("a b/c", False),
        ("a/b\n", False),
        ("https://a/b", False),
    ],
)
def test_names_that_may_be_on_the_hub(name: str, is_id: bool):
    assert is_hub_name(name) == is_id
    if not is_id and name.isprintable():
        assert "does not exist" in refusal(name) or "://" in name


# --------------------------------------------------------------------------------------------------- what does not open


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty; fetch it again"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
            "is a git-lfs pointer and not the file itself; fetch it with: git lfs pull",
        ),
        (b"<!DOCTYPE html><title>404</title>", "is a web page and not a checkpoint"),
        (b"\xef\xbb\xbf\r\n  <HTML>", "is a web page and not a checkpoint"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "is a web page and not a checkpoint"),
        (b"Entry not found", "is a text file and not a checkpoint"),
        ("größe: 3\n".encode(), "is a text file and not a checkpoint"),
        (json.dumps({"sample_size": 64}).encode(), "is a text file and not a checkpoint"),
        (bytes(range(256)), "is not a checkpoint of a known kind"),
        (b"\x1f\x8b\x08\x00" + bytes(60), "is not a checkpoint of a known kind"),
        (b"PK\x03\x04" + bytes(100), "is a zip file that is cut short or damaged; fetch it again"),
        (b"PK", "is a zip file that is cut short or damaged; fetch it again"),
        (b"\x80", "is no pickle, or is cut short or damaged"),
    ],
    ids=lambda value: value[:20] if isinstance(value, bytes) else None,
)
def test_other_files(tmp_path: Path, content: bytes, message: str):
    path = tmp_path / "model.pt"
    path.write_bytes(content)
    assert message in refusal(path)


def test_zip_files_that_are_no_checkpoints(tmp_path: Path, checkpoint: Path):
    np.savez(tmp_path / "images.npz", arr_0=np.zeros(3))
    assert "is a zip file and no checkpoint of PyTorch's" in refusal(tmp_path / "images.npz")
    with zipfile.ZipFile(tmp_path / "program.pt", "w") as file:
        for name in ("data.pkl", "constants.pkl"):
            file.writestr(f"program/{name}", b"")
    assert "is a TorchScript program, which is not run" in refusal(tmp_path / "program.pt")
    (tmp_path / "cut.pt").write_bytes(checkpoint.read_bytes()[:-100])
    assert "is a zip file that is cut short" in refusal(tmp_path / "cut.pt")


class Payload:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("executed"),)


@pytest.mark.parametrize("write", [torch.save, lambda value, path: Path(path).write_bytes(pickle.dumps(value))])
def test_nothing_is_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[..., object]):
    monkeypatch.chdir(tmp_path)
    write({"ema": Payload()}, "model.pkl")
    refusal("model.pkl")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.pkl"]


def test_parts_of_a_model_folder(model_folder: ModelFolder, tmp_path: Path):
    folder = model_folder()
    assert f"give the folder above: {folder}" in refusal(folder / "unet")
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    assert f"weights without their architecture; give the model folder: {folder}" in refusal(weights)
    assert "is a text file" in refusal(folder / "unet" / "config.json")
    (tmp_path / "alone").mkdir()
    for name in ("config.json", "diffusion_pytorch_model.safetensors"):
        (tmp_path / "alone" / name).write_bytes((folder / "unet" / name).read_bytes())
    assert "holds a network without its noise range; make it unet/" in refusal(tmp_path / "alone")
    alone = tmp_path / "alone" / "diffusion_pytorch_model.safetensors"
    assert "give the folder that holds model_index.json" in refusal(alone)


def test_folders_that_are_no_models(tmp_path: Path):
    assert "it holds no model_index.json" in refusal(tmp_path)
    for name in ("b.pt", "a.pkl", "c.ckpt", "d.pth", "e.txt"):
        (tmp_path / name).touch()
    assert "give one of its files: a.pkl, b.pt, c.ckpt and 1 more" in refusal(tmp_path)


def test_what_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert "does not exist; give a model folder, a run directory, an OpenAI .pt, an EDM .pkl, an exported " in refusal(
        "model.pt"
    )
    assert "does not exist; give" in refusal(tmp_path / "model")
    assert "nor does the folder nowhere" in refusal("nowhere/model.pt")
    assert "is an address; fetch the file" in refusal("https://openaipublic.blob.core.windows.net/cd_imagenet64_l2.pt")
    (tmp_path / "link.pt").symlink_to("gone.pt")
    assert "does not exist" in refusal("link.pt")
    assert "File name too long" in refusal("x" * 300)


def test_what_is_no_file(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    assert "is no file" in refusal(tmp_path / "pipe")


@pytest.mark.parametrize("option", ["attention_head_dim", "num_heads", "sample_size"])
def test_options_of_pt_files_alone(model_folder: ModelFolder, tmp_path: Path, option: str):
    (tmp_path / "teacher.pkl").write_bytes(pickle.dumps({}))
    for name in (model_folder(), tmp_path / "teacher.pkl", "owner/name"):
        assert f"`{option}` 32 is for an OpenAI .pt, and {name} is none" in refusal(name, **{option: 32})


def test_options_of_a_download_have_no_effect_here(checkpoint: Path, model_folder: ModelFolder, tmp_path: Path):
    def notes(name: object, **options: Any) -> str:
        return "\n".join(open_model(str(name), "meta", **options).notes)

    for name in (checkpoint, model_folder()):
        assert "no effect" not in notes(name, local_files_only=True, revision=None)
        assert f"`revision` has no effect: {name} is here, and nothing is downloaded" in notes(name, revision="main")
        both = notes(name, token="secret", cache_dir=tmp_path)
        assert "`token` and `cache_dir` have no effect" in both and "secret" not in both


def test_weights_of_files_of_several_networks_alone(model_folder: ModelFolder, checkpoint: Path, tmp_path: Path):
    for name in (model_folder(), checkpoint):
        assert "holds one network alone, which has no name; leave it out" in refusal(name, weights="ema")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").touch()
    assert "`weights` ema is for a model folder or an OpenAI .pt or an EDM .pkl or" in refusal(
        tmp_path / "run", weights="ema"
    )


def test_variants_of_model_folders_alone(checkpoint: Path):
    assert "`variant` fp16 is for a model folder or a run directory or owner/name" in refusal(
        checkpoint, variant="fp16"
    )


# ------------------------------------------------------------------------------------------------------- build.open_any


def test_open_any_finds_the_model_of_a_run(model_folder: ModelFolder, tmp_path: Path, checkpoint: Path):
    run = tmp_path / "run"
    (run / "teacher").mkdir(parents=True)
    (run / "config.yaml").touch()
    with pytest.raises(UserError, match=f"{run} is a run without a checkpoint yet; resume its training"):
        open_any(run)
    (run / "teacher" / "model").symlink_to(model_folder("diffusion"))
    assert open_any(str(run)).info.kind == "diffusion"
    (run / "student").mkdir()
    (run / "student" / "model").symlink_to(model_folder("consistency"))
    assert open_any(run).info.kind == "consistency"
    assert open_any(run / "teacher").info.kind == "diffusion"
    assert open_any(run / "teacher" / "model").info.kind == "diffusion"
    with pytest.raises(UserError, match="is a consistency model; leave it out"):
        open_any(run, kind="diffusion")
    assert open_any(None, "meta").path == EMBEDDED
    assert open_any(checkpoint, "meta", attention_head_dim=32).config.attention_head_dim == 32
    with pytest.raises(UserError, match="is not a model folder: it holds no model_index.json"):
        open_any(tmp_path)


# --------------------------------------------------------------------------------------------------------- the table


def test_rows_of_the_table(monkeypatch: pytest.MonkeyPatch):
    names = [row.name for row in FORMATS]
    assert len(set(names)) == len(names)
    for row in FORMATS:
        assert callable(row.opener())
        assert row.saves is None or callable(row.saver())
    # A target's ending tells its format.
    endings = [row.ending for row in FORMATS if row.saves is not None]
    assert len(set(endings)) == len(endings) and "" in endings
    assert set(FILE_SUFFIXES) == {*".pt .pth .ckpt .pkl .bin .safetensors .onnx .xml .pt2".split()}


def test_an_option_that_no_format_has(model_folder: ModelFolder):
    with pytest.raises(TypeError, match="no format has an option 'colour'"):
        open_model(model_folder(), colour="main")


def test_what_is_a_model_by_its_name(
    model_folder: ModelFolder, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").touch()
    (tmp_path / "photos").mkdir()
    np.savez(tmp_path / "images.npz", arr_0=np.zeros(3))
    for name in (str(model_folder()), str(checkpoint), "run", "owner/name", "gone.pt"):
        assert names_a_model(name) and is_model(name)
    for name in ("photos", "images.npz", "gone.npz", "photos/1", "name"):
        assert not names_a_model(name)
