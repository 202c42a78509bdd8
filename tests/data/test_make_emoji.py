"""The script that makes the bundled emoji: which pictures it takes, and how it prepares them."""

import io
import json

import make_emoji
import numpy as np
import pytest
from PIL import Image

from unistep.data.bundled import BUNDLED


def entry(image, category, subcategory="", order=0, tones=()):
    variations = {tone: {"image": f"{image}-{tone}", "has_img_google": True} for tone in tones}
    return {
        "image": image,
        "category": category,
        "subcategory": subcategory,
        "sort_order": order,
        "has_img_google": True,
        **({"skin_variations": variations} if tones else {}),
    }


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def test_classes_are_those_of_the_bundled_file():
    assert make_emoji.CLASSES == BUNDLED["emoji"].class_names
    assert tuple(make_emoji.SUBCATEGORIES) == make_emoji.CLASSES
    assert len(make_emoji.CLASS_OF) == sum(map(len, make_emoji.SUBCATEGORIES.values()))


def test_one_tone_of_each_picture_is_taken_in_turn():
    entries = [
        entry("wave", "People & Body", "hand-fingers-open", 2, "ab"),
        entry("man", "People & Body", "person", 1, "ab"),
        entry("bus", "Travel & Places", "transport-ground", 3),
        entry("tone", "Component", "skin-tone", 4),
    ]
    assert make_emoji.choose(entries) == [
        ("man", "persons"),
        ("man-a", "persons"),
        ("wave", "hands"),
        ("wave-b", "hands"),
        ("bus", "land vehicles"),
    ]


def test_a_picture_is_laid_on_white_and_halved():
    pixels = np.zeros((64, 64, 4), np.uint8)
    pixels[:2, :2] = (10, 20, 30, 255)
    pixels[:2, 2:4] = (0, 0, 0, 128)
    pixels[0, 4] = (0, 0, 0, 255)
    made = make_emoji.prepare(png(pixels))
    assert made.shape == (32, 32, 3)
    assert made[0, :3].tolist() == [[10, 20, 30], [127] * 3, [191] * 3]
    assert (made[1:] == 255).all()


def test_a_picture_of_no_class_is_refused():
    with pytest.raises(SystemExit, match="robots"):
        make_emoji.choose([entry("robot.png", "Objects", "robots")])


def test_another_size_is_refused():
    with pytest.raises(SystemExit, match="32 x 32"):
        make_emoji.prepare(png(np.zeros((32, 32, 4), np.uint8)))


def test_a_changed_package_is_refused(tmp_path, monkeypatch):
    folder = tmp_path / "img" / "google" / "64"
    folder.mkdir(parents=True)
    (folder / "cat.png").write_bytes(png(np.zeros((64, 64, 4), np.uint8)))
    (tmp_path / "emoji.json").write_text(json.dumps([entry("cat.png", "Animals & Nature", "animal-mammal")]))
    output = tmp_path / "emoji.npz"
    monkeypatch.setattr("sys.argv", ["make_emoji.py", "--source", str(tmp_path), "--output", str(output)])
    with pytest.raises(SystemExit, match="sha256"):
        make_emoji.main()
    assert not output.exists()
