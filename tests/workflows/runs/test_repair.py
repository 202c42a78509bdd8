"""Leftovers of kills, and damaged models of stages, in whole runs."""

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from unistep.errors import UserError
from unistep.formats.model_folder.folder import load_model
from unistep.workflows.runs.repair import clean_stage
from unistep.workflows.train import train

pytestmark = pytest.mark.usefixtures("no_accelerator_left")

SHORT = {"steps": 2, "batch_size": 2, "checkpoint_every": 1}
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory) -> Path:
    """A run of two stages."""
    network = {"block_out_channels": [8, 8], "attention_head_dim": 8}
    folder = tmp_path_factory.mktemp("finished") / "run"
    source = data().source
    train("mnist-quick", data=source, output=folder, network=network, teacher=SHORT, student=SHORT, progress=False)
    return folder


@pytest.fixture
def run(finished, tmp_path) -> Path:
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


def state(folder: Path) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in load_model(folder).denoiser.network.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-9] ^= 1  # the last bits of a weight
    path.write_bytes(content)


def zoom(path: Path) -> None:
    values = json.loads(path.read_text())
    values["sigma_max"] = 81.0
    path.write_text(json.dumps(values))


def drop(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("stage", ["teacher", "student"])
@pytest.mark.parametrize(
    ("name", "damage"),
    [(WEIGHTS, flip), (WEIGHTS, drop), ("scheduler/scheduler_config.json", zoom), ("model_index.json", drop)],
)
def test_a_damaged_model_is_made_again(run, finished, stage, name, damage, caplog):
    damage(run / stage / "model" / name)
    train(resume=run, progress=False)
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert "the model is made again" in warning
    assert same(state(run / stage / "model"), state(finished / stage / "model"))
    assert json.loads((run / stage / "model" / "scheduler" / "scheduler_config.json").read_text())["sigma_max"] == 80


def test_a_model_whose_checkpoints_are_gone_and_that_others_began_from_is_kept(run, finished):
    shutil.rmtree(run / "teacher" / "checkpoints")
    train(resume=run, progress=False)
    assert same(state(run / "teacher" / "model"), state(finished / "teacher" / "model"))
    assert not list((run / "teacher").glob("checkpoints/*.pt"))


def test_a_flipped_bit_in_weights_is_refused_wherever_they_are_opened(run):
    with safe_open(run / "student" / "model" / WEIGHTS, "pt") as opened:
        assert len(opened.metadata()["unistep.sha256"]) == 64
    flip(run / "student" / "model" / WEIGHTS)
    with pytest.raises(UserError, match="is damaged: its tensors are not those of its digest") as refused:
        load_model(run / "student" / "model")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(("old", "new"), [("sigma_data: 0.5", "sigma_data: 0.6"), ("seed: 0", "seed: 1")])
def test_a_config_that_was_changed_is_refused(run, old, new):
    config = run / "config.yaml"
    text = config.read_text()
    assert old in text
    config.write_text(text.replace(old, new, 1))
    with pytest.raises(UserError, match="are not those that were written: .* or remove its line with the sha256"):
        train(resume=run, progress=False)
    config.write_text("# a comment\n" + text + "\n# and another\n")
    train(resume=run, progress=False)


def test_a_config_that_was_cut_off_between_lines_is_refused(run):
    config = run / "config.yaml"
    lines = config.read_text().splitlines(keepends=True)
    for count in (len(lines) - 1, len(lines) - 3):
        config.write_text("".join(lines[:count]))
        with pytest.raises(UserError, match="its settings are not those that were written"):
            train(resume=run, progress=False)


def test_leftovers_are_removed(tmp_path):
    """And what was replaced by something that never came is back."""
    keep = ["best/model_index.json", "metrics.jsonl", "samples/step-00000001.png", "checkpoints/step-00000001.pt"]
    gone = [".model.0123abcd.tmp/unet/config.json", ".metrics.jsonl.tmp", "metrics.tmp", "samples/.step-1.png.tmp"]
    gone += ["checkpoints/step-00000002.tmp", ".best.0123abcd.old/model_index.json", "checkpoints/outline/.a.json.tmp"]
    for name in (*keep, *gone, ".model.89abcdef.old/model_index.json"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    clean_stage(tmp_path)
    left = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file())
    assert left == sorted([*keep, "model/model_index.json"])
    clean_stage(tmp_path / "absent")
