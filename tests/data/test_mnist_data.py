"""The bundled MNIST is MNIST, whole and checked."""

import hashlib
import struct

import pytest
from jaxtyping import TypeCheckError

from unistep.data import DataConfig, open_dataset, read_dataset
from unistep.data.bundled import BUNDLED

MNIST_PATH = BUNDLED["mnist"].path

# SHA-256 sums of the four published idx files, unpacked.
TRAIN_IMAGES = "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"
TRAIN_LABELS = "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"
TEST_IMAGES = "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"
TEST_LABELS = "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"


def idx_sha256(values):
    array = values.byte().numpy().squeeze()
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    return hashlib.sha256(header + array.tobytes()).hexdigest()


def test_train_half_is_the_published_one(mnist):
    assert mnist.images.shape == (60_000, 1, 28, 28)
    assert (mnist.num_classes, mnist.class_names) == (10, list("0123456789"))
    assert idx_sha256(mnist.images) == TRAIN_IMAGES
    assert idx_sha256(mnist.labels) == TRAIN_LABELS


def test_train_half_has_the_published_statistics(mnist):
    values = mnist.images.double() / 255
    assert values.mean().item() == pytest.approx(0.13066, abs=1e-5)
    assert values.std().item() == pytest.approx(0.30811, abs=1e-5)
    assert mnist.labels.bincount().tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]


def test_test_half_is_the_published_one():
    dataset = open_dataset("mnist-test")
    assert dataset.images.shape == (10_000, 1, 28, 28)
    assert idx_sha256(dataset.images) == TEST_IMAGES
    assert idx_sha256(dataset.labels) == TEST_LABELS


def test_labels_may_be_left_unread():
    dataset = read_dataset(DataConfig("mnist-test", use_labels=False))
    assert (len(dataset), dataset.labels, dataset.num_classes) == (10_000, None, 0)


def test_a_changed_copy_is_refused(tmp_path, refusal):
    content = bytearray(MNIST_PATH.read_bytes())
    content[len(content) // 2] ^= 1
    changed = tmp_path / "mnist.npz"
    changed.write_bytes(content)
    refusal(lambda: BUNDLED["mnist"].reader(changed), changed, "sha256", "reinstall")


def test_a_missing_file_is_refused(tmp_path, refusal):
    missing = tmp_path / "mnist.npz"
    refusal(lambda: BUNDLED["mnist"].reader(missing), missing, "reinstall")


def test_file_is_small_and_its_licence_lies_beside_it():
    assert MNIST_PATH.stat().st_size < 12_000_000
    licence = MNIST_PATH.with_name("mnist.LICENSE.md").read_text()
    assert "Attribution-ShareAlike 3.0" in licence
    assert "Yann LeCun" in licence


def test_public_functions_check_their_tensors(mnist):
    with pytest.raises(TypeCheckError):
        mnist.batch(mnist.images[:2])
