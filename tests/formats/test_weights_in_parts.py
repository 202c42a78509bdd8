"""Tensors in parts of limited size: what is written is read again, and what is damaged is refused in one line."""

import json
from pathlib import Path

import pytest
import torch

from unistep.errors import UserError
from unistep.formats.weights_in_parts import INDEX, read_index, read_parts, write_in_parts

MOST = 20_000


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    found = {f"net.{i}.bias": torch.randn(7 + i, generator=generator) for i in range(20)}
    found["net.kernel"] = torch.randn(64, 33, 3, 3, generator=generator).bfloat16()  # of two parts and more
    found["net.scale"] = torch.randn((), generator=generator)
    found["net.nothing"] = torch.zeros(0, 3)
    found["half"] = torch.randn(999, generator=generator).half()
    return found


@pytest.fixture
def folder(tmp_path, tensors) -> Path:
    path = tmp_path / "out"
    path.mkdir()
    write_in_parts(path, tensors, {"more": [1]}, MOST)
    return path


def test_all_come_back(folder, tensors):
    index = read_index(folder)
    found = read_parts(folder, index)
    assert index.facts["more"] == [1] and list(found) == list(tensors)
    for name, tensor in tensors.items():
        assert found[name].dtype == torch.float32 and torch.equal(found[name], tensor.float())
    assert len(index.places["net.kernel"]) > 2


def test_parts_are_full_and_no_larger(folder, tensors):
    index = read_index(folder)
    sizes = [(folder / part.file).stat().st_size for part in index.parts]
    assert sizes == [part.bytes for part in index.parts] and max(sizes) <= MOST
    assert min(sizes[:-1]) > 0.6 * MOST  # names of so small tensors take as much as the numbers
    assert sorted(p.name for p in folder.iterdir()) == sorted([INDEX, *(part.file for part in index.parts)])


def test_twenty_million_parameters_fit_into_three_files_a_network(tmp_path):
    """As published networks have them: some 300 tensors, the largest of 2.4 million."""
    sizes = [(512, 512, 3, 3)] * 8 + [(128, 256, 3, 3)] * 3 + [(512,)] * 280
    network = {f"down_blocks.0.resnets.{i}.weight": torch.zeros(s, dtype=torch.bfloat16) for i, s in enumerate(sizes)}
    assert 19e6 < sum(t.numel() for t in network.values()) < 21e6
    index = write_in_parts(tmp_path, network, {}, 14_000_000)
    assert [part.bytes > 13_800_000 for part in index.parts] == [True, True, False]
    assert max(part.bytes for part in index.parts) <= 14_000_000


def test_missing_parts_are_named(folder):
    (folder / "weights-2.safetensors").unlink()
    with pytest.raises(UserError, match=r"^\S+ lacks weights-2\.safetensors; copy the whole folder again$"):
        read_parts(folder, read_index(folder))


def test_a_damaged_part_is_refused(folder):
    path = folder / "weights-1.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"weights-1\.safetensors is not what was exported: its digest differs"):
        read_parts(folder, read_index(folder))


def test_values_that_are_not_finite_are_not_written(tmp_path):
    with pytest.raises(UserError, match="tensor a has values that are not finite"):
        write_in_parts(tmp_path, {"a": torch.tensor([float("nan")])}, {}, MOST)
    assert list(tmp_path.iterdir()) == []


def put(*keys, value):
    """A change of an index: the value at a place, or without the entry where it is None."""

    def change(index):
        at = index
        for key in keys[:-1]:
            at = at[key]
        if value is None:
            del at[keys[-1]]
        else:
            at[keys[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("format", value="other"), "no index of weights in parts of version 1"),
        (put("version", value=2), "no index of weights in parts of version 1"),
        (put("parts", value=None), "its parts are no list"),
        (put("parts", value=[]), "its parts are no list"),
        (put("tensors", value=[1]), "its tensors are no mapping"),
        (put("parts", 0, "file", value="../x.safetensors"), "its part 0 is no name"),
        (put("parts", 0, "file", value="/etc/passwd"), "its part 0 is no name"),
        (put("parts", 0, "file", value=".hidden.safetensors"), "its part 0 is no name"),
        (put("parts", 0, "file", value=3), "its part 0 is no name"),
        (put("parts", 0, "file", value="weights-2.safetensors"), "two of its parts have one name"),
        (put("parts", 1, "sha256", value="abc"), "its part 1 is no name"),
        (put("parts", 1, "bytes", value=-1), "its part 1 is no name"),
        (put("parts", 1, "more", value=1), "its part 1 is no name"),
        (put("tensors", "half", "shape", value=[-1]), "its entry half is no shape"),
        (put("tensors", "half", "shape", value=[True]), "its entry half is no shape"),
        (put("tensors", "half", "shape", value=[1] * 9), "its entry half is no shape"),
        (put("tensors", "half", "parts", value=[99]), "its entry half is no shape"),
        (put("tensors", "half", "parts", value=[]), "its entry half is no shape"),
        (put("tensors", "net.kernel", "parts", value=[0, 0, 0]), "its entry net.kernel is no shape"),
        (put("tensors", "half", "shape", value=[1 << 40]), "tensor half is not of the shape in its index"),
        (put("tensors", "absent", value={"shape": [1], "parts": [0]}), "its parts lack tensor absent"),
    ],
)
def test_hostile_indices_are_one_line(folder, change, message):
    index = json.loads((folder / INDEX).read_text())
    change(index)
    (folder / INDEX).write_text(json.dumps(index))
    with pytest.raises(UserError, match=f"^[^\n]*{message}[^\n]*$"):
        read_parts(folder, read_index(folder))


@pytest.mark.parametrize("text", ["", "[]", "{", '{"format": 1, "format": 2}', "[" * 1000])
def test_no_index(folder, text):
    (folder / INDEX).write_text(text)
    with pytest.raises(UserError, match=f"^{folder}/index.json is [^\n]*; [^\n]*copy the whole folder again$"):
        read_index(folder)
