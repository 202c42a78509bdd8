import math

import pytest
import torch

from unistep.core.parameterization import expand
from unistep.core.random import ImageRandom, image_seed
from unistep.editing.methods.sdedit import noised, sdedit, variations
from unistep.errors import UserError
from unistep.samplers.consistency import sample_multistep

MU, S, SIGMA_MIN = 0.1, 0.2, 0.002


def shrinks(sigma: float) -> float:
    return math.sqrt((S**2 + SIGMA_MIN**2) / (S**2 + sigma**2))


def consistency(x, sigma, class_labels=None):
    """The consistency function of N(MU, S^2)."""
    return MU + expand(((S**2 + SIGMA_MIN**2) / (S**2 + sigma**2)).sqrt(), 4) * (x - MU)


def noise_of(images, first=0):
    return ImageRandom([image_seed(0, first + i) for i in range(images)])


@pytest.fixture
def x(generator):
    return torch.rand(3, 2, 8, 8, generator=generator) * 2 - 1


@pytest.mark.parametrize("sigma", [0.1, 1.0, 80.0])
def test_one_step_in_closed_form(x, sigma):
    noise = noise_of(3).randn(2, 8, 8)
    out = sdedit(consistency, x, [sigma], random=noise_of(3), clip=False)
    torch.testing.assert_close(out, MU + shrinks(sigma) * (x + sigma * noise - MU), rtol=1e-5, atol=1e-5)


def test_two_steps_in_closed_form(x):
    random = noise_of(3)
    first, second = random.randn(2, 8, 8), random.randn(2, 8, 8)
    x0 = MU + shrinks(1.0) * (x + first - MU)
    x0 = MU + shrinks(0.3) * (x0 + math.sqrt(0.3**2 - SIGMA_MIN**2) * second - MU)
    torch.testing.assert_close(sdedit(consistency, x, [1.0, 0.3], random=noise_of(3), clip=False), x0)


def test_from_sigma_max_it_is_sampling(x):
    random = noise_of(3)
    sampled = sample_multistep(consistency, random.randn(2, 8, 8), [80.0, 0.5], random=random)
    torch.testing.assert_close(sdedit(consistency, 0 * x, [80.0, 0.5], random=noise_of(3)), sampled)


def test_the_level_says_how_near_the_result_stays(x):
    distances = [
        float((sdedit(consistency, x, [sigma], random=noise_of(3)) - x).norm()) for sigma in (0.003, 0.03, 0.3, 3.0)
    ]
    assert distances == sorted(distances) and distances[0] < 0.1 < distances[-1]
    assert torch.equal(sdedit(consistency, x, [SIGMA_MIN], random=noise_of(3)), x)


def test_variations_are_edits_with_seeds_of_their_own(x):
    labels, seen = torch.tensor([5, 6, 7]), []

    def watch(x_t, sigma, class_labels=None):
        seen.append(class_labels.tolist())
        return consistency(x_t, sigma)

    out = variations(watch, x, 2, [0.5, 0.1], labels, random=noise_of(6))
    assert seen == [[5, 5, 6, 6, 7, 7]] * 2
    for i in range(6):
        alone = sdedit(consistency, x[i // 2 : i // 2 + 1], [0.5, 0.1], random=noise_of(1, i))
        torch.testing.assert_close(out[i], alone[0])
    assert (out[0] - out[1]).abs().max() > 0.05


def test_noised_and_clamped(x):
    assert torch.equal(noised(x, torch.ones_like(x), 3.0), x + 3)
    assert sdedit(lambda x_t, sigma, c=None: 5 * x_t, x, [0.5], random=noise_of(3)).abs().max() == 1


@pytest.mark.parametrize("sigmas", [[], [1.0, 1.0], [0.5, 1.0], [math.nan, 0.5]])
def test_levels_that_do_not_descend(x, sigmas):
    with pytest.raises(UserError, match="must descend strictly"):
        sdedit(consistency, x, sigmas, random=noise_of(3))


def test_no_variation(x):
    with pytest.raises(UserError, match="at least one variation, not 0"):
        variations(consistency, x, 0, [0.5], random=noise_of(0))
