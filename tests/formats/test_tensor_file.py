"""Files of tensors: read in every form, and nothing but tensors."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from unistep.errors import UserError
from unistep.formats import tensor_file
from unistep.formats.tensor_file import map_state, read_tensors


def write(path: Path, state: Any) -> Path:
    save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)
    return path


@pytest.mark.parametrize("name", ["x.safetensors", "x.pth", "x.bin"])
def test_all_or_some_tensors_as_fp32_of_their_own(name: str, tmp_path: Path):
    path = write(tmp_path / name, {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(2, dtype=torch.float16)})
    everything = read_tensors(path, None, "try again")
    assert sorted(everything) == ["a", "b"] and everything["b"].dtype == torch.float32
    assert list(read_tensors(path, ["b"], "try again")) == ["b"]
    path.write_bytes(b"\0" * path.stat().st_size)
    assert torch.equal(everything["a"], torch.arange(6.0).view(2, 3))


def test_what_is_not_asked_for_is_not_looked_at(tmp_path: Path):
    path = write(tmp_path / "x.pth", {"a": torch.ones(2), "epoch": 3, "labels": torch.ones(2, dtype=torch.int64)})
    assert list(read_tensors(path, ["a"], "try again")) == ["a"]
    with pytest.raises(UserError, match="its entry epoch .int. is no dense tensor of floats; try again"):
        read_tensors(path, None, "try again")


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({1: torch.ones(2)}, "holds no state dict"),
        (torch.ones(2), "holds no state dict"),
        ({"b": torch.ones(2)}, "lacks tensor a"),
        ({"a": torch.tensor([0.0, float("inf")])}, "not finite"),
        ({"a": torch.zeros(1).expand(1 << 20, 1 << 20)}, "claim more bytes"),
    ],
)
def test_refuses_in_one_line(state: Any, words: str, tmp_path: Path):
    path = write(tmp_path / "x.pth", state)
    with pytest.raises(UserError) as error:
        read_tensors(path, ["a"], "try again")
    message = str(error.value)
    assert words in message and message.startswith(str(path)) and message.endswith("try again") and "\n" not in message


@pytest.mark.parametrize("piece", [1, 100, 1 << 26])
def test_mapped_in_pieces(monkeypatch, tmp_path: Path, piece: int):
    monkeypatch.setattr(tensor_file, "_PIECE", piece)
    dtypes = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
    state = {f"{i}": torch.randn(i + 1, 3).to(dtype) for i in range(9) for dtype in dtypes[i % 4 : i % 4 + 1]}
    path = write(tmp_path / "x.safetensors", state)
    found = map_state(path, "")
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], state[name]) and found[name].dtype == state[name].dtype for name in state)
    found["0"].fill_(7)  # in this process alone
    assert torch.equal(map_state(path, "")["0"], state["0"])


def test_what_is_not_mapped_is_read(tmp_path: Path):
    state = {"whole": torch.arange(3), "none": torch.zeros(0, 2), "number": torch.tensor(2.5)}
    found = map_state(write(tmp_path / "x.safetensors", state), "")
    assert all(torch.equal(found[name], state[name]) for name in state)
