"""The bundled emoji: 2,214 pictures in 49 classes, checked, and its licence beside it."""

import numpy as np
import pytest
import torch

from unistep.data import open_dataset
from unistep.data.bundled import BUNDLED

ROW = BUNDLED["emoji"]
COUNTS = {
    "happy faces": 35,
    "doubtful faces": 29,
    "unhappy faces": 46,
    "cats and masks": 20,
    "hearts": 25,
    "emotions": 14,
    "hands": 86,
    "body parts": 24,
    "persons": 56,
    "gestures": 60,
    "professions": 164,
    "fantasy figures": 57,
    "persons in action": 121,
    "athletes": 80,
    "families": 55,
    "mammals": 66,
    "birds": 22,
    "reptiles and bugs": 25,
    "sea animals": 17,
    "plants": 29,
    "fruit": 20,
    "vegetables": 19,
    "dishes": 51,
    "sweets": 14,
    "drinks": 27,
    "land vehicles": 50,
    "ships and aircraft": 22,
    "buildings": 35,
    "places": 33,
    "sky and weather": 47,
    "clocks": 31,
    "sports": 27,
    "games and arts": 31,
    "events": 27,
    "clothing": 47,
    "devices": 36,
    "music": 30,
    "paper": 47,
    "office": 23,
    "household": 34,
    "tools": 47,
    "letters": 54,
    "arrows": 21,
    "player buttons": 25,
    "shapes": 34,
    "zodiac and religion": 26,
    "signs": 26,
    "other symbols": 38,
    "flags": 261,
}


@pytest.fixture(scope="module")
def emoji():
    return open_dataset("emoji")


def test_pictures_and_classes(emoji):
    assert emoji.images.shape == (2214, 3, 32, 32)
    assert emoji.class_names == list(COUNTS)
    assert emoji.labels.bincount().tolist() == list(COUNTS.values())


def test_no_picture_is_there_twice(emoji):
    assert len(np.unique(emoji.images.flatten(1).numpy(), axis=0)) == len(emoji)


def test_pictures_are_on_white_and_in_colour(emoji):
    corners = emoji.images[:, :, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert (corners == 255).float().mean() > 0.85
    spread = emoji.images.amax(1).int() - emoji.images.amin(1).int()
    assert (spread.amax((1, 2)) > 60).float().mean() > 0.9


def test_classes_look_as_their_names_say(emoji):
    """Happy faces are mostly yellow; a flag covers more of its picture than a hand."""
    faces = emoji.images[emoji.labels == 0].float().mean((0, 2, 3))
    assert faces[0] > faces[1] > faces[2] + 30
    covered = {name: (emoji.images[emoji.labels == i] < 250).any(1).float().mean() for i, name in enumerate(COUNTS)}
    assert covered["flags"] > covered["hands"]


def test_a_changed_copy_is_refused(tmp_path, refusal):
    content = bytearray(ROW.path.read_bytes())
    content[len(content) // 2] ^= 1
    changed = tmp_path / "emoji.npz"
    changed.write_bytes(content)
    refusal(lambda: ROW.reader(changed), changed, "sha256", "reinstall")


def test_file_is_small_and_its_licence_lies_beside_it():
    assert ROW.path.stat().st_size < 2_000_000
    licence = ROW.path.with_name("emoji.LICENSE.md").read_text()
    assert "Apache License 2.0" in licence
    assert "Google" in licence


@pytest.mark.parametrize("row", BUNDLED.values(), ids=BUNDLED)
def test_rows_of_the_table_are_true(row):
    dataset = open_dataset(row.name)
    assert dataset.images.shape[1:] == (row.channels, row.size, row.size)
    assert dataset.num_classes == len(row.class_names) == int(dataset.labels.max()) + 1
    assert torch.equal(dataset.labels.unique(), torch.arange(dataset.num_classes))
