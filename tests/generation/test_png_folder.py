import json
import os
import shutil
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from unistep.data import open_dataset
from unistep.errors import UserError
from unistep.generation.png_folder import PngFolder

N, SHAPE = 5, (3, 4, 6)
LABELS = torch.tensor([0, 1, 2, 0, 1])


@pytest.fixture
def images(generator):
    return torch.randint(0, 256, (N, *SHAPE), dtype=torch.uint8, generator=generator)


def make(path, images, labels=LABELS, settings=None):
    folder = PngFolder(path, len(images), images.shape[1:])
    folder.claim(settings or {"seed": 3})
    folder.write(0, images)
    folder.flush()
    return folder.finish(labels)


def test_names_and_pixels(images, tmp_path):
    path = make(tmp_path / "new" / "images", images)
    assert sorted(p.name for p in path.iterdir()) == [*(f"{i:06d}.png" for i in range(N)), "dataset.json"]
    for i in range(N):
        with Image.open(path / f"{i:06d}.png") as picture:
            assert np.array_equal(np.asarray(picture), images[i].permute(1, 2, 0).numpy())


def test_grey_images_are_grey_files(images, tmp_path):
    path = make(tmp_path / "images", images[:, :1])
    with Image.open(path / "000003.png") as picture:
        assert picture.mode == "L"
        assert np.array_equal(np.asarray(picture), images[3, 0].numpy())


def test_dataset_json_is_edms(images, tmp_path):
    document = json.loads((make(tmp_path / "images", images) / "dataset.json").read_text())
    assert document["labels"] == [[f"{i:06d}.png", int(LABELS[i])] for i in range(N)]
    assert document["settings"] == {"seed": 3}
    assert json.loads((make(tmp_path / "others", images, None) / "dataset.json").read_text())["labels"] is None


def test_a_zip_of_it_is_training_data(images, tmp_path):
    path = make(tmp_path / "images", images)
    archive = shutil.make_archive(str(tmp_path / "images"), "zip", path)
    assert zipfile.is_zipfile(archive)
    dataset = open_dataset(archive)
    assert torch.equal(dataset.images, images)
    assert torch.equal(dataset.labels, LABELS)


def test_a_smaller_run_leaves_no_image_of_a_larger_one(images, tmp_path):
    make(tmp_path / "images", images)
    path = make(tmp_path / "images", images[:2], LABELS[:2])
    assert sorted(p.name for p in path.iterdir()) == ["000000.png", "000001.png", "dataset.json"]


@pytest.mark.parametrize("name", ["000001.png", "holiday.jpg", "dataset.json"])
def test_other_peoples_folders_are_refused(images, tmp_path, name):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / name).write_text('{"labels": null}')
    with pytest.raises(UserError, match=f"photos holds {name}, which is not of this command; choose another `output`"):
        make(tmp_path / "photos", images)
    assert [p.name for p in (tmp_path / "photos").iterdir()] == [name]


def test_an_empty_folder_is_taken(images, tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / ".DS_Store").write_text("a desktop was here")
    path = make(tmp_path / "images", images)
    assert torch.equal(open_dataset(str(path)).images, images)


def test_what_others_put_beside_stays(images, tmp_path):
    path = make(tmp_path / "images", images)
    (path / "notes.txt").write_text("mine")
    make(path, images[:2], LABELS[:2])
    assert (path / "notes.txt").read_text() == "mine"


def test_images_show_only_when_all_are_there(images, tmp_path):
    folder = PngFolder(tmp_path / "images", N, SHAPE)
    folder.claim({})
    folder.write(0, images[:4])
    folder.flush()
    assert [p.name for p in folder.output.iterdir()] == [".parts"]


def test_a_thread_that_fails_is_heard(images, tmp_path, monkeypatch):
    folder = PngFolder(tmp_path / "images", N, SHAPE)
    folder.claim({})

    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    folder.write(0, images)
    with pytest.raises(UserError, match="No space left"):
        folder.flush()
    assert folder.count() == 0


@pytest.mark.parametrize("lost", [slice(0, 8), slice(-8, None)])
def test_a_png_with_a_lost_block_is_remade(images, tmp_path, lost):
    """A file of the right size, part of which never reached the disk."""
    folder = PngFolder(tmp_path / "images", N, SHAPE)
    folder.claim({})
    folder.write(0, images)
    folder.flush()
    victim = folder.folder / "000002.png"
    content = bytearray(victim.read_bytes())
    content[lost] = bytes(8)
    victim.write_bytes(content)
    folder.release()
    assert PngFolder(tmp_path / "images", N, SHAPE).claim({}) == 4
    assert not victim.exists()


def test_killed_while_it_moves_the_images_up(images, tmp_path, monkeypatch):
    """What is moved already is not made again."""
    folder = PngFolder(tmp_path / "images", N, SHAPE)
    folder.claim({})
    folder.write(0, images)
    folder.flush()
    moves, replace = iter(range(3)), os.replace

    def dying(source, target):
        if next(moves, None) is None:
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", dying)
        folder.finish(LABELS)
    folder.release()
    again = PngFolder(tmp_path / "images", N, SHAPE)
    assert again.claim({}) == N
    assert again.missing() == []
    assert torch.equal(open_dataset(str(again.finish(LABELS))).images, images)
