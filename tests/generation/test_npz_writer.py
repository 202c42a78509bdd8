import zipfile

import numpy as np
import pytest
import torch

from unistep.generation.npz import write_npz


@pytest.fixture
def images(generator):
    return torch.randint(0, 256, (10, 4, 6, 3), dtype=torch.uint8, generator=generator).numpy()


@pytest.mark.parametrize("labels", [None, torch.arange(10)])
def test_numpy_reads_it(images, labels, tmp_path):
    path = tmp_path / "images.npz"
    write_npz(path, [images[:1], images[1:1], images[1:8], images[8:]], images.shape, labels)
    with np.load(path) as arrays:
        assert arrays.files == ["arr_0"] + ["arr_1"] * (labels is not None)
        assert arrays["arr_0"].dtype == np.uint8
        np.testing.assert_array_equal(arrays["arr_0"], images)
        if labels is not None:
            assert arrays["arr_1"].dtype == np.int64
            np.testing.assert_array_equal(arrays["arr_1"], labels)
    assert zipfile.ZipFile(path).testzip() is None


@pytest.mark.parametrize("view", [np.asfortranarray, lambda images: images[:, :, ::-1]])
def test_blocks_of_any_layout(images, view, tmp_path):
    """Whatever lies behind a block, the values that it shows are written."""
    write_npz(tmp_path / "images.npz", [view(images)], images.shape, None)
    with np.load(tmp_path / "images.npz") as arrays:
        np.testing.assert_array_equal(arrays["arr_0"], view(images))


def test_members_may_pass_4_gigabytes(images, tmp_path):
    """Their headers have room for 64-bit sizes before it is known that they are needed."""
    write_npz(tmp_path / "images.npz", [images], images.shape, torch.arange(10))
    for member in zipfile.ZipFile(tmp_path / "images.npz").infolist():
        assert member.extract_version == zipfile.ZIP64_VERSION


def test_same_content_same_bytes(images, tmp_path):
    write_npz(tmp_path / "a.npz", [images], images.shape, torch.arange(10))
    write_npz(tmp_path / "b.npz", [images[:3], images[3:]], images.shape, torch.arange(10))
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


@pytest.mark.parametrize("given", [9, 11])
def test_other_numbers_of_images_are_refused(images, given, tmp_path):
    blocks = [images[:9], *[images[:1]] * (given - 9)]
    with pytest.raises(ValueError, match=f"{given} images for an array of 10"):
        write_npz(tmp_path / "images.npz", blocks, images.shape, None)
