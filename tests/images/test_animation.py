"""GIFs and MP4s hold the frames that were given, and appear whole or not at all."""

import pytest
import torch
from PIL import Image, ImageSequence

from unistep.errors import UserError
from unistep.images import animation
from unistep.images.animation import save_animation


def frames(channels=1, size=8, count=5):
    """Each darker on one side and lighter than the one before."""
    base = torch.arange(size, dtype=torch.uint8).expand(channels, size, size)
    return torch.stack([base + 40 * i for i in range(count)])


@pytest.mark.parametrize("channels", [1, 3])
def test_gif(tmp_path, channels):
    given = frames(channels)
    path = save_animation(given, tmp_path / "a.gif", fps=10, min_width=16)
    with Image.open(path) as image:
        assert (image.size, image.n_frames, image.info["duration"], image.info["loop"]) == ((16, 16), 5, 100, 0)
        read = [
            frame.convert("RGB").resize((8, 8), Image.Resampling.NEAREST) for frame in ImageSequence.Iterator(image)
        ]
    for frame, expected in zip(read, given, strict=True):
        assert frame.getpixel((0, 0)) == (int(expected[0, 0, 0]),) * 3
        assert frame.getpixel((7, 3)) == (int(expected[0, 3, 7]),) * 3


def test_gif_that_ends(tmp_path):
    with Image.open(save_animation(frames(), tmp_path / "a.gif", loop=False)) as image:
        assert "loop" not in image.info


@pytest.mark.parametrize("size", [8, 9])
def test_mp4(tmp_path, size):
    ffmpeg = pytest.importorskip("imageio_ffmpeg")
    path = save_animation(frames(1, size), tmp_path / "a.mp4", fps=10, min_width=size)
    reader = ffmpeg.read_frames(str(path))
    meta = next(reader)
    even = size + size % 2
    assert meta["size"] == (even, even) and meta["fps"] == 10 and meta["codec"] == "h264"
    assert meta["pix_fmt"].startswith("yuv420p")
    levels = [sum(frame) / len(frame) for frame in reader]
    assert levels == pytest.approx([3.5 + 40 * i for i in range(5)], abs=6)


@pytest.mark.parametrize("name", ["a.gif", "a.mp4"])
def test_nothing_half_written(tmp_path, monkeypatch, name):
    def broken(pictures, path, fps, loop):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(animation, "_write_gif", broken)
    monkeypatch.setattr(animation, "_write_mp4", broken)
    with pytest.raises(UserError, match="No space left"):
        save_animation(frames(), tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "count", "fps", "said"),
    [("a.avi", 5, 12, "ends in .gif or .mp4"), ("a.gif", 0, 12, "no animation"), ("a.gif", 5, 0, "fps")],
)
def test_refusals(tmp_path, name, count, fps, said):
    with pytest.raises(UserError, match=said):
        save_animation(frames(count=5)[:count], tmp_path / name, fps=fps)
    assert list(tmp_path.iterdir()) == []
