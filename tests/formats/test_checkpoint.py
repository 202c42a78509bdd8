from pathlib import Path

import pytest
import torch

from unistep.errors import UserError
from unistep.formats.checkpoint import checkpoint_path, checkpoint_steps, load_checkpoint, save_checkpoint


def state(step: int) -> dict:
    return {"step": step, "weights": torch.full((3,), float(step))}


def test_newest_is_loaded(tmp_path):
    for step in (2, 10, 9):
        save_checkpoint(tmp_path, step, state(step), keep=5)
    assert checkpoint_steps(tmp_path) == [2, 9, 10]
    loaded = load_checkpoint(tmp_path)
    assert loaded["step"] == 10 and loaded["weights"].tolist() == [10, 10, 10]


def test_nothing_there(tmp_path):
    assert checkpoint_steps(tmp_path / "absent") == []
    assert load_checkpoint(tmp_path / "absent") is None


@pytest.mark.parametrize("keep", [1, 2])
def test_older_ones_go(tmp_path, keep):
    for step in range(1, 5):
        save_checkpoint(tmp_path, step, state(step), keep)
    assert checkpoint_steps(tmp_path) == [1, 2, 3, 4][-keep:]


def test_what_a_killed_run_left_is_no_checkpoint(tmp_path):
    save_checkpoint(tmp_path, 1, state(1), keep=2)
    (tmp_path / "step-00000002.tmp").write_bytes(b"half")
    (tmp_path / "notes.txt").write_text("mine")
    assert checkpoint_steps(tmp_path) == [1]
    save_checkpoint(tmp_path, 2, state(2), keep=2)
    assert load_checkpoint(tmp_path)["step"] == 2
    assert not (tmp_path / "step-00000002.tmp").exists()


@pytest.mark.parametrize("damage", [lambda b: b"", lambda b: b[: len(b) // 2], lambda b: b"\0" * len(b)])
def test_damaged(tmp_path, damage):
    path = save_checkpoint(tmp_path, 1, state(1), keep=2)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match="cannot be read .*; delete it to resume from the one before") as caught:
        load_checkpoint(tmp_path)
    assert str(path) in str(caught.value) and str(caught.value).isprintable()


class Payload:
    """Runs when it is unpickled."""

    marker: Path

    def __reduce__(self):
        return Path.touch, (Path(self.marker),)


def test_nothing_in_the_file_is_executed(tmp_path):
    payload = Payload()
    payload.marker = tmp_path / "executed"
    torch.save({"step": payload}, checkpoint_path(tmp_path, 1))
    with pytest.raises(UserError, match="cannot be read"):
        load_checkpoint(tmp_path)
    assert not payload.marker.exists()


def test_full_disk(tmp_path, monkeypatch):
    save_checkpoint(tmp_path, 1, state(1), keep=1)

    def full(state, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(UserError, match="cannot write checkpoint .*No space left on device; free the disk and resume"):
        save_checkpoint(tmp_path, 2, state(2), keep=1)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001.pt"]
