"""`unistep.edit`: results agree with what is known, and depend on nothing but their own seed."""

import pytest
import torch

from unistep import ConsistencyModelPipeline, edit
from unistep.core.pixels import to_float, to_uint8
from unistep.core.random import ImageRandom, image_seed
from unistep.editing.levels import given_levels
from unistep.editing.methods.denoise import DenoisingEdit
from unistep.editing.methods.measurement import MeasurementEdit
from unistep.editing.methods.sdedit import NoisedEdit
from unistep.editing.methods.zero_shot import start, zero_shot
from unistep.editing.model import EditModel, edit_model
from unistep.editing.operators.colorization import Colorization
from unistep.editing.operators.compressed_sensing import CompressedSensing
from unistep.editing.operators.deblurring import GaussianBlur
from unistep.editing.operators.mask import Inpainting, left, lower
from unistep.editing.operators.operator import EXACT, ROUNDED, residual
from unistep.editing.operators.super_resolution import SuperResolution
from unistep.editing.run import guess_classes, make
from unistep.editing.tasks import TASKS
from unistep.errors import UserError
from unistep.formats.model import ModelInfo
from unistep.formats.open import open_model

SIDE = 16
HALF = Inpainting(lower((SIDE, SIDE)))
SIGMAS = [8.0, 1.0]


@pytest.fixture(scope="module")
def grey(model_folder):
    return open_model(model_folder())


@pytest.fixture(scope="module")
def classes(model_folder):
    return open_model(model_folder(num_class_embeds=3))


@pytest.fixture(scope="module")
def colour(model_folder):
    return open_model(model_folder(in_channels=3, out_channels=3))


def pictures(count, channels=1, side=SIDE, seed=0):
    """Smooth ones, whose blur is not flat."""
    noise = torch.randn(count, channels, 5, 5, generator=torch.Generator().manual_seed(seed))
    smooth = torch.nn.functional.interpolate(noise, (side, side), mode="bicubic")
    return ((smooth * 60) + 128).clamp(0, 255).round().to(torch.uint8)


# ---------------------------------------------------------------------------------------------------- what it does


@pytest.mark.parametrize(
    "operator",
    [
        HALF,
        SuperResolution((2, 4)),
        GaussianBlur(1.0),
        CompressedSensing((1, SIDE, SIDE), 0.3, torch.Generator().manual_seed(0)),
    ],
)
def test_result_agrees_with_the_measurement(grey, operator):
    images = pictures(3)
    result = edit(grey, images, operator, sigmas=SIGMAS, candidates=2)
    assert result.images.dtype == torch.uint8 and result.candidates.shape == (3, 2, 1, SIDE, SIDE)
    for rank in range(2):
        made = operator.A(to_float(result.candidates[:, rank]))
        assert (made - operator.A(to_float(images))).abs().max() <= 2 / 255 + 1e-6
    assert (result.images.float() - images.float()).abs().max() > 10  # the rest is the model's


def test_colour_of_a_grey_picture(colour):
    images = pictures(2).expand(-1, 3, -1, -1)
    result = edit(colour, images, Colorization(), sigmas=SIGMAS)
    assert (Colorization().A(to_float(result.images)) - to_float(images[:, :1])).abs().max() <= 2 / 255
    assert (result.images[:, 0].float() - result.images[:, 2].float()).abs().max() > 10


def test_it_is_the_editor_with_the_seeds_noise(grey):
    """A full tile of images is one call of `zero_shot`."""
    images = pictures(16)
    y = HALF.A(to_float(images))
    random = ImageRandom([image_seed(7, i) for i in range(16)])
    with torch.no_grad():
        x_T = start(HALF, y, random.randn(1, SIDE, SIDE), SIGMAS[0])
        expected = zero_shot(grey.denoiser, HALF, y, x_T, SIGMAS, random=random)
    result = edit(grey, images, HALF, sigmas=SIGMAS, seed=7)
    made = to_float(result.images)[:, :, SIDE // 2 :]
    assert (made - expected.x[:, :, SIDE // 2 :].clamp(-1, 1)).abs().max() <= 1 / 255 + 1e-5
    torch.testing.assert_close(result.residual[:, 0], expected.residual)


def test_measurement_picture_shows_what_is_known(grey):
    images = pictures(2)
    shown = edit(grey, images, HALF, sigmas=SIGMAS).measurement
    assert torch.equal(shown[:, :, : SIDE // 2], images[:, :, : SIDE // 2])
    assert set(shown[:, :, SIDE // 2 :].flatten().tolist()) <= {127, 128}


def test_a_measurement_in_place_of_an_image(grey):
    images, operator = pictures(2), SuperResolution(4)
    y = operator.A(to_float(images))
    expected = edit(grey, images, operator, sigmas=SIGMAS)
    assert torch.equal(edit(grey, None, operator, measurement=y, sigmas=SIGMAS).images, expected.images)


def test_a_blurred_picture(grey):
    """Rounded to 8 bits, it is no blur of any image: what lies in the band is taken."""
    blur = GaussianBlur(1.0)
    blurred = to_uint8(blur.A(to_float(pictures(1))))
    result = edit(grey, None, blur, measurement=blurred, sigmas=SIGMAS)
    assert float(residual(blur, to_float(result.images), to_float(blurred))[0]) < 0.02


def test_what_was_rounded_is_not_met_better_than_it_can_be(grey):
    """Black and white cells: the range decides much, and what meets the rounding is found late."""
    blur = GaussianBlur(2.0)
    cells = torch.rand(2, 1, SIDE // 4, SIDE // 4, generator=torch.Generator().manual_seed(3)).round()
    blurred = to_uint8(blur.A(cells.repeat_interleave(4, 2).repeat_interleave(4, 3) * 2 - 1))
    y = [blur.A(blur.A_pinv(one)) for one in to_float(blurred).split(1)]
    known = {close: MeasurementEdit([blur] * 2, y, SIGMAS, 0.002, close) for close in (EXACT, ROUNDED)}
    expected = {close: make(edit_model(grey), method).images[:, 0] for close, method in known.items()}
    assert not torch.equal(expected[EXACT], expected[ROUNDED])
    assert torch.equal(edit(grey, None, blur, measurement=blurred, sigmas=SIGMAS).images, expected[ROUNDED])
    assert torch.equal(edit(grey, None, blur, measurement=to_float(blurred), sigmas=SIGMAS).images, expected[EXACT])


def test_larger_than_the_model(grey):
    """Tiles: the whole image agrees."""
    images = pictures(2, side=24)[:, :, :, :20]
    operator = SuperResolution(4)
    result = edit(grey, images, operator, sigmas=SIGMAS)
    assert result.images.shape == images.shape
    assert (operator.A(to_float(result.images)) - operator.A(to_float(images))).abs().max() <= 2 / 255


def test_pipeline_and_model_are_the_same(grey):
    pipe = ConsistencyModelPipeline.from_model(grey)
    images = pictures(2)
    assert torch.equal(edit(pipe, images, HALF, sigmas=SIGMAS).images, edit(grey, images, HALF, sigmas=SIGMAS).images)
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, sigma_max=40.0)
    assert edit_model(pipe.to_model()).info.sigma_max == 40.0


def test_files_and_pillow_images(grey, tmp_path):
    from unistep.images.grid import save_png, to_pil

    images = pictures(2)
    expected = edit(grey, images, HALF, sigmas=SIGMAS).images
    paths = [save_png(to_pil(image), tmp_path / f"{i}.png") for i, image in enumerate(images)]
    assert torch.equal(edit(grey, paths, HALF, sigmas=SIGMAS).images, expected)
    assert torch.equal(edit(grey, to_pil(images[0]), HALF, sigmas=SIGMAS).images, expected[:1])


# ---------------------------------------------------------------------------------------------------- seeds


def test_result_is_the_same_alone_and_in_company(classes):
    """20 images of 2 candidates are several tiles; each alone is one."""
    images = pictures(20)
    together = edit(classes, images, HALF, sigmas=SIGMAS, candidates=2, class_labels=1)
    for i in (0, 7, 19):
        known = MeasurementEdit([HALF], [HALF.A(to_float(images[i : i + 1]))], SIGMAS, 0.002)
        with torch.no_grad():
            alone = make(edit_model(classes), known, candidates=2, numbers=[i], class_labels=1)
        assert torch.equal(alone.images[0], together.candidates[i])
        assert torch.equal(alone.residual[0], together.residual[i])


def test_more_candidates_begin_with_the_same(grey):
    images = pictures(2)
    few, many = (edit(grey, images, HALF, sigmas=SIGMAS, candidates=n) for n in (2, 5))
    for i in range(2):
        assert all(any(torch.equal(a, b) for b in many.candidates[i]) for a in few.candidates[i])
        assert len({c.numpy().tobytes() for c in many.candidates[i]}) == 5


def test_candidates_are_ranked(grey):
    result = edit(grey, pictures(3), HALF, sigmas=SIGMAS, candidates=6)
    assert (result.residual.diff(dim=1) >= 0).all() and (result.residual[:, 0] < result.residual[:, -1]).all()
    assert torch.equal(result.images, result.candidates[:, 0])
    assert result.evaluations == 12


def test_a_seed_an_image_goes_with_it(grey):
    images = pictures(3)
    forwards = edit(grey, images, HALF, sigmas=SIGMAS, seeds=[5, 6, 7]).images
    backwards = edit(grey, images.flip(0), HALF, sigmas=SIGMAS, seeds=[7, 6, 5]).images.flip(0)
    assert (forwards.int() - backwards.int()).abs().max() <= 1  # at other places of the tile
    assert not torch.equal(forwards, edit(grey, images, HALF, sigmas=SIGMAS, seeds=[5, 6, 8]).images)
    assert torch.equal(
        edit(grey, images, HALF, sigmas=SIGMAS, seed=3).images, edit(grey, images, HALF, sigmas=SIGMAS, seed=3).images
    )


def test_an_operator_an_image(grey):
    images, other = pictures(2), Inpainting(left((SIDE, SIDE)))
    both = edit(grey, images, [HALF, other], sigmas=SIGMAS).images
    assert torch.equal(both[0, :, : SIDE // 2], images[0, :, : SIDE // 2])
    assert torch.equal(both[1, :, :, SIDE // 2 :], images[1, :, :, SIDE // 2 :])
    assert torch.equal(both[:1], edit(grey, images[:1], HALF, sigmas=SIGMAS).images)


# ---------------------------------------------------------------------------------------------------- classes


def bright(x, sigma, labels=None):
    """Images of class c are of the level c/2 - 1 all over."""
    assert labels is not None
    return (labels / 2 - 1.0)[:, None, None, None].expand_as(x)


def test_the_class_is_guessed_from_what_is_known():
    model = EditModel(bright, ModelInfo(), (1, 8, 8), 5, torch.device("cpu"))
    operator = Inpainting(lower((8, 8)))
    levels = torch.tensor([3, 0, 4, 1])
    x = (levels / 2 - 1.0)[:, None, None, None].expand(-1, 1, 8, 8).clone()
    x[:, :, 4:] = 1.0  # of which nobody may know
    known = MeasurementEdit([operator] * 4, [operator.A(one[None]) for one in x], [1.0], 0.002)
    assert torch.equal(guess_classes(model, known), levels)
    result = make(model, known, candidates=2)
    assert result.class_labels is not None and torch.equal(result.class_labels, levels[:, None].expand(4, 2))
    assert result.guesses == (5 + 3 + 2) * 4 and result.evaluations == 2
    x[:, :, 4:] = x[:, :, :4]
    assert torch.equal(guess_classes(model, NoisedEdit(x, [1.0], 0.002)), levels)
    assert torch.equal(guess_classes(model, DenoisingEdit(x, torch.full((4,), 0.1), 1, 0.002, 80.0, 7.0)), levels)


@pytest.mark.parametrize(("classes", "tried"), [(1, []), (2, [2]), (10, [10, 5, 3, 2])])
def test_classes_that_fit_badly_are_not_tried_again(classes, tried):
    told = []

    def denoiser(x, sigma, labels=None):
        told.append(labels.tolist())
        return bright(x, sigma, labels * 4 / max(classes - 1, 1))

    model = EditModel(denoiser, ModelInfo(), (1, 8, 8), classes, torch.device("cpu"))
    known = MeasurementEdit([Inpainting(lower((8, 8)))], [torch.full((1, 32), -1.0)], [1.0], 0.002)
    assert guess_classes(model, known).tolist() == [0]
    # The batch is filled up with its first image.
    assert [len(set(labels)) for labels in told] == [n for n in tried for _ in range(4)]
    assert [max(labels) for labels in told] == [n - 1 for n in tried for _ in range(4)]
    assert make(model, known).guesses == sum(tried) * 4


def test_classes_that_are_given(classes):
    images = pictures(2)
    given = edit(classes, images, HALF, sigmas=SIGMAS, class_labels=[2, 0])
    assert given.class_labels is not None and given.class_labels.tolist() == [[2], [0]] and given.guesses == 0
    assert torch.equal(given.images[:1], edit(classes, images[:1], HALF, sigmas=SIGMAS, class_labels=2).images)
    assert not torch.equal(given.images[:1], edit(classes, images[:1], HALF, sigmas=SIGMAS, class_labels=1).images)


def test_many_classes_are_drawn():
    model = EditModel(bright, ModelInfo(), (1, 8, 8), 1000, torch.device("cpu"))
    operator = Inpainting(lower((8, 8)))
    result = make(model, MeasurementEdit([operator], [torch.zeros(1, 32)], [1.0], 0.002), candidates=8)
    assert result.class_labels is not None and len(set(result.class_labels[0].tolist())) > 4 and result.guesses == 0


# ---------------------------------------------------------------------------------------------------- levels, refusals


def test_timesteps_are_indices_of_the_grid():
    info = ModelInfo()
    assert given_levels(info, timesteps=[0])[0] == pytest.approx(80.0)
    levels = given_levels(info, timesteps=[5, 22, 38])
    assert levels == sorted(levels, reverse=True) and levels[0] < 80 and levels[-1] > 0.002
    assert given_levels(info) is None


def test_steps_are_the_tasks(grey):
    inpaint, upscale = TASKS["inpaint"].default, TASKS["upscale"].default
    assert edit(grey, pictures(1), HALF).evaluations == inpaint.steps + inpaint.settle
    assert edit(grey, pictures(1), HALF, steps=3).evaluations == 3 + inpaint.settle
    assert edit(grey, pictures(1), HALF, steps=3, settle=1).evaluations == 4
    assert edit(grey, pictures(1), HALF, timesteps=[5, 22]).evaluations == 2
    assert edit(grey, pictures(1), HALF, sigmas=SIGMAS, settle=5).evaluations == len(SIGMAS) + 5
    assert edit(grey, pictures(1), SuperResolution(2)).evaluations == upscale.steps + upscale.settle


def test_settled_results_agree_and_are_ranked_as_before(grey):
    images, operator = pictures(3), SuperResolution(2)
    drawn, settled = (edit(grey, images, operator, sigmas=SIGMAS, candidates=2, settle=n) for n in (0, 2))
    assert torch.equal(drawn.residual, settled.residual) and not torch.equal(drawn.images, settled.images)
    assert (operator.A(to_float(settled.images)) - operator.A(to_float(images))).abs().max() <= 2 / 255
    alone = edit(grey, images[:1], operator, sigmas=SIGMAS, candidates=2, settle=2)
    assert torch.equal(alone.candidates[0], settled.candidates[0])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"timesteps": [22, 5]}, "must rise"),
        ({"timesteps": [0, 39]}, "between 0 and 38"),
        ({"sigmas": [1.0, 2.0]}, "descend"),
        ({"sigmas": [100.0]}, "up to 80"),
        ({"sigmas": [1.0, 0.002]}, "above 0.002"),
        ({"steps": 2, "sigmas": [1.0]}, "exclude each other"),
        ({"steps": 0}, "`steps` 0"),
        ({"settle": -1}, "`settle` -1"),
        ({"candidates": 0}, "`candidates` 0"),
        ({"seeds": [1, 2]}, "2 `seeds` are given for 1"),
        ({"class_labels": 1}, "no classes"),
        ({"operator": [HALF, HALF]}, "2 operators"),
        ({"image": None}, "give an `image` to measure"),
        ({"measurement": torch.zeros(1, 4)}, "one of them"),
        ({"image": torch.zeros(1, 16, 16)}, "give uint8"),
        ({"image": torch.zeros(0, 1, 16, 16, dtype=torch.uint8)}, "`image` is missing"),
        ({"image": torch.zeros(3, 16, 16, dtype=torch.uint8)}, "3 channels"),
        (
            {"image": torch.zeros(1, 8, 8, dtype=torch.uint8), "operator": SuperResolution(2)},
            "smaller than the model's",
        ),
        ({"image": "missing.png"}, "missing.png"),
    ],
)
def test_refusals(grey, arguments, said):
    given = {"image": pictures(1), "operator": HALF} | arguments
    with pytest.raises(UserError, match=said) as caught:
        edit(grey, given.pop("image"), given.pop("operator"), **given)
    assert "\n" not in str(caught.value)


def test_a_diffusion_model_is_refused(model_folder):
    with pytest.raises(UserError, match="diffusion model"):
        edit(open_model(model_folder("diffusion")), pictures(1), HALF)


# ---------------------------------------------------------------------------------------------------- other methods


def test_guided_goes_as_far_as_the_noise(grey):
    """More noise, farther from the picture; each candidate by its own."""
    x = to_float(pictures(2))
    near, far = (make(edit_model(grey), NoisedEdit(x, [s], 0.002), candidates=3) for s in (0.01, 20.0))
    assert (near.residual.mean(1) < 0.1 * far.residual.mean(1)).all()
    assert len({c.numpy().tobytes() for c in far.images[0]}) == 3
    assert torch.equal(near.measurement, pictures(2))


def test_noise_is_taken_at_its_own_level():
    seen = []

    def denoiser(x, sigma, labels=None):
        seen.append(sigma.tolist()[:2])
        return torch.zeros_like(x)

    model = EditModel(denoiser, ModelInfo(), (1, 8, 8), 0, torch.device("cpu"))
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    result = make(model, DenoisingEdit(x, torch.tensor([0.5, 0.1]), 1, 0.002, 80.0, 7.0))
    assert seen == [[0.5, pytest.approx(0.1)]]
    torch.testing.assert_close(result.residual[:, 0], x.flatten(1).square().mean(1).sqrt())
