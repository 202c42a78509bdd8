import numpy as np
import pytest
import torch
from PIL import Image

from unistep.images.grid import grid, save_grid, save_png, to_pil
from unistep.images.sheet import Panel, save_sheet


@pytest.fixture
def images(generator):
    return torch.randint(0, 200, (5, 3, 4, 6), dtype=torch.uint8, generator=generator)


def test_grid_places_images_row_by_row(images):
    sheet = grid(images, columns=3, gap=1)
    assert sheet.shape == (3, 2 * 5 + 1, 3 * 7 + 1)
    assert torch.equal(sheet[:, 1:5, 1:7], images[0])
    assert torch.equal(sheet[:, 1:5, 15:21], images[2])
    assert torch.equal(sheet[:, 6:10, 8:14], images[4])
    assert (sheet[:, 6:10, 15:21] == 255).all()
    covered = images.numel() + int((sheet == 255).sum())
    assert covered == sheet.numel()


@pytest.mark.parametrize("channels", [1, 3])
def test_to_pil_keeps_pixels(images, channels):
    picture = to_pil(images[0, :channels])
    assert picture.mode == {1: "L", 3: "RGB"}[channels]
    assert np.array_equal(np.asarray(picture).reshape(4, 6, channels), images[0, :channels].permute(1, 2, 0).numpy())


def test_save_grid_enlarges_by_a_whole_factor(images, tmp_path):
    path = save_grid(images, tmp_path / "new" / "grid.png", columns=5, min_width=84)
    with Image.open(path) as picture:
        assert picture.size == (42 * 2, 8 * 2)
        pixels = np.asarray(picture)
    assert np.array_equal(pixels[::2, ::2], grid(images, 5).permute(1, 2, 0).numpy())
    assert np.array_equal(pixels[::2, ::2], pixels[1::2, 1::2])


def test_failed_png_leaves_the_old_one(images, tmp_path, monkeypatch):
    path = save_grid(images, tmp_path / "grid.png", columns=5)
    before = path.read_bytes()

    def full(self, file, format):
        file.write_bytes(b"half a picture")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OSError, match="No space"):
        save_png(to_pil(images[0]), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_sheet_stacks_panels_under_headings(images, tmp_path):
    panels = [Panel("colour", images, 5), Panel("grey", images[:, :1], 5)]
    path = save_sheet(panels, tmp_path / "sheet.png", panel_width=84)
    with Image.open(path) as picture:
        pixels = np.asarray(picture)
    heading = pixels.shape[0] // 2 - 16  # each panel is 42 x 8 pixels, enlarged twice
    assert pixels.shape == (2 * (heading + 16), 84, 3)
    first, second = pixels[heading : heading + 16], pixels[2 * heading + 16 :]
    assert np.array_equal(first[::2, ::2], grid(images, 5).permute(1, 2, 0).numpy())
    assert np.array_equal(second[::2, ::2, 0], grid(images[:, :1], 5)[0].numpy())
    assert (pixels[:heading] < 255).any(), "the heading has letters"
