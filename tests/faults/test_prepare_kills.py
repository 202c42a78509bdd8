"""Processes that are killed while they prepare a model, and two that prepare the same one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import unistep
from unistep.formats.embedded import EMBEDDED_MODELS
from unistep.generation.prepare import Request
from unistep.prepared.store import entries, read_entry
from unistep.prepared.table import RUNTIMES

pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(not RUNTIMES["openvino"].installed, reason="needs openvino"),
]

SCRIPT = Path(__file__).with_name("prepare_in_process.py")
DEADLINE = 600.0
KEY = "0" * 40
KILLS = [*range(1, 13), *(-seconds for seconds in (0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.5))]


def start(root: Path, kill_at: float = 0) -> subprocess.Popen:
    model = str(EMBEDDED_MODELS["mnist"].folder)
    request = Request(model, {}, "openvino", "fp32", 1, str(root), KEY)
    process = subprocess.Popen(
        [sys.executable, str(SCRIPT), str(root), str(kill_at)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdin is not None
    process.stdin.write(json.dumps(request.__dict__))
    process.stdin.close()
    return process


def test_kills_leave_no_broken_entry(tmp_path, tell):
    root, killed = tmp_path / "prepared", 0
    for kill_at in KILLS:
        process = start(root, kill_at)
        code = process.wait(DEADLINE)
        assert code in (0, -9)
        killed += code == -9
        entry = read_entry(root, KEY)
        assert (entry is not None) == (root / KEY).exists()  # whole or not there
        if entry is not None:
            assert entry.failure == "" and {"trunk.xml", "trunk.bin", "ends.safetensors"} <= set(entry.about["files"])
            for file in entry.folder.iterdir():
                file.unlink()
            entry.folder.rmdir()
    assert killed == len(KILLS)
    assert start(root).wait(DEADLINE) == 0
    assert read_entry(root, KEY) is not None
    assert not (root / ".making" / KEY / "new").exists()
    tell("kills while a model is prepared", f"{killed} kills, no broken entry")


def test_two_prepare_the_same(tmp_path, monkeypatch, tell):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    code = "import unistep; print(unistep.sample(runtime='openvino', num_images=2, progress=False).pixels.sum().item())"
    both = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=dict(os.environ))
        for _ in range(2)
    ]
    said = [process.communicate(timeout=DEADLINE)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0] and said[0] == said[1] != ""
    assert len(entries(tmp_path / "unistep" / "prepared")) == 1
    eager = unistep.sample(num_images=2, progress=False).pixels
    assert abs(int(said[0]) - int(eager.sum())) <= 2 * torch.numel(eager) // 1000
    tell("two processes that prepare one model", "one makes it, the other waits")


def test_a_killed_holder_gives_way(tmp_path, tell):
    """The second process waits for the first, which dies: it makes the entry itself."""
    root = tmp_path / "prepared"
    first = start(root, -1.0)
    second = start(root)
    assert first.wait(DEADLINE) in (0, -9)
    assert second.wait(DEADLINE) == 0
    assert read_entry(root, KEY) is not None
    tell("two processes that prepare one model", "one is killed, the other makes it")
