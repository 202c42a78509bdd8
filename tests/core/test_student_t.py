"""Truncated Student-t levels are the quantiles of scipy."""

import numpy as np
import pytest
import torch
from scipy import stats

from unistep.core.student_t import TruncatedStudentT


@pytest.mark.parametrize("df", [0.01, 0.5, 5.0])
@pytest.mark.parametrize("bounds", [(1.0, 80.0), (0.002, 80.0), (1.5, 3.0)])
def test_quantiles(df, bounds, generator):
    u = torch.rand(200, generator=generator, dtype=torch.float64)
    low, high = np.log(bounds) / 0.3 + 0.4 / 0.3
    law = stats.t(df)
    expected = law.ppf(law.cdf(low) + u.numpy() * (law.cdf(high) - law.cdf(low))) * 0.3 - 0.4
    found = TruncatedStudentT(*bounds, mean=-0.4, scale=0.3, df=df).sample(u).log().numpy()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9)


def test_ends_and_dtype():
    levels = TruncatedStudentT(1.0, 80.0).sample(torch.tensor([0.0, 1 - 2**-24]))
    assert levels.dtype == torch.float32 and bool(((levels >= 1) & (levels <= 80)).all())
    assert float(levels[0]) == 1.0 and float(levels[1]) == pytest.approx(80.0, rel=1e-5)
