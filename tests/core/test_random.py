import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unistep.core.random import (
    BASIS,
    DEGRADE,
    FLIP,
    GUESS,
    IMAGES,
    LABELS,
    ImageRandom,
    hashes,
    image_seed,
    image_seeds,
)


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


@given(st.integers(-(2**70), 2**70), st.lists(st.integers(0, 2**64 - 1), max_size=5))
def test_many_image_seeds_at_once_are_those_of_one_at_a_time(seed, indices):
    assert image_seeds(seed, indices).tolist() == [image_seed(seed, index) for index in indices]


def test_no_two_images_of_a_run_share_even_the_low_bits_of_their_seeds():
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


def written_out(seed: int, index: int, draw: int, count: int) -> list[float]:
    """The normals of one image, one after the other, in Python's own integers and floats."""
    key = image_seed(seed, index)
    words = [w for block in range(-(-count // 4)) for w in philox_written_out((block, draw, 0, 0), key)]
    numbers = []
    for first, second in zip(words[::2], words[1::2], strict=True):
        r, t = math.sqrt(-2 * math.log((first + 0.5) / 2**32)), 2 * math.pi * second / 2**32
        numbers += [r * math.cos(t), r * math.sin(t)]
    return numbers[:count]


def philox_written_out(counter: tuple[int, int, int, int], key: int) -> tuple[int, int, int, int]:
    k0, k1 = key & 0xFFFFFFFF, key >> 32
    for _ in range(10):
        first, second = counter[0] * 0xD2511F53, counter[2] * 0xCD9E8D57
        counter = (
            second >> 32 ^ counter[1] ^ k0,
            second & 0xFFFFFFFF,
            first >> 32 ^ counter[3] ^ k1,
            first & 0xFFFFFFFF,
        )
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return counter


@pytest.mark.parametrize(("seed", "index", "shape"), [(0, 0, (1, 5, 3)), (7, 49_999, (2,)), (-1, 2**40, (3, 8, 8))])
def test_normals_are_those_of_the_definition_to_one_ulp(seed, index, shape):
    random = ImageRandom(image_seeds(seed, [index + 1, index]))
    for draw in range(3):
        drawn = random.randn(*shape)[1].flatten().numpy()
        expected = np.array(written_out(seed, index, draw, drawn.size), dtype=np.float32)
        assert (np.abs(drawn - expected) <= np.spacing(np.abs(expected))).all()


def test_uniforms_and_integers_are_those_of_the_definition():
    random = ImageRandom([image_seed(3, 8)])
    words = [philox_written_out((0, draw, 0, 0), image_seed(3, 8)) for draw in range(2)]
    assert random.rand(4)[0].tolist() == [(w >> 8) / 2**24 for w in words[0]]
    assert random.randint(1000).item() == words[1][0] * 1000 >> 32


def test_draws_begin_with_those_of_smaller_shapes():
    assert torch.equal(ImageRandom([4, 9]).randn(100)[:, :33], ImageRandom([4, 9]).randn(33))


def test_large_draws_are_computed_in_chunks_that_do_not_show(monkeypatch):
    whole = ImageRandom([4, 9]).randn(999)
    monkeypatch.setattr("unistep.core.random._CHUNK", 100)
    assert torch.equal(ImageRandom([4, 9]).randn(999), whole)


@pytest.mark.parametrize("high", [0, -1, 2**31 + 1])
def test_integers_of_no_range_are_refused(high):
    with pytest.raises(ValueError, match=str(high)):
        ImageRandom([0]).randint(high)


def test_tails_and_moments_of_many_normals():
    x = ImageRandom(image_seeds(1, range(2000))).randn(500).double().flatten()
    n = len(x)
    for power, moment, spread in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((x**power).mean() - moment) < 4 * math.sqrt(spread / n)
    for bound in (1.0, 2.0, 3.0, 4.0):
        tail = math.erfc(bound / math.sqrt(2))
        assert abs((x.abs() > bound).double().mean() - tail) < 4 * math.sqrt(tail / n)
    # Neither the two of a pair, nor neighbours of one image, nor the same place of two images are correlated.
    image = x.view(2000, 500)
    for a, b in ((x[::2], x[1::2]), (x[:-1], x[1:]), (image[:-1], image[1:])):
        assert abs((a * b).mean()) < 4 / math.sqrt(a.numel())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator")
def test_a_gpu_draws_what_the_cpu_draws():
    seeds = [11, 5, 2**62, 0]
    for there, here in zip(draws(ImageRandom(seeds, "cuda")), draws(ImageRandom(seeds)), strict=True):
        assert there.device.type == "cuda"
        if here.is_floating_point():
            assert (np.abs(there.cpu().numpy() - here.numpy()) <= np.spacing(np.abs(here.numpy()))).all()
        else:
            assert torch.equal(there.cpu(), here)


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
