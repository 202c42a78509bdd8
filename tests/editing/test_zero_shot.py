import math

import pytest
import torch

from unistep.core.parameterization import ConsistencyScaling, Preconditioned
from unistep.core.random import ImageRandom, image_seed
from unistep.editing.methods.zero_shot import start, zero_shot
from unistep.editing.operators import mask
from unistep.editing.operators.colorization import Colorization
from unistep.editing.operators.mask import Inpainting
from unistep.editing.operators.operator import residual
from unistep.editing.operators.super_resolution import SuperResolution
from unistep.errors import UserError
from unistep.samplers.consistency import sigmas_from_indices

LOWER = Inpainting(mask.lower((8, 8)))


class Recorded:
    """A denoiser that answers `answer` and keeps what it was asked."""

    def __init__(self, answer):
        self.answer, self.calls = answer, []

    def __call__(self, x, sigma, class_labels=None, /):
        self.calls.append((x, sigma, class_labels))
        return self.answer


def noise_of(images: int) -> ImageRandom:
    return ImageRandom([image_seed(0, i) for i in range(images)])


@pytest.mark.parametrize(("task", "operator"), [("colorization", Colorization()), ("superres", SuperResolution(8))])
def test_golden_edits(golden, toy, task, operator):
    values = golden.tensors("editing.npz")
    recorded = iter(values[f"{task}_noises"])
    y = operator.A(values["images"])
    torch.testing.assert_close(operator.A_pinv(y), values[f"{task}_input"], rtol=1e-5, atol=1e-6)
    edited = zero_shot(
        Preconditioned(toy("online"), ConsistencyScaling()),
        operator,
        y,
        values[f"{task}_x_T"],
        sigmas_from_indices(values[f"{task}_ts"].tolist(), 40),
        random=lambda x: next(recorded),
    )
    torch.testing.assert_close(edited.x, values[f"{task}_out"], rtol=1e-5, atol=1e-5)


def test_every_level_is_evaluated_once_from_an_estimate_that_agrees():
    x, guess, labels = noise_of(2).randn(3, 8, 8).clamp(-1, 1), torch.full((2, 3, 8, 8), 0.5), torch.tensor([1, 2])
    x_T, denoiser = 5 * noise_of(2).randn(3, 8, 8), Recorded(guess)
    edited = zero_shot(denoiser, LOWER, LOWER.A(x), x_T, [5.0, 0.3], labels, random=noise_of(2), sigma_min=0.1)
    agreeing = torch.cat([x[:, :, :4], guess[:, :, 4:]], dim=2)
    (first, level, _), (second, last_level, last_labels) = denoiser.calls
    assert torch.equal(first, x_T) and level.tolist() == [5.0, 5.0]
    torch.testing.assert_close(second, agreeing + math.sqrt(0.3**2 - 0.1**2) * noise_of(2).randn(3, 8, 8))
    torch.testing.assert_close(last_level, torch.full((2,), 0.3))
    assert last_labels is labels
    torch.testing.assert_close(edited.x, agreeing)


def test_the_last_level_costs_no_evaluation_and_no_draw():
    denoiser, source = Recorded(torch.zeros(2, 3, 8, 8)), noise_of(2)
    zero_shot(denoiser, LOWER, torch.zeros(2, 96), torch.zeros(2, 3, 8, 8), [80.0, 0.002], random=source)
    assert len(denoiser.calls) == 1
    assert torch.equal(source.randn(3), noise_of(2).randn(3))


def test_the_residual_is_that_of_the_last_estimate_before_it_was_made_to_agree():
    x, apart = noise_of(3).randn(1, 8, 8).clamp(-1, 1), torch.tensor([0.0, 0.1, 0.4])
    denoiser = Recorded(x * 0 + apart[:, None, None, None])
    edited = zero_shot(denoiser, LOWER, torch.zeros(3, 32), x, [80.0, 1.0], random=noise_of(3))
    torch.testing.assert_close(edited.residual, apart)
    assert residual(LOWER, edited.x, torch.zeros(3, 32)).max() == 0


@pytest.mark.parametrize(("clip", "value"), [(True, 1.0), (False, 3.0)])
def test_estimates_are_clamped_before_they_are_made_to_agree(clip, value):
    y = torch.full((1, 32), 1.5)
    x = zero_shot(
        Recorded(3 * torch.ones(1, 1, 8, 8)), LOWER, y, torch.zeros(1, 1, 8, 8), [80.0], random=noise_of(1), clip=clip
    ).x
    assert (x[:, :, :4] == 1.5).all() and (x[:, :, 4:] == value).all()


def test_images_do_not_depend_on_their_batch(toy):
    denoiser, images = Preconditioned(toy("online"), ConsistencyScaling()), noise_of(5).randn(3, 8, 8).clamp(-1, 1)

    def edit(rows: list[int]) -> torch.Tensor:
        source = ImageRandom([image_seed(1, i) for i in rows])
        y = SuperResolution(2).A(images[rows])
        x_T = start(SuperResolution(2), y, source.randn(3, 8, 8), 80.0)
        return zero_shot(denoiser, SuperResolution(2), y, x_T, [80.0, 5.0, 0.5], random=source).x

    together = edit([0, 1, 2, 3, 4])
    torch.testing.assert_close(torch.cat([edit([3]), edit([4, 0])]), together[[3, 4, 0]], rtol=1e-6, atol=1e-6)


def test_editing_starts_at_the_known_part():
    y, noise = torch.ones(1, 32), noise_of(1).randn(1, 8, 8)
    x_T = start(LOWER, y, noise, 2.0)
    torch.testing.assert_close(x_T[:, :, :4], 1 + 2 * noise[:, :, :4])
    torch.testing.assert_close(x_T[:, :, 4:], 2 * noise[:, :, 4:])


@pytest.mark.parametrize(
    "sigmas", [[], [1.0, 1.0], [1.0, 2.0], [math.nan], [80.0, math.nan], [80.0, -1.0]], ids=lambda s: str(s)
)
def test_wrong_levels_are_one_clear_line(sigmas):
    with pytest.raises(UserError, match="must descend strictly") as error:
        zero_shot(Recorded(None), LOWER, torch.zeros(1, 32), torch.zeros(1, 1, 8, 8), sigmas, random=noise_of(1))
    assert "\n" not in str(error.value)


def test_a_measurement_of_other_images_is_one_clear_line():
    with pytest.raises(UserError, match="images 2 x 1 x 8 x 8, the noise of images 2 x 3 x 8 x 8"):
        zero_shot(Recorded(None), LOWER, torch.zeros(2, 32), torch.zeros(2, 3, 8, 8), [80.0], random=noise_of(2))
