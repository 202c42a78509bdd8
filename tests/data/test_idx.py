"""MNIST's IDX files."""

import gzip
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from unistep.data import open_dataset

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 5, 4), np.uint8)
LABELS = np.array([0, 1, 2, 0, 1, 2], np.uint8)


def idx(array: np.ndarray, kind: int = 8) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, kind, array.ndim, *array.shape) + array.tobytes()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The four files of a small MNIST, those of training gzipped."""
    for half, images, labels in (("train", IMAGES, LABELS), ("t10k", 255 - IMAGES[:3], LABELS[:3])):
        pack = gzip.compress if half == "train" else bytes
        ending = ".gz" if half == "train" else ""
        (tmp_path / f"{half}-images-idx3-ubyte{ending}").write_bytes(pack(idx(images)))
        (tmp_path / f"{half}-labels-idx1-ubyte{ending}").write_bytes(pack(idx(labels)))
    return tmp_path


def test_a_folder_is_that_of_training(folder, caplog):
    dataset = open_dataset(folder)
    np.testing.assert_array_equal(dataset.images.numpy()[:, 0], IMAGES)
    assert dataset.labels.tolist() == LABELS.tolist()
    assert "t10k-images-idx3-ubyte is passed over" in caplog.text


def test_one_file_with_its_labels_beside_it(folder):
    dataset = open_dataset(folder / "t10k-images-idx3-ubyte")
    np.testing.assert_array_equal(dataset.images.numpy()[:, 0], 255 - IMAGES[:3])
    assert dataset.labels.tolist() == [0, 1, 2]
    (folder / "t10k-labels-idx1-ubyte").unlink()
    assert open_dataset(folder / "t10k-images-idx3-ubyte").labels is None


@pytest.mark.parametrize("name", ["train-images.idx3-ubyte", "emnist-letters-train-images-idx3-ubyte"])
def test_other_names(tmp_path, name):
    (tmp_path / name).write_bytes(idx(IMAGES))
    (tmp_path / name.replace("images", "labels").replace("idx3", "idx1")).write_bytes(idx(LABELS))
    for path in (tmp_path, tmp_path / name):
        assert open_dataset(path).labels.tolist() == LABELS.tolist()


def test_the_file_of_labels(folder, refusal):
    path = folder / "t10k-labels-idx1-ubyte"
    refusal(lambda: open_dataset(path), path, "it holds labels", "give the file of the images")


def test_several_files_of_which_none_is_meant(tmp_path, refusal):
    for name in ("a", "b"):
        (tmp_path / f"{name}-images-idx3-ubyte").write_bytes(idx(IMAGES))
    refusal(lambda: open_dataset(tmp_path), tmp_path, "a-images-idx3-ubyte, b-images-idx3-ubyte", "give one")


def test_labels_that_do_not_fit(folder, refusal):
    path = folder / "t10k-labels-idx1-ubyte"
    path.write_bytes(idx(LABELS))
    refusal(lambda: open_dataset(folder / "t10k-images-idx3-ubyte"), path, "6 labels for 3 images")
    path.write_bytes(idx(IMAGES))
    refusal(lambda: open_dataset(folder / "t10k-images-idx3-ubyte"), path, "no IDX file of 1 axes")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0\0\x08",
        b"\x1f\x8b",
        idx(IMAGES)[:-1],
        idx(IMAGES) + b"\0",
        idx(IMAGES, kind=0x0D),
        idx(IMAGES[0]),
        idx(IMAGES[:0]),
        struct.pack(">HBB3I", 0, 8, 3, 2**32 - 1, 2**32 - 1, 2**32 - 1),
        gzip.compress(struct.pack(">HBB3I", 0, 8, 3, 1 << 20, 28, 28), mtime=0),
        gzip.compress(idx(IMAGES), mtime=0)[:-20],
        gzip.compress(idx(IMAGES) + bytes(10), mtime=0),
        b"<!DOCTYPE html><html>",
    ],
)
def test_files_that_are_none(tmp_path, refusal, content):
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(content)
    refusal(lambda: open_dataset(path), path)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damage_is_one_line_or_another_image(tmp_path, refusal, data):
    from unistep.errors import UserError

    content = bytearray(data.draw(st.sampled_from([idx(IMAGES), gzip.compress(idx(IMAGES), mtime=0)])))
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(content)
    try:
        assert open_dataset(path).images.dtype.itemsize == 1
    except UserError as error:
        assert str(error).isprintable()


def test_pipes_are_passed_over(tmp_path, refusal):
    os.mkfifo(tmp_path / "train-images-idx3-ubyte")
    refusal(lambda: open_dataset(tmp_path), "no images")
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(idx(IMAGES))
    os.mkfifo(tmp_path / "t10k-labels-idx1-ubyte")
    assert open_dataset(tmp_path).labels is None
