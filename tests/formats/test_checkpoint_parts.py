"""Checkpoints whose tensors lie in files beside them."""

import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_saver import save as save_parts

from unistep.formats.checkpoint import (
    DamagedCheckpoint,
    checkpoint_path,
    checkpoint_steps,
    clean,
    filled,
    load_average,
    load_checkpoint,
    read_checkpoint,
    remove_after,
    save_checkpoint,
    set_aside,
    whole_checkpoint,
)
from unistep.formats.checkpoint_names import parts_folder
from unistep.formats.checkpoint_parts import DIGESTS, file_digest, new_place, take_out

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


def state(step: int) -> dict:
    """With tensors that are in parts, some that are not, and some in lists."""
    weights = {"network.a": torch.full((3, 2), float(step)), "network.b": torch.arange(4.0)}
    moments = {0: {"exp_avg": torch.ones(3, 2), "step": torch.tensor(2.0)}, 1: {"exp_avg": torch.zeros(0, 5)}}
    return {
        "step": step,
        "ema": {"0.9": weights},
        "optimizer": {"state": moments},
        "list": [torch.ones(2, dtype=torch.bfloat16), None],
        "pair": (torch.ones(1), 2),
    }


def save(folder: Path, step: int, keep: int = 2) -> Path:
    """As one process of several does."""
    path, parts = checkpoint_path(folder, step), {}
    left = take_out(state(step), lambda tensor: tensor.ndim > 0, parts)
    own = new_place(path)
    save_parts(parts, storage_writer=HuggingFaceStorageWriter(str(own), save_distributed=True))
    return save_checkpoint(
        folder, step, left | {DIGESTS: {f"{own.name}/{f.name}": file_digest(f) for f in own.iterdir()}}, keep
    )


def part(path: Path) -> Path:
    (file,) = parts_folder(path).glob("*/*")
    return file


def same(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return a == b


def test_it_is_read_as_it_was(tmp_path):
    path = save(tmp_path, 7)
    found = load_checkpoint(tmp_path)
    assert found is not None
    del found["sealed"]
    assert same(found, state(7))
    assert same(load_average(path), {"a": torch.full((3, 2), 7.0), "b": torch.arange(4.0)})
    # Most of it is not in the checkpoint itself, and is not read where it is not asked for.
    head = read_checkpoint(path, whole=False)
    assert head["step"] == 7 and not isinstance(head["ema"]["0.9"]["network.a"], torch.Tensor)


def test_it_is_read_into_what_a_process_has(tmp_path):
    """What has another shape, as that of another network, is read as it is, and refused where it is used."""
    path = save(tmp_path, 7)
    own = {"ema": {"0.9": {"network.a": torch.zeros(3, 2, dtype=torch.float64), "network.b": torch.zeros(9)}}}
    found = filled(read_checkpoint(path, whole=False), path, own)["ema"]["0.9"]
    assert found["network.a"].dtype == torch.float64 and (found["network.a"] == 7).all()
    assert torch.equal(found["network.b"], torch.arange(4.0))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 4
    path.write_bytes(content)


DAMAGE = {
    "a bit": flip,
    "truncated": lambda path: os.truncate(path, path.stat().st_size // 2),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "empty": lambda path: path.write_bytes(b""),
    "missing": Path.unlink,
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "a pipe": lambda path: (path.unlink(), os.mkfifo(path)),
    "a link to nothing": lambda path: (path.unlink(), path.symlink_to("no")),
    "the folder is gone": lambda path: shutil.rmtree(path.parents[1]),
    "of another step": lambda path: shutil.copy(part(path.parents[2] / "step-00000001.pt"), path),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged(tmp_path, damage, caplog):
    """The one before is taken; the run trains on over what is there."""
    for step in (1, 2):
        path = save(tmp_path, step)
    DAMAGE[damage](part(path))
    whole = whole_checkpoint(tmp_path)
    assert whole == checkpoint_path(tmp_path, 1)
    (line,) = [record.getMessage() for record in caplog.records if record.name == "unistep"]
    assert line.startswith(f"checkpoint {path} cannot be read (") and str(parts_folder(path)) in line
    with pytest.raises(DamagedCheckpoint, match="cannot be read"):
        read_checkpoint(path)
    set_aside(tmp_path, whole)
    clean(tmp_path)
    assert checkpoint_steps(tmp_path) == [1]
    save(tmp_path, 2)
    assert same(load_average(checkpoint_path(tmp_path, 2), checked=False)["a"], torch.full((3, 2), 2.0))
    names = ["step-00000001.parts", "step-00000001.pt", "step-00000002.parts", "step-00000002.pt"]
    assert sorted(p.name for p in tmp_path.iterdir()) == names


def test_older_ones_go_with_their_files(tmp_path):
    for step in (1, 2, 3):
        save(tmp_path, step, keep=2)
    assert sorted(p.name for p in tmp_path.glob("*.parts")) == ["step-00000002.parts", "step-00000003.parts"]
    remove_after(tmp_path, 2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000002.parts", "step-00000002.pt"]
    save_checkpoint(tmp_path, 2, state(2), keep=2)  # by an engine that writes no files beside it
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000002.pt"]
    assert same(load_checkpoint(tmp_path), state(2) | {"sealed": True})


def test_written_once_more_it_is_whole_at_any_time(tmp_path):
    """By a run that went back to it: a kill before the new one is there leaves the former one."""
    path = save(tmp_path, 1)
    former, place = load_checkpoint(tmp_path), new_place(path)
    (place / part(path).name).write_bytes(b"half")
    assert same(load_checkpoint(tmp_path), former)
    save(tmp_path, 1)
    assert same(load_checkpoint(tmp_path), former)
    assert [folder.name for folder in parts_folder(path).iterdir()] == ["2"]


def test_files_of_a_killed_process_are_removed(tmp_path):
    save(tmp_path, 1)
    own = new_place(checkpoint_path(tmp_path, 2))
    (own / "shard-00001-model-00001-of-00001.safetensors").write_bytes(b"half")
    mine = tmp_path / "mine.parts"
    mine.mkdir()
    clean(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine.parts", "step-00000001.parts", "step-00000001.pt"]
    assert load_checkpoint(tmp_path)["step"] == 1  # pyright: ignore


class Payload:
    """Runs when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


def test_nothing_beside_it_is_executed(tmp_path):
    path = save(tmp_path, 1)
    place = part(path).parent
    for name in (".metadata", "__0_0.distcp"):
        (place / name).write_bytes(pickle.dumps(Payload(tmp_path / "executed")))
    assert load_checkpoint(tmp_path) is not None
    part_of = next(parts_folder(path).glob("*/*.safetensors"))
    part_of.write_bytes(pickle.dumps(Payload(tmp_path / "executed")))
    head = read_checkpoint(path, whole=False)
    with pytest.raises(DamagedCheckpoint):
        filled(head, path)
    assert not (tmp_path / "executed").exists()
