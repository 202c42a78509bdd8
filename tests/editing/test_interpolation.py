import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unistep.editing.interpolation import slerp, walk
from unistep.errors import UserError


def gaussian(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def norms(x):
    return x.double().flatten(1).norm(dim=1)


def angles(a, b):
    a, b = a.double().flatten(1), b.double().flatten(1)
    return torch.arccos(((a * b).sum(1) / (norms(a) * norms(b))).clamp(-1, 1))


@given(st.integers(0, 1000), st.floats(0, 1))
def test_formula_of_the_paper_keeps_the_norm(seed, share):
    a, b = (
        gaussian(2, 1, 4, 4, seed=seed, dtype=torch.float64),
        gaussian(2, 1, 4, 4, seed=seed + 1, dtype=torch.float64),
    )
    b = b * (norms(a) / norms(b)).view(2, 1, 1, 1)
    t = torch.full((2,), share, dtype=torch.float64)
    psi = angles(a, b).view(2, 1, 1, 1)
    expected = (((1 - share) * psi).sin() * a + (share * psi).sin() * b) / psi.sin()
    out = slerp(a, b, t)
    torch.testing.assert_close(out, expected, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(norms(out), norms(a))


@given(st.integers(0, 1000), st.floats(0, 1))
def test_norm_and_angle_go_evenly(seed, share):
    a, b = gaussian(1, 1, 3, 3, seed=seed), 3 * gaussian(1, 1, 3, 3, seed=seed + 1)
    out = slerp(a, b, torch.tensor([share]))
    torch.testing.assert_close(norms(out), (1 - share) * norms(a) + share * norms(b), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(angles(a, out), share * angles(a, b), rtol=0, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_ends_to_the_last_bit(dtype):
    a, b = gaussian(3, 2, 5, 5, seed=1).to(dtype), 7 * gaussian(3, 2, 5, 5, seed=2).to(dtype)
    assert torch.equal(slerp(a, b, torch.zeros(3)), a) and torch.equal(slerp(a, b, torch.ones(3)), b)


def test_every_pair_at_its_own_share_and_both_ways():
    a, b, t = gaussian(3, 1, 4, 4, seed=1), gaussian(3, 1, 4, 4, seed=2), torch.tensor([0.1, 0.5, 0.8])
    out = slerp(a, b, t)
    torch.testing.assert_close(slerp(b, a, 1 - t), out)
    for i in range(3):
        torch.testing.assert_close(slerp(a[i : i + 1], b[i : i + 1], t[i : i + 1])[0], out[i])


def test_same_direction_is_a_straight_line():
    a = gaussian(3, 1, 4, 4)
    half = torch.full((3,), 0.5)
    torch.testing.assert_close(slerp(a, a, half), a)
    torch.testing.assert_close(slerp(a, 3 * a, half), 2 * a)
    torch.testing.assert_close(slerp(a, a + 1e-4 * a.flip(-1), half), a + 5e-5 * a.flip(-1), rtol=1e-6, atol=1e-6)
    assert torch.equal(slerp(0 * a, 0 * a, half), 0 * a)


def test_opposite_noises():
    a = gaussian(2, 1, 4, 4)
    with pytest.raises(UserError, match="opposite"):
        slerp(a, torch.stack([a[1], -a[1]]), torch.full((2,), 0.5))


def test_open_walk():
    points = gaussian(4, 1, 8, 8)
    path = walk(points, 5)
    assert len(path) == 16 and torch.equal(path[::5], points)
    steps = angles(path[:-1], path[1:]).view(3, 5)
    torch.testing.assert_close(steps, steps.mean(1, keepdim=True).expand(3, 5), rtol=1e-3, atol=1e-4)


def test_closed_walk_returns_without_repeating():
    points = gaussian(3, 1, 8, 8)
    path = walk(points, 4, closed=True)
    assert len(path) == 12 and torch.equal(path[::4], points)
    step = angles(path, path.roll(-1, 0))
    assert step.min() > 0.2 * math.pi / 2 and step.max() < 0.3 * math.pi / 2


@pytest.mark.parametrize(("points", "frames"), [(1, 4), (0, 4), (3, 0)])
def test_no_walk(points, frames):
    with pytest.raises(UserError, match=f"not {points} and {frames}"):
        walk(gaussian(points, 1, 4, 4), frames)
