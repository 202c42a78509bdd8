"""All readers find the same images under the same names, and what they pass over is counted and said."""

import io
import logging
import os
import sys
import types
import unicodedata
import zipfile

import numpy as np
import pytest
from PIL import Image

from unistep.data import formats, open_dataset
from unistep.data.inspect import inspect_source
from unistep.data.inventory import passed_over, take_inventory
from unistep.data.names import is_litter, leads_out, normalised
from unistep.images.read import list_images

DECOMPOSED = unicodedata.normalize("NFD", "é")


@pytest.fixture
def photos(tmp_path, png):
    """`fill(*names)` makes files of these names, images where the ending is one's."""

    def fill(*names):
        for name in names:
            path = tmp_path / "photos" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png(np.zeros((4, 5, 3), np.uint8)))
        return str(tmp_path / "photos")

    return fill


@pytest.mark.parametrize(
    ("spelled", "name"),
    [
        ("cat\\1.png", "cat/1.png"),
        ("./cat/./1.png", "cat/1.png"),
        ("cat//1.png", "cat/1.png"),
        (f"{DECOMPOSED}.png", "\u00e9.png"),
    ],
)
def test_names_have_one_spelling(spelled, name):
    assert normalised(spelled) == name


@pytest.mark.parametrize("name", ["../a.png", "a/../../b.png", "/etc/a.png", "C:\\a.png", "..\\a.png", "\\a.png"])
def test_names_that_lead_out(name):
    assert leads_out(name)
    assert not leads_out("a..b/c.png")


@pytest.mark.parametrize(
    "name",
    "__MACOSX/a.png .DS_Store a/Thumbs.db desktop.ini @eaDir/a.png a/__pycache__/b.png .ipynb_checkpoints/a.png"
    " a/.hidden.png $RECYCLE.BIN/a.png".split(),
)
def test_litter(name):
    assert is_litter(name)
    assert take_inventory([(name, None)], "F").passed == {}


def test_litter_is_no_class(photos):
    names = (
        "cat/1.png",
        "dog/1.png",
        "__MACOSX/1.png",
        "@eaDir/1.png",
        "__pycache__/1.png",
        ".ipynb_checkpoints/1.png",
    )
    assert open_dataset(photos(*names)).class_names == ["cat", "dog"]


def test_what_is_passed_over_is_counted(photos):
    source = photos(
        "a.png", "b.JPG", "c.xyz", "d.xyz", "e.XYZ", "download", "download2", "notes.txt", "LICENSE", "x.a?b"
    )
    assert inspect_source(source).passed == {".xyz": 3, "": 2, "other": 1}
    rows = dict(inspect_source(source).rows())
    assert rows["passed over"] == "3 .xyz, 2 without ending and 1 with other endings"


def test_it_is_said_in_training_and_editing(photos, caplog):
    source = photos("a.png", "b.png", "c.xyz", "d")
    open_dataset(source)
    assert f"{source}: 2 images; 1 .xyz and 1 without ending were passed over" in caplog.messages
    caplog.clear()
    list_images(source)
    assert f"{source}: 2 images; 1 .xyz and 1 without ending were passed over" in caplog.messages


def test_nothing_is_said_where_nothing_is_passed_over(photos, caplog):
    open_dataset(photos("a.png", "notes.txt", "dataset.csv", "README", ".DS_Store"))
    assert caplog.messages == []


def test_pipes_are_passed_over(photos, caplog):
    source = photos("a.png")
    os.mkfifo(f"{source}/b.png")
    assert len(open_dataset(source)) == 1
    assert "1 that are no files was passed over" in caplog.text


def test_a_folder_of_other_files_says_what_they_are(photos, refusal):
    refusal(lambda: open_dataset(photos("a.xyz", "b.xyz")), "no images are in it (2 .xyz passed over)")
    refusal(lambda: list_images(photos("a.xyz")), "2 .xyz passed over")


def test_many_kinds_are_one_line():
    text = passed_over({f".{i}": 100 - i for i in range(50)})
    assert text.startswith("100 .0, 99 .1") and "more kinds" in text and len(text) < 100


def test_the_unicode_form_does_not_tell_two_images_apart(photos, refusal):
    refusal(lambda: open_dataset(photos("\u00e9.png", f"{DECOMPOSED}.png")), "there twice")


def test_labels_find_names_in_another_unicode_form(photos):
    source = photos(f"{DECOMPOSED}.png")
    with open(f"{source}/dataset.json", "w") as file:
        file.write('{"labels": [["\u00e9.png", 0]]}')
    assert open_dataset(source).labels.tolist() == [0]
    assert [one.name for one in list_images(source)] == ["\u00e9"]
    assert all(os.path.exists(one.source) for one in list_images(source))


def test_a_zip_of_windows(tmp_path, png):
    path = tmp_path / "set.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("dog", "cat"):
            member = zipfile.ZipInfo("x")
            member.filename = f"photos\\{name}\\1.png"
            archive.writestr(member, png(np.zeros((4, 5, 3), np.uint8)))
    dataset = open_dataset(str(path))
    assert dataset.class_names == ["cat", "dog"]


# ---------------------------------------------------------------------------------------------------- plugins


@pytest.fixture
def no_plugins():
    formats._has.cache_clear()
    yield
    formats._has.cache_clear()
    Image.OPEN.pop("HEIF", None)


def test_heic_is_passed_over_without_a_plugin(photos, no_plugins, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    assert inspect_source(photos("a.png", "IMG.HEIC", "b.heif")).passed == {".heic": 1, ".heif": 1}


@pytest.mark.parametrize("brand", [b"heic", b"heix", b"hevc", b"mif1"])
@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_heic_of_another_name_is_named(tmp_path, no_plugins, monkeypatch, refusal, brand, suffix):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    (tmp_path / f"IMG{suffix}").write_bytes(b"\0\0\0\x18ftyp" + brand + b"\0\0\0\0mif1heic" + bytes(200))
    refusal(lambda: open_dataset(str(tmp_path)), "(it is a HEIC image, whatever its name ends in; install pillow-heif")


def test_a_web_page_is_named_once(tmp_path, refusal):
    (tmp_path / "a.jpg").write_bytes(b"<!DOCTYPE html><html></html>")
    line = refusal(lambda: open_dataset(str(tmp_path)), "(it is a web page and not an image; the download went wrong")
    assert line.count("cannot be read") == 1


def test_heic_is_read_where_a_plugin_is_installed(photos, no_plugins, monkeypatch, caplog):
    def register():
        from PIL import PngImagePlugin

        Image.OPEN["HEIF"] = PngImagePlugin.PngImageFile, lambda prefix: prefix.startswith(b"\x89PNG")

    monkeypatch.setitem(sys.modules, "pillow_heif", types.SimpleNamespace(register_heif_opener=register))
    assert len(open_dataset(photos("a.png", "IMG.HEIC"))) == 2
    assert caplog.messages == []


def test_a_broken_plugin_is_none(photos, no_plugins, monkeypatch):
    def register():
        raise OSError("libheif is missing")

    monkeypatch.setitem(sys.modules, "pillow_heif", types.SimpleNamespace(register_heif_opener=register))
    assert inspect_source(photos("a.png", "IMG.HEIC")).passed == {".heic": 1}


# ---------------------------------------------------------------------------------------------------- frames


def animation(format, count=4, **options):
    frames = [Image.new("RGB", (8, 6), (40 * i, 9 * i, 255 - 40 * i)) for i in range(count)]
    buffer = io.BytesIO()
    frames[0].save(buffer, format, save_all=True, append_images=frames[1:], **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "format", "options"),
    [
        ("a.gif", "GIF", {}),
        ("a.tif", "TIFF", {}),
        ("a.tif", "TIFF", {"big_tiff": True}),
        ("a.png", "PNG", {}),
        ("a.webp", "WEBP", {"lossless": True}),
    ],
)
def test_further_frames_are_counted_and_said(tmp_path, caplog, name, format, options):
    (tmp_path / name).write_bytes(animation(format, **options))
    (tmp_path / "one.png").write_bytes(animation("PNG", 1))
    dataset = open_dataset(str(tmp_path))
    assert dataset.images[0, 0].max() == 0  # the first frame
    assert "3 further pages or frames of 1 file were passed over" in caplog.text
    report = inspect_source(str(tmp_path))
    assert report.further == 3 and "3 further pages or frames" in str(report.rows())


def test_further_frames_are_said_from_the_cache_too(tmp_path, caplog):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.gif").write_bytes(animation("GIF"))
    for _ in range(2):
        caplog.clear()
        open_dataset(str(tmp_path / "photos"), memory_limit=0, cache_dir=tmp_path / "cache")
        assert "3 further pages or frames" in caplog.text


def test_pages_in_a_circle_end(tmp_path):
    content = bytearray(animation("TIFF", 2))
    second = int.from_bytes(content[4:8], "little")
    count = int.from_bytes(content[second : second + 2], "little")
    content[second + 2 + 12 * count :][:4] = content[4:8]
    position = second + 2 + 12 * count
    content[position : position + 4] = content[4:8]
    (tmp_path / "a.tif").write_bytes(content)
    assert len(open_dataset(str(tmp_path))) == 1


def test_an_edit_says_that_it_takes_the_first_frame(tmp_path):
    from unistep.images.read import read_picture

    (tmp_path / "a.gif").write_bytes(animation("GIF"))
    assert "the first of its 4 pages or frames is taken" in read_picture(tmp_path / "a.gif", (3, 6, 8)).note


@pytest.fixture(autouse=True)
def warnings_are_heard(caplog):
    caplog.set_level(logging.WARNING)
