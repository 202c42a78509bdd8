"""The same weights in whatever training scripts wrap them in."""

import argparse
import json
import logging
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from unistep.errors import UserError
from unistep.formats.empty import without_weights
from unistep.formats.model import ModelInfo
from unistep.formats.model_folder.folder import load_model, save_model
from unistep.formats.open import open_model
from unistep.formats.openai.layout import MARKS, diffusers_to_openai
from unistep.formats.published.dinov2 import load_dinov2
from unistep.formats.published.lpips import load_lpips
from unistep.formats.wrappers import unwrap
from unistep.networks.adm import UNet, UNetConfig
from unistep.networks.dinov2 import VisionTransformer, VisionTransformerConfig
from unistep.networks.lpips import LPIPS
from unistep.networks.patched import PatchedUNet, PatchedUNetConfig
from unistep.networks.song import SongUNet, SongUNetConfig

ADM = UNetConfig(
    sample_size=16,
    block_out_channels=(32, 32),
    layers_per_block=1,
    down_block_types=("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
    up_block_types=("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
    attention_head_dim=32,
)
OPTIONS = {"attention_head_dim": 32, "sample_size": 16, "kind": "consistency"}
PREFIXES = (
    "module.",
    "_orig_mod.",
    "model.",
    "ema.",
    "net.",
    "unet.",
    "ema_model.",
    "denoiser.",
    "network.",
    "model_ema.",
    "module._orig_mod.",
    "_orig_mod.module.model.",
    "some.unknown_wrapper.v2.",
    "EMA.",
    "ema_",
    "a." * 60,
)


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in diffusers_to_openai(UNet(ADM).state_dict(), ADM).items()}


@pytest.fixture(scope="module")
def other(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor + 1 for name, tensor in state.items()}


def behind(prefix: str, tensors: dict[str, Any]) -> dict[str, Any]:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def opened(path: Path, content: Any, **options: Any) -> tuple[Tensor, tuple[str, ...]]:
    """A tensor of the model in a file of `torch.save`, and the notes."""
    torch.save(content, path)
    return read(path, **options)


def read(path: Path, **options: Any) -> tuple[Tensor, tuple[str, ...]]:
    model = open_model(path, **OPTIONS | options)
    return model.denoiser.network.get_parameter("conv_out.bias"), model.notes


def refusal(path: Path, content: Any, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        opened(path, content, **options)
    assert str(caught.value).isprintable()
    return str(caught.value)


# ------------------------------------------------------------------------------------------------ OpenAI's layout


@pytest.mark.parametrize("prefix", PREFIXES)
def test_prefixes_are_taken_off_and_said(prefix: str, state: dict[str, Tensor], tmp_path: Path):
    found, notes = opened(tmp_path / "x.pt", behind(prefix, state))
    assert torch.equal(found, state["out.2.bias"])
    shown = prefix if len(prefix) <= 60 else f"{prefix!r:.57}..."
    assert notes == (f"x.pt: the prefix {shown} was taken off the names of its tensors",)


def test_a_bare_state_dict_needs_no_note(state: dict[str, Tensor], tmp_path: Path):
    assert opened(tmp_path / "x.pt", state)[1] == ()


@pytest.mark.parametrize("key", ["state_dict", "model", "ema", "model_ema", "params_ema", "net", "unet", "module", "x"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_keys_beside_other_things(key: str, prefix: str, state: dict[str, Tensor], tmp_path: Path):
    optimizer = {"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 0.1}]}
    content = {key: behind(prefix, state), "step": 3, "optimizer": optimizer, "epoch": 1.5, "rng": None}
    found, notes = opened(tmp_path / "x.pt", content)
    assert torch.equal(found, state["out.2.bias"])
    taken = f"; the prefix {prefix} was taken off the names of its tensors" if prefix else ""
    assert notes == (f"x.pt: its network is the one under {key}{taken}",)


def test_lightning_checkpoints(state: dict[str, Tensor], other: dict[str, Tensor], tmp_path: Path):
    content = {
        "epoch": 1,
        "global_step": 300,
        "pytorch-lightning_version": "2.4.0",
        "state_dict": behind("model.", state) | {"loss.vgg.0.weight": torch.zeros(3), "sigma_min": torch.tensor(0.1)},
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"current": {"ready": 1}}}},
        "callbacks": {"ModelCheckpoint{'monitor': None}": {"best_model_path": "x.ckpt", "best_k_models": {}}},
        "optimizer_states": [{"state": {}, "param_groups": []}],
        "lr_schedulers": [],
        "hparams_name": "kwargs",
        "hyper_parameters": {"lr": 1e-4, "channels": [32, 32]},
    }
    found, notes = opened(tmp_path / "last.ckpt", content)
    assert torch.equal(found, state["out.2.bias"])
    assert notes[0].endswith("was taken off the names of its tensors; left out: loss.vgg.0.weight, sigma_min")
    content["state_dict"] |= behind("ema_model.", other)
    assert "holds several networks (model, ema_model); choose one by `weights`, as 'ema_model'" in refusal(
        tmp_path / "last.ckpt", content
    )
    for choice, bias in (("ema", other), ("ema_model", other), ("model", state), ("state_dict.ema_model", other)):
        assert torch.equal(opened(tmp_path / "last.ckpt", content, weights=choice)[0], bias["out.2.bias"])


def test_averaged_models_of_torch(state: dict[str, Tensor], tmp_path: Path):
    network = AveragedModel(UNet(ADM))
    content = {
        name: tensor for name, tensor in network.state_dict().items() if not name.startswith("module.")
    } | behind("module.", state)
    assert "n_averaged" in content
    found, notes = opened(tmp_path / "x.pt", content)
    assert torch.equal(found, state["out.2.bias"])
    assert notes[0].endswith("was taken off the names of its tensors; left out: n_averaged")


def test_ema_pytorch_holds_two_networks_in_one_state_dict(
    state: dict[str, Tensor], other: dict[str, Tensor], tmp_path: Path
):
    counters = {"initted": torch.tensor(True), "step": torch.tensor(7)}
    content = behind("online_model.", state) | behind("ema_model.", other) | counters
    assert "(online_model, ema_model)" in refusal(tmp_path / "x.pt", content)
    for choice, bias in (("ema", other), ("model", state), ("online_model", state)):
        found, notes = opened(tmp_path / "x.pt", {"model": content}, weights=choice)
        assert torch.equal(found, bias["out.2.bias"]) and notes[0].endswith("left out: initted, step")


def test_counters_beside_bare_names(state: dict[str, Tensor], tmp_path: Path):
    counters = {"n_averaged": torch.tensor(3), "num_batches_tracked": torch.tensor(3)}
    found, notes = opened(tmp_path / "x.pt", state | counters | {"step": 3})
    assert notes == ("x.pt: left out: n_averaged, num_batches_tracked, step",)
    found, notes = opened(tmp_path / "x.pt", state | counters)
    assert torch.equal(found, state["out.2.bias"]) and notes == ("x.pt: left out: n_averaged, num_batches_tracked",)


def test_parts_that_wrappers_of_layers_put_in(state: dict[str, Tensor], tmp_path: Path):
    def within(name: str) -> str:
        first, dot, rest = name.partition(".")
        return f"{first}{dot}_orig_mod._checkpoint_wrapped_module.{rest}"

    found, notes = opened(tmp_path / "x.pt", {within(name): tensor for name, tensor in state.items()})
    assert torch.equal(found, state["out.2.bias"])
    assert "_orig_mod" in notes[0] and "_checkpoint_wrapped_module" in notes[0]


def test_averages_whose_names_have_lost_their_dots(state: dict[str, Tensor], other: dict[str, Tensor], tmp_path: Path):
    """Latent diffusion's: buffers may have no dots in their names."""
    averages = {f"diffusion_model{name}".replace(".", ""): tensor for name, tensor in other.items()}
    averages |= {"decay": torch.tensor(0.99), "num_updates": torch.tensor(5)}
    content = {"state_dict": behind("model.diffusion_model.", state) | behind("model_ema.", averages)}
    for choice, bias in (("ema", other), ("model", state)):
        assert torch.equal(opened(tmp_path / "x.ckpt", content, weights=choice)[0], bias["out.2.bias"])
    assert "holds several networks (" in refusal(tmp_path / "x.ckpt", content)


def test_averages_without_names(state: dict[str, Tensor], other: dict[str, Tensor], tmp_path: Path):
    ema = {"decay": 0.99, "num_updates": 4, "shadow_params": list(other.values()), "collected_params": None}
    content = {"model": behind("module.", state), "ema": ema, "step": 3}
    found, notes = opened(tmp_path / "x.pt", content, weights="ema")
    assert torch.equal(found, other["out.2.bias"]) and "in the order of the other network's" in notes[0]
    assert torch.equal(opened(tmp_path / "x.pt", content, weights="model")[0], state["out.2.bias"])
    message = "holds averaged weights as a list without names (shadow_params), which fit no network"
    assert message in refusal(tmp_path / "x.pt", ema)
    ema["shadow_params"] = ema["shadow_params"][1:]
    assert "as a list without names (ema.shadow_params)" in refusal(tmp_path / "x.pt", content, weights="ema")
    found, notes = opened(tmp_path / "x.pt", content)
    assert torch.equal(found, state["out.2.bias"]) and "ema.shadow_params were left out" in notes[0]


def test_averages_by_decay_and_in_lists(state: dict[str, Tensor], other: dict[str, Tensor], tmp_path: Path):
    path = tmp_path / "x.pt"
    third = {name: tensor + 2 for name, tensor in state.items()}
    by_decay = {"model": state, "ema": {0.99: other, 0.999: third}}
    in_list = {"model": state, "ema": [other, third], "rates": [0.99, 0.999]}
    bare = {"model": state, "ema": [list(other.values()), tuple(third.values())]}
    for content, choices in (
        (by_decay, ("0.99", "0.999")),
        (in_list, ("ema.0", "ema.1")),
        (bare, ("ema.0", "ema.1")),
    ):
        assert "holds several networks (model, ema.0" in refusal(path, content)
        for choice, bias in zip(choices, (other, third), strict=True):
            assert torch.equal(opened(path, content, weights=choice)[0], bias["out.2.bias"])
        assert torch.equal(opened(path, content, weights="model")[0], state["out.2.bias"])


def test_weights_that_are_not_averaged_beside_their_average(
    state: dict[str, Tensor], other: dict[str, Tensor], tmp_path: Path
):
    ema = behind("ema_model.model.", other) | behind("online_model.model.", state)
    ema |= {"initted": torch.tensor(True), "step": torch.tensor(4)}
    content = {"step": 4, "model": behind("model.", state), "ema": ema, "scaler": None}
    for choice, bias in (("ema", other), ("ema_model", other), ("online_model", state), ("model", state)):
        found = opened(tmp_path / "model-4.pt", content, weights=choice)[0]
        assert torch.equal(found, bias["out.2.bias"]), choice


def test_choices_that_name_nothing(state: dict[str, Tensor], other: dict[str, Tensor], tmp_path: Path):
    path = tmp_path / "x.pt"
    both = {"model": state, "ema": other}
    assert "`weights` 'teacher': " in (message := refusal(path, both, weights="teacher"))
    assert "holds model, ema; choose one of these" in message
    assert "holds one network alone, which has no name; leave it out" in refusal(path, state, weights="ema")
    assert "holds one network alone (net); leave it out" in refusal(path, {"net": state}, weights="ema")
    three = both | {"ema_0.999": other}
    assert torch.equal(opened(path, three, weights="ema_0.999")[0], other["out.2.bias"])
    three = {"model": state, "ema_0.99": other, "ema_0.999": other}
    assert "holds several such networks (model, ema_0.99, ema_0.999)" in refusal(path, three, weights="ema")


def test_averages_among_the_optimizer_are_no_network(state: dict[str, Tensor], tmp_path: Path):
    content = {"model": state, "optimizer": {"exp_avg": state, "exp_avg_sq": state}}
    assert torch.equal(opened(tmp_path / "x.pt", content)[0], state["out.2.bias"])


def test_tensors_of_this_layout_in_safetensors(state: dict[str, Tensor], other: dict[str, Tensor], tmp_path: Path):
    path = tmp_path / "x.safetensors"
    for prefix in ("", "model.diffusion_model."):
        save_file(behind(prefix, state), path)
        assert torch.equal(read(path)[0], state["out.2.bias"])
    save_file(behind("model.", state) | behind("ema.", other), path)
    assert torch.equal(read(path, weights="ema")[0], other["out.2.bias"])
    with pytest.raises(UserError, match=r"x.safetensors holds several networks \(ema, model\)"):
        read(path)


def test_state_dicts_of_other_layouts_are_named(tmp_path: Path):
    path = tmp_path / "x.pt"
    assert "holds the tensors of diffusers' UNet2DModel without its architecture" in refusal(
        path, UNet(ADM).state_dict()
    )
    assert "without its architecture" in refusal(path, {"model": behind("module.", UNet(ADM).state_dict()), "step": 3})
    path = tmp_path / "stage" / "checkpoints" / "step-00000100.pt"
    path.parent.mkdir(parents=True)
    content = {"student": behind("network.", UNet(ADM).state_dict()), "step": 100}
    assert f"is a checkpoint of a training; give the folder of its stage: {tmp_path / 'stage'}" in refusal(
        path, content
    )


def test_networks_that_lack_tensors_keep_their_message(state: dict[str, Tensor], tmp_path: Path):
    some = {name: tensor for name, tensor in state.items() if not name.startswith("output_blocks")}
    assert "x.pt: tensor output_blocks.0.0.in_layers.2.weight is missing" in refusal(
        tmp_path / "x.pt", behind("module.", some)
    )
    del some["input_blocks.1.0.in_layers.0.bias"]
    assert "is missing" in refusal(tmp_path / "x.pt", behind("module.", some))


def test_a_mapping_within_itself(state: dict[str, Tensor], tmp_path: Path):
    content: dict[str, Any] = {"model": state}
    content["itself"] = content
    assert torch.equal(opened(tmp_path / "x.pt", content)[0], state["out.2.bias"])


def test_thousands_of_networks(tmp_path: Path):
    tensor = torch.zeros(3)
    content = {f"p{i}.{mark}": tensor for i in range(5_000) for mark in MARKS[:2]}
    began = time.process_time()
    with pytest.raises(UserError, match="x.pt: it holds 5,000 networks; save the one to use"):
        unwrap(content, [MARKS], "x.pt")
    names = {".".join("ab" * 40) + str(i): tensor for i in range(5_000)}
    assert unwrap({str(i): names for i in range(100)}, [MARKS, MARKS], "x.pt") is None
    assert time.process_time() - began < 5


def test_nesting_without_end(state: dict[str, Tensor], tmp_path: Path):
    content: dict[str, Any] = {"a": 1}
    for _ in range(3000):
        content = {"a": content, "b": content}
    assert unwrap(content, [list(state)], "x.pt") is None


# ------------------------------------------------------------------------------------------------- model folders

NETWORKS: dict[str, nn.Module] = {}


@pytest.fixture(params=["adm", "patched", "song"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    song = SongUNetConfig(sample_size=8, model_channels=32, channel_mult=(1,), num_blocks=1, attn_resolutions=(8,))
    make = {
        "adm": lambda: UNet(ADM),
        "patched": lambda: PatchedUNet(PatchedUNetConfig(**vars(ADM), patch_size=2)),
        "song": lambda: SongUNet(song),
    }
    network = NETWORKS.get(request.param) or NETWORKS.setdefault(request.param, make[request.param]())
    save_model(tmp_path / "m", network, ModelInfo(), card="")
    return tmp_path / "m"


def weights_of(folder: Path) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in load_model(folder).denoiser.network.state_dict().items()}


def same(folder: Path, expected: dict[str, Tensor], **options: Any) -> bool:
    found = load_model(folder, **options).denoiser.network.state_dict()
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


@pytest.mark.parametrize("form", ["safetensors", "bin", "shards"])
def test_prefixes_in_model_folders(folder: Path, form: str):
    expected = weights_of(folder)
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    file.unlink()
    for prefix in ("module._orig_mod.", "anything.at.all."):
        content = behind(prefix, expected)
        if form == "safetensors":
            save_file(content | {"n_averaged": torch.tensor(3)}, file)
        elif form == "bin":
            torch.save({"state_dict": content, "step": 3}, file.with_suffix(".bin"))
        else:
            names = sorted(content)
            parts = {"a-1.safetensors": names[::2], "a-2.safetensors": names[1::2]}
            for part, own in parts.items():
                save_file({name: content[name] for name in own}, file.with_name(part))
            index = {"weight_map": {name: part for part, own in parts.items() for name in own}}
            text = "\ufeff" + json.dumps(index)  # with a byte order mark
            file.with_name(f"{file.name}.index.json").write_text(text, encoding="utf-8")
        assert same(folder, expected)
        (note,) = load_model(folder, "meta").notes
        assert f"the prefix {prefix} was taken off the names of its tensors" in note
        assert ("n_averaged" in note) is (form == "safetensors")


def test_a_model_folder_with_averages(folder: Path):
    expected = weights_of(folder)
    other = {name: tensor + 1 for name, tensor in expected.items()}
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    save_file(behind("model.", expected) | behind("ema.", other), file)
    with pytest.raises(UserError, match=r"holds several networks \(ema, model\); choose one by `weights`, as 'ema'"):
        load_model(folder)
    assert same(folder, expected, weights="model")
    shutil.copy(folder / "unet" / "config.json", folder / "x.json")
    with pytest.raises(UserError, match="`weights` 'student'"):
        load_model(folder, weights="student")


def test_networks_that_do_not_fit_keep_their_message(folder: Path):
    expected = weights_of(folder)
    name = min(expected)
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    save_file(behind("module.", {other: v for other, v in expected.items() if other != name}), file)
    with pytest.raises(UserError, match=f"lacks tensor {name}; it does not belong to its config.json"):
        load_model(folder)


# ----------------------------------------------------------------------------------------------- published networks


def test_lpips_in_wrappers(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    weights = LPIPS(widths=(2, 3, 4, 5, 6)).state_dict()
    heads = {name: tensor for name, tensor in weights.items() if name.startswith("lin")}
    vgg = {name: tensor for name, tensor in weights.items() if name.startswith("features")}
    classifier = {"classifier.0.weight": torch.ones(1)}
    torch.save({"state_dict": behind("module.", vgg | classifier), "epoch": 3}, tmp_path / "vgg.pt")
    save_file(behind("net.", heads), tmp_path / "heads.safetensors")
    network = load_lpips(tmp_path / "vgg.pt", tmp_path / "heads.safetensors")
    assert all(torch.equal(tensor, weights[name]) for name, tensor in network.state_dict().items())
    assert "vgg.pt: its network is the one under state_dict; the prefix module. was taken off" in caplog.text
    assert "heads.safetensors: the prefix net. was taken off" in caplog.text


def test_dinov2_in_wrappers(tmp_path: Path):
    with without_weights():
        shapes = VisionTransformer(VisionTransformerConfig(64, 2, 1, 2, 2)).state_dict()
    weights = {name: torch.rand(tensor.shape) for name, tensor in shapes.items()}
    torch.save({"teacher": behind("backbone.", weights) | {"dino_head.mlp.0.weight": torch.ones(1)}}, tmp_path / "x.pt")
    network = load_dinov2(tmp_path / "x.pt")
    assert all(torch.equal(tensor, weights[name]) for name, tensor in network.state_dict().items())


# ------------------------------------------------------------------------------------------- files by their content


def padded(path: Path, tensors: dict[str, Tensor], first: bytes) -> Path:
    """A safetensors file the length of whose header, a multiple of eight, has these first bytes."""
    save_file(tensors, path, metadata={"x": ""})
    length = int.from_bytes(path.read_bytes()[:8], "little")
    missing = (int.from_bytes(first, "little") - length) % 256 ** len(first)
    save_file(tensors, path, metadata={"x": "x" * missing})
    assert path.read_bytes().startswith(first)
    return path


@pytest.mark.parametrize("first", [b"\x80", b"PK\x00"])
@pytest.mark.parametrize("name", ["x.safetensors", "x.pt", "x"])
def test_files_are_what_they_hold(first: bytes, name: str, state: dict[str, Tensor], tmp_path: Path):
    """The length of a header may begin as a pickle or as a zip file does, and a name may be wrong."""
    assert torch.equal(read(padded(tmp_path / name, state, first))[0], state["out.2.bias"])
    with pytest.raises(UserError, match="is a safetensors file: weights without their architecture"):
        open_model(padded(tmp_path / "other.safetensors", {"w": torch.zeros(3)}, first))
    torch.save(state, tmp_path / "y.safetensors")
    assert torch.equal(read(tmp_path / "y.safetensors")[0], state["out.2.bias"])


def test_arguments_of_scripts_are_data(state: dict[str, Tensor], tmp_path: Path):
    content = {"state_dict": state, "args": argparse.Namespace(lr=0.1, names=["a"]), "arch": "adm", "metric": 3.2}
    assert torch.equal(opened(tmp_path / "x.pt", content)[0], state["out.2.bias"])
