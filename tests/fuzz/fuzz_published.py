"""Damaged and hostile files of datasets as they are published: packed parts, batches of CIFAR-10, IDX files."""

import functools
import gzip
import io
import json
import random
import struct
import tarfile
import zipfile
from typing import Any

from fuzz_case import Case, Content, Good, damaged, data_command, fifo, folder
from fuzz_models import _zip, evil_pickle, odd_pickle, spoiled_json
from PIL import Image

_GREY = bytes(range(256)) * 4


@functools.cache
def _sheet(images: int) -> bytes:
    held = io.BytesIO()
    Image.frombytes("L", (28, 28 * images), (_GREY * images)[: 784 * images]).convert("RGB").save(
        held, "WEBP", lossless=True
    )
    return held.getvalue()


def _part(**changes: Any) -> dict[str, Any]:
    index = {"format": "unistep-packed-images", "version": 1, "part": 1, "parts": 1, "first": 0, "count": 8, "total": 8}
    index |= {
        "channels": 1,
        "height": 28,
        "width": 28,
        "images_per_sheet": 8,
        "class_names": None,
        "labels": [0, 1] * 4,
    }
    return index | {"sha256": "0" * 64, "dataset": "0" * 64} | changes


def _packed(index: str | bytes, sheets: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    text = index.encode("utf-8", "surrogatepass") if isinstance(index, str) else index
    return _zip({"unistep-packed-images": b"", **sheets, "part.json": text}, method)


def parts(r: random.Random, good: Good) -> Case:
    """Packed parts; the sums of the valid one are false, so that none of them opens."""
    sheets = {"sheet-00000.webp": _sheet(8)}
    choice = r.randrange(5)
    if choice == 0:
        note, content = damaged(r, _packed(json.dumps(_part()), sheets), 64)
        content = b"PK\3\4" + content[4:] if content[:2] != b"PK" else content
    elif choice == 1:
        note, text = spoiled_json(r, _part())
        content = _packed(text, sheets)
    elif choice == 2:
        number = r.choice([0, -1, 2, 9, 28.0, "8", None, True, [], 10**6, 2**31, 2**63, 10**40])
        key = r.choice([key for key, value in _part().items() if isinstance(value, int)])
        note, content = f"{key} {number}", _packed(json.dumps(_part(**{key: number})), sheets)
    elif choice == 3:
        note, sheet = damaged(r, _sheet(8), 30)
        content = _packed(json.dumps(_part()), {"sheet-00000.webp": sheet}, r.choice([0, zipfile.ZIP_DEFLATED]))
    else:
        labels = r.choice([[0] * 7, [-1] * 8, ["a"] * 8, {}, 8, [2**70] * 8, [0.5] * 8, [[]] * 8])
        note, content = f"labels {labels}"[:40], _packed(json.dumps(_part(labels=labels)), sheets)
    name = r.choice(["packed.zip", "packed/part-1-of-1.zip"])
    return Case(data_command(r, name.partition("/")[0]), {name: content}, note=f"part: {note}")


def batches(r: random.Random, good: Good) -> Case:
    """Batches of CIFAR-10, alone, in a folder and in an archive."""
    choice = r.randrange(4)
    if choice == 0:
        note, content = evil_pickle(r)
    elif choice == 1:
        note, content = odd_pickle(r)
    elif choice == 2:
        note, content = "records", r.randbytes(r.choice([0, 1, 3072, 3074, 9000]))
    else:
        note, content = damaged(r, b"\x80\x02}(U\x04dataK\x00U\x06labels](K\x00K\x01eu.")
    ending = ".bin" if note == "records" else ""
    layout = r.randrange(3)
    if layout == 0:
        name = data = f"test_batch{ending}"
    elif layout == 1:
        name, data = f"cifar/data_batch_1{ending}", "cifar"
    else:
        held = io.BytesIO()
        with tarfile.open(fileobj=held, mode="w:gz") as archive:
            member = tarfile.TarInfo(r.choice(["a/data_batch_1", "/data_batch_1", "../data_batch_1"]) + ending)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        name = data = "cifar.tar.gz"
        content = held.getvalue()
        if r.randrange(3) == 0:
            note, content = damaged(r, content)
    return Case(data_command(r, data), {name: content}, note=f"batch: {note}")


def idx(r: random.Random, good: Good) -> Case:
    """IDX files of images and of labels."""
    lengths = r.choice([(8, 28, 28), (8, 28, 29), (2**32 - 1,) * 3, (0, 28, 28), (8, 0, 28), (2**20, 28, 28), (8,), ()])
    kind, axes = r.choice([(8, 3), (8, 3), (13, 3), (8, 1), (8, 200), (0, 3)])
    content = struct.pack(">HBB", 0, kind, axes) + b"".join(struct.pack(">I", n) for n in lengths) + bytes(8 * 784)
    if (lengths, kind, axes) == ((8, 28, 28), 8, 3):
        content += b"\0"
    note = f"{lengths} {kind} {axes}"
    if r.randrange(3) == 0:
        note, content = damaged(r, content[:-1])
    content = gzip.compress(content) if r.randrange(2) else content
    files: dict[str, Content] = {"set/train-images-idx3-ubyte": content}
    if r.randrange(5) == 0:
        note = "pipe or folder"
        files = {"set/train-images-idx3-ubyte": r.choice([fifo, folder])}
    return Case(data_command(r, r.choice(["set", "set/train-images-idx3-ubyte"])), files, note=f"idx: {note}")


def published(r: random.Random, good: Good) -> Case:
    return r.choice([parts, parts, batches, idx])(r, good)
