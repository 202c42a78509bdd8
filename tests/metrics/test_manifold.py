from pathlib import Path

import numpy as np
import pytest
import torch

from unistep.errors import UserError
from unistep.metrics.estimate import proportion
from unistep.metrics.manifold import density_coverage, manifold_estimates, precision_recall, squared_radii

GOLDEN = Path(__file__).parents[1] / "golden" / "metrics.npz"


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_golden_is_exact():
    golden = np.load(GOLDEN)
    result = precision_recall(*(torch.from_numpy(golden[k]) for k in ("reference_features", "sample_features")))
    assert result.precision == golden["precision"][0]
    # The reference value went through float32.
    assert np.float32(result.recall) == np.float32(golden["recall"][0])


def test_radii_count_other_vectors_only():
    line = torch.tensor([[0.0], [1.0], [3.0], [7.0]], dtype=torch.float64)
    assert squared_radii(line, 1).tolist() == [1, 1, 4, 16]
    assert squared_radii(line, 2).tolist() == [9, 4, 9, 36]


def test_hand_computed_line():
    # Balls with k = 1 around the reference: [-1, 1], [0, 2], [1, 5], [3, 11]; around the samples: [-8, 8], [-3, 13],
    # [-9, -1].
    reference = torch.tensor([[0.0], [1.0], [3.0], [7.0]])
    samples = torch.tensor([[0.0], [5.0], [-5.0]])
    result = precision_recall(reference, samples, k=1)
    assert result.precision == pytest.approx(2 / 3)
    assert result.recall == 1.0


@pytest.mark.parametrize("rows", [3, 7, 64, 1000])
def test_block_size_does_not_matter(rows: int):
    reference, samples = normal(64, 8), normal(50, 8, seed=1) * 1.2
    assert precision_recall(reference, samples, rows=rows) == precision_recall(reference, samples, rows=50)


def test_far_from_the_origin():
    reference, samples = normal(200, 8).double(), normal(200, 8, seed=1).double()
    near = precision_recall(reference, samples)
    assert 0.5 < near.precision < 1
    assert precision_recall(reference + 1e6, samples + 1e6) == near


def test_a_collapsed_model_is_precise_and_covers_nothing():
    reference = normal(300, 8)
    samples = reference[:1] + 1e-3 * normal(300, 8, seed=1)
    result = precision_recall(reference, samples)
    assert result.precision == 1.0
    assert result.recall <= 1 / 300


def test_a_set_against_itself_and_against_a_distant_one():
    reference = normal(100, 8)
    same, distant = precision_recall(reference, reference), precision_recall(reference, reference + 100)
    assert (same.precision, same.recall) == (1.0, 1.0)
    assert (distant.precision, distant.recall) == (0.0, 0.0)


def published_density_coverage(reference: np.ndarray, samples: np.ndarray, k: int) -> tuple[float, float]:
    """Naeem et al.'s eqs. 3 and 4 in the letter, by differences."""
    own = np.linalg.norm(reference[:, None] - reference, axis=-1)
    radius = np.sort(own, axis=1)[:, k]  # the first is the vector itself
    across = np.linalg.norm(reference[:, None] - samples, axis=-1)
    inside = across < radius[:, None]
    return inside.sum() / (k * len(samples)), inside.any(axis=1).mean()


@pytest.mark.parametrize("k", [1, 5])
@pytest.mark.parametrize("scale", [0.7, 1.0, 1.3])
def test_density_and_coverage_are_the_published_ones(k: int, scale: float):
    reference, samples = normal(90, 6) + 3, normal(70, 6, seed=1) * scale + 3
    found = density_coverage(reference, samples, k, rows=32)
    density, coverage = published_density_coverage(reference.double().numpy(), samples.double().numpy(), k)
    assert found.density == pytest.approx(density, rel=1e-12)
    assert found.coverage == pytest.approx(coverage, rel=1e-12)
    assert 0 < coverage < 1


def test_density_and_coverage_on_a_hand_computed_line():
    # Open balls with k = 1: (-1, 1), (0, 2), (1, 5), (3, 11). 0 lies in the first only, 4 in the last two; 2 and 3 are
    # on the rims of two and inside (1, 5) alone; -5 is outside.
    reference = torch.tensor([[0.0], [1.0], [3.0], [7.0]])
    found = density_coverage(reference, torch.tensor([[0.0], [4.0], [2.0], [3.0], [-5.0]]), k=1)
    assert found.density == pytest.approx((1 + 2 + 1 + 1 + 0) / 5)
    assert found.coverage == 3 / 4


def test_an_outlier_widens_precision_but_hardly_density():
    """The reason for density: one far vector has a ball that holds everything."""
    reference = torch.cat([normal(200, 4), torch.full((1, 4), 50.0)])
    samples = 8 + 0.1 * normal(100, 4, seed=1)
    assert precision_recall(reference, samples).precision == 1.0
    found = density_coverage(reference, samples)
    assert found.density == pytest.approx(1 / 5)
    assert found.coverage == 1 / 201


def test_estimates_are_those_of_the_single_measures():
    reference, samples = normal(150, 8), normal(90, 8, seed=1) * 1.1
    found = manifold_estimates(reference, samples, k=2, density_k=4, rows=40)
    assert list(found) == ["precision", "recall", "density", "coverage"]
    both, other = precision_recall(reference, samples, 2), density_coverage(reference, samples, 4)
    assert (found["precision"].value, found["recall"].value) == (both.precision, both.recall)
    assert (found["density"].value, found["coverage"].value) == (other.density, other.coverage)
    again = manifold_estimates(reference, samples, k=2, density_k=4)
    for name, estimate in found.items():
        assert again[name].standard_error == pytest.approx(estimate.standard_error, rel=1e-9)


# The last is coverage at which a few samples reach most of the balls: the binomial error alone is half the true one.
@pytest.mark.parametrize(("dim", "scale", "num_samples"), [(8, 1.0, 300), (16, 1.3, 200), (64, 1.0, 200)])
def test_standard_errors_are_the_scatter_of_repeated_draws(dim: int, scale: float, num_samples: int):
    reference = normal(400, dim)
    draws = [manifold_estimates(reference, scale * normal(num_samples, dim, seed=1 + i)) for i in range(80)]
    for name, tolerance in {"precision": 0.2, "recall": 0.45, "density": 0.2, "coverage": 0.25}.items():
        values = np.array([draw[name].value for draw in draws])
        error = np.sqrt(np.mean([draw[name].standard_error ** 2 for draw in draws]))
        assert values.std(ddof=1) == pytest.approx(error, rel=tolerance), name


def test_a_share_is_never_certain():
    assert proportion(30, 120).value == 0.25
    assert proportion(30, 120).standard_error == pytest.approx((0.25 * 0.75 / 120) ** 0.5, rel=0.02)
    for count in (0, 1000):
        certain = proportion(count, 1000)
        assert certain.value == count / 1000
        assert 0.5 / 1000 < certain.standard_error < 2 / 1000


def test_progress_is_told_to_the_end():
    told = []
    manifold_estimates(normal(50, 4), normal(30, 4, seed=1), rows=20, on_progress=lambda *now: told.append(now))
    done, totals = zip(*told, strict=True)
    assert set(totals) == {done[-1]}
    assert list(done) == sorted(set(done))
    # Distances within a set serve both of their ends: 20x50 + 20x30 + 10x10, and 20x30 + 10x10.
    assert done[-1] == 1700 + 700 + 50 * 30


def test_mapped_half_precision_features_are_not_copied_whole(tmp_path: Path):
    features = normal(120, 16).half().numpy()
    np.save(tmp_path / "features.npy", features)
    mapped = torch.from_numpy(np.load(tmp_path / "features.npy", mmap_mode="c"))
    expected = torch.from_numpy(features).double()
    assert manifold_estimates(mapped[:80], mapped[80:], rows=16) == manifold_estimates(
        expected[:80], expected[80:], rows=16
    )


def test_features_that_are_not_finite():
    reference, samples = normal(20, 4), normal(20, 4, seed=1)
    samples[[3, 7], 1] = torch.tensor([float("nan"), float("inf")])
    for measure in (precision_recall, density_coverage, manifold_estimates):
        with pytest.raises(UserError, match="2 of the 20 feature vectors of the samples are not finite"):
            measure(reference, samples)
    with pytest.raises(UserError, match="of the reference are not finite"):
        precision_recall(samples, reference)


def test_user_errors():
    with pytest.raises(UserError, match="density and coverage with k = 5 need 1 <= k < 4"):
        manifold_estimates(normal(4, 4), normal(10, 4))
    with pytest.raises(UserError, match="k = 3"):
        precision_recall(normal(3, 4), normal(10, 4))
    with pytest.raises(UserError, match="4 and 5 features"):
        precision_recall(normal(10, 4), normal(10, 5))
