"""Two hundred inputs that are wrong, each in its own way: one clear line, nothing executed, nothing half-written.

Every file comes from a good one: cut short, with a byte less, with other tensors, with absurd settings, or with a
program hidden in it that would leave a file behind.
"""

import base64
import importlib.util
import json
import os
import pickle
import random
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

GOLDEN = Path(__file__).parents[1] / "golden" / "openai_unet_uncond_additive.pt"
CANARY = "canary"
Make = Callable[[Path], Any]  # damages a good model in place

_SONG = {
    "img_resolution": 16,
    "in_channels": 1,
    "out_channels": 1,
    "model_channels": 4,
    "channel_mult": [1, 1],
    "num_blocks": 1,
    "attn_resolutions": [],
}


@pytest.fixture(scope="module")
def good(model_folder: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model of every format."""
    folder = tmp_path_factory.mktemp("good")
    path = Path(__file__).parents[1] / "formats" / "test_edm.py"
    spec = importlib.util.spec_from_file_location("edm_files", path)
    assert spec and spec.loader
    edm = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(edm)
    with pytest.MonkeyPatch.context() as patch:
        attributes = {"sigma_min": 0, "sigma_max": float("inf"), "sigma_data": 0.5, "img_channels": 1, "label_dim": 0}
        weights = edm.song_weights(_SONG)
        network = edm.whole("EDMPrecond", attributes, "SongUNet", _SONG, weights)
        edm.write(folder / "edm.pkl", {"ema": network}, patch)
    return {"folder": model_folder(patch_size=1), "pt": GOLDEN, "pkl": folder / "edm.pkl"}


# ---------------------------------------------------------------------------------------------------- damage


def cut(part: str, fraction: float) -> Make:
    """The file ends early."""

    def make(path: Path) -> None:
        file = path / part if part else path
        content = file.read_bytes()
        file.write_bytes(content[: int(len(content.rstrip()) * fraction)])

    return make


def without_a_byte(part: str, seed: int) -> Make:
    """A byte of the header is missing."""

    def make(path: Path) -> None:
        file = path / part
        content = file.read_bytes()
        at = random.Random(seed).randrange(8, 400)
        file.write_bytes(content[:at] + content[at + 1 :])

    return make


def with_json(part: str, **values: Any) -> Make:
    """Other settings in a JSON file; ... takes one away."""

    def make(path: Path) -> None:
        content = json.loads((path / part).read_text()) | values
        content = {k: v for k, v in content.items() if v is not ...}
        (path / part).write_text(json.dumps(content))

    return make


def with_text(part: str, text: str) -> Make:
    return lambda path: (path / part if part else path).write_text(text)


def with_tensors(change: Callable[[dict[str, torch.Tensor]], Any]) -> Make:
    """Other tensors in a model folder or an OpenAI file."""

    def make(path: Path) -> None:
        file = path / WEIGHTS if path.is_dir() else path
        state = load_file(file) if path.is_dir() else torch.load(file, weights_only=True)
        state = {k: v.clone() for k, v in state.items()}
        state = change(state) or state
        save_file(state, file) if path.is_dir() else torch.save(state, file)

    return make


def removed(part: str) -> Make:
    return lambda path: (path / part).unlink()


def folder_instead(part: str) -> Make:
    def make(path: Path) -> None:
        (path / part).unlink()
        (path / part).mkdir()

    return make


class Evil:
    """Runs when it is unpickled."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def evil(kind: str) -> Any:
    """Objects whose unpickling touches the canary in the working folder."""
    code = f"open({CANARY!r}, 'w').close()"
    return {
        "system": Evil(os.system, f"touch {CANARY}"),
        "eval": Evil(eval, code),
        "exec": Evil(exec, code),
        "open": Evil(open, CANARY, "w"),
        "mkdir": Evil(os.mkdir, CANARY),
        "nested": Evil(getattr(pickle, "loads"), pickle.dumps(Evil(os.mkdir, CANARY))),  # noqa: B009
        "torch.load": Evil(torch.load, CANARY),
        "getattr": Evil(getattr, Evil(__import__, "os"), "mkdir"),
        "import": Evil(__import__, "this"),
        "decoded": Evil(exec, base64.b64decode(base64.b64encode(code.encode())).decode()),
    }[kind]


def pickled(kind: str, wrap: Callable[[Any], Any], how: str) -> Make:
    """A file that holds an `Evil`: as plain pickle or as torch.save writes it."""

    def make(path: Path) -> None:
        file = path if path.is_file() else path / "unet" / "diffusion_pytorch_model.bin"
        if path.is_dir():
            (path / WEIGHTS).unlink()
        content = wrap(evil(kind))
        if how == "plain":
            file.write_bytes(pickle.dumps(content))
        else:
            torch.save(content, file, _use_new_zipfile_serialization=how == "zip")

    return make


WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
UNET, SCHEDULER, INDEX = "unet/config.json", "scheduler/scheduler_config.json", "model_index.json"


def poisoned(value: float) -> Make:
    def change(state: dict[str, torch.Tensor]) -> None:
        name = sorted(n for n, v in state.items() if v.ndim == 4)[0]
        state[name].view(-1)[-1] = value

    return with_tensors(change)


def reshaped(name: str) -> Make:
    return with_tensors(lambda s: s.update({n: v[:-1] for n, v in s.items() if n.startswith(name)}))


def retyped(dtype: torch.dtype) -> Make:
    return with_tensors(lambda s: {n: v.to(dtype) for n, v in s.items()})


def zip_with(name: str) -> Make:
    def make(path: Path) -> None:
        with zipfile.ZipFile(path, "w") as file:
            file.writestr(name, b"nothing")

    return make


def cases() -> Iterator[tuple[str, str, Make]]:
    """Names, the format of the good file, and the damage."""
    for i in range(25):
        yield f"safetensors cut {i}", "folder", cut(WEIGHTS, i / 25)
        yield f"pt cut {i}", "pt", cut("", i / 25)
        yield f"pkl cut {i}", "pkl", cut("", i / 25)
    for i in range(10):
        yield f"safetensors lacks byte {i}", "folder", without_a_byte(WEIGHTS, i)
        for part in (UNET, SCHEDULER, INDEX):
            yield f"{part} cut {i}", "folder", cut(part, i / 10)
    for part in (UNET, SCHEDULER, INDEX, WEIGHTS):
        yield f"{part} removed", "folder", removed(part)
        yield f"{part} a folder", "folder", folder_instead(part)
        yield f"{part} a page", "folder", with_text(part, "<!DOCTYPE html><html>404</html>")
        yield f"{part} a pointer", "folder", with_text(part, "version https://git-lfs.github.com/spec/v1\noid sha256:0")
    for part in (UNET, SCHEDULER, INDEX):
        for text in ("[]", "null", '"x"', "[" * 100_000, "{'a': 1}", "\x00"):
            yield f"{part} {text[:8]!r}", "folder", with_text(part, text)
    for text in (
        "",
        "hello",
        "version https://git-lfs.github.com/spec/v1\noid sha256:0",
        "<html></html>",
        "PK\x03\x04",
    ):
        yield f"pt {text[:8]!r}", "pt", with_text("", text)
        yield f"pkl {text[:8]!r}", "pkl", with_text("", text)
    yield "pt another zip", "pt", zip_with("readme.txt")
    yield "pt half a torch zip", "pt", zip_with("archive/data.pkl")

    for values in (
        {"block_out_channels": [10**9, 10**9]},
        {"block_out_channels": [0, 16]},
        {"block_out_channels": [-16, 16]},
        {"block_out_channels": []},
        {"block_out_channels": "wide"},
        {"block_out_channels": [16.5, 16]},
        {"block_out_channels": [[16], 16]},
        {"block_out_channels": [16, 16, 16]},
        {"layers_per_block": 10**9},
        {"layers_per_block": -1},
        {"layers_per_block": "two"},
        {"layers_per_block": True},
        {"in_channels": 10**12},
        {"in_channels": 0},
        {"out_channels": None},
        {"sample_size": -64},
        {"sample_size": 10**10},
        {"sample_size": "64"},
        {"sample_size": 17},
        {"norm_num_groups": 0},
        {"norm_num_groups": 7},
        {"norm_eps": float("nan")},
        {"norm_eps": "small"},
        {"attention_head_dim": 0},
        {"num_class_embeds": -1},
        {"num_class_embeds": 10**12},
        {"num_class_embeds": 10},
        {"down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"]},
        {"down_block_types": "DownBlock2D"},
        {"up_block_types": ["UpBlock2D"]},
        {"resnet_time_scale_shift": "ada_group"},
        {"act_fn": "mish"},
        {"time_embedding_type": "fourier"},
        {"_class_name": "Transformer2DModel"},
        {"_class_name": ["UNet2DModel"]},
        {"_class_name": ...},
        {"dropout": 2},
    ):
        yield f"unet {values}", "folder", with_json(UNET, **values)
    for values in (
        {"sigma_min": "small"},
        {"sigma_min": -1},
        {"sigma_min": 100},
        {"sigma_max": float("inf")},
        {"sigma_max": float("nan")},
        {"sigma_max": None, "sigma_min": []},
        {"sigma_data": 0},
        {"rho": 0},
        {"rho": -7},
        {"num_train_timesteps": 0},
        {"num_train_timesteps": 2.5},
        {"num_train_timesteps": 10**18},
        {"timesteps": [5, 9]},
        {"timesteps": [0, 10**6]},
        {"timesteps": "0,22"},
        {"_class_name": "DDIMScheduler"},
        {"_class_name": {}},
    ):
        yield f"scheduler {values}", "folder", with_json(SCHEDULER, **values)

    for form in ("folder", "pt"):
        first = "conv_in" if form == "folder" else "input_blocks.0.0"
        for value in (float("nan"), float("inf"), -float("inf")):
            yield f"{form} {value}", form, poisoned(value)
        yield f"{form} no tensors", form, with_tensors(lambda s: {"x": torch.zeros(1)})
        yield (
            f"{form} one tensor less",
            form,
            with_tensors(lambda s, f=first: {n: v for n, v in s.items() if n != f"{f}.bias"}),
        )
        yield f"{form} one tensor more", form, with_tensors(lambda s: s.update(extra=torch.zeros(3)))
        yield f"{form} another shape", form, reshaped(first)
        yield f"{form} a scalar", form, with_tensors(lambda s, f=first: s.update({f"{f}.weight": torch.zeros(())}))
        yield f"{form} transposed", form, with_tensors(lambda s, f=first: s.update({f"{f}.bias": torch.zeros(1, 2)}))
        for dtype in (torch.int64, torch.uint8, torch.bool):
            yield f"{form} {dtype}", form, retyped(dtype)
    yield "pt a list", "pt", lambda path: torch.save([torch.zeros(3)], path)
    yield "pt numbers", "pt", lambda path: torch.save({"input_blocks.0.0.weight": 3}, path)
    yield "pt other keys", "pt", lambda path: torch.save({1: torch.zeros(3)}, path)

    for kind in ("system", "eval", "exec", "open", "mkdir", "nested", "torch.load", "getattr", "import", "decoded"):
        yield f"pkl {kind}", "pkl", pickled(kind, lambda e: {"ema": e}, "plain")
        yield f"pt {kind}", "pt", pickled(kind, lambda e: {"input_blocks.0.0.weight": e}, "zip")
        yield f"old pt {kind}", "pt", pickled(kind, lambda e: {"input_blocks.0.0.weight": e}, "old")
        yield f"bin {kind}", "folder", pickled(kind, lambda e: {"conv_in.weight": e}, "zip")
    yield "pkl first", "pkl", pickled("mkdir", lambda e: e, "plain")
    yield "pkl deep", "pkl", pickled("mkdir", lambda e: {"ema": [{"state": (1, e)}]}, "plain")


CASES = {name: (form, make) for name, form, make in cases()}


def test_there_are_enough():
    assert len(CASES) >= 200


@pytest.mark.parametrize("name", CASES)
def test_a_malformed_model(name: str, good: dict[str, Path], here: Path, refused: Callable[..., str]):
    form, make = CASES[name]
    path = here / good[form].name
    shutil.copytree(good[form], path) if good[form].is_dir() else shutil.copy(good[form], path)
    make(path)
    message = refused(["sample", path.name, "--num-images", 1, "--output", "out.png"], path.name)
    assert len(message) < 600
    assert not (here / CANARY).exists()
    command = random.Random(name).choice([["inspect", path.name], ["convert", path.name, "converted"]])
    if command[0] == "convert" or "cut" not in name:  # inspect reads no more than it has to
        refused(["convert", path.name, "converted"], path.name)
    assert not (here / CANARY).exists()


@pytest.mark.parametrize("form", ["folder", "pt", "pkl"])
def test_the_good_ones_work(form: str, good: dict[str, Path], here: Path, run: Callable[..., Any]):
    outcome = run("sample", good[form], "--num-images", 1, "--steps", 1, "--output", "out.png")
    assert outcome.code == 0, outcome.err
    assert (here / "out.png").exists()


@pytest.mark.parametrize(
    "timesteps",
    ["", ",", "0,0", "1,0", "22", "-1,0", "0,40", "0,1e9", "nan", "0,22,", "0 22", "0;22", "0,2.5", "0,99999999999999"],
)
def test_absurd_timesteps(timesteps: str, good: dict[str, Path], refused: Callable[..., str]):
    refused(["sample", good["folder"], "--timesteps", timesteps, "--output", "out.png"], "timesteps")


@pytest.mark.parametrize("sigmas", ["", "79,1", "80,80", "80,90", "80,-1", "nan", "80,nan", "inf", "80,1e400"])
def test_absurd_sigmas(sigmas: str, good: dict[str, Path], refused: Callable[..., str]):
    refused(["sample", good["folder"], "--sigmas", sigmas, "--output", "out.png"])
