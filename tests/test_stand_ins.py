"""Pointers of git-lfs and web pages are named by every reader that finds one in place of its file."""

import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import unistep
from unistep.config.recipes import read_run, read_values
from unistep.data.inspect import inspect_source
from unistep.errors import UserError
from unistep.files import check_regular_file, stand_in
from unistep.formats.published.dinov2 import load_dinov2
from unistep.formats.published.lpips import load_lpips
from unistep.images.read import check_image_file, decoded
from unistep.metrics.features.onnx import ONNX
from unistep.metrics.statistics import read_statistics
from unistep.searching.record import open_record

POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 5640640\n"
PAGE = "\n<!DOCTYPE html>\n<html><head><title>404</title></head></html>"
EMBEDDED = Path(unistep.__file__).parent / "assets" / "mnist"
WORDS = {POINTER: "is a git-lfs pointer and not the file itself; fetch it with: git lfs pull", PAGE: "it is a web page"}


def in_folder(name: str) -> Callable[[Path, str], Path]:
    """A folder of images with such a file in it."""

    def make(folder: Path, text: str) -> Path:
        place = folder / "images"
        place.mkdir()
        Image.new("L", (8, 8)).save(place / "0.png")
        (place / name).write_text(text)
        return place

    return make


def in_zip(folder: Path, text: str) -> Path:
    with zipfile.ZipFile(folder / "x.zip", "w") as archive:
        archive.writestr("0.png", text)
    return folder / "x.zip"


def in_model(part: str) -> Callable[[Path, str], Path]:
    def make(folder: Path, text: str) -> Path:
        shutil.copytree(EMBEDDED, folder / "model")
        if part.startswith("unet/diffusion"):
            (folder / "model" / "unet" / "diffusion_pytorch_model.safetensors").unlink()
        (folder / "model" / part).write_text(text)
        return folder / "model"

    return make


def file(name: str) -> Callable[[Path, str], Path]:
    def make(folder: Path, text: str) -> Path:
        (folder / name).write_text(text)
        return folder / name

    return make


READERS: dict[str, tuple[Callable[[Path, str], Path], Callable[[Path], Any]]] = {
    **{f"model {ending}": (file(f"x.{ending}"), unistep.inspect) for ending in
       ("pt", "pth", "ckpt", "bin", "pkl", "safetensors", "json")},
    **{f"folder {part}": (in_model(part), unistep.inspect) for part in
       ("model_index.json", "unet/config.json", "scheduler/scheduler_config.json",
        "unet/diffusion_pytorch_model.safetensors", "unet/diffusion_pytorch_model.bin",
        "unet/diffusion_pytorch_model.safetensors.index.json")},
    "zip": (file("x.zip"), unistep.open_dataset),
    "npz": (file("x.npz"), unistep.open_dataset),
    "image in a folder": (in_folder("1.png"), unistep.open_dataset),
    "image in a zip": (in_zip, unistep.open_dataset),
    "dataset.json": (in_folder("dataset.json"), unistep.open_dataset),
    "metadata.jsonl": (in_folder("metadata.jsonl"), unistep.open_dataset),
    "metadata.csv": (in_folder("metadata.csv"), unistep.open_dataset),
    "image": (file("x.jpg"), lambda path: decoded(path, "x", False)),
    "image by its name": (file("x.jpg"), check_image_file),
    "inspection": (in_zip, lambda path: _raise(inspect_source(str(path)).bad[0])),
    "recipe": (file("x.yaml"), read_values),
    "run": (file("config.yaml"), lambda path: unistep.inspect(path.parent)),
    "config of a run": (file("config.yaml"), lambda path: read_run(path.parent)),
    "statistics": (file("x.npz"), read_statistics),
    "onnx": (file("x.onnx"), ONNX),
    "dinov2": (file("x.pth"), load_dinov2),
    "vgg": (file("x.pth"), lambda path: load_lpips(path, path)),
    "record of a search": (file("x.json"), lambda path: open_record(path, {})),
}  # fmt: skip


def _raise(text: object) -> None:
    raise UserError(str(text))


@pytest.mark.parametrize("text", WORDS, ids=["pointer", "page"])
@pytest.mark.parametrize("reader", READERS)
def test_readers_name_what_stands_in_for_a_file(reader: str, text: str, tmp_path: Path):
    make, read = READERS[reader]
    if reader == "onnx":
        pytest.importorskip("onnxruntime")
    path = make(tmp_path, text)
    with pytest.raises(UserError) as caught:
        read(path)
    assert WORDS[text] in str(caught.value)
    assert str(caught.value).isprintable() and "damaged" not in str(caught.value)


@pytest.mark.parametrize(
    "head",
    [
        b"version https://hawser.github.com/spec/v1\n",
        b"\xef\xbb\xbf  \r\n<HTML lang=en>",
        b'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>AccessDenied</Code></Error>',
        b"<!-- moved --><html>",
    ],
)
def test_other_forms(head: bytes):
    assert stand_in(head)


@pytest.mark.parametrize("head", [b"", b"{}", b"PK\x03\x04", b"\x80\x02", b"version: 3\n", b"description: <html>\n"])
def test_other_files_pass(head: bytes, tmp_path: Path):
    assert not stand_in(head)
    (tmp_path / "x").write_bytes(head)
    check_regular_file(tmp_path / "x", "")
