"""Checkpoints of networks in parts, which each process writes its own of."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from unistep.formats.checkpoint import load_checkpoint, read_checkpoint

HERE = Path(__file__).parent

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
    files = sorted(path.with_suffix(".parts").iterdir())
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
