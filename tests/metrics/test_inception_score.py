import math
from pathlib import Path

import numpy as np
import pytest
import torch

from unistep.errors import UserError
from unistep.metrics.inception_score import inception_score

GOLDEN = Path(__file__).parents[1] / "golden" / "metrics.npz"


def test_golden_score():
    golden = np.load(GOLDEN)
    score = inception_score(torch.from_numpy(golden["probabilities"]), split_size=500)
    assert score.mean == pytest.approx(float(golden["inception_score_split500"]), rel=1e-6)


def test_certain_and_balanced_predictions_reach_the_number_of_classes():
    # One-hot rows hold zeros, whose logarithm must not become NaN.
    score = inception_score(torch.eye(7).repeat(20, 1))
    assert score.mean == pytest.approx(7, rel=1e-12)


@pytest.mark.parametrize("row", [[1.0, 0.0, 0.0], [0.2, 0.3, 0.5]], ids=["one class", "undecided"])
def test_equal_predictions_score_one(row: list[float]):
    assert inception_score(torch.tensor([row]).repeat(30, 1)).mean == pytest.approx(1, abs=1e-12)


def test_closed_form_of_two_predictions():
    score = inception_score(torch.tensor([[0.9, 0.1], [0.1, 0.9]], dtype=torch.float64).repeat(10, 1))
    assert score.mean == pytest.approx(math.exp(0.9 * math.log(1.8) + 0.1 * math.log(0.2)), rel=1e-12)


def test_parts_count_equally():
    # Parts of score 3, 1 and, the last and shorter one, 1.
    probabilities = torch.cat([torch.eye(3).repeat(2, 1), torch.eye(3)[:1].repeat(8, 1)])
    score = inception_score(probabilities, split_size=6)
    assert score.mean == pytest.approx(5 / 3, rel=1e-12)
    assert score.std == pytest.approx(math.sqrt(8) / 3, rel=1e-12)


@pytest.mark.parametrize(("count", "split_size"), [(400, 5000), (900, 300)], ids=["one part", "three parts"])
def test_standard_error_is_the_scatter_of_repeated_draws(count: int, split_size: int):
    generator = torch.Generator().manual_seed(0)
    draws = []
    for _ in range(400):
        logits = torch.randn(count, 6, generator=generator, dtype=torch.float64) * torch.arange(1, 7)
        draws.append(inception_score(logits.softmax(dim=1), split_size))
    scatter = np.std([draw.mean for draw in draws], ddof=1)
    assert scatter == pytest.approx(np.mean([draw.standard_error for draw in draws]), rel=0.12)


def test_standard_error_agrees_with_the_jackknife():
    probabilities = torch.randn(150, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64).softmax(dim=1)
    without = [inception_score(torch.cat([probabilities[:i], probabilities[i + 1 :]])).mean for i in range(150)]
    jackknife = (149 / 150 * np.sum((np.array(without) - np.mean(without)) ** 2)) ** 0.5
    score = inception_score(probabilities)
    assert score.standard_error == pytest.approx(jackknife, rel=0.02)
    assert (score.estimate.value, score.estimate.standard_error) == (score.mean, score.standard_error)


def test_equal_predictions_have_no_error():
    assert inception_score(torch.tensor([[0.2, 0.8]]).repeat(9, 1)).standard_error == pytest.approx(0, abs=1e-12)


def test_user_errors():
    with pytest.raises(UserError, match="softmax"):
        inception_score(torch.tensor([[2.0, -1.0]]))
    with pytest.raises(UserError, match="needs samples"):
        inception_score(torch.empty(0, 10))
    with pytest.raises(UserError, match="split size"):
        inception_score(torch.eye(3), split_size=0)
