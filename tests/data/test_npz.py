"""Reading .npz files."""

import io
import pickle
import zipfile

import numpy as np
import pytest
from PIL import Image

from unistep.data import DataConfig, open_dataset, read_dataset

GREY = np.arange(2 * 4 * 5, dtype=np.uint8).reshape(2, 4, 5)


@pytest.fixture
def save(tmp_path):
    def write(compressed=True, /, **arrays):
        path = tmp_path / "set.npz"
        (np.savez_compressed if compressed else np.savez)(path, **arrays)
        return str(path)

    return write


@pytest.mark.parametrize("compressed", [True, False])
def test_channels_last(save, pixels, compressed):
    dataset = open_dataset(save(compressed, arr_0=pixels, arr_1=np.array([2, 0, 1, 2, 2, 0])))
    np.testing.assert_array_equal(dataset.images.numpy(), pixels.transpose(0, 3, 1, 2))
    assert dataset.labels.tolist() == [2, 0, 1, 2, 2, 0]
    assert (dataset.num_classes, dataset.class_names) == (3, None)


@pytest.mark.parametrize("order", ["C", "F"])
def test_channels_first(save, pixels, order):
    stored = np.array(pixels.transpose(0, 3, 1, 2), order=order)
    np.testing.assert_array_equal(open_dataset(save(images=stored)).images.numpy(), stored)


def test_without_channels(save):
    np.testing.assert_array_equal(open_dataset(save(arr_0=GREY)).images.numpy(), GREY[:, None])


def test_one_channel_in_either_place(save):
    for stored in (GREY[:, None], GREY[..., None]):
        np.testing.assert_array_equal(open_dataset(save(arr_0=stored)).images.numpy(), GREY[:, None])


def test_where_both_layouts_fit_the_last_axis_counts(save):
    stored = np.arange(2 * 3 * 5 * 3, dtype=np.uint8).reshape(2, 3, 5, 3)
    np.testing.assert_array_equal(open_dataset(save(arr_0=stored)).images.numpy(), stored.transpose(0, 3, 1, 2))


def test_transparent_pixels_become_white(save, pixels):
    alpha = np.zeros((*pixels.shape[:3], 1), np.uint8)
    alpha[:, :2] = 255
    images = open_dataset(save(arr_0=np.concatenate([pixels, alpha], -1))).images.numpy()
    np.testing.assert_array_equal(images, np.where(alpha, pixels, 255).transpose(0, 3, 1, 2))


def test_names_and_label_columns(save, pixels):
    dataset = open_dataset(save(images=pixels, labels=np.arange(6, dtype=np.uint8)[:, None]))
    assert dataset.labels.tolist() == [0, 1, 2, 3, 4, 5]


def test_labels_may_be_left_unread(save, pixels):
    path = save(arr_0=pixels, arr_1=np.array(["a"] * 6))
    assert read_dataset(DataConfig(path, use_labels=False)).labels is None


def test_resize_and_channels(save, pixels):
    images = read_dataset(DataConfig(save(arr_0=pixels), resolution=2, channels=1)).images.numpy()
    for image, pixel in zip(images, pixels, strict=True):
        expected = Image.fromarray(pixel[:, :4]).resize((2, 2), Image.Resampling.LANCZOS).convert("L")
        np.testing.assert_array_equal(image[0], np.asarray(expected))


def test_grey_to_colour(save):
    images = read_dataset(DataConfig(save(arr_0=GREY), channels=3)).images.numpy()
    np.testing.assert_array_equal(images, np.repeat(GREY[:, None], 3, axis=1))


def test_many_blocks(save, monkeypatch):
    monkeypatch.setattr("unistep.data.npz._BLOCK_BYTES", 50)
    many = np.random.default_rng(0).integers(0, 256, (37, 3, 4), dtype=np.uint8)
    np.testing.assert_array_equal(open_dataset(save(arr_0=many)).images.numpy(), many[:, None])


class Trap:
    def __reduce__(self):
        return (pytest.fail, ("the pickle was executed",))


def test_pickled_objects_are_never_loaded(save, pixels, refusal):
    trap = np.empty(6, object)
    trap[:] = [Trap() for _ in range(6)]
    for arrays in ({"arr_0": trap}, {"arr_0": pixels, "arr_1": trap}):
        path = save(**arrays)
        refusal(lambda path=path: open_dataset(path), path, "pickled")


def test_a_bare_pickle_is_never_loaded(tmp_path, refusal):
    path = tmp_path / "set.npz"
    path.write_bytes(pickle.dumps(Trap()))
    refusal(lambda: open_dataset(str(path)), path, "no .npz file")


def test_a_pickle_inside_is_never_loaded(tmp_path, refusal):
    path = tmp_path / "set.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("arr_0.npy", pickle.dumps(Trap()))
    refusal(lambda: open_dataset(str(path)), path)


@pytest.mark.parametrize("dtype", [np.float32, np.int64, np.uint16, bool])
def test_pixels_of_another_type_are_refused(save, pixels, refusal, dtype):
    path = save(arr_0=pixels.astype(dtype))
    refusal(lambda: open_dataset(path), path, "arr_0", np.dtype(dtype).name, "uint8")


@pytest.mark.parametrize("shape", [(4,), (4, 5), (2, 5, 6, 2), (2, 4, 5, 5, 3), (0, 4, 5), (2, 0, 5, 3)])
def test_shapes_that_are_no_images_are_refused(save, refusal, shape):
    path = save(arr_0=np.zeros(shape, np.uint8))
    refusal(lambda: open_dataset(path), path, "arr_0", shape)


def test_other_names_are_refused(save, pixels, refusal):
    path = save(pictures=pixels, arr_1=np.arange(6))
    refusal(lambda: open_dataset(path), path, "arr_0 or images", "pictures")


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (np.arange(5), "6 images"),
        (np.zeros((6, 10), np.int64), "6 images"),
        (np.zeros(6, np.float32), "float32"),
        (np.array(["a"] * 6), "integers"),
        (np.array([0, 1, -1, 0, 0, 0]), "-1"),
    ],
)
def test_labels_that_do_not_fit_are_refused(save, pixels, refusal, labels, words):
    path = save(arr_0=pixels, arr_1=labels)
    refusal(lambda: open_dataset(path), path, "arr_1", words)


def test_damaged_files_are_refused(save, tmp_path, refusal):
    noise = np.random.default_rng(0).integers(0, 256, (10, 16, 16), dtype=np.uint8)
    for compressed in (True, False):
        path = save(compressed, arr_0=noise)
        content = bytearray((tmp_path / "set.npz").read_bytes())
        content[len(content) // 2] ^= 0xFF
        (tmp_path / "set.npz").write_bytes(content)
        refusal(lambda path=path: open_dataset(path), path)
        (tmp_path / "set.npz").write_bytes(content[: len(content) // 2])
        refusal(lambda path=path: open_dataset(path), path)


def test_fewer_pixels_than_announced_are_refused(tmp_path, refusal):
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.zeros((10, 4, 4), np.uint8))
    path = tmp_path / "set.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("arr_0.npy", buffer.getvalue()[:-16])
    refusal(lambda: open_dataset(str(path)), path, "as many pixels")


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        ("images", "labels"),
        ("x_train", "y_train"),
        ("train_images", "train_labels"),
        ("data", "labels"),
        ("data", "target"),
        ("x", "y"),
        ("X", "y"),
    ],
)
def test_names_of_others(save, pixels, images, labels):
    dataset = open_dataset(save(**{images: pixels, labels: np.arange(6) % 3, "mean": np.zeros(3)}))
    np.testing.assert_array_equal(dataset.images.numpy(), pixels.transpose(0, 3, 1, 2))
    assert dataset.labels.tolist() == [0, 1, 2, 0, 1, 2]


def test_labels_are_those_of_the_images(save, pixels):
    """And not those of other arrays in the file."""
    path = save(x_train=pixels, y_train=np.arange(6) % 2, x_test=pixels[:2], y_test=np.array([1, 0]), labels=[1])
    assert open_dataset(path).labels.tolist() == [0, 1, 0, 1, 0, 1]
    assert open_dataset(save(x_train=pixels, labels=np.arange(6))).labels is None


def test_the_test_half_is_said_to_be_passed_over(save, pixels, caplog):
    open_dataset(save(x_train=pixels, y_train=np.arange(6) % 2, x_test=pixels[:2], y_test=np.array([1, 0])))
    assert "x_train is read, and x_test passed over" in caplog.text


@pytest.mark.parametrize("order", ["C", "F"])
def test_images_as_rows_of_numbers(save, order):
    """As those of CIFAR-10 and of the downsampled ImageNet."""
    stored = np.random.default_rng(0).integers(0, 256, (5, 3, 4, 4), np.uint8)
    rows = np.array(stored.reshape(5, -1), order=order)
    np.testing.assert_array_equal(open_dataset(save(data=rows, labels=np.arange(5))).images.numpy(), stored)
