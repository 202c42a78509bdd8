"""Checkpoints of networks in parts, which each process writes its own of."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import unistep
from unistep.formats.checkpoint import load_average, load_checkpoint, read_checkpoint

HERE = Path(__file__).parent
RECIPE = """
data: {source: SOURCE}
stages: {teacher: {steps: 1000, sample_every: 0, batch_size: 4, method: edm}}
precision: fp32
network:
  name: patched-adm
  patch_size: 2
  block_out_channels: [8]
  down_block_types: [DownBlock2D]
  up_block_types: [UpBlock2D]
  layers_per_block: 1
  norm_num_groups: 4
  attn_norm_num_groups: 4
  attention_head_dim: 8
"""

pytestmark = pytest.mark.slow


def run(script: str, *arguments: str) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parents[1] / "src")}
    command = [sys.executable, str(HERE / script), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def tensors(state, place: str = "") -> dict[str, torch.Tensor]:
    """All of a state, by place."""
    if isinstance(state, torch.Tensor):
        return {place: state}
    items = state.items() if isinstance(state, dict) else enumerate(state) if isinstance(state, list | tuple) else ()
    found: dict[str, torch.Tensor] = {}
    for name, value in items:
        found |= tensors(value, f"{place}/{name}")
    return found


def test_it_is_that_of_whole_networks(tmp_path):
    """Weights smaller than the number of processes are among them."""
    states = []
    for engine in ("ddp", "fsdp"):
        (tmp_path / engine).mkdir()
        run("changing_processes.py", str(tmp_path / engine), "ct", f"{engine}:3:5")
        states.append(load_checkpoint(tmp_path / engine / "many" / "checkpoints"))
    whole, parted = map(tensors, states)
    assert whole.keys() == parted.keys()
    for name in whole:
        torch.testing.assert_close(parted[name], whole[name], rtol=1e-4, atol=1e-6, msg=name)
    (path,) = (tmp_path / "fsdp" / "many" / "checkpoints").glob("*.pt")
    files = sorted(path.with_suffix(".parts").glob("*/*"))
    sizes = [file.stat().st_size for file in files]
    assert [file.name[:11] for file in files] == ["shard-00001", "shard-00002", "shard-00003"]
    # Each number is there once, and hardly any is in the checkpoint itself.
    held = tensors(read_checkpoint(path, whole=False))
    numbers = sum(value.numel() for value in parted.values()) - sum(value.numel() for value in held.values())
    assert sum(value.numel() for value in held.values()) < 0.05 * numbers
    headers = sum(8 + int.from_bytes(file.read_bytes()[:8], "little") for file in files)
    assert sum(sizes) - headers == 4 * numbers and max(sizes) < 0.6 * sum(sizes)


def test_one_process_cannot_write(tmp_path):
    """All say so in one line, and nothing half-written is left."""
    run("parted_checkpoint.py", str(tmp_path))
    path = tmp_path / "checkpoints" / "step-00000005.pt"
    for rank in range(3):
        said = (tmp_path / f"said-{rank}").read_text()
        assert said.startswith(f"cannot write {path}: File too large") and said.endswith("and resume")
    assert [*path.parent.iterdir()] == []


def test_a_run_that_is_not_finished_is_of_use(tmp_path):
    """By a process alone: its model, its size, and its weights for other runs."""
    images = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 1), np.uint8)
    np.savez(tmp_path / "images.npz", images)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.replace("SOURCE", str(tmp_path / "images.npz")))
    run("run_of_two.py", str(recipe), str(tmp_path / "run"))
    checkpoints = tmp_path / "run" / "teacher" / "checkpoints"
    path = max(checkpoints.glob("*.pt"))
    shutil.rmtree(tmp_path / "run" / "teacher" / "model")  # what it has come to when the time is up
    model = unistep.load(tmp_path / "run")
    average = load_average(path)
    assert all(torch.equal(value, average[name]) for name, value in model.denoiser.network.state_dict().items())
    files = [path, *path.with_suffix(".parts").glob("*/*")]
    assert unistep.inspect(tmp_path / "run").bytes == sum(file.stat().st_size for file in files)
    unistep.export_weights(tmp_path / "run", tmp_path / "out")
    begun = unistep.train(recipe, output=tmp_path / "again", init_from=tmp_path / "out", dry_run=True)
    assert begun is not None
