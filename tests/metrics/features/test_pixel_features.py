"""Pixels as features: those of the image, resized where they are not of 32 pixels."""

import numpy as np
import pytest
import torch
from PIL import Image

from unistep.errors import UserError
from unistep.metrics.features.pixels import Pixels


def images(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def test_images_of_32_pixels_are_taken_as_they_are():
    given = images(5, 3, 32, 32)
    pool = Pixels()(given, ["pool"])["pool"]
    assert (pool.shape, pool.dtype, Pixels().info.dims) == ((5, 3072), torch.float32, {"pool": 3072})
    torch.testing.assert_close(pool.reshape_as(given) * 255, given.float())


def test_other_sizes_are_resized_by_pillow():
    given = images(2, 3, 48, 40) // 2 + 60  # no filter overshoots, which Pillow clamps twice
    pool = Pixels()(given, ["pool"])["pool"].reshape(2, 3, 32, 32) * 255
    for image, found in zip(given, pool, strict=True):
        rgb = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((32, 32), Image.Resampling.BICUBIC)
        assert np.abs(found.permute(1, 2, 0).numpy() - np.asarray(rgb)).max() < 1.5


def test_grey_images_are_those_of_equal_channels():
    grey = images(3, 1, 32, 32)
    for found in (Pixels()(grey, ["pool"])["pool"], Pixels()(grey.repeat(1, 3, 1, 1), ["pool"])["pool"]):
        torch.testing.assert_close(found.unflatten(1, (3, 1024))[:, 0] * 255, grey.flatten(1).float())


def test_what_it_lacks_is_refused():
    with pytest.raises(UserError, match="no probabilities"):
        Pixels()(images(1, 3, 32, 32), ["probabilities"])
    with pytest.raises(UserError, match="1 or 3 channels"):
        Pixels()(images(1, 4, 32, 32), ["pool"])
