"""Settings of the evaluation in training."""

from typing import get_args, get_type_hints

import pytest

from unistep.metrics.config import EvaluationConfig
from unistep.metrics.table import METRICS


def test_the_choice_of_metrics_follows_the_table():
    choice = get_args(get_type_hints(EvaluationConfig)["metric"])
    assert set(choice) >= {"fd", "sfd", "kd"}
    assert all(METRICS[name].better == "lower" for name in choice)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_images": 19}, "`num_images` 19 must be at least 20"),
        ({"reference_images": 0}, "`reference_images` 0 must be at least 20"),
        ({"steps": 0}, "`steps` 0 must be at least 1"),
        ({"seed": -1}, "`seed` -1 must be at least 0"),
    ],
)
def test_config_refuses(fields, message):
    with pytest.raises(ValueError, match=message):
        EvaluationConfig(**fields)
