"""Images larger than the model, tile by tile."""

import pytest
import torch

from unistep.editing.tiled import Tiled
from unistep.errors import UserError


def pixelwise(x, sigma, labels=None):
    """What needs no neighbours comes out of tiles as it does of the whole."""
    scale = 1 / (1 + sigma) if labels is None else 1 / (1 + sigma + labels)
    return x * scale[:, None, None, None]


@pytest.mark.parametrize("size", [(8, 8), (8, 30), (9, 11), (33, 8), (20, 21)])
@pytest.mark.parametrize("overlap", [0.0, 0.5, 0.9])
def test_pixelwise_is_the_same_as_of_the_whole(size, overlap, generator):
    x = torch.randn(3, 2, *size, generator=generator)
    sigma, labels = torch.tensor([0.1, 1.0, 10.0]), torch.tensor([0, 1, 2])
    tiled = Tiled(pixelwise, 8, batch=5, overlap=overlap)
    torch.testing.assert_close(tiled(x, sigma, labels), pixelwise(x, sigma, labels))
    torch.testing.assert_close(tiled(x, sigma), pixelwise(x, sigma))


@pytest.mark.parametrize("length", [8, 9, 12, 13, 40, 41])
def test_tiles_cover_the_image_and_overlap_as_asked(length):
    starts = sorted({left for _, left in Tiled(pixelwise, 8).places(8, length)})
    assert starts[0] == 0 and starts[-1] == length - 8
    assert all(0 < b - a <= 4 for a, b in zip(starts, starts[1:], strict=False))


def test_all_batches_have_one_size(generator):
    seen = []

    def denoiser(x, sigma, labels=None):
        seen.append(len(x))
        return x

    Tiled(denoiser, 8, batch=4)(torch.randn(1, 1, 16, 24, generator=generator), torch.ones(1))
    assert set(seen) == {4} and len(seen) == 4  # 3 x 5 tiles


def test_blends_without_seams():
    """Tiles that disagree, here by their mean, meet in a ramp: no step between neighbours is large."""

    def denoiser(x, sigma, labels=None):
        return x.mean(dim=(2, 3), keepdim=True).expand_as(x)

    x = torch.linspace(-1, 1, 40).expand(1, 1, 8, 40)
    assert float(Tiled(denoiser, 8)(x, torch.ones(1)).diff(dim=3).abs().max()) < 0.12
    assert float(Tiled(denoiser, 8, overlap=0)(x, torch.ones(1)).diff(dim=3).abs().max()) > 0.3


def test_too_small():
    with pytest.raises(UserError, match="30x7 is smaller than a tile of 8x8"):
        Tiled(pixelwise, 8)(torch.zeros(1, 1, 7, 30), torch.ones(1))
