"""The images of a run that goes on are those that it began with."""

import json

import pytest
import torch

from unistep.data import ImageDataset
from unistep.errors import UserError
from unistep.workflows.runs import fingerprint as module
from unistep.workflows.runs.fingerprint import check_data, fingerprint


def images(seed: int = 0, count: int = 40, size: int = 6, labels: bool = True) -> ImageDataset:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(256, (count, 1, size, size), dtype=torch.uint8, generator=generator)
    return ImageDataset(pixels, torch.arange(count) % 3 if labels else None)


def test_the_same_images_pass(tmp_path):
    check_data(tmp_path, images(), "photos")
    before = (tmp_path / "data.json").read_text()
    check_data(tmp_path, images(), "photos")
    assert (tmp_path / "data.json").read_text() == before and [p.name for p in tmp_path.iterdir()] == ["data.json"]


def changed_pixel() -> ImageDataset:
    found = images()
    found.images[17, 0, 3, 3] ^= 1
    return found


def changed_label() -> ImageDataset:
    found = images()
    assert found.labels is not None
    found.labels[5] = (found.labels[5] + 1) % 3
    return found


@pytest.mark.parametrize(
    ("other", "word"),
    [
        (images(count=41), r"images \(40, now 41\)"),
        (images(size=8), r"shape \(\[1, 6, 6\], now \[1, 8, 8\]\)"),
        (images(labels=False), r"classes \(3, now 0\)"),
        (images(seed=1), "pixels or labels"),
        (changed_pixel(), "pixels or labels"),
        (changed_label(), "pixels or labels"),
    ],
)
def test_others_are_refused_until_they_are_accepted(tmp_path, other, word):
    check_data(tmp_path, images(), "photos")
    with pytest.raises(UserError, match=f"^photos is not what the run began with: it differs in {word}; put.*") as e:
        check_data(tmp_path, other, "photos")
    assert "\n" not in str(e.value)
    (tmp_path / "data.json").unlink()
    check_data(tmp_path, other, "photos")


@pytest.mark.parametrize("content", ["", "[]", "{", "[" * 100_000, '{"images": 1'])
def test_a_damaged_fingerprint_is_told_and_written_anew(tmp_path, content, caplog):
    (tmp_path / "data.json").write_text(content)
    check_data(tmp_path, images(), "photos")
    assert json.loads((tmp_path / "data.json").read_text()) == fingerprint(images())
    assert "data.json is damaged" in caplog.text


def test_of_large_ones_some_images_stand_for_all(monkeypatch):
    whole = fingerprint(images())
    monkeypatch.setattr(module, "_PIXELS", 10 * 36)
    few = fingerprint(images())
    assert few["sha256"] != whole["sha256"] and few == fingerprint(images())
    assert few["sha256"] != fingerprint(images(seed=1))["sha256"]
