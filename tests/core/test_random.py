import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unistep.core.random import BASIS, DEGRADE, FLIP, GUESS, IMAGES, LABELS, ImageRandom, hashes, image_seed


def test_image_seeds_never_change():
    # Changing these numbers changes every image that anyone has made.
    assert [image_seed(0, 0), image_seed(0, 1), image_seed(1, 0), image_seed(42, 49_999)] == [
        6017775123424599141,
        313702575085698971,
        3395948883895725649,
        2470300298053789936,
    ]


@given(st.integers(-(2**70), 2**70), st.integers(0, 2**40))
def test_image_seeds_have_63_bits(seed, index):
    assert 0 <= image_seed(seed, index) < 2**63


def test_no_two_images_of_a_run_share_even_the_low_bits_of_their_seeds():
    # The CPU generator reads no more than 32 bits.
    assert len({image_seed(7, index) & 0xFFFFFFFF for index in range(20_000)}) == 20_000


def test_runs_with_neighbouring_seeds_share_no_images():
    seeds = [image_seed(run, index) & 0xFFFFFFFF for run in range(4) for index in range(2_000)]
    assert len(set(seeds)) == len(seeds)


def test_every_bit_of_the_image_seeds_is_used():
    seeds = torch.tensor([image_seed(3, index) for index in range(2_000)])
    ones = seeds[:, None] >> torch.arange(63) & 1
    assert (ones.double().mean(0) - 0.5).abs().max() < 0.06


def draws(random: ImageRandom) -> list[torch.Tensor]:
    return [random.randn(3, 5, 4), random.rand(2), random.randint(1000), random.randn(7)]


def test_an_image_draws_the_same_in_any_batch():
    seeds = [11, 5, 2**62, 0]
    together = draws(ImageRandom(seeds))
    for i, seed in enumerate(seeds):
        for batch, alone in zip(together, draws(ImageRandom([seed])), strict=True):
            assert torch.equal(batch[i : i + 1], alone)
    for batch, reversed_batch in zip(together, draws(ImageRandom(seeds[::-1])), strict=True):
        assert torch.equal(batch, reversed_batch.flip(0))


def test_draws_do_not_touch_the_global_generator():
    before = torch.get_rng_state()
    draws(ImageRandom([1, 2]))
    assert torch.equal(torch.get_rng_state(), before)


def test_successive_draws_differ_and_images_differ():
    random = ImageRandom([1, 2])
    first, second = random.randn(100), random.randn(100)
    assert not torch.equal(first, second)
    assert not torch.equal(first[0], first[1])


@pytest.mark.parametrize("shape", [(), (3,), (3, 2, 2)])
def test_shapes_types_and_length(shape):
    random = ImageRandom([1, 2, 3, 4])
    assert len(random) == 4
    assert random.randn(*shape).shape == random.rand(*shape).shape == (4, *shape)
    assert random.randn(*shape).dtype == random.rand(*shape).dtype == torch.float32
    assert random.randint(3).shape == (4,)


def test_an_empty_batch_draws_nothing():
    random = ImageRandom([])
    assert random.randn(2, 3).shape == (0, 2, 3)
    assert random.rand(2).shape == (0, 2)
    assert random.randint(9).shape == (0,)


def test_distributions():
    random = ImageRandom([image_seed(0, i) for i in range(4000)])
    normal, uniform, integers = random.randn(8), random.rand(8), random.randint(5)
    assert abs(normal.mean()) < 0.02 and abs(normal.std() - 1) < 0.02
    assert 0 <= uniform.min() and uniform.max() < 1
    assert abs(uniform.mean() - 0.5) < 0.01 and abs(uniform.std() - 12**-0.5) < 0.01
    assert torch.bincount(integers, minlength=5).shape == (5,)
    assert (torch.bincount(integers) / 4000 - 0.2).abs().max() < 0.03


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator")
def test_on_a_gpu_images_draw_the_same_in_any_batch_too():
    seeds = [11, 5, 2**62, 0]
    together = draws(ImageRandom(seeds, "cuda"))
    for i, seed in enumerate(seeds):
        for batch, alone in zip(together, draws(ImageRandom([seed], "cuda")), strict=True):
            assert batch.device.type == "cuda"
            assert torch.equal(batch[i : i + 1], alone)


def test_hashes_never_change():
    # Changing these numbers changes the order of every training run.
    assert [int(h) for h in hashes((FLIP, 3), np.arange(2, dtype=np.uint64))] == [
        6330844193656803128,
        8795694520343778746,
    ]


def test_streams_are_apart():
    streams = [IMAGES, LABELS, DEGRADE, BASIS, GUESS]
    assert image_seed(5, 1, IMAGES) == image_seed(5, 1)
    assert len({image_seed(5, 1, stream) for stream in streams}) == len(streams)
