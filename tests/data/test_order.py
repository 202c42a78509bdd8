"""The order of the images is a pure function of step and seed."""

import numpy as np
import pytest
import torch

from unistep.data.order import batch_flips, batch_indices, epoch_order

CRITICAL_AT_1E_6 = 47.0  # chi-square with 9 degrees of freedom


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
@pytest.mark.parametrize("epoch", [0, 3])
def test_an_epoch_is_a_permutation(size, epoch):
    assert torch.equal(epoch_order(epoch, size, seed=5).sort().values, torch.arange(size))


@pytest.mark.parametrize(("batch", "size"), [(4, 12), (5, 12), (12, 12), (30, 12), (3, 1)])
def test_batches_run_through_the_epochs_without_a_gap(batch, size):
    steps = torch.cat([batch_indices(step, batch, size, seed=1) for step in range(20)])
    epochs = torch.cat([epoch_order(epoch, size, seed=1) for epoch in range(20 * batch // size + 1)])
    assert torch.equal(steps, epochs[: len(steps)])


def test_a_step_is_the_same_out_of_order():
    forward = [batch_indices(step, 8, 50, seed=2) for step in range(30)]
    for step in (29, 3, 17, 0, 29, 8):
        assert torch.equal(batch_indices(step, 8, 50, seed=2), forward[step])
        assert torch.equal(batch_flips(step, 8, seed=2), batch_flips(step, 8, seed=2))


def test_results_may_be_changed_by_the_caller():
    first = epoch_order(0, 20, seed=0)
    expected = first.clone()
    first.zero_()
    batch_indices(0, 20, 20, seed=0).zero_()
    assert torch.equal(epoch_order(0, 20, seed=0), expected)


def test_the_order_is_fixed_for_ever():
    # A resumed run depends on these; they must not change with any version of anything.
    assert epoch_order(0, 10, seed=0).tolist() == [7, 1, 4, 5, 3, 2, 9, 6, 0, 8]
    assert epoch_order(7, 10, seed=123).tolist() == [7, 2, 1, 0, 4, 8, 3, 6, 5, 9]
    assert batch_flips(5, 12, seed=9).int().tolist() == [1, 0, 0, 0, 1, 0, 1, 1, 1, 1, 0, 1]


def test_epochs_and_seeds_differ():
    orders = {tuple(epoch_order(epoch, 50, seed).tolist()) for epoch in range(10) for seed in (-1, 0, 1, 2**62)}
    assert len(orders) == 40


def test_every_image_is_as_likely_at_every_place():
    orders = np.stack([epoch_order(epoch, 10, seed=4).numpy() for epoch in range(3000)])
    for place in (0, 4, 9):
        counts = np.bincount(orders[:, place], minlength=10)
        assert ((counts - 300) ** 2 / 300).sum() < CRITICAL_AT_1E_6


def test_successive_places_are_independent():
    orders = np.stack([epoch_order(epoch, 11, seed=4).numpy() for epoch in range(3300)])
    steps = np.bincount((orders[:, 1] - orders[:, 0]) % 11, minlength=11)[1:]
    assert ((steps - 330) ** 2 / 330).sum() < CRITICAL_AT_1E_6


def test_flips_are_a_fair_coin():
    flips = torch.cat([batch_flips(step, 1000, seed=3) for step in range(20)])
    # 20,000 tosses: five standard deviations are 354.
    assert abs(int(flips.sum()) - 10_000) < 354
    assert abs(int((flips[1:] == flips[:-1]).sum()) - 10_000) < 354
    assert not torch.equal(batch_flips(0, 1000, seed=3), batch_flips(0, 1000, seed=4))


def test_flips_belong_to_the_place_and_not_to_the_batch():
    small = torch.cat([batch_flips(step, 8, seed=3) for step in range(6)])
    large = torch.cat([batch_flips(step, 16, seed=3) for step in range(3)])
    assert torch.equal(small, large)


@pytest.mark.parametrize(("step", "batch", "size"), [(-1, 4, 10), (0, 0, 10), (0, 4, 0)])
def test_impossible_arguments_are_refused(step, batch, size):
    with pytest.raises(ValueError, match="step|dataset"):
        batch_indices(step, batch, size, seed=0)
