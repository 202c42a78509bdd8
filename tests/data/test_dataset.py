"""Batches from a dataset."""

import io

import numpy as np
import pytest
import torch
from jaxtyping import TypeCheckError
from PIL import Image

from unistep.data import ImageDataset


@pytest.fixture
def dataset(generator) -> ImageDataset:
    images = torch.randint(256, (10, 3, 4, 5), generator=generator).byte()
    return ImageDataset(images, torch.arange(10) % 4)


def test_shape_and_classes(dataset):
    assert (len(dataset), dataset.channels, dataset.image_size, dataset.num_classes) == (10, 3, (4, 5), 4)


def test_named_classes_count_even_when_empty(dataset):
    assert ImageDataset(dataset.images, dataset.labels, list("abcdefg")).num_classes == 7


def test_without_labels(dataset):
    plain = ImageDataset(dataset.images)
    assert plain.num_classes == 0
    assert plain.batch(torch.tensor([1]))[1] is None


def test_batch_takes_the_rows_in_order(dataset):
    images, labels = dataset.batch(torch.tensor([7, 0, 7]))
    for row, index in enumerate([7, 0, 7]):
        assert torch.equal(images[row], dataset.images[index])
    assert labels.tolist() == [3, 0, 3]


def test_flips_mirror_the_chosen_images_only(dataset):
    images, _ = dataset.batch(torch.tensor([2, 3, 2]), torch.tensor([True, False, False]))
    assert torch.equal(images[0], dataset.images[2].flip(-1))
    assert not torch.equal(images[0], dataset.images[2])
    assert torch.equal(images[1], dataset.images[3])
    assert torch.equal(images[2], dataset.images[2])


def test_a_batch_is_a_copy(dataset):
    before = dataset.images.clone()
    images, labels = dataset.batch(torch.tensor([0, 1]))
    images.zero_()
    labels.fill_(-1)
    assert torch.equal(dataset.images, before)
    assert dataset.labels[:2].tolist() == [0, 1]


@pytest.mark.parametrize("index", [10, -1])
def test_an_index_beyond_the_dataset_is_refused(dataset, index):
    with pytest.raises(IndexError):
        dataset.batch(torch.tensor([index]))


def test_labels_must_fit(dataset):
    with pytest.raises((ValueError, TypeCheckError)):  # the type check comes first where it is on
        ImageDataset(dataset.images, torch.zeros(9, dtype=torch.int64))
    with pytest.raises(ValueError, match="label 3 is beyond the 3 class names"):
        ImageDataset(dataset.images, dataset.labels, list("abc"))


def test_it_shows_itself(dataset):
    assert repr(dataset) == "ImageDataset(10 colour images of 5x4, 4 classes)"
    assert (
        repr(ImageDataset(dataset.images[:, :1], skipped=["a: b"])) == "ImageDataset(10 grey images of 5x4, 1 skipped)"
    )
    picture = np.asarray(Image.open(io.BytesIO(dataset._repr_png_())))
    factor = round(640 / (8 * 7))
    assert picture.shape == (2 * 6 * factor, 8 * 7 * factor, 3)
    small = picture[::factor, ::factor]
    # Image 9 is the second of the second row.
    assert np.array_equal(small[7:11, 8:13], dataset.images[9].permute(1, 2, 0).numpy())
    assert (small[6:, 14:] == 255).all()
    grey = ImageDataset(dataset.images[:3, :1])
    assert np.array_equal(
        np.asarray(Image.open(io.BytesIO(grey._repr_png_())))[::factor, ::factor][1:5, 1:6, 2],
        grey.images[0, 0].numpy(),
    )
    assert ImageDataset(dataset.images[:0])._repr_png_() is None
