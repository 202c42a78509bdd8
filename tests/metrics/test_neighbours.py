from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from unistep.data import open_dataset
from unistep.errors import UserError
from unistep.metrics.features.mnist_classifier import load_mnist_classifier
from unistep.metrics.neighbours import Neighbours, memorised, near, near_distance, nearest_neighbours, save_neighbours


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def by_hand(samples: torch.Tensor, training: torch.Tensor, k: int) -> tuple[np.ndarray, np.ndarray]:
    distance = np.linalg.norm(samples.double().numpy()[:, None] - training.double().numpy(), axis=-1)
    index = np.argsort(distance, axis=1)[:, :k]
    return np.take_along_axis(distance, index, axis=1), index


@pytest.mark.parametrize("sizes", [[60], [20, 40], [1, 0, 2, 57], [1] * 60], ids=str)
def test_neighbours_are_the_nearest_however_the_blocks_are_cut(sizes: list[int]):
    samples, training = normal(23, 5), normal(60, 5, seed=1)
    found = nearest_neighbours(samples, iter(training.split(sizes)), 4, rows=7)
    distance, index = by_hand(samples, training, 4)
    np.testing.assert_array_equal(found.index, index)
    np.testing.assert_allclose(found.distance, distance, rtol=1e-12)


def test_a_training_image_is_not_its_own_neighbour():
    training = normal(40, 5)
    own = torch.tensor([3, 39, 17, 0])
    found = nearest_neighbours(training[own], training.split(15), 3, own=own)
    distance, index = by_hand(training[own], training, 4)
    np.testing.assert_array_equal(found.index, index[:, 1:])
    np.testing.assert_allclose(found.distance, distance[:, 1:], rtol=1e-12)
    # All others are enough, and it is among them not even at an infinite distance.
    everything = nearest_neighbours(training[own], training.split(15), 39, own=own)
    assert not (everything.index == own[:, None]).any()
    assert everything.distance.isfinite().all()


def test_a_copy_is_at_distance_zero_far_from_the_origin():
    # |a|^2 + |b|^2 - 2ab leaves about 1e-3 of norms of 1e6, which would be as far as anything else here.
    training = 1e5 + normal(50, 100)
    samples = torch.cat([training[[31]], training[[8]] + 1, 1e5 + normal(20, 100, seed=1)])
    found = nearest_neighbours(samples, training.split(20), 2)
    assert (found.distance[0, 0], found.index[0, 0], found.ratio[0]) == (0, 31, 0)
    assert found.closest(1).tolist() == [0]


def test_copies_and_near_copies_are_memorised_and_fresh_samples_are_not():
    training = normal(500, 64)
    fresh, copies = normal(60, 64, seed=1), training[:20]
    near = training[20:40] + 0.1 * normal(20, 64, seed=2)
    found = nearest_neighbours(torch.cat([fresh, copies, near]), training.split(200), 2)
    assert ((found.ratio < 1 / 3).nonzero().flatten() == torch.arange(60, 100)).all()
    assert (found.ratio <= 1).all()
    share = memorised(found)
    assert share.value == 0.4
    assert share.standard_error == pytest.approx((0.4 * 0.6 / 100) ** 0.5, rel=0.05)
    own = nearest_neighbours(training[:100], training.split(200), 2, own=torch.arange(100))
    assert memorised(own).value == 0
    assert 0 < memorised(own).standard_error < 0.02


def test_the_threshold_is_a_third():
    distance = torch.tensor([[1.0, 3.01], [1.0, 2.99], [2.0, 2.0]], dtype=torch.float64)
    found = Neighbours(distance, torch.zeros(3, 2, dtype=torch.int64))
    assert memorised(found).value == pytest.approx(1 / 3)
    assert memorised(found, ratio=0.5).value == pytest.approx(2 / 3)


def test_a_copy_of_an_image_that_exists_twice_is_a_copy():
    """d1 / d2 would be 0 / 0; and training images that exist twice are copies of each other."""
    training = normal(30, 8)
    training[21] = training[4]
    found = nearest_neighbours(training[[4]], training.split(10), 3)
    assert found.index[0, :2].tolist() == [4, 21]
    assert found.ratio.tolist() == [0]
    own = nearest_neighbours(training, training.split(10), 2, own=torch.arange(30))
    assert (own.ratio == 0).nonzero().flatten().tolist() == [4, 21]
    assert memorised(own).value == pytest.approx(2 / 30)


def test_images_drawn_as_the_training_images_are_near_in_five_of_a_hundred():
    training, fresh = normal(2000, 8), normal(2000, 8, seed=1)
    own = nearest_neighbours(training, training.split(500), 1, own=torch.arange(2000))
    threshold = near_distance(own)
    assert (own.distance[:, 0] < threshold).double().mean() == pytest.approx(0.05, abs=1e-3)
    found = nearest_neighbours(fresh, training.split(500), 1)
    assert near(found, threshold).value == pytest.approx(0.05, abs=0.02)


def test_a_copy_of_an_image_with_a_likeness_in_the_set_is_near_though_no_ratio_shows_it():
    training = normal(400, 16)
    training[200] = training[4] + 0.2 * normal(16, seed=2)
    copy = (training[[4]] + training[[200]]) / 2
    own = nearest_neighbours(training, training.split(100), 2, own=torch.arange(400))
    found = nearest_neighbours(copy, training.split(100), 2)
    assert (memorised(found).value, near(found, near_distance(own)).value) == (0, 1)


def test_the_share_of_the_threshold_may_be_chosen():
    own = Neighbours(torch.arange(1.0, 102.0, dtype=torch.float64)[:, None], torch.zeros(101, 1, dtype=torch.int64))
    assert [near_distance(own, share) for share in (0, 0.05, 0.5, 1)] == [1, 6, 51, 101]
    assert near(own, near_distance(own, 0.5)).value == pytest.approx(50 / 101)


@pytest.mark.parametrize("features", [True, False], ids=["features", "pixels"])
def test_planted_digits_are_found(features: bool):
    training, images = open_dataset("mnist").images[:1000], open_dataset("mnist-test").images[:60].clone()
    images[7] = training[812]
    # Another rounding of every pixel, as of a decoder's.
    shake = torch.randint(-1, 2, (1, 28, 28), generator=torch.Generator().manual_seed(0)) * (training[33] > 0)
    images[50] = (training[33] + shake).clamp(0, 255).to(torch.uint8)
    classifier = load_mnist_classifier()

    def vectors(x: torch.Tensor) -> torch.Tensor:
        return classifier.features(x) if features else x.flatten(1).float()

    found = nearest_neighbours(vectors(images), (vectors(part) for part in training.split(400)), 2)
    assert (found.ratio < 1 / 3).nonzero().flatten().tolist() == [7, 50]
    assert found.index[[7, 50], 0].tolist() == [812, 33]
    assert found.distance[7, 0] < 1e-4 * found.distance[7, 1]
    assert sorted(found.closest(2).tolist()) == [7, 50] or features


def shades(*values: int, size: int = 28, channels: int = 1) -> torch.Tensor:
    """Images of one shade each."""
    return torch.tensor(values, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, channels, size, size).contiguous()


def rows_of_shades(path: Path) -> list[list[int]]:
    """The shades of the squares of the picture, row by row; text has other colours and fills no square."""
    picture = np.array(Image.open(path).convert("RGB"))
    rows: list[list[int]] = []
    for line in picture[10::4]:  # below the heading's first line
        runs = np.split(line[:, 0], np.where(np.diff(line.astype(int), axis=0).any(axis=1))[0] + 1)
        squares = [int(run[0]) for run in runs if len(run) > 50 and run[0] < 250]
        if squares and (not rows or rows[-1] != squares):
            rows.append(squares)
    return rows


@pytest.mark.parametrize("channels", [1, 3])
def test_the_picture_has_a_row_a_sample_and_the_closest_first(channels: int, tmp_path: Path):
    samples = shades(100, 110, 120, channels=channels)
    images = torch.stack([shades(*row, channels=channels) for row in ([10, 20], [30, 40], [50, 60])])
    distance = torch.tensor([[5.0, 6.0], [0.0, 6.0], [3.0, 6.0]])
    path = save_neighbours(tmp_path / "near.png", samples, images, distance)
    assert rows_of_shades(path) == [[110, 30, 40], [120, 50, 60], [100, 10, 20]]
    save_neighbours(path, samples, images, distance, rows=2)
    assert rows_of_shades(path) == [[110, 30, 40], [120, 50, 60]]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("first", "red"), [(1.9, True), (2.1, False)])
def test_the_ratio_of_a_copy_is_red(first: float, red: bool, tmp_path: Path):
    path = save_neighbours(
        tmp_path / "near.png", shades(100), shades(10, 20)[None], torch.tensor([[first, 6.0]], dtype=torch.float64)
    )
    picture = np.array(Image.open(path)).astype(int)
    assert ((picture[..., 0] - picture[..., 1]) > 100).any() == red


@pytest.mark.parametrize("size", [8, 28, 64, 256])
def test_small_images_are_enlarged_and_large_ones_are_not_reduced(size: int, tmp_path: Path):
    path = save_neighbours(tmp_path / "near.png", shades(9, size=size), shades(7, size=size)[None], torch.ones(1, 1))
    picture = np.array(Image.open(path))[..., 0]
    areas = [int((picture == shade).sum()) for shade in (9, 7)]
    factor = {8: 12, 28: 3, 64: 2, 256: 1}[size]
    assert areas == pytest.approx([(size * factor) ** 2] * 2, abs=20)  # letters may have a shade in common


def test_user_errors(tmp_path: Path):
    samples, training = normal(4, 3), normal(9, 3, seed=1)
    with pytest.raises(UserError, match="at least 1, got 0"):
        nearest_neighbours(samples, [training], 0)
    with pytest.raises(UserError, match="4 and 3 features"):
        nearest_neighbours(samples, [normal(9, 4)], 1)
    with pytest.raises(UserError, match="10 nearest neighbours were asked for, but there are 9"):
        nearest_neighbours(samples, training.split(4), 10)
    with pytest.raises(UserError, match="9 nearest neighbours were asked for, but there are 8"):
        nearest_neighbours(training[:1], [training], 9, own=torch.tensor([0]))
    with pytest.raises(UserError, match="1 of the 4 feature vectors of the samples are not finite"):
        nearest_neighbours(torch.cat([samples[:3], samples[3:] * float("nan")]), [training], 1)
    with pytest.raises(UserError, match="of the training images are not finite"):
        nearest_neighbours(samples, [training, training / 0], 1)
    with pytest.raises(UserError, match="ask for at least 2"):
        memorised(nearest_neighbours(samples, [training], 1))
    with pytest.raises(UserError, match="no samples to show"):
        save_neighbours(tmp_path / "near.png", shades(), shades().view(0, 2, 1, 28, 28), torch.empty(0, 2))
    assert list(tmp_path.iterdir()) == []
