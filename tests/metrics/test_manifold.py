from pathlib import Path

import numpy as np
import pytest
import torch

from unistep.errors import UserError
from unistep.metrics.manifold import precision_recall, squared_radii

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


@pytest.mark.parametrize("rows", [1, 7, 64, 1000])
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


def test_user_errors():
    with pytest.raises(UserError, match="k = 3"):
        precision_recall(normal(3, 4), normal(10, 4))
    with pytest.raises(UserError, match="4 and 5 features"):
        precision_recall(normal(10, 4), normal(10, 5))
