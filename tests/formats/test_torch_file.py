"""Files of torch.save that would take time or memory out of proportion."""

import io
import pickle
import struct
import time
import zipfile
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from unistep.errors import UserError
from unistep.formats import torch_file
from unistep.formats.open import open_model
from unistep.formats.tensor_file import map_state
from unistep.formats.torch_file import check_torch_file


def torch_zip(path: Path, data: bytes, *, compression: int = zipfile.ZIP_STORED, name: str = "data.pkl") -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr(f"archive/{name}", data)
        archive.writestr("archive/version", b"3\n")
    return path


def refusal(path: Path) -> str:
    messages = []
    for read in (lambda: map_state(path, "give another"), lambda: open_model(path)):
        began = time.process_time()
        with pytest.raises(UserError) as caught:
            read()
        assert time.process_time() - began < 5
        messages.append(str(caught.value))
        assert messages[-1].isprintable() and str(path) in messages[-1]
    return messages[0]


def ints_of_one_hash(count: int) -> bytes:
    step = 2**61 - 1
    return b"\x80\x02}(" + b"".join(pickle.dumps(step * (i + 1), 2)[2:-1] + b"N" for i in range(count)) + b"u."


def test_keys_of_one_hash(tmp_path: Path):
    content = ints_of_one_hash(20_000)
    assert "it has a key of 61 bits, which no network needs" in refusal(torch_zip(tmp_path / "x.pt", content))
    (tmp_path / "x.pkl").write_bytes(content)
    began = time.process_time()
    with pytest.raises(UserError, match="it has a key of 61 bits"):
        open_model(tmp_path / "x.pkl")
    assert time.process_time() - began < 5


def test_old_files_are_looked_through_too(tmp_path: Path):
    stream = io.BytesIO()
    torch.save({"w": torch.zeros(3)}, stream, _use_new_zipfile_serialization=False)
    check_torch_file(Path(_written(tmp_path / "old.pt", stream.getvalue())))
    head = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + pickle.dumps({"little_endian": True}, 2)
    path = _written(tmp_path / "x.pt", head + ints_of_one_hash(20_000) + pickle.dumps([], 2))
    assert "it has a key of 61 bits" in refusal(path)


def _written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x02})" + b"2\x86" * 60 + b"Ns.",  # a key whose hash takes 2^60 steps
        b"\x80\x02})" + b"\x85" * 20_000 + b"Ns.",  # a key whose hash overflows the stack of C
        b"\x80\x02ccollections\nOrderedDict\nq\x00](" + b"]q\x01" + b"h\x01" * 3 + b"e" + b"\x85R" + b".",
    ],
)
def test_keys_that_are_no_plain_values(data: bytes, tmp_path: Path):
    assert "is not a PyTorch file of tensors alone" in refusal(torch_zip(tmp_path / "x.pt", data))


@pytest.mark.slow
def test_many_tiny_objects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch_file, "_MAX_INSTRUCTIONS", 50_000)
    assert "more than 50000 instructions" in refusal(torch_zip(tmp_path / "x.pt", b"\x80\x02](" + b"]" * 51_000))
    monkeypatch.undo()
    # One long list, taken into many dicts.
    pairs = b"](" + b"h\x00" * 3_000 + b"eq\x01"
    data = b"\x80\x02NN\x86q\x00" + pairs + b"(" + b"ccollections\nOrderedDict\nh\x01\x85R" * 1000 + b"l."
    assert "more bytes than the file has" in refusal(torch_zip(tmp_path / "x.pt", data))


def test_compressed_pickles(tmp_path: Path):
    stream = io.BytesIO()
    torch.save({"w": torch.zeros(100_000)}, stream)
    path = tmp_path / "x.pt"
    with zipfile.ZipFile(stream) as source, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for member in source.infolist():
            target.writestr(member.filename, source.read(member))
    assert "is a compressed zip file, and torch writes none" in refusal(path)
    bomb = b"\x80\x02X" + struct.pack("<I", 1 << 26) + b"x" * (1 << 26) + b"."
    path = torch_zip(tmp_path / "bomb.pt", bomb, compression=zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 1_000_000
    assert "is a compressed zip file" in refusal(path)


def test_members_that_overlap(tmp_path: Path):
    path = torch_zip(tmp_path / "x.pt", pickle.dumps({}, 2))
    content = path.read_bytes()
    at = content.index(b"PK\x01\x02")
    path.write_bytes(content[: at + 24] + struct.pack("<I", 1 << 30) + content[at + 28 :])
    assert "x.pt" in refusal(path)


def test_directories_of_absurd_size(tmp_path: Path):
    path = tmp_path / "x.pt"
    entry = b"PK\x01\x02" + bytes(24) + struct.pack("<H", 1) + bytes(16) + b"x"
    directory = entry * 200_000
    end = b"PK\x05\x06" + bytes(4) + struct.pack("<HHLLH", 65535, 65535, len(directory), 0, 0)
    path.write_bytes(directory + end)
    with pytest.raises(UserError, match="is a zip file with a directory of 9,400,000 bytes, which no checkpoint has"):
        map_state(path, "")
    with path.open("r+b") as file:
        file.write(b"PK\x03\x04")
    with pytest.raises(UserError, match="x.pt is a zip file"):
        open_model(path)


def test_headers_of_absurd_size(tmp_path: Path):
    path = tmp_path / "x.safetensors"
    header = b"{" + b" " * 9_000_000 + b"}"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(UserError, match="its header has 9,000,002 bytes, more than the 8,000,000 that make sense"):
        map_state(path, "")


def _counted() -> Any:
    found: defaultdict[str, Any] = defaultdict(dict)
    found["a"] = 1
    return found


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize(
    "make",
    [
        lambda: OrderedDict(w=torch.zeros(3)),
        lambda: torch.nn.Linear(2, 2).state_dict(),
        lambda: {"w": torch.nn.Parameter(torch.zeros(3)), "h": torch.zeros(2).half(), "b": torch.zeros(2).bfloat16()},
        lambda: {"a": {"lr": 0.1, "betas": (0.9, 0.99), "n": None, "seed": 2**63, "ok": True, "size": torch.Size([3])}},
        lambda: {"w": torch.zeros(2, 3).t(), "dtype": torch.float32, "i": torch.arange(3), "s": {1, 2}},
        lambda: {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"params": [0, 1]}]},
    ],
)
def test_files_that_torch_reads_pass(make: Callable[[], Any], protocol: int, tmp_path: Path):
    for new in (True, False):
        torch.save(make(), tmp_path / "x.pt", _use_new_zipfile_serialization=new, pickle_protocol=protocol)
        check_torch_file(tmp_path / "x.pt")


def test_real_optimizers_pass(tmp_path: Path):
    network = torch.nn.Sequential(*(torch.nn.Linear(3, 3) for _ in range(20)))
    optimizer = torch.optim.AdamW(network.parameters())
    network(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    torch.save({"model": network.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "x.pt")
    assert list(map_state(tmp_path / "x.pt", "")) == ["model", "optimizer"]
