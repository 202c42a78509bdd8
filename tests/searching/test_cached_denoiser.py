"""A cached denoiser gives what the denoiser gives, and asks it once."""

import pytest
import torch

from unistep.samplers.consistency import sample_multistep
from unistep.searching.cached_denoiser import CachedDenoiser

SHAPE = (3, 1, 4, 4)
BYTES = 3 * 16 * 4


class Counted:
    """f(x, sigma, labels) that tells every argument."""

    def __init__(self):
        self.calls = 0

    def __call__(self, x_t, sigma, class_labels=None):
        self.calls += 1
        shift = 0 if class_labels is None else class_labels[:, None, None, None]
        return torch.tanh(x_t / (1 + sigma[:, None, None, None])) * 0.5 + 0.01 * shift


def noise(seed=0):
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


def sample(denoiser, sigmas, seed=0, labels=None):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda x: torch.randn(x.shape, generator=generator)  # noqa: E731
    return sample_multistep(denoiser, noise(seed), sigmas, labels, random=draw)


def test_what_schedules_share_is_computed_once():
    counted = Counted()
    cached = CachedDenoiser(counted, 80.0)
    evaluations = [(80.0, 2.0), (80.0, 1.0), (80.0, 2.0), (80.0, 2.0, 0.5), (80.0, 2.0, 0.1)]
    for sigmas, calls in zip(evaluations, [2, 3, 3, 4, 5], strict=True):
        assert torch.equal(sample(cached, sigmas), sample(Counted(), sigmas))
        assert counted.calls == calls


@pytest.mark.parametrize("labels", [None, torch.tensor([0, 1, 2])])
def test_different_inputs_are_told_apart(labels):
    cached = CachedDenoiser(Counted(), 80.0)
    x, sigma = noise(), torch.full((3,), 5.0)
    cases = [
        (x, sigma, labels),
        (x + 1e-6, sigma, labels),
        (x, sigma + 1e-6, labels),
        (x, sigma, torch.tensor([2, 1, 0])),
        (x.flip(0), sigma, labels),
        (x[:2], sigma[:2], None if labels is None else labels[:2]),
    ]
    for _ in range(2):
        for case in cases:
            assert torch.equal(cached(*case), Counted()(*case))


@pytest.mark.parametrize("kept", [0, 1, 2, 3])
def test_the_first_level_stays_and_of_the_others_the_last_used(kept):
    """`kept` outputs have room: first that at sigma_max, though it is used least."""
    counted = Counted()
    cached = CachedDenoiser(counted, 80.0, limit=kept * BYTES + BYTES // 2)
    x = noise()

    def asked(sigma):
        before = counted.calls
        assert torch.equal(cached(x, torch.full((3,), sigma)), Counted()(x, torch.full((3,), sigma)))
        return counted.calls > before

    for sigma in (80.0, 5.0, 6.0, 7.0):
        assert asked(sigma)
    assert asked(80.0) is (kept < 1)
    assert asked(7.0) is (kept < 2)
    assert asked(6.0) is (kept < 3)


def test_a_first_level_takes_the_place_of_others():
    counted = Counted()
    cached = CachedDenoiser(counted, 80.0, limit=BYTES)
    x = noise()
    for sigma in (5.0, 80.0, 80.0):
        cached(x, torch.full((3,), sigma))
    assert counted.calls == 2
