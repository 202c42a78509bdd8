import torch

import unistep
from unistep.core.random import image_seed, image_seeds
from unistep.generation.labels import make_labels
from unistep.generation.plan import ConsistencyPlan, default_plan
from unistep.serving.batch import Row, make_rows, places_matter


def rows_of(seed: int, count: int) -> list[Row]:
    labels = make_labels(10, count, None, seed)
    assert labels is not None
    return [Row(int(k), i, int(labels[i])) for i, k in enumerate(image_seeds(seed, range(count)))]


def made(model, rows, by_place=True):
    plan = default_plan(model.loaded.info, 2)
    images = make_rows(model.denoiser, plan, model.shape, rows, tile=model.tile, by_place=by_place)
    assert images is not None
    return images


def test_images_are_those_of_sample(digits):
    expected = unistep.sample(num_images=20, steps=2, seed=5, progress=False).pixels
    assert torch.equal(made(digits, rows_of(5, 20)), expected)


def test_images_of_many_runs_in_one_batch_are_those_of_each_alone(digits):
    mixed = [row for seed in range(6) for row in rows_of(seed, seed + 1)]
    together = made(digits, mixed, by_place=digits.by_place)
    alone = torch.cat([made(digits, rows_of(seed, seed + 1)) for seed in range(6)])
    assert torch.equal(together, alone)


class Uneven(torch.nn.Module):
    """A denoiser whose output depends on the place in the batch, as a device's rounding may."""

    def forward(self, x, sigma, labels=None):
        return x / 80 + torch.arange(len(x)).view(-1, 1, 1, 1) * 1e-3


def test_places_are_kept_where_they_matter(digits):
    plan = default_plan(digits.loaded.info)
    assert places_matter(Uneven(), plan, (1, 4, 4), 0, 4, "cpu")
    rows = [Row(image_seed(seed, 0), 0, None) for seed in range(3)]
    together, *alone = (make_rows(Uneven(), plan, (1, 4, 4), part, tile=4) for part in (rows, *([row] for row in rows)))
    assert together is not None
    for i, image in enumerate(alone):
        assert image is not None and torch.equal(image[0], together[i])


def test_a_tile_of_one_has_no_places():
    assert not places_matter(Uneven(), ConsistencyPlan((80.0,), 0.002, 80.0), (1, 4, 4), 0, 1, "cpu")


def test_nothing_more_is_made_of_what_nobody_wants(digits):
    plan = default_plan(digits.loaded.info)
    unwanted = lambda: True  # noqa: E731
    made = make_rows(digits.denoiser, plan, digits.shape, rows_of(0, 3), tile=digits.tile, unwanted=unwanted)
    assert made is None
