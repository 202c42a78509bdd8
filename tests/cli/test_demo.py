import re

import numpy as np
import pytest
from PIL import Image

from unistep.formats.embedded import EMBEDDED_MODELS

STUDENTS = [row.title for row in EMBEDDED_MODELS.values() if row.teacher]


def test_the_picture_and_the_table(run, here):
    outcome = run("demo", "--rows", "1", "--output", "new/picture.png")
    assert outcome.code == 0
    rows = re.findall(r"(consistency model|its teacher) +\W +(\d+) +\W +(\d\.\d{4})", outcome.out)
    assert [row[:2] for row in rows] == len(STUDENTS) * [
        ("consistency model", "1"),
        ("consistency model", "2"),
        ("its teacher", "35"),
    ]
    assert [title for title in STUDENTS if f"{title}, from the same noise" not in outcome.out] == []
    assert str(here / "new" / "picture.png") in outcome.out
    assert "unistep train mnist-quick" in outcome.out
    with Image.open("new/picture.png") as picture:
        assert picture.format == "PNG"
        pixels = np.asarray(picture)[..., 0]
    assert pixels.shape[1] > 300
    assert 0.2 < np.mean(pixels < 128) < 0.9  # white digits on black, ten in a row, three rows
    assert [str(p.relative_to(here)) for p in here.rglob("*") if p.is_file()] == ["new/picture.png"]


FLAGS = [
    ("--rows 0", "--rows 0 at least 1"),
    ("--rows -1", "--rows -1 at least 1"),
    ("--rows 1000000", "--rows 1000000 at most 100"),
    ("--rows abc", "--rows abc expected int"),
    ("--row 3", "--row did you mean --rows?"),
    ("--seed -1", "--seed -1 at least 0"),
    ("--seed 9223372036854775808", "--seed 9223372036854775808 at most"),
    ("--output picture.jpg", "--output picture.jpg .png"),
    ("--output=", "--output '' .png"),
    ("--output folder.png", "--output folder.png is a folder"),
    ("--output file/a.png", "cannot write file/a.png file is not a folder"),
    ("mnist", "unexpected argument mnist"),
]


@pytest.mark.parametrize(("flags", "words"), FLAGS, ids=[flags for flags, _ in FLAGS])
def test_wrong_flags(refused, here, flags, words):
    (here / "folder.png").mkdir()
    (here / "file").write_text("mine")
    refused(["demo", *flags.split()], *words.split())
