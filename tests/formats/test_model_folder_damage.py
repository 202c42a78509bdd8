"""Damaged, nonsensical and malicious model folders: one line that names the file, and nothing built or run."""

import json
import math
import os
import pickle
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from unistep.errors import UserError
from unistep.formats.model import ModelInfo
from unistep.formats.model_folder.folder import load_model, save_model

INDEX, NETWORK, SCHEDULE = "model_index.json", "unet/config.json", "scheduler/scheduler_config.json"
WEIGHTS, BIN = "unet/diffusion_pytorch_model.safetensors", "unet/diffusion_pytorch_model.bin"
SHARDS = "unet/diffusion_pytorch_model.safetensors.index.json"
INFO = ModelInfo(sigma_min=0.003, sigma_max=70.0, num_train_timesteps=30, timesteps=(0, 17))

Damage = Callable[[Path], object]


@pytest.fixture(scope="module")
def saved(lively, tmp_path_factory) -> Path:
    """The folder of a plain U-Net, of diffusers' class."""
    path = tmp_path_factory.mktemp("saved") / "model"
    save_model(path, lively(patch_size=1, num_class_embeds=3), INFO, card="")
    return path


@pytest.fixture
def copy(saved, tmp_path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def edit(name: str, **fields) -> Damage:
    def apply(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    return apply


def own(**fields) -> Damage:
    """Changes fields of the entry that is this package's own."""

    def apply(folder: Path) -> None:
        path = folder / SCHEDULE
        value = json.loads(path.read_text())
        path.write_text(json.dumps(value | {"_unistep": value["_unistep"] | fields}))

    return apply


def overwrite(name: str, content: bytes) -> Damage:
    return lambda folder: (folder / name).write_bytes(content)


def remove(name: str) -> Damage:
    return lambda folder: (folder / name).unlink()


def instead(name: str, make: Callable[[Path], object]) -> Damage:
    """Something else in the place of a file."""

    def apply(folder: Path) -> None:
        (folder / name).unlink()
        make(folder / name)

    return apply


def truncate(length: int) -> Damage:
    def apply(folder: Path) -> None:
        path = folder / WEIGHTS
        path.write_bytes(path.read_bytes()[:length])

    return apply


def tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Damage:
    def apply(folder: Path) -> None:
        state = {name: value.clone() for name, value in load_file(folder / WEIGHTS).items()}
        change(state)
        save_file(state, folder / WEIGHTS)

    return apply


def poison(value: float, dtype: torch.dtype = torch.float32) -> Damage:
    """One number in the middle of one tensor."""

    def change(state: dict[str, torch.Tensor]) -> None:
        state["conv_in.weight"] = state["conv_in.weight"].to(dtype)
        state["conv_in.weight"][7, 0, 1, 1] = value

    return tensors(change)


def as_bin(content: Callable[[dict[str, torch.Tensor]], object]) -> Damage:
    """A .bin instead of safetensors."""

    def apply(folder: Path) -> None:
        state = load_file(folder / WEIGHTS)
        (folder / WEIGHTS).unlink()
        value = content(state)
        if isinstance(value, bytes):
            (folder / BIN).write_bytes(value)
        else:
            torch.save(value, folder / BIN)

    return apply


def shards(index: object, *, keep: bool = True) -> Damage:
    """An index instead of a single file; the tensors lie in a-1.safetensors."""

    def apply(folder: Path) -> None:
        (folder / WEIGHTS).rename(folder / "unet" / "a-1.safetensors")
        (folder / SHARDS).write_text(json.dumps(index))

    return apply


def two_shards(second: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Damage:
    def apply(folder: Path) -> None:
        state = load_file(folder / WEIGHTS)
        shards({"weight_map": {"x": "a-1.safetensors", "y": "a-2.safetensors"}})(folder)
        save_file(second(state), folder / "unet" / "a-2.safetensors")

    return apply


class Evil:
    """Makes a file where it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def without(state: dict[str, torch.Tensor], *names: str) -> dict[str, torch.Tensor]:
    return {name: value for name, value in state.items() if name not in names}


WIDE = {"block_out_channels": [999_984, 999_984], "attention_head_dim": 16}
DAMAGES: dict[str, tuple[Damage, str]] = {
    # the files themselves
    "index missing": (remove(INDEX), "model_index.json is missing"),
    "index cut off": (overwrite(INDEX, b'{"_class_name": "Cons'), "model_index.json is not readable JSON"),
    "index binary": (overwrite(INDEX, b"\xff\xfe\x00"), "model_index.json is not readable JSON"),
    "index empty": (overwrite(INDEX, b""), "model_index.json is not readable JSON"),
    "index a list": (overwrite(INDEX, b"[1]"), "model_index.json does not hold a JSON object"),
    "index of parts that are none": (overwrite(INDEX, b'{"unet": 3}'), "unet of model_index.json is not a library and"),
    "index of half a part": (
        overwrite(INDEX, b'{"scheduler": ["x"]}'),
        "scheduler of model_index.json is not a library",
    ),
    "index of no name": (overwrite(INDEX, b'{"_class_name": []}'), "_class_name of model_index.json is not the name"),
    "index deep": (overwrite(INDEX, b"[" * 100_000), "model_index.json is not readable JSON"),
    "index deep inside": (overwrite(INDEX, b'{"a":' * 100_000), "model_index.json is not readable JSON"),
    "index huge": (overwrite(INDEX, b" " * 2_000_000), "model_index.json has 2,000,000 bytes, more than"),
    "index a folder": (instead(INDEX, Path.mkdir), "model_index.json is a folder"),
    "more parts": (edit(INDEX, vae=["diffusers", "AutoencoderKL"]), "it has a vae too"),
    "config missing": (remove(NETWORK), "config.json is missing"),
    "config a folder": (instead(NETWORK, Path.mkdir), "config.json is a folder"),
    "config a pipe": (instead(NETWORK, os.mkfifo), "config.json is no file"),
    "config a device": (instead(NETWORK, lambda p: p.symlink_to("/dev/zero")), "config.json is no file"),
    "config a loop": (instead(NETWORK, lambda p: p.symlink_to(p.name)), "config.json is a link that leads to no file"),
    "config a dead link": (instead(NETWORK, lambda p: p.symlink_to("gone")), "is a link that leads to no file"),
    "schedule missing": (remove(SCHEDULE), "scheduler_config.json is missing"),
    "unet a file": (
        lambda f: (shutil.rmtree(f / "unet"), (f / "unet").write_text("")),
        "unet/config.json is missing; a model folder holds",
    ),
    # the network
    "unknown network": (edit(NETWORK, _class_name="DiT"), "unknown network 'DiT'; known are UNet2DModel, PatchedUNet"),
    "network a list": (edit(NETWORK, _class_name=["UNet2DModel"]), "unknown network"),
    "unknown field": (edit(NETWORK, rescale=True), "unknown field 'rescale' with the value True; remove it if"),
    "unknown long field": (edit(NETWORK, **{"x\n" * 99: "y" * 999}), "unknown field 'x.nx.nx"),
    "other activation": (edit(NETWORK, act_fn="gelu"), "act_fn 'gelu' is not supported; only 'silu' is"),
    "widths a number": (
        edit(NETWORK, block_out_channels=5),
        "config.json: block_out_channels is 5; it must be a list, each entry a whole number",
    ),
    "widths of text": (edit(NETWORK, block_out_channels=["a", "b"]), r"block_out_channels is \['a', 'b'\]; it must be"),
    "widths of floats": (edit(NETWORK, block_out_channels=[16.0, 16.0]), "block_out_channels is .16.0, 16.0.; it"),
    "widths of truths": (edit(NETWORK, block_out_channels=[True, True]), "block_out_channels is .True, True.; it"),
    "widths nested": (edit(NETWORK, block_out_channels=[[16], [16]]), "block_out_channels is ..16., .16..; it"),
    "widths deep": (overwrite(NETWORK, b'{"block_out_channels":' + b"[" * 99_999), "config.json is not readable JSON"),
    "widths null": (edit(NETWORK, block_out_channels=None), "block_out_channels is None; it must be"),
    "no widths": (edit(NETWORK, block_out_channels=[]), "must have the same length"),
    "nothing at all": (
        edit(NETWORK, block_out_channels=[], down_block_types=[], up_block_types=[]),
        "at least one resolution is needed",
    ),
    "widths absurd": (edit(NETWORK, block_out_channels=[10**9] * 2), "at most 1000000 is supported"),
    "widths beyond numbers": (edit(NETWORK, block_out_channels=[10**4000] * 2), "at most 1000000 is supported"),
    "a network of terabytes": (
        edit(NETWORK, in_channels=10**6, out_channels=10**6, **WIDE),
        r"has shape \[.*\], config.json says .*3999936",
    ),
    "widths negative": (edit(NETWORK, block_out_channels=[-16, 16]), "-16 is not a multiple of norm_num_groups 4"),
    "widths zero": (edit(NETWORK, block_out_channels=[0, 0]), "0 is not a multiple of norm_num_groups"),
    "widths many": (edit(NETWORK, block_out_channels=[16] * 17), "block_out_channels has 17 entries; at most 16"),
    "widths odd": (edit(NETWORK, block_out_channels=[18, 18]), "18 is not a multiple of norm_num_groups 4"),
    "heads do not divide": (edit(NETWORK, attention_head_dim=5), "attention_head_dim: 5 does not divide the width 16"),
    "heads absurd": (edit(NETWORK, attention_head_dim=10**9), "at most 1000000 is supported"),
    "no layers": (edit(NETWORK, layers_per_block=0), "layers_per_block: 0 is not at least 1"),
    "layers absurd": (edit(NETWORK, layers_per_block=10**6), "layers_per_block is 1000000; at most 32 is supported"),
    "layers a float": (edit(NETWORK, layers_per_block=1.0), "layers_per_block is 1.0; it must be a whole number"),
    "dropout of text": (edit(NETWORK, dropout="x"), "config.json: dropout is 'x'; it must be a finite number"),
    "epsilon negative": (edit(NETWORK, norm_eps=-1), r"norm_eps: -1.0 is outside \(0, 1\)"),
    "epsilon NaN": (edit(NETWORK, norm_eps=math.nan), "norm_eps is nan; it must be a finite number"),
    "epsilon endless": (edit(NETWORK, norm_eps=10**400), "norm_eps is 1000.*; it must be a finite number"),
    "size not square": (edit(NETWORK, sample_size=[16, 24]), "sample_size .16, 24. is not square; only square images"),
    "size of three": (edit(NETWORK, sample_size=[16] * 3), "sample_size is .16, 16, 16.; it must be a whole number or"),
    "size of one": (edit(NETWORK, sample_size=[16]), "sample_size is .16.; it must be a whole number or null"),
    "size of texts": (
        edit(NETWORK, sample_size=["16", "16"]),
        "sample_size is .'16', '16'.; it must be a whole number",
    ),
    "size of truths": (edit(NETWORK, sample_size=[True, True]), "sample_size is .True, True.; it must be a whole"),
    "size of halves": (edit(NETWORK, sample_size=[16.0, 16.0]), "sample_size is .16.0, 16.0.; it must be a whole"),
    "size below 0 as a list": (edit(NETWORK, sample_size=[-16, -16]), "sample_size: -16 is neither at least 1 nor"),
    "size absurd as a list": (edit(NETWORK, sample_size=[10**9] * 2), "sample_size is 1000000000; at most 8192 is"),
    "size absurd": (edit(NETWORK, sample_size=10**9), "sample_size is 1000000000; at most 8192 is supported"),
    "blocks a text": (edit(NETWORK, down_block_types="DownBlock2D"), "it must be a list, each entry text"),
    "unknown block": (edit(NETWORK, down_block_types=["DownBlock2D", "SkipDownBlock2D"]), "unknown block 'SkipDownBl"),
    "predicts more": (edit(NETWORK, out_channels=2), "out_channels 2 is not in_channels 1"),
    # the schedule
    "unknown scheduler": (edit(SCHEDULE, _class_name="DDIM"), "unknown scheduler 'DDIM'"),
    "scheduler a list": (edit(SCHEDULE, _class_name=["DDIM"]), "unknown scheduler"),
    "unknown setting": (edit(SCHEDULE, shift=2.0), "unknown field 'shift' with the value 2.0"),
    "not clipped": (edit(SCHEDULE, clip_denoised=False), "clip_denoised False is not supported; only True is"),
    "sigma of text": (edit(SCHEDULE, sigma_max="80"), "sigma_max is '80'; it must be a finite number"),
    "sigma a truth": (edit(SCHEDULE, sigma_max=True), "sigma_max is True; it must be a finite number"),
    "sigma NaN": (edit(SCHEDULE, sigma_min=math.nan), "sigma_min is nan; it must be a finite number"),
    "sigma infinite": (edit(SCHEDULE, sigma_max=math.inf), "sigma_max is inf; it must be a finite number"),
    "sigma negative": (edit(SCHEDULE, sigma_min=-1), "sigma_min -1.0 and sigma_max 70.0 must satisfy"),
    "sigmas swapped": (edit(SCHEDULE, sigma_min=90), "sigma_min 90.0 and sigma_max 70.0 must satisfy"),
    "rho 0": (edit(SCHEDULE, rho=0), "rho 0.0 must be positive"),
    "sigma_data 0": (edit(SCHEDULE, sigma_data=0), "sigma_data 0.0 must be positive"),
    "no timesteps": (edit(SCHEDULE, num_train_timesteps=0), "num_train_timesteps 0 must lie between 1 and 1000000"),
    "half a timestep": (edit(SCHEDULE, num_train_timesteps=40.5), "is 40.5; it must be a whole number"),
    "unknown solver": (edit(SCHEDULE, solver="dpm"), "solver dpm: must be one of heun, euler, dpm2, "),
    "solver a number": (edit(SCHEDULE, solver=2), "solver is 2; it must be text"),
    "no steps": (edit(SCHEDULE, steps=0), "steps 0 must lie between 1 and 1000000"),
    "half a step": (edit(SCHEDULE, steps=1.5), "steps is 1.5; it must be a whole number"),
    "timesteps twice": (edit(SCHEDULE, timesteps=[0, 1]), "'timesteps' is given twice"),
    "own a list": (edit(SCHEDULE, _unistep=[1]), "_unistep is .1.; it must be a JSON object"),
    "own unknown": (own(shift=2.0), "unknown field 'shift' with the value 2.0"),
    "own kind": (own(kind="diffusion"), "unknown field 'kind'"),
    "timesteps of text": (own(timesteps="0,22"), "timesteps is '0,22'; it must be a list, each entry a whole number"),
    "timesteps a number": (own(timesteps=5), "timesteps is 5; it must be a list"),
    "timesteps of floats": (own(timesteps=[0, 2.5]), "timesteps is .0, 2.5.; it must be a list"),
    "timesteps from 1": (own(timesteps=[1, 2]), r"timesteps \[1, 2\] must start with 0"),
    "timesteps too high": (own(timesteps=[0, 30]), "must be below 30"),
    "schedules of one step count": (
        own(schedules=[[0, 5, 9], [0, 6, 9]]),
        "schedules: there are two of 3 steps; keep one",
    ),
    "schedules and timesteps": (own(timesteps=[0, 9], schedules=[[0, 6]]), "schedules: there are two of 2 steps"),
    "schedules flat": (
        own(schedules=[0, 5]),
        r"schedules is \[0, 5\]; it must be a list, each entry a list, each entry a",
    ),
    "schedules from 1": (own(schedules=[[1, 2, 3]]), r"timesteps \[1, 2, 3\] must start with 0"),
    "null label below 0": (own(null_label=-1), "null_label -1 must not be negative"),
    "null label beyond": (own(null_label=3), "null_label 3 is not the last of the network's 3 classes"),
    "unknown embedding": (own(noise_embedding="sin"), "noise_embedding is 'sin'; it must be adm or edm"),
    # the weights
    "weights missing": (remove(WEIGHTS), "has no plain weights; it has no unet/diffusion_pytorch_model.safetensors or"),
    "weights a folder": (instead(WEIGHTS, Path.mkdir), "safetensors is a folder"),
    "weights a pipe": (instead(WEIGHTS, os.mkfifo), "safetensors is no file"),
    "weights a dead link": (instead(WEIGHTS, lambda p: p.symlink_to("gone")), "safetensors is a link that leads to no"),
    "weights empty": (overwrite(WEIGHTS, b""), "safetensors cannot be read"),
    "weights garbage": (overwrite(WEIGHTS, b"\xff" * 1000), "safetensors cannot be read"),
    "weights a page": (overwrite(WEIGHTS, b"<!doctype html><title>404</title>"), "safetensors cannot be read"),
    "header cut off": (truncate(100), "safetensors cannot be read"),
    "data cut off": (truncate(-4), "safetensors cannot be read"),
    "tensor missing": (tensors(lambda s: s.pop("conv_in.bias")), "lacks tensor conv_in.bias;"),
    "tensors missing": (
        tensors(lambda s: [s.pop(f"conv_in.{kind}") for kind in ("bias", "weight")]),
        "lacks tensor conv_in.bias and 1 more",
    ),
    "tensor too many": (tensors(lambda s: s.update(more=torch.ones(1))), "has the unexpected tensor more;"),
    "tensor's name": (tensors(lambda s: s.update({"a\nb": torch.ones(1)})), r"the unexpected tensor 'a\\nb'"),
    "tensor's shape": (
        tensors(lambda s: s.update({"conv_in.bias": torch.ones(7)})),
        r"tensor conv_in.bias has shape \[7\], config.json says \[16\]",
    ),
    "whole numbers": (
        tensors(lambda s: s.update({"conv_in.bias": torch.ones(16, dtype=torch.int64)})),
        "its entry conv_in.bias .torch.int64. is no dense tensor",
    ),
    "complex numbers": (
        tensors(lambda s: s.update({"conv_in.bias": torch.ones(16, dtype=torch.complex64)})),
        "its entry conv_in.bias .torch.complex64. is no dense tensor",
    ),
    "eight bits": (
        tensors(lambda s: s.update({"conv_in.bias": torch.ones(16).to(torch.float8_e4m3fn)})),
        "its entry conv_in.bias .torch.float8_e4m3fn. is no dense tensor",
    ),
    "NaN": (poison(math.nan), "tensor conv_in.weight has values that are not finite; training failed, or"),
    "infinite": (poison(-math.inf), "tensor conv_in.weight has values that are not finite"),
    "NaN in half precision": (poison(math.nan, torch.float16), "tensor conv_in.weight has values that are not finite"),
    "too large for fp32": (poison(1e300, torch.float64), "tensor conv_in.weight has values that are not finite"),
    **{f"{part} a pipe": (instead(part, os.mkfifo), "json is no file") for part in (INDEX, NETWORK, SCHEDULE)},
    "shards a pipe": (lambda f: (remove(WEIGHTS)(f), os.mkfifo(f / SHARDS)), "index.json is no file"),
    "weights a device": (instead(WEIGHTS, lambda p: p.symlink_to("/dev/zero")), "safetensors is no file"),
    # .bin
    "bin empty": (as_bin(lambda s: b""), "bin is not a PyTorch file of tensors alone: it is damaged, or"),
    "bin garbage": (as_bin(lambda s: b"\x80\x02garbage"), "bin is not a PyTorch file of tensors alone"),
    "bin cut off": (as_bin(lambda s: b"PK\x03\x04" + b"\0" * 500), "bin is not a PyTorch file of tensors alone"),
    "bin a list": (as_bin(lambda s: list(s.values())), "bin holds no state dict"),
    "bin of numbers": (as_bin(lambda s: s | {"step": 3}), "bin: its entry step .int. is no dense tensor"),
    "bin numbered": (as_bin(lambda s: dict(enumerate(s.values()))), "bin holds no state dict"),
    "bin sparse": (
        as_bin(lambda s: s | {"conv_in.bias": torch.zeros(16).to_sparse()}),
        "its entry conv_in.bias .* is no dense tensor of floats",
    ),
    "bin without values": (
        as_bin(lambda s: s | {"conv_in.bias": torch.ones(16, device="meta")}),
        "its entry conv_in.bias .* is no dense tensor of floats",
    ),
    "bin that poses": (
        as_bin(lambda s: s | {"conv_in.weight": torch.ones(1).expand(10**6, 10**6)}),
        "its tensors claim more bytes than the file has",
    ),
    "bin NaN": (
        as_bin(lambda s: s | {"conv_in.bias": torch.full((16,), math.nan)}),
        "tensor conv_in.bias has values that are not finite",
    ),
    # shards
    "shards cut off": (
        lambda f: (shards({})(f), (f / SHARDS).write_text("{")),
        "safetensors.index.json is not an index of shards",
    ),
    "shards a list": (shards([1]), "is not an index of shards"),
    "shards none": (shards({"weight_map": {}}), "is not an index of shards"),
    "shards numbers": (shards({"weight_map": {"x": 1}}), "is not an index of shards"),
    "shards lists": (shards({"weight_map": {"x": ["a-1.safetensors"]}}), "is not an index of shards"),
    "shards above": (shards({"weight_map": {"x": "../a-1.safetensors"}}), "is not an index of shards"),
    "shards elsewhere": (shards({"weight_map": {"x": "/tmp/a-1.safetensors"}}), "is not an index of shards"),
    "shards of bin": (shards({"weight_map": {"x": "a-1.bin"}}), "is not an index of shards"),
    "shards with a zero": (shards({"weight_map": {"x": "a\0.safetensors"}}), "is not an index of shards"),
    "shards a folder": (lambda f: (remove(WEIGHTS)(f), (f / SHARDS).mkdir()), "index.json is a folder"),
    "shard missing": (shards({"weight_map": {"x": "b-1.safetensors"}}), "unet/b-1.safetensors is missing"),
    "shard's tensor twice": (
        two_shards(lambda s: {"conv_in.bias": s["conv_in.bias"]}),
        "a-2.safetensors: tensor 'conv_in.bias' is in a-1.safetensors too",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_one_line_that_names_the_file(copy, damage):
    apply, message = DAMAGES[damage]
    apply(copy)
    began = time.process_time()
    with pytest.raises(UserError, match=message) as caught:
        load_model(copy)
    assert time.process_time() - began < 5, "it must be seen before anything large is built"
    assert str(copy) in str(caught.value)
    assert str(caught.value).isprintable(), "the message must be one line"
    assert len(str(caught.value).replace(str(copy), "")) < 400


def test_nothing_in_a_bin_is_executed(copy, tmp_path):
    made = tmp_path / "made"
    as_bin(lambda s: pickle.dumps({"conv_in.bias": Evil(str(made))}, protocol=2))(copy)
    with pytest.raises(UserError, match="holds objects, which are not loaded"):
        load_model(copy)
    (copy / BIN).unlink()
    torch.save({"conv_in.bias": Evil(str(made))}, copy / BIN)
    with pytest.raises(UserError, match="holds objects, which are not loaded"):
        load_model(copy)
    assert not made.exists()
    pickle.loads(pickle.dumps(Evil(str(made))))
    assert made.exists(), "the test would notice"


def test_no_folder(tmp_path, saved):
    for path in (tmp_path / "absent", saved / "README.md"):
        with pytest.raises(UserError, match=f"{path} is not a folder; give a model folder"):
            load_model(path)


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
def test_unreadable_file(copy):
    (copy / WEIGHTS).chmod(0)
    with pytest.raises(UserError, match=r"safetensors cannot be read \(Permission denied\); change its permissions"):
        load_model(copy)


@pytest.mark.parametrize("part", [INDEX, NETWORK, SCHEDULE])
def test_byte_order_marks_are_passed_over(copy, part):
    text = (copy / part).read_text(encoding="utf-8")
    (copy / part).write_text("\ufeff" + text, encoding="utf-8")
    assert load_model(copy).image_shape == (1, 16, 16)


def test_a_square_size_may_be_a_list(copy):
    edit(NETWORK, sample_size=[16, 16])(copy)
    assert load_model(copy).config.sample_size == 16


@pytest.mark.parametrize("entry", ["unistep.sha256", "unistep.sums"])
@pytest.mark.parametrize("at", [0, 1, -1])
def test_a_changed_byte_is_found_by_either_digest(copy: Path, entry: str, at: int):
    path = copy / WEIGHTS
    with safe_open(path, "pt") as opened:
        metadata = opened.metadata()
    assert metadata.keys() == {"format", "unistep.sha256", "unistep.sums"}
    other = {"unistep.sha256", "unistep.sums"} - {entry}
    save_file(load_file(path), path, metadata={name: value for name, value in metadata.items() if name not in other})
    load_model(copy)
    content = bytearray(path.read_bytes())
    begin = 8 + int.from_bytes(content[:8], "little")
    content[begin + at if at >= 0 else at] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"its tensors are not those of its digest; .*{entry}"):
        load_model(copy)


def test_pages_that_have_changed_places_are_found(copy: Path):
    path = copy / WEIGHTS
    content = path.read_bytes()
    begin = 8 + int.from_bytes(content[:8], "little")
    first, second = content[begin : begin + 4096], content[begin + 4096 : begin + 8192]
    path.write_bytes(content[:begin] + second + first + content[begin + 8192 :])
    with pytest.raises(UserError, match="its tensors are not those of its digest"):
        load_model(copy)
