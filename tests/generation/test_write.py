import os

import numpy as np
import pytest
import torch
from PIL import Image

from unistep.errors import UserError
from unistep.generation.write import write_images


@pytest.fixture
def images(generator):
    return torch.randint(0, 256, (5, 3, 4, 6), dtype=torch.uint8, generator=generator)


LABELS = torch.tensor([0, 1, 2, 0, 1])


@pytest.mark.parametrize("labels", [None, LABELS])
def test_npz_is_openais(images, labels, tmp_path):
    path = write_images(images, labels, tmp_path / "new" / "images.npz", columns=3)
    with np.load(path) as arrays:
        assert arrays.files == (["arr_0"] if labels is None else ["arr_0", "arr_1"])
        assert arrays["arr_0"].dtype == np.uint8
        assert np.array_equal(arrays["arr_0"], images.permute(0, 2, 3, 1).numpy())
        if labels is not None:
            assert np.array_equal(arrays["arr_1"], labels.numpy())
    assert [p.name for p in path.parent.iterdir()] == ["images.npz"]


def test_npz_is_a_data_source(images, tmp_path):
    from unistep.data import open_dataset

    dataset = open_dataset(str(write_images(images, LABELS, tmp_path / "images.npz", columns=3)))
    assert torch.equal(dataset.images, images)
    assert torch.equal(dataset.labels, LABELS)


def test_folder_of_pngs(images, tmp_path):
    path = write_images(images, None, tmp_path / "images", columns=3)
    assert sorted(p.name for p in path.iterdir()) == [*(f"{i:06d}.png" for i in range(5)), "dataset.json"]
    with Image.open(path / "000003.png") as picture:
        assert np.array_equal(np.asarray(picture), images[3].permute(1, 2, 0).numpy())


@pytest.mark.parametrize("name", ["grid.png", "GRID.PNG"])
def test_png_is_one_grid(images, name, tmp_path):
    path = write_images(images, None, tmp_path / name, columns=3)
    with Image.open(path) as picture:
        assert picture.width >= 3 * 6


@pytest.mark.parametrize("name", ["grid.png", "images.npz", "images"])
def test_a_place_that_cannot_be_written(images, name, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot write .*file.*; choose another `output`") as caught:
        write_images(images, None, tmp_path / "file" / name, columns=3)
    assert "\n" not in str(caught.value)


def test_a_read_only_folder(images, read_only):
    with pytest.raises(
        UserError, match=f"cannot write {read_only}/grid.png: Permission denied; choose another `output`"
    ):
        write_images(images, None, read_only / "grid.png", columns=3)


def test_failed_npz_leaves_the_old_one(images, tmp_path, monkeypatch):
    path = write_images(images, None, tmp_path / "images.npz", columns=3)
    before = path.read_bytes()

    def full(file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left on device"):
        write_images(images, LABELS, path, columns=3)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
