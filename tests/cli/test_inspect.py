import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import unistep
from unistep.cli.main import COMMANDS
from unistep.formats.describe import describe, in_bytes
from unistep.formats.edm import file as edm
from unistep.formats.model import LoadedModel, ModelInfo, precondition
from unistep.networks.song import SongUNet, SongUNetConfig
from unistep.workflows.models import EMBEDDED, EMBEDDED_TEACHER


def test_is_a_command():
    assert "inspect" in COMMANDS


def table_of(out: str) -> dict[str, str]:
    """The printed table; rows of one key and lines of one cell are joined."""
    found: dict[str, str] = {}
    key = ""
    for line in out.splitlines():
        if line.startswith("│"):
            name, value = (cell.strip() for cell in line.strip("│").split("│"))
            key = name or key
            found[key] = f"{found[key]} {value}" if key in found else value
    return found


def test_the_embedded_model(run: Any):
    outcome = run("inspect")
    assert outcome.code == 0, outcome
    assert str(EMBEDDED) in outcome.out.replace("\n", "")
    weights = sum(p.stat().st_size for p in EMBEDDED.rglob("*") if p.is_file())
    assert table_of(outcome.out) == {
        "format": f"model folder, fp16, {weights / 1e6:.1f} MB",
        "kind": "consistency model: an image in one network evaluation",
        "trained by": "easy consistency tuning (ECT), guidance 1.6",
        "images": "28x28, grey",
        "classes": "10",
        "network": "PatchedUNet, 2,814,212 parameters",
        "patches": "2x2 pixels become channels",
        "resolutions": "14 px     64 channels 7 px    128 channels",
        "blocks": "1 a resolution on the way down, one more on the way up",
        "attention": "in the middle, heads of 64 channels",
        "embedding": "scale and shift",
        "noise": "sigma 0.002 to 80, sigma_data 0.5",
        "scalings": "consistency; noise embedding 250 ln(sigma)",
        "grid": "40 levels, rho 7",
        "schedule": "timesteps 0,23 for 2 steps",
    }


def test_a_teacher(run: Any):
    table = table_of(run("inspect", EMBEDDED_TEACHER).out)
    assert table["kind"].startswith("diffusion model")
    assert table["classes"] == "10, and the null class 10 for guidance"
    assert table["scalings"] == "edm; noise embedding 250 ln(sigma)"
    assert "grid" not in table and "schedule" not in table


def test_a_checkpoint_of_openai(run: Any, golden: Any, here: Path):
    shutil.copy(golden.path("openai_unet_uncond_additive.pt"), "ct_cat256.pt")
    table = table_of(run("inspect", "ct_cat256.pt", "--attention-head-dim", 32).out)
    assert table["format"] == "OpenAI .pt, fp16, 3.0 MB"
    assert table["trained by"] == "consistency training"
    assert table["images"] == "128x128, colour"
    assert table["classes"] == "none (unconditional)"
    levels = ["128 px     32 channels", "64 px     32 channels"]
    levels += ["32 px     64 channels, attention", "16 px     64 channels, attention"]
    assert table["resolutions"] == " ".join(levels)
    assert table["attention"] == "at 32, 16 px and in the middle, heads of 32 channels"
    assert table["embedding"] == "added"
    assert table["grid"] == "151 levels, rho 7"
    assert table["schedule"] == "timesteps 0,62 for 2 steps"
    assert "images of 128 pixels" in table["note"] and "by its name the file is of" in table["note"]
    table = table_of(run("inspect", "ct_cat256.pt", "--sample_size", 256, "--kind", "diffusion").out)
    assert table["images"] == "256x256, colour"
    assert table["kind"].startswith("diffusion model")
    assert "note" not in table


def test_json(run: Any, golden: Any, here: Path):
    shutil.copy(golden.path("openai_unet_class_scale_shift.pt"), "cd_imagenet64_lpips.pt")
    outcome = run("inspect", "cd_imagenet64_lpips.pt", "--attention_head_dim", 32, "--json")
    found = json.loads(outcome.out)
    config = found["network"].pop("config")
    assert config["norm_num_groups"] == 32 and config["block_out_channels"] == [32, 64, 96]
    assert len(found.pop("notes")) == 2
    assert found == {
        "path": "cd_imagenet64_lpips.pt",
        "format": "OpenAI .pt",
        "bytes": (here / "cd_imagenet64_lpips.pt").stat().st_size,
        "dtype": "float16",
        "kind": "consistency",
        "method": "consistency distillation, LPIPS",
        "image": {"size": 64, "channels": 3},
        "classes": 1000,
        "null_label": None,
        "parameters": 2_316_867,
        "network": {
            "type": "UNet",
            "resolutions": [
                {"size": 64, "channels": 32, "attention": False},
                {"size": 32, "channels": 64, "attention": True},
                {"size": 16, "channels": 96, "attention": True},
            ],
            "patch_size": 1,
            "blocks_per_resolution": 1,
            "attention_head_dim": 32,
            "middle_attention": True,
            "embedding": "scale and shift",
        },
        "noise": {
            "sigma_min": 0.002,
            "sigma_max": 80.0,
            "sigma_data": 0.5,
            "rho": 7.0,
            "scalings": "consistency",
            "embedding": "adm",
        },
        "num_train_timesteps": 40,
        "timesteps": [0, 22],
        "schedules": [],
    }


def test_schedules_of_other_numbers_of_steps(run: Any, here: Path):
    shutil.copytree(EMBEDDED, here / "model")
    path = here / "model" / "scheduler" / "scheduler_config.json"
    content = json.loads(path.read_text())
    content["_unistep"]["schedules"] = [[0, 9, 20, 30], [0, 8, 21]]
    path.write_text(json.dumps(content))
    table = table_of(run("inspect", "model").out)
    told = ["timesteps 0,23 for 2 steps", "timesteps 0,8,21 for 3 steps", "timesteps 0,9,20,30 for 4 steps"]
    assert table["schedule"] == " ".join(told)
    found = json.loads(run("inspect", "model", "--json").out)
    assert (found["timesteps"], found["schedules"]) == ([0, 23], [[0, 9, 20, 30], [0, 8, 21]])


def test_edm_networks(run: Any, here: Path, monkeypatch: pytest.MonkeyPatch):
    config = SongUNetConfig(sample_size=16, model_channels=32, channel_mult=(1, 2), num_blocks=3, attn_resolutions=(8,))
    info = ModelInfo("diffusion", preconditioning="vp", noise_embedding="edm", clip=False)
    path = here / "vp.pkl"
    path.write_bytes(b"\x80\x04." + bytes(997))
    model = LoadedModel(precondition(SongUNet(config), info), info, config, path, "EDM pickle", torch.float32)
    monkeypatch.setattr(edm, "load_edm", lambda path, device: model)
    table = table_of(run("inspect", "vp.pkl").out)
    assert table["format"] == "EDM pickle, fp32, 1.0 kB"
    assert table["network"].startswith("SongUNet, ")
    assert table["resolutions"] == "16 px     32 channels 8 px     64 channels, attention"
    assert table["blocks"] == "3 a resolution on the way down, one more on the way up"
    assert table["attention"] == "at 8 px and in the middle, one head"
    assert table["embedding"] == "positional noise embedding"
    assert (table["scalings"], table["sampling"]) == ("vp", "outputs are not clamped to [-1, 1]")
    assert json.loads(run("inspect", "--json", "vp.pkl").out)["network"]["config"]["attn_resolutions"] == [8]


def test_weights_are_not_looked_at(run: Any, here: Path, golden: Any):
    state = torch.load(golden.path("openai_unet_uncond_additive.pt"), weights_only=True)
    state["out.2.bias"][:] = torch.nan
    torch.save(state, "training_failed.pt")
    assert run("inspect", "training_failed.pt", "--attention_head_dim", 32).code == 0


def test_networks_without_attention(model_folder: Any):
    from unistep.formats.open import open_model

    folder = model_folder(add_attention=False, patch_size=1)
    rows = dict(describe(open_model(folder, "meta")).rows())
    assert rows["attention"] == "none"
    assert rows["classes"] == "none (unconditional)"
    assert "patches" not in rows
    assert "schedule" not in rows


def test_names_are_not_markup(run: Any, here: Path):
    shutil.copytree(EMBEDDED, here / "[red]model[/]")
    assert "[red]model[/]" in run("inspect", "[red]model[/]").out


def test_from_python():
    report = unistep.inspect(unistep.load(device="cpu"))
    assert report == unistep.inspect(str(EMBEDDED)) == unistep.inspect()
    assert repr(report) == f"ModelReport({EMBEDDED}: consistency model of 28x28x1 images, model folder)"
    assert "<td" in report._repr_html_() and "28x28, grey" in report._repr_html_()
    assert json.loads(json.dumps(report.to_dict()))["image"] == {"size": 28, "channels": 1}


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (1000, "1.0 kB"), (5_645_277, "5.6 MB"), (1_183_600_000, "1.18 GB")],
)
def test_bytes(count: int, text: str):
    assert in_bytes(count) == text


def test_command_lines_that_are_not_understood(refused: Any, run: Any, here: Path):
    refused(["inspect", "nowhere.pt"], "nowhere.pt does not exist; give a model folder")
    refused(["inspect", here], "is not a model folder")
    refused(["inspect", EMBEDDED, "--kind", "diffusion"], "is a consistency model; leave it out")
    refused(["inspect", "--jsn"], "unknown option --jsn; did you mean --json?")
    refused(["inspect", "a", "b"], "b")
    help_ = run("inspect", "--help")
    assert help_.code == 0 and "unistep inspect [MODEL] [options]" in help_.out


def test_one_of_several_networks_and_a_number_of_heads(run: Any, refused: Any, golden: Any, here: Path):
    state = torch.load(golden.path("openai_unet_class_scale_shift.pt"), weights_only=True)
    torch.save({"model": state, "ema": {f"module.{name}": tensor for name, tensor in state.items()}}, "both.pt")
    refused(["inspect", "both.pt", "--num-heads", "4"], "both.pt holds several networks (model, ema)", "--weights")
    outcome = run("inspect", "both.pt", "--weights", "ema", "--num-heads", 4, "--kind", "consistency", "--json")
    found = json.loads(outcome.out)
    assert found["network"]["config"]["num_heads"] == 4
    assert any("under ema; the prefix module. was taken off" in note for note in found["notes"])
    refused(["inspect", "both.pt", "--weights", "student"], "--weights 'student': both.pt holds model, ema; choose one")
    both = ["inspect", "both.pt", "--weights", "ema", "--num-heads", "4", "--attention-head-dim", "32"]
    refused(both, "--num-heads 4 and --attention-head-dim 32 exclude each other; leave out one")
    refused(["inspect", "--num-heads", "4"], "--num-heads 4 is for an OpenAI .pt, and")
