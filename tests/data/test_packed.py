"""Packed datasets: lossless parts, and what is refused of them."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import unistep
from unistep.data import DataConfig, ImageDataset, open_dataset, read_dataset
from unistep.data.inspect import inspect_source
from unistep.data.pack import pack

NAMES = ["cat", "dog", "owl"]


@pytest.fixture
def dataset() -> ImageDataset:
    """Sixty colour images of 6 x 5 pixels of noise, in three classes."""
    random = np.random.default_rng(0)
    images = torch.from_numpy(random.integers(0, 256, (60, 3, 5, 6), np.uint8))
    return ImageDataset(images, torch.arange(60) % 3, NAMES)


@pytest.fixture
def packed(dataset: ImageDataset, tmp_path: Path) -> Path:
    """The dataset in three parts."""
    parts = pack(dataset, tmp_path / "packed", 4000, progress=False)
    assert [path.name for path in parts] == ["part-1-of-3.zip", "part-2-of-3.zip", "part-3-of-3.zip"]
    return tmp_path / "packed"


def same(one: ImageDataset, other: ImageDataset) -> bool:
    labels = [None if d.labels is None else d.labels.tolist() for d in (one, other)]
    return torch.equal(one.images, other.images) and labels[0] == labels[1] and one.class_names == other.class_names


def rewrite(path: Path, *, sheets: dict[str, bytes] | None = None, **changes: object) -> None:
    """Writes a part anew with other values in its index, or other sheets."""
    with zipfile.ZipFile(path) as archive:
        members = {member.filename: archive.read(member) for member in archive.infolist()}
    members["part.json"] = json.dumps(json.loads(members["part.json"]) | changes).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in (members | (sheets or {})).items():
            archive.writestr(name, content)


def test_all_parts_give_the_same_dataset(packed, dataset):
    assert same(open_dataset(packed), dataset)
    assert max(path.stat().st_size for path in packed.iterdir()) <= 4000


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    count=st.integers(1, 30),
    shape=st.tuples(st.sampled_from([1, 3]), st.integers(1, 9), st.integers(1, 9)),
    values=st.sampled_from([2, 256]),
    labelled=st.booleans(),
    most=st.integers(3000, 20_000),
)
def test_any_dataset_comes_back(tmp_path_factory, count, shape, values, labelled, most):
    random = np.random.default_rng(count)
    images = torch.from_numpy(random.integers(0, values, (count, *shape), np.uint8))
    dataset = ImageDataset(images, torch.from_numpy(random.integers(0, 1, count)) if labelled else None)
    folder = tmp_path_factory.mktemp("any") / "packed"
    parts = pack(dataset, folder, most, progress=False)
    assert max(path.stat().st_size for path in parts) <= most
    assert same(open_dataset(folder), dataset)


def test_the_same_images_make_the_same_bytes(packed, dataset, tmp_path):
    again = pack(dataset, tmp_path / "again", 4000, progress=False)
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in sorted(packed.iterdir())]


def test_names_and_neighbours_of_the_parts_do_not_matter(packed, dataset):
    for index, path in enumerate(sorted(packed.iterdir(), reverse=True)):
        path.rename(packed / f"{index}.zip")
    (packed / "README.md").write_text("notes")
    assert same(open_dataset(packed), dataset)


def test_they_are_prepared_as_other_sources(packed, dataset, tmp_path):
    for other in (tmp_path / "same.npz",):
        np.savez(other, arr_0=dataset.images.numpy(), arr_1=dataset.labels.numpy())
    for config in ({"resolution": 4}, {"channels": 1}, {"resolution": 9, "channels": 1}):
        ours, theirs = (read_dataset(DataConfig(str(path), **config)) for path in (packed, tmp_path / "same.npz"))
        assert torch.equal(ours.images, theirs.images)
    assert read_dataset(DataConfig(str(packed), use_labels=False)).labels is None
    cached = DataConfig(str(packed), memory_limit=0, cache_dir=str(tmp_path / "cache"))
    assert same(read_dataset(cached), dataset) and same(read_dataset(cached), dataset)


def test_a_report_of_them(packed):
    report = inspect_source(str(packed))
    assert (report.num_images, report.sizes, report.classes) == (60, {"6x5": 60}, {"cat": 20, "dog": 20, "owl": 20})


def test_one_part_alone(tmp_path, dataset):
    (only,) = pack(dataset, tmp_path / "one", 1_000_000, progress=False)
    assert same(open_dataset(only), dataset)


def test_missing_parts_are_named(packed, refusal):
    first = packed / "part-1-of-3.zip"
    remedy = "put all 3 parts of the dataset into one folder"
    refusal(lambda: open_dataset(first), first, "parts 2 and 3 of 3 are missing", remedy)
    (packed / "part-2-of-3.zip").unlink()
    refusal(lambda: open_dataset(packed), packed, "part 2 of 3 is missing", remedy)


def test_a_part_that_is_there_twice(packed, refusal):
    (packed / "copy.zip").write_bytes((packed / "part-2-of-3.zip").read_bytes())
    refusal(lambda: open_dataset(packed), "part 2 is there twice", "keep one")


def test_a_part_of_another_dataset(packed, dataset, tmp_path, refusal):
    other = ImageDataset(255 - dataset.images, dataset.labels, NAMES)
    parts = pack(other, tmp_path / "other", 4000, progress=False)
    (packed / parts[1].name).write_bytes(parts[1].read_bytes())
    refusal(lambda: open_dataset(packed), parts[1].name, "another dataset")


def test_other_pixels_than_were_packed(packed, refusal, png):
    with zipfile.ZipFile(packed / "part-2-of-3.zip") as archive:
        size = Image.open(archive.open("sheet-00000.webp")).size
    black = png(np.zeros((size[1], size[0], 3), np.uint8), "WEBP", lossless=True)
    rewrite(packed / "part-2-of-3.zip", sheets={"sheet-00000.webp": black})
    refusal(lambda: open_dataset(packed), "part-2-of-3.zip", "not those that were packed", "fetch or pack it again")


@pytest.mark.parametrize("content", [b"", b"RIFF", b"no image at all"])
def test_sheets_that_are_none(packed, refusal, content):
    rewrite(packed / "part-3-of-3.zip", sheets={"sheet-00000.webp": content})
    refusal(lambda: open_dataset(packed), "part-3-of-3.zip", "sheet-00000.webp cannot be read")


def test_sheets_of_another_size(packed, refusal, png):
    rewrite(packed / "part-1-of-3.zip", sheets={"sheet-00000.webp": png(np.zeros((9, 9), np.uint8))})
    refusal(lambda: open_dataset(packed), "part-1-of-3.zip", "9x9 pixels")


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"format": "zip"}, "not that of a part"),
        ({"version": 2}, "update unistep"),
        ({"part": 0}, "part of part.json"),
        ({"part": True}, "part of part.json"),
        ({"parts": 10**12}, "parts of part.json"),
        ({"count": 10**12}, "count of part.json"),
        ({"total": 10**30}, "total of part.json"),
        ({"height": 0}, "height of part.json"),
        ({"width": 1 << 40}, "width of part.json"),
        ({"channels": 4}, "channels of part.json"),
        ({"channels": [1]}, "channels of part.json"),
        ({"images_per_sheet": 1 << 60}, "images_per_sheet of part.json"),
        ({"images_per_sheet": 1}, "lacks"),
        ({"labels": [0]}, "one label for each"),
        ({"labels": {}}, "one label for each"),
        ({"labels": None}, "does not fit"),
        ({"class_names": ["cat", 1]}, "class_names"),
        ({"class_names": "cat"}, "class_names"),
        ({"class_names": ["a", "b", "c"]}, "does not fit"),
        ({"sha256": "0" * 63}, "sha256 of part.json"),
        ({"sha256": "0" * 64}, "not those that were packed"),
        ({"dataset": None}, "dataset of part.json"),
        ({"first": 3}, "does not fit"),
        ({"total": 61}, "does not fit"),
        ({"height": 6}, "does not fit"),
    ],
)
def test_a_hostile_index(packed, refusal, changes, word):
    rewrite(packed / "part-2-of-3.zip", **changes)
    refusal(lambda: open_dataset(packed), "part-2-of-3.zip", word)


def test_labels_that_are_no_classes(packed, refusal):
    with zipfile.ZipFile(packed / "part-2-of-3.zip") as archive:
        labels = json.loads(archive.read("part.json"))["labels"]
    for wrong in (-1, 1 << 70, 0.5, "cat", True, None):
        rewrite(packed / "part-2-of-3.zip", labels=[wrong, *labels[1:]])
        refusal(lambda: open_dataset(packed), "part-2-of-3.zip", "label")
    rewrite(packed / "part-2-of-3.zip", labels=[3, *labels[1:]])
    refusal(lambda: open_dataset(packed), "part-2-of-3.zip", "the label 3", "3 classes")


@pytest.mark.parametrize("share", [0.1, 0.6, 0.99])
def test_a_part_that_ends_early(packed, refusal, share):
    path = packed / "part-2-of-3.zip"
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    refusal(lambda: open_dataset(packed), path, "damaged")


def test_a_part_of_deflated_sheets(packed, refusal):
    """A small file that unpacks to a large one is no part."""
    path = packed / "part-2-of-3.zip"
    with zipfile.ZipFile(path) as archive:
        members = {member.filename: archive.read(member) for member in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(zipfile.ZipInfo("unistep-packed-images"), b"")
        for name, content in list(members.items())[1:]:
            archive.writestr(name, content)
    refusal(lambda: open_dataset(packed), path, "sheets are stored")


def test_nothing_is_left_of_a_packing_that_fails(dataset, tmp_path, refusal):
    refusal(lambda: pack(dataset, tmp_path / "packed", 1500, progress=False), "raise `max_part_mb`")
    assert list(tmp_path.iterdir()) == []
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "mine").write_text("mine")
    refusal(lambda: pack(dataset, taken, 4000, progress=False), taken, "already there")
    assert [path.name for path in tmp_path.rglob("*")] == ["taken", "mine"]
    refusal(lambda: pack(dataset, taken / "mine" / "sub", 4000, progress=False), "cannot write")


def test_images_that_are_too_large(tmp_path, refusal):
    wide = ImageDataset(torch.zeros(1, 1, 1, 16_384, dtype=torch.uint8))
    refusal(lambda: pack(wide, tmp_path / "packed", 1 << 20, progress=False), "16384x1", "`resolution`")


def test_pack_dataset(tmp_path, dataset, refusal):
    path = tmp_path / "a.npz"
    np.savez(path, arr_0=dataset.images.numpy(), arr_1=dataset.labels.numpy())
    made = unistep.pack_dataset(path, tmp_path / "a", resolution=3, class_names=["a", "b", "c"])
    packed = open_dataset(made.path)
    assert (len(packed), packed.image_size, packed.class_names) == (made.num_images, (3, 3), ["a", "b", "c"])
    assert made.num_bytes == sum(path.stat().st_size for path in made.parts) and "60 images" in made.rows()[0][1]
    assert made.to_dict()["parts"] == [str(tmp_path / "a/part-1-of-1.zip")] and "1 part)" in repr(made)
    refusal(lambda: unistep.pack_dataset(path, tmp_path / "b", class_names=["a"]), "3 classes", "`class_names`")
    refusal(lambda: unistep.pack_dataset(path, tmp_path / "b", max_part_mb=0), "`max_part_mb`")
    assert not (tmp_path / "b").exists()
