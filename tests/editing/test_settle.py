"""The evaluations that end an edit without noise."""

import pytest
import torch

from unistep.core.random import ImageRandom, image_seed
from unistep.editing.methods.settle import settle, settle_levels
from unistep.editing.methods.zero_shot import start, zero_shot
from unistep.editing.operators.compressed_sensing import CompressedSensing
from unistep.editing.operators.mask import Inpainting, lower
from unistep.editing.operators.operator import agree_in_range, residual

SHAPE = (1, 12, 12)


def noise_of(count):
    return ImageRandom([image_seed(0, i) for i in range(count)])


@pytest.mark.parametrize("count", [0, 1, 3, 12])
def test_levels(count):
    levels = settle_levels(count)
    assert len(levels) == count and levels == sorted(set(levels), reverse=True)
    assert not levels or levels[0] == pytest.approx(2.0)
    assert count < 2 or levels[-1] == pytest.approx(0.1)
    assert all(0 < s <= 0.05 for s in settle_levels(count, most=0.05))


def test_it_is_the_model_in_turns_with_agreement():
    operator, seen = Inpainting(lower((12, 12))), []

    def denoiser(x, sigma, labels=None):
        seen.append((x.clone(), sigma.tolist(), labels))
        return 0.5 * x + 3.0 * (x > 0.9)  # out of range in places

    labels, random = torch.tensor([1, 2]), noise_of(2)
    y, x = operator.A(random.randn(*SHAPE).clamp(-1, 1)), random.randn(*SHAPE)
    settled = settle(denoiser, operator, y, x, [2.0, 0.5], labels)
    expected = agree_in_range(operator, x, y)
    for (given, sigma, told), level in zip(seen, [2.0, 0.5], strict=True):
        torch.testing.assert_close(given, expected)
        assert sigma == [level] * 2 and told is labels
        expected = agree_in_range(operator, (0.5 * given + 3.0 * (given > 0.9)).clamp(-1, 1), y)
    torch.testing.assert_close(settled, expected)
    assert residual(operator, settled, y).max() < 1e-6


def test_no_levels_change_nothing_that_agrees():
    operator = Inpainting(lower((12, 12)))
    x = noise_of(2).randn(*SHAPE).clamp(-1, 1)
    assert torch.equal(settle(lambda *_: 1 / 0, operator, operator.A(x), x, []), x)


def test_it_takes_away_what_the_noise_has_left():
    """Images on a plane, and the exact consistency function of such: the nearest of them, for noise about the plane.

    An edit from few numbers of the image leaves it; settled, the result is nearer to the image that it was.
    """
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(144, 40, generator=generator))[0]
    operator = CompressedSensing(SHAPE, 0.35, torch.Generator().manual_seed(1))
    true = ((0.15 * torch.randn(8, 40, generator=generator)) @ basis.T).view(8, *SHAPE)
    assert true.abs().max() < 1

    def denoiser(x, sigma, labels=None):
        weight = 0.15**2 / (0.15**2 + sigma[:, None] ** 2)
        inside = x.flatten(1) @ basis @ basis.T
        return (weight.sqrt() * inside + 0.002 / sigma[:, None] * (x.flatten(1) - inside)).view_as(x)

    y, random = operator.A(true), noise_of(8)
    levels = [2.0, 0.5, 0.2]
    x_T = start(operator, y, random.randn(*SHAPE), levels[0])
    drawn = zero_shot(denoiser, operator, y, x_T, levels, random=lambda x: random.randn(*x.shape[1:])).x
    settled = settle(denoiser, operator, y, drawn, settle_levels(12, most=0.2))

    def error(x):
        return (x - true).square().mean((1, 2, 3))

    assert (error(settled) < 0.5 * error(drawn)).all()
