"""Mapped weights: the pages are given back, and the content stays."""

import hashlib
import sys
from pathlib import Path

import numpy as np
import pytest

from unistep.engines.mapped import MappedFile

_MIB = 1 << 20


def resident() -> int:
    """Returns the bytes of mapped files in the memory of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssFile")) * 1024


@pytest.fixture
def large(tmp_path: Path) -> Path:
    path = tmp_path / "weights.bin"
    path.write_bytes(np.arange(64 * _MIB, dtype=np.uint8).tobytes())
    return path


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_pages_are_given_back(large: Path):
    mapped = MappedFile(large)
    before, array = resident(), mapped.array()
    assert array.sum(dtype=np.int64) > 0
    assert resident() - before > 60 * _MIB
    with mapped.given_back():
        array.sum(dtype=np.int64)
    assert resident() - before < 8 * _MIB


def test_the_content_stays(large: Path):
    digest = hashlib.sha256(large.read_bytes()).hexdigest()
    mapped = MappedFile(large)
    with mapped.given_back():
        assert all(hashlib.sha256(mapped.array().tobytes()).hexdigest() == digest for _ in range(5))
    array = mapped.array()
    del mapped  # the array keeps it
    assert hashlib.sha256(array.tobytes()).hexdigest() == digest
    assert len(array) == 64 * _MIB


def test_an_error_within_ends_it(large: Path):
    mapped = MappedFile(large)
    with pytest.raises(KeyError), mapped.given_back():
        raise KeyError
    assert mapped.array()[1] == 1


def test_an_empty_file(tmp_path: Path):
    (tmp_path / "none").touch()
    with pytest.raises(ValueError, match="empty"):
        MappedFile(tmp_path / "none")
