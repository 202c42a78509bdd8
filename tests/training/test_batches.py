"""The batches of a training: those of the order and of the seeds, whatever part of them is asked for."""

from concurrent.futures import ThreadPoolExecutor

import torch

from unistep.core.random import ImageRandom, image_seed, image_seeds
from unistep.data.dataset import ImageDataset
from unistep.data.order import batch_flips, batch_indices
from unistep.training.batches import Batches

IMAGES = torch.arange(20 * 3 * 4 * 4).remainder(256).to(torch.uint8).view(20, 3, 4, 4)
DATASET = ImageDataset(IMAGES, torch.arange(20) % 5)


def test_a_batch_has_the_images_classes_and_noise_of_its_step():
    batch = Batches(DATASET, torch.device("cpu"), seed=3, flip=True, use_labels=True).at(7, 8)
    images, labels = DATASET.batch(batch_indices(7, 8, 20, 3), batch_flips(7, 8, 3))
    assert torch.equal(batch.images, images)
    assert labels is not None and batch.labels is not None and torch.equal(batch.labels, labels)
    seeds = image_seeds(image_seed(3, 7), range(8))
    assert torch.equal(ImageRandom(batch.words).randn(2), ImageRandom(seeds).randn(2))
    assert batch.dropout_seed == int(seeds[0])


def test_parts_are_the_whole():
    batches = Batches(DATASET, torch.device("cpu"), seed=0, flip=False, use_labels=False)
    whole, parts = batches.at(2, 6), [batches.at(2, 6, start, 2) for start in (0, 2, 4)]
    assert torch.equal(torch.cat([part.images for part in parts]), whole.images) and whole.labels is None
    assert torch.equal(torch.cat([part.words for part in parts], dim=1), whole.words)


def test_images_that_are_waited_for_have_positions_and_file():
    told = []

    class Slow(ImageDataset):
        def batch(self, *choice):
            told.append(batches.waiting_for())
            return super().batch(*choice)

    batches = Batches(Slow(IMAGES, file="images.bin"), torch.device("cpu"), seed=3, flip=False, use_labels=False)
    batches.at(7, 8)
    first = ", ".join(map(str, batch_indices(7, 8, 20, 3)[:5].tolist()))
    assert told == [f"images {first} and 3 more of images.bin"] and batches.waiting_for() == ""
    batches = Batches(Slow(IMAGES), torch.device("cpu"), seed=3, flip=False, use_labels=False)
    batches.at(7, 8)
    assert told[1] == ""  # in memory nothing is waited for


def test_what_is_read_ahead_is_what_would_be_read():
    """Also after a jump, as where a training goes back."""
    plain, ahead = (Batches(DATASET, torch.device("cpu"), seed=1, flip=True, use_labels=True) for _ in range(2))
    with ThreadPoolExecutor(1) as ahead._reader:
        for step in (0, 1, 2, 7, 3, 4):
            found, expected = ahead.at(step, 6, 2, 3), plain.at(step, 6, 2, 3)
            for a, b in zip(found.tensors, expected.tensors, strict=True):
                assert torch.equal(a, b)
