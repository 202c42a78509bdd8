"""Folders and zip archives of image files."""

import json
import os
import shutil
import zipfile

import numpy as np
import pytest
from PIL import Image

from unistep.data import DataConfig, open_dataset, read_dataset
from unistep.data import parallel as parallel_module


@pytest.fixture
def pack(tmp_path):
    """Zip a folder; further members by name."""

    def write(folder, compression=zipfile.ZIP_DEFLATED, /, **members):
        path = tmp_path / "set.zip"
        with zipfile.ZipFile(path, "w", compression) as archive:
            for file in sorted(folder.rglob("*"), reverse=True):
                if file.is_file():
                    archive.write(file, file.relative_to(folder).as_posix())
            for name, content in members.items():
                archive.writestr(name.replace("_json", ".json"), content)
        return str(path)

    return write


def test_class_folders(class_folder, pixels):
    dataset = open_dataset(str(class_folder))
    np.testing.assert_array_equal(dataset.images.numpy(), pixels.transpose(0, 3, 1, 2))
    assert dataset.labels.tolist() == [0, 0, 1, 1, 1, 1]
    assert dataset.class_names == ["cat", "dog"]
    assert dataset.num_classes == 2
    assert dataset.skipped == []


def test_flat_folder_in_sorted_order(tmp_path, pixels, png):
    for name, image in zip(["c.png", "b.PNG", "a10.png", "a2.png", "B.png", "é.png"], pixels, strict=True):
        (tmp_path / name).write_bytes(png(image))
    dataset = open_dataset(str(tmp_path))
    expected = pixels[[4, 2, 3, 1, 0, 5]].transpose(0, 3, 1, 2)  # B a10 a2 b c é
    np.testing.assert_array_equal(dataset.images.numpy(), expected)
    assert dataset.labels is None


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_zip_is_read_as_its_folder_is(class_folder, pack, pixels, compression):
    dataset = open_dataset(pack(class_folder, compression))
    np.testing.assert_array_equal(dataset.images.numpy(), pixels.transpose(0, 3, 1, 2))
    assert dataset.labels.tolist() == [0, 0, 1, 1, 1, 1]
    assert dataset.class_names == ["cat", "dog"]


@pytest.mark.parametrize("in_zip", [True, False])
def test_dataset_json_decides(class_folder, pack, in_zip):
    names = ["cat/0.png", "cat/1.png", "dog/2.png", "dog/3.png", "dog/4.png", "dog/5.png"]
    document = json.dumps({"labels": [[name, 9 - i] for i, name in enumerate(names)]})
    (class_folder / "dataset.json").write_text(document)
    dataset = open_dataset(pack(class_folder) if in_zip else str(class_folder))
    assert dataset.labels.tolist() == [9, 8, 7, 6, 5, 4]
    assert (dataset.num_classes, dataset.class_names) == (10, None)


def test_dataset_json_without_labels(class_folder, pack):
    assert open_dataset(pack(class_folder, dataset_json='{"labels": null}')).labels is None


def test_labels_may_be_left_unread(class_folder, pack):
    path = pack(class_folder, dataset_json="{")
    assert read_dataset(DataConfig(path, use_labels=False)).labels is None


def test_grey_stays_grey_only_if_all_are(tmp_path, png):
    grey = np.arange(20, dtype=np.uint8).reshape(4, 5)
    (tmp_path / "a.png").write_bytes(png(grey))
    (tmp_path / "b.png").write_bytes(png(grey.astype(np.uint16) * 257))
    assert open_dataset(str(tmp_path)).images.tolist() == [[grey.tolist()]] * 2
    (tmp_path / "c.png").write_bytes(png(np.stack([grey] * 3, -1)))
    assert open_dataset(str(tmp_path)).images.tolist() == [[grey.tolist()] * 3] * 3
    assert read_dataset(DataConfig(str(tmp_path), channels=1)).images.tolist() == [[grey.tolist()]] * 3


@pytest.mark.parametrize("channels", [None, 3])
def test_resolution(class_folder, pixels, channels):
    images = read_dataset(DataConfig(str(class_folder), resolution=3, channels=channels)).images.numpy()
    for image, pixel in zip(images, pixels, strict=True):
        expected = Image.fromarray(pixel[:, :4]).resize((3, 3), Image.Resampling.LANCZOS)
        np.testing.assert_array_equal(image.transpose(1, 2, 0), np.asarray(expected))


def test_enlarging_is_reported(class_folder, caplog):
    read_dataset(DataConfig(str(class_folder), resolution=4))
    assert caplog.text == ""
    read_dataset(DataConfig(str(class_folder), resolution=5))
    assert "6 of 6 images are smaller than 5 pixels" in caplog.text


def test_mixed_sizes_are_refused(class_folder, pack, png, refusal):
    (class_folder / "dog" / "3.png").write_bytes(png(np.zeros((7, 9, 3), np.uint8)))
    for path in (str(class_folder), pack(class_folder)):
        words = (f"{path}/cat/0.png is 5x4", f"{path}/dog/3.png is 9x7", "`resolution`")
        refusal(lambda path=path: open_dataset(path), *words)
    assert read_dataset(DataConfig(str(class_folder), resolution=4)).images.shape == (6, 3, 4, 4)


def test_sizes_are_compared_upright(tmp_path, pixels, png):
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "a.png").write_bytes(png(pixels[0]))
    (tmp_path / "b.png").write_bytes(png(np.rot90(pixels[1]).copy(), exif=exif))
    np.testing.assert_array_equal(open_dataset(str(tmp_path)).images[1].numpy(), pixels[1].transpose(2, 0, 1))


BROKEN = {"empty": b"", "text": b"hello", "cut": None}


@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.parametrize("resolution", [None, 4])
def test_a_broken_image_is_refused_or_skipped(class_folder, pack, pixels, caplog, refusal, kind, resolution):
    broken = class_folder / "cat" / "1.png"
    broken.write_bytes(broken.read_bytes()[:-30] if kind == "cut" else BROKEN[kind])
    for path in (str(class_folder), pack(class_folder)):
        config = DataConfig(path, resolution=resolution)
        refusal(lambda config=config: read_dataset(config), f"{path}/cat/1.png", "`skip_bad=True`")
        caplog.clear()
        dataset = read_dataset(DataConfig(path, resolution=resolution, skip_bad=True))
        assert len(dataset) == 5
        assert dataset.labels.tolist() == [0, 1, 1, 1, 1]
        assert len(dataset.skipped) == 1
        assert dataset.skipped[0].startswith(f"{path}/cat/1.png: ")
        assert "1 of 6 images were left out" in caplog.text
        if resolution is None:
            np.testing.assert_array_equal(dataset.images.numpy(), pixels[[0, 2, 3, 4, 5]].transpose(0, 3, 1, 2))


def test_a_dangling_link_is_a_bad_file(class_folder, refusal):
    (class_folder / "cat" / "link.png").symlink_to(class_folder / "nowhere.png")
    refusal(lambda: open_dataset(str(class_folder)), "cat/link.png", "No such file", "`skip_bad=True`")
    assert len(read_dataset(DataConfig(str(class_folder), skip_bad=True))) == 6


def test_a_damaged_member_of_a_zip_is_a_bad_file(class_folder, pack, refusal):
    path = pack(class_folder, zipfile.ZIP_STORED)
    image = (class_folder / "dog" / "2.png").read_bytes()
    content = open(path, "rb").read()
    start = content.index(image) + len(image) - 20
    with open(path, "r+b") as file:
        file.seek(start)
        file.write(b"XXXX")
    refusal(lambda: open_dataset(path), f"{path}/dog/2.png", "`skip_bad=True`")
    assert len(read_dataset(DataConfig(path, skip_bad=True))) == 5


def test_all_bad(tmp_path, refusal):
    (tmp_path / "a.png").write_bytes(b"")
    for resolution, channels in ((None, None), (4, 3)):
        config = DataConfig(str(tmp_path), resolution, channels, skip_bad=True)
        refusal(lambda config=config: read_dataset(config), tmp_path, "none of its 1 images")


def test_linked_folders_are_followed_and_loops_end(class_folder, tmp_path, pixels):
    root = tmp_path / "links"
    root.mkdir()
    for name in ("cat", "dog"):
        (root / name).symlink_to(class_folder / name)
    (class_folder / "cat" / "loop").symlink_to(root)
    dataset = open_dataset(str(root))
    np.testing.assert_array_equal(dataset.images.numpy(), pixels.transpose(0, 3, 1, 2))


def test_only_ordinary_files_are_read(class_folder):
    os.mkfifo(class_folder / "cat" / "pipe.png")  # opening it would wait for ever
    (class_folder / "dog" / "folder.png").mkdir()
    assert len(open_dataset(str(class_folder))) == 6


def test_decompression_bomb(class_folder, monkeypatch, refusal):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 9)
    line = refusal(lambda: open_dataset(str(class_folder)), f"{class_folder}/cat/0.png", "18 pixels")
    assert "`skip_bad=True`" in line


def test_a_file_of_absurd_size_is_not_read(class_folder, monkeypatch, refusal):
    monkeypatch.setattr("unistep.data.files._LARGEST_FILE", 10)
    refusal(lambda: open_dataset(str(class_folder)), f"{class_folder}/cat/0.png", "bytes")


def test_names_are_shown_on_one_line(class_folder, refusal):
    (class_folder / "cat" / "a\nb\x1b.png").write_bytes(b"")
    refusal(lambda: open_dataset(str(class_folder)), "cat/a\\nb\\x1b.png")
    os.unlink(class_folder / "cat" / "a\nb\x1b.png")
    (class_folder / "cat" / os.fsdecode(b"\xff.png")).write_bytes(b"")
    refusal(lambda: open_dataset(str(class_folder)), "cat/\\udcff.png")


def test_zip_of_a_mac(class_folder, pack, pixels):
    (class_folder / "__MACOSX").mkdir()
    shutil.copy(class_folder / "cat" / "0.png", class_folder / "__MACOSX" / "0.png")
    assert len(open_dataset(pack(class_folder))) == 6


def test_an_encrypted_member_is_a_bad_file(class_folder, pack, refusal):
    path = pack(class_folder)
    content = bytearray(open(path, "rb").read())
    for signature, offset in ((b"PK\3\4", 6), (b"PK\1\2", 8)):  # the flags in both headers
        position = content.find(signature)
        while position >= 0:
            content[position + offset] |= 1
            position = content.find(signature, position + 1)
    with open(path, "wb") as file:
        file.write(content)
    refusal(lambda: open_dataset(path), "cat/0.png", "password")


@pytest.mark.parametrize("workers", [1, 7])
def test_parallel_reading_keeps_the_order(monkeypatch, workers):
    monkeypatch.setattr(parallel_module, "cpu_count", lambda: workers)
    assert list(parallel_module.ordered_map(lambda i: i * i, 300, "test")) == [i * i for i in range(300)]
    assert list(parallel_module.ordered_map(lambda i: i, 0, "test")) == []


def test_parallel_reading_stops_at_an_error():
    seen = []

    def work(index):
        seen.append(index)
        if index == 5:
            raise KeyError("five")
        return index

    with pytest.raises(KeyError):
        list(parallel_module.ordered_map(work, 100_000, "test"))
    assert len(seen) < 2000
