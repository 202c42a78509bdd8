import pytest
import torch

from unistep.editing.operators import mask
from unistep.editing.operators.mask import Inpainting, Outpainting
from unistep.errors import UserError


def drawn(known: torch.Tensor) -> list[str]:
    return ["".join("#" if pixel else "." for pixel in row) for row in known.tolist()]


def test_halves_leave_the_other_half_and_the_middle_known():
    assert drawn(mask.lower((3, 2))) == ["##", "##", ".."]
    assert drawn(mask.upper((3, 2))) == ["..", "##", "##"]
    assert drawn(mask.left((2, 3))) == [".##", ".##"]
    assert drawn(mask.right((2, 3))) == ["##.", "##."]
    assert drawn(mask.lower((4, 2))) == ["##", "##", "..", ".."]


def test_boxes_are_to_be_painted():
    assert drawn(mask.box((4, 5), (1, 2, 2, 3))) == ["#####", "##...", "##...", "#####"]


def test_the_centre_is_a_share_of_the_sides():
    assert drawn(mask.centre((4, 8))) == ["########", "##....##", "##....##", "########"]
    assert drawn(mask.centre((3, 3), 0.01)) == ["###", "#.#", "###"]
    assert not mask.centre((3, 5), 1).any()


def test_random_masks_know_a_share_of_the_pixels(generator):
    known = mask.random((20, 30), 0.25, generator)
    assert known.shape == (20, 30) and known.sum() == 150
    # Everywhere, and not the same again.
    assert known[:10].sum() == pytest.approx(75, abs=25) and known[:, :15].sum() == pytest.approx(75, abs=25)
    assert not torch.equal(known, mask.random((20, 30), 0.25, generator))
    assert torch.equal(known, mask.random((20, 30), 0.25, torch.Generator().manual_seed(0)))
    assert mask.random((4, 4), 0.001, generator).sum() == 1 and mask.random((4, 4), 1, generator).all()


def test_known_pixels_are_measured_channel_by_channel():
    x = torch.arange(24.0).view(1, 2, 3, 4)
    operator = Inpainting(mask.box((3, 4), (0, 0, 3, 3)))
    y = operator.A(x)
    assert y.tolist() == [[3, 7, 11, 15, 19, 23]]
    known = operator.A_pinv(y)
    assert torch.equal(known[..., 3], x[..., 3]) and (known[..., :3] == 0).all()


def test_a_mask_can_differ_between_channels():
    known = torch.zeros(2, 1, 2, dtype=torch.bool)
    known[0, 0, 0] = known[1, 0, 0] = known[1, 0, 1] = True
    operator = Inpainting(known)
    assert operator.A(torch.arange(4.0).view(1, 2, 1, 2)).tolist() == [[0, 2, 3]]
    assert operator.A_pinv(torch.tensor([[5.0, 6.0, 7.0]])).flatten().tolist() == [5, 0, 6, 7]


def test_one_channel_of_mask_serves_images_of_any_number():
    operator = Inpainting(mask.lower((4, 4))[None])
    for channels in (1, 2, 3):
        x = torch.randn(2, channels, 4, 4)
        assert torch.equal(operator.A_pinv(operator.A(x))[:, :, :2], x[:, :, :2])


def test_a_picture_is_the_measurement_of_its_place_in_a_canvas():
    picture = torch.randn(2, 3, 2, 4)
    operator = Outpainting((6, 8), (3, 1, 2, 4))
    canvas = operator.A_pinv(picture.flatten(1))
    assert canvas.shape == (2, 3, 6, 8) and torch.equal(canvas[:, :, 3:5, 1:5], picture)
    assert int((canvas != 0).sum()) == picture.numel()
    assert operator.name == "outpainting"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Inpainting(torch.zeros(4, 4, dtype=torch.bool)), "inpainting marks no pixel as known"),
        (lambda: Inpainting(mask.lower((4, 4))).A(torch.zeros(1, 3, 4, 5)), "1x4x4 .* the image 3x4x5"),
        (lambda: Inpainting(torch.ones(3, 4, 4, dtype=torch.bool)).A(torch.zeros(1, 1, 4, 4)), "3x4x4 .* 1x4x4"),
        (lambda: mask.box((4, 4), (0, 0, 5, 1)), "a box of 5x1 pixels at row 0, column 0 does not lie in 4x4"),
        (lambda: mask.box((4, 4), (-1, 0, 2, 2)), "does not lie"),
        (lambda: mask.box((4, 4), (0, 0, 0, 2)), "does not lie"),
        (lambda: Outpainting((4, 4), (2, 2, 3, 3)), "does not lie"),
        (lambda: mask.centre((4, 4), 0), r"share 0 .* must lie in \(0, 1\]"),
        (lambda: mask.random((4, 4), 1.5, torch.Generator()), r"share 1.5 .* must lie in \(0, 1\]"),
        (lambda: mask.random((4, 4), float("nan"), torch.Generator()), r"must lie in \(0, 1\]"),
    ],
)
def test_wrong_masks_are_one_clear_line(make, message):
    with pytest.raises(UserError, match=message) as error:
        make()
    assert "\n" not in str(error.value)
