"""The script that makes the bundled file: it decodes idx and writes the same bytes for the same arrays."""

import struct

import make_mnist
import numpy as np
import pytest


def test_idx_is_decoded():
    values = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    content = struct.pack(">HBB3I", 0, 8, 3, 2, 3, 4) + values.tobytes()
    np.testing.assert_array_equal(make_mnist.parse_idx(content), values)


def test_idx_of_another_type_is_refused():
    with pytest.raises(SystemExit):
        make_mnist.parse_idx(struct.pack(">HBB1I", 0, 0x0D, 1, 1) + b"\0\0\0\0")


def test_output_depends_on_the_arrays_alone(tmp_path):
    arrays = {"b": np.arange(1000, dtype=np.uint8), "a": np.zeros((3, 4), np.uint8)}
    for name in ("one.npz", "two.npz"):
        make_mnist.write_npz(tmp_path / name, arrays)
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()
    with np.load(tmp_path / "one.npz", allow_pickle=False) as written:
        assert written.files == ["b", "a"]
        for key, array in arrays.items():
            np.testing.assert_array_equal(written[key], array)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.npz", "two.npz"]


def test_a_changed_download_is_refused(tmp_path, monkeypatch):
    for name, _ in make_mnist.IDX_FILES.values():
        (tmp_path / name).write_bytes(b"something else")
    output = tmp_path / "mnist.npz"
    monkeypatch.setattr("sys.argv", ["make_mnist.py", "--source", str(tmp_path), "--output", str(output)])
    with pytest.raises(SystemExit, match="sha256"):
        make_mnist.main()
    assert not output.exists()
