import errno
import io
import logging
import os
from pathlib import Path

import pytest
import torch

from unistep.errors import UserError
from unistep.formats.checkpoint import (
    checkpoint_path,
    checkpoint_steps,
    load_checkpoint,
    remove_after,
    save_checkpoint,
    set_aside,
)


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


def flipped(content: bytes, at: float) -> bytes:
    """One bit, at a fraction of the length."""
    i = int(at * (len(content) - 1))
    return content[:i] + bytes([content[i] ^ 16]) + content[i + 1 :]


DAMAGE = {
    "empty": lambda b: b"",
    "truncated": lambda b: b[: len(b) // 2],
    "cut by a byte": lambda b: b[:-1],
    "without its digest": lambda b: b[: b.rindex(b"unistep sha256")],
    "zeros": lambda b: b"\0" * len(b),
    "a zeroed block": lambda b: b[:512] + b"\0" * 256 + b[768:],
    "longer": lambda b: b + b"\0",
} | {f"a bit at {at}": lambda b, at=at: flipped(b, at) for at in (0, 0.2, 0.4, 0.6, 0.8, 0.95, 0.99)}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged(tmp_path, damage, caplog):
    """It is named, and the one before is taken; where there is none before, that is said."""
    for step in (1, 2):
        path = save_checkpoint(tmp_path, step, state(step), keep=2)
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    assert load_checkpoint(tmp_path)["step"] == 1
    (line,) = caplog.messages
    assert line.startswith(f"checkpoint {path} cannot be read (") and line.endswith("the checkpoint before, of step 1")
    (tmp_path / "step-00000001.pt").unlink()
    with pytest.raises(UserError, match="cannot be read .*, and there is none before it; put a copy in its") as caught:
        load_checkpoint(tmp_path)
    assert str(path) in str(caught.value) and str(caught.value).isprintable()


@pytest.mark.parametrize("kind", ["folder", "pipe", "link to nothing"])
def test_what_is_no_file_is_damaged(tmp_path, kind, caplog):
    for step in (1, 2):
        path = save_checkpoint(tmp_path, step, state(step), keep=2)
    path.unlink()
    {"folder": path.mkdir, "pipe": lambda: os.mkfifo(path), "link to nothing": lambda: path.symlink_to("no")}[kind]()
    assert load_checkpoint(tmp_path)["step"] == 1
    set_aside(tmp_path, checkpoint_path(tmp_path, 1))
    assert checkpoint_steps(tmp_path) == [1]
    save_checkpoint(tmp_path, 2, state(2), keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000001.pt", "step-00000002.pt"]
    assert load_checkpoint(tmp_path)["step"] == 2 and len(caplog.messages) == 1


def test_a_checkpoint_of_a_former_version_is_read_with_a_note(tmp_path, caplog):
    caplog.set_level(logging.INFO, "unistep")
    torch.save(state(3), checkpoint_path(tmp_path, 3))
    assert load_checkpoint(tmp_path)["step"] == 3
    assert caplog.messages[0].startswith(f"{checkpoint_path(tmp_path, 3)} has no digest")


def test_a_former_version_reads_it(tmp_path):
    """PyTorch does not mind what stands behind its archive."""
    path = save_checkpoint(tmp_path, 1, state(1), keep=1)
    assert torch.load(path, weights_only=True)["step"] == 1


def test_the_last_good_one_stays(tmp_path):
    for step in range(1, 6):
        save_checkpoint(tmp_path, step, state(step), 2, also=2 if step > 2 else None)
    assert checkpoint_steps(tmp_path) == [2, 4, 5]
    remove_after(tmp_path, 2)
    assert checkpoint_steps(tmp_path) == [2]


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


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO])
@pytest.mark.parametrize("when", ["at once", "in the middle", "at the end"])
def test_full_disk(tmp_path, monkeypatch, number, when):
    save_checkpoint(tmp_path, 1, state(1), keep=1)

    def full(file):
        raise OSError(number, os.strerror(number))

    class Full(io.RawIOBase):
        def __init__(self, path, mode):
            io.FileIO(path, "w").write(b"half")

        def write(self, data):
            if when == "in the middle":
                full(self)
            return len(data)

    if when == "at the end":
        monkeypatch.setattr(os, "fsync", full)
    else:
        monkeypatch.setattr(Path, "open", lambda path, mode: full(path) if when == "at once" else Full(path, mode))
    with pytest.raises(UserError, match=f"^cannot write .*step-00000002.pt: {os.strerror(number)}.* resume$") as caught:
        save_checkpoint(tmp_path, 2, state(2), keep=1)
    assert ("needed" in str(caught.value)) == (number != errno.EIO) and "\n" not in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001.pt"]
