"""Files of tensors: read in every form, and nothing but tensors."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from unistep.errors import UserError
from unistep.formats.tensor_file import read_tensors


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
