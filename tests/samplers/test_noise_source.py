import pytest
import torch

from unistep.core.random import ImageRandom
from unistep.samplers.noise_source import draw


def test_generators_and_functions_are_both_sources(generator):
    x = torch.zeros(2, 3, 4, 5, dtype=torch.float64)
    from_generators = draw(ImageRandom([1, 2]), x)
    assert torch.equal(from_generators, ImageRandom([1, 2]).randn(3, 4, 5).double())
    from_function = draw(lambda like: torch.full(like.shape, 0.5), x)
    assert torch.equal(from_function, torch.full_like(x, 0.5))
    assert from_generators.dtype == from_function.dtype == x.dtype


def test_a_generator_for_every_image():
    with pytest.raises(ValueError, match="2 seeds cannot draw noise for 3 images"):
        draw(ImageRandom([1, 2]), torch.zeros(3, 1, 2, 2))
