"""Small images, and the check that a refusal is one clear line."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unistep.data import ImageDataset, open_dataset
from unistep.errors import UserError

ImageFile = Callable[..., bytes]
Refusal = Callable[..., str]


@pytest.fixture(scope="session")
def mnist() -> ImageDataset:
    return open_dataset("mnist")


@pytest.fixture
def pixels() -> np.ndarray:
    """Six colour images [N, H, W, C] of 5 x 4 pixels, no two pixels of them in any order alike."""
    return np.random.default_rng(0).integers(0, 256, (6, 4, 5, 3), dtype=np.uint8)


@pytest.fixture
def png() -> ImageFile:
    """Encode an array [H, W] or [H, W, C] or a Pillow image as PNG, or as another format."""

    def encode(image: np.ndarray | Image.Image, format: str = "PNG", **options: object) -> bytes:
        buffer = io.BytesIO()
        image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
        image.save(buffer, format, **options)
        return buffer.getvalue()

    return encode


@pytest.fixture
def class_folder(tmp_path: Path, pixels: np.ndarray, png: ImageFile) -> Path:
    """`photos/` with cat/0.png, cat/1.png and dog/2.png ... dog/5.png, and files that are no images."""
    root = tmp_path / "photos"
    for index, image in enumerate(pixels):
        path = root / ("cat" if index < 2 else "dog") / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(image))
    (root / "notes.txt").write_text("not an image")
    (root / "cat" / "._0.png").write_bytes(b"what macOS leaves behind")
    return root


@pytest.fixture
def refusal() -> Refusal:
    """Call something that must raise a UserError of one line with all of the given words; the line is returned."""

    def check(function: Callable[[], object], *words: object) -> str:
        with pytest.raises(UserError) as caught:
            function()
        line = str(caught.value)
        assert line.isprintable(), "the message must be one line"
        for word in words:
            assert str(word) in line
        return line

    return check
