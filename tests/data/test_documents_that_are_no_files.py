"""A dataset.json or metadata file that is a pipe or a folder is refused: labels would be lost in silence."""

import os

import pytest
from PIL import Image

from unistep.data import open_dataset
from unistep.errors import UserError


@pytest.mark.parametrize("name", ["dataset.json", "metadata.jsonl", "metadata.csv"])
@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir], ids=["pipe", "folder"])
@pytest.mark.parametrize("inside", ["", "images/"])
def test_is_refused(name, make, inside, tmp_path):
    (tmp_path / "images").mkdir()
    for i in range(2):
        Image.new("L", (8, 8), i).save(tmp_path / f"{inside}{i}.png")
    make(tmp_path / f"{inside}{name}")
    with pytest.raises(UserError, match=f"{name} is (no file|a folder)"):
        open_dataset(str(tmp_path))
