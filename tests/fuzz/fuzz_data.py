"""Damaged and hostile files of images, labels and statistics."""

import functools
import io
import json
import random
import struct
import zipfile
import zlib
from typing import Any

import numpy as np
from fuzz_case import Case, Content, Good, damaged, data_command, fifo, folder, linked
from fuzz_models import _zip, evil_pickle, spoiled_json
from PIL import Image

# ---------------------------------------------------------------------------------------------------- arrays


def npy(header: str | bytes, data: bytes = b"", version: tuple[int, int] = (1, 0), length: int | None = None) -> bytes:
    content = header.encode("latin-1", "replace") if isinstance(header, str) else header
    size = len(content) if length is None else length
    return b"\x93NUMPY" + bytes(version) + struct.pack("<H" if version[0] == 1 else "<I", size) + content + data


def head(descr: str = "'|u1'", order: str = "False", shape: str = "(8, 28, 28)") -> str:
    return "{'descr': " + descr + ", 'fortran_order': " + order + ", 'shape': " + shape + ", }\n"


PIXELS = bytes(8 * 28 * 28)


def odd_array(r: random.Random) -> tuple[str, bytes]:
    n = r.randrange(100, 9000)
    found: dict[str, bytes] = {
        "tokens": npy("{'descr': '|u1', 'shape': (8, 28, 28), 'fortran_order': False, 'x': '''\n", PIXELS),
        "open bracket": npy("{'descr': '|u1', 'fortran_order': False, 'shape': (8, 28,\n", PIXELS),
        "indents": npy("{'descr':\n  '|u1',\n 'x' 2L\n\t(\n", PIXELS),
        "deep": npy("(" * n, PIXELS),
        "deep shape": npy(head(shape="(" * n + ")" * n), PIXELS),
        "deep minus": npy(head(shape="(" + "-" * n + "1,)"), PIXELS),
        "huge shape": npy(head(shape="(999999999999, 28, 28)"), PIXELS),
        "huge product": npy(head(shape=f"({2**62}, {2**62})"), PIXELS),
        "digits": npy(head(shape=f"({'9' * 5000},)"), PIXELS),
        "many axes": npy(head(shape="(" + "1," * 70 + ")"), PIXELS),
        "negative": npy(head(shape="(-8, 28, 28)"), PIXELS),
        "float shape": npy(head(shape="(8.0, 28, 28)"), PIXELS),
        "bool shape": npy(head(shape="(True, 28, 28)"), PIXELS[: 28 * 28]),
        "text shape": npy(head(shape="'8'"), PIXELS),
        "zero": npy(head(shape="(0, 28, 28)")),
        "no axes": npy(head(shape="()"), b"\0"),
        "objects": npy(head("'|O'"), evil_pickle(r)[1]),
        "records": npy(head("[('a', '|u1'), ('b', '|O')]"), PIXELS),
        "void": npy(head("'|V8'"), PIXELS),
        "unknown type": npy(head("'<q99'"), PIXELS),
        "wide text": npy(head("'<U999999999'", shape="(9,)"), b"abcd"),
        "empty type": npy(head("''"), PIXELS),
        "call": npy(head("__import__('os').system('touch canary')"), PIXELS),
        "date": npy(head("'<M8[ns]'"), PIXELS * 8),
        "order": npy(head(order="'x'"), PIXELS),
        "order 2": npy(head(order="None"), PIXELS),
        "no dictionary": npy("[1, 2, 3]\n", PIXELS),
        "keys": npy("{'descr': '|u1'}\n", PIXELS),
        "unhashable": npy("{[]: 1}\n", PIXELS),
        "not text": npy(r.randbytes(80), PIXELS),
        "NUL": npy("\0" * 60, PIXELS),
        "long header": npy(head() + " " * 60_000, PIXELS),
        "length beyond": npy(head(), PIXELS, length=65_535),
        "version": npy(head(), PIXELS, version=(r.choice([0, 4, 9, 255]), 0)),
        "version 2 huge": npy(head(), PIXELS, version=(2, 0), length=2**32 - 1),
        "short": npy(head(), PIXELS[: r.randrange(len(PIXELS))]),
        "long": npy(head(), PIXELS + b"\0" * r.randrange(1, 9)),
        "magic": b"\x93NUMPX" + npy(head(), PIXELS)[7:],
        "head alone": b"\x93NUMPY",
        "empty": b"",
    }
    return r.choice(list(found.items()))


@functools.cache
def _zero_bomb(name: str, shape: str, size: int) -> bytes:
    """A zip of some hundred kilobytes that unpacks to `size` bytes."""
    content = npy(head(shape=shape)) + bytes(size)
    return _zip({name: content}, zipfile.ZIP_DEFLATED)


def arrays(r: random.Random, good: Good) -> Case:
    choice = r.randrange(8)
    if choice == 0:
        note, content = damaged(r, good.npz.read_bytes())
    elif choice == 1:
        note, content = "members", _broken_zip(r, good.npz.read_bytes())
    elif choice == 2:
        note, content = "labels", _with_labels(r)
    elif choice == 3 and r.randrange(4) == 0:
        note, content = "bomb", _zero_bomb("arr_0.npy", r.choice(["(8, 28, 28)", "(99999, 28, 28)"]), 120 << 20)
    else:
        note, content = odd_array(r)
        method = r.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
        content = _zip({r.choice(["arr_0.npy", "arr_0.npy", "images.npy"]): content}, method)
    command = data_command(r, "data.npz")
    if note == "labels":  # which evaluations and searches do not read
        command = ["train", "mnist-quick", "--data", "data.npz", "--output", "run"]
    return Case(command, {"data.npz": content}, note=note)


def _with_labels(r: random.Random) -> bytes:
    def labels(values: Any, dtype: str) -> bytes:
        held = io.BytesIO()
        np.save(held, np.array(values, dtype), allow_pickle=False)
        return held.getvalue()

    wrong = [
        labels([-1, 0, 1, 2, 3, 4, 5, 6], "<i8"),
        labels([2**62, 0, 0, 0, 0, 0, 0, 0], "<i8"),
        labels([2**64 - 1, 0, 0, 0, 0, 0, 0, 0], "<u8"),
        labels([0.5] * 8, "<f4"),
        labels([0] * 7, "<i8"),
        labels(["a"] * 8, "<U1"),
        odd_array(r)[1],
    ]
    return _zip({"arr_0.npy": npy(head(shape="(8, 28, 28)"), PIXELS), "arr_1.npy": r.choice(wrong)})


def statistics(r: random.Random, good: Good) -> Case:
    with np.load(good.statistics) as file:
        arrays = {name: file[name] for name in file.files}
    note, changed = _spoiled_statistics(r, arrays)
    command = r.choice(
        [
            ["evaluate", "mnist-test", "--reference", "stats.npz", "--num-images", "16"],
            ["evaluate", "images", "--reference", "stats.npz"],
            ["search", "--reference", "stats.npz", "--num-images", "20"],
        ]
    )
    return Case(command, {"stats.npz": changed, "images": _linked_folder(good)}, note=note)


def _linked_folder(good: Good) -> Content:
    return linked(good.images)


def _spoiled_statistics(r: random.Random, arrays: dict[str, np.ndarray]) -> tuple[str, bytes]:
    def saved(**others: Any) -> bytes:
        held = io.BytesIO()
        np.savez(held, **{k: v for k, v in (arrays | others).items() if v is not None})
        return held.getvalue()

    mu, sigma, about = arrays["mu"], arrays["sigma"], json.loads(str(arrays["about"]))
    dim = len(mu)
    choice = r.randrange(6)
    if choice == 0:
        note, text = spoiled_json(r, {name: value for name, value in about.items() if name != "images"})
        if isinstance(text, bytes):
            text = text.decode("latin-1")
        return f"about: {note}", saved(about=np.array(text.encode("utf-8", "replace").decode()))
    if choice == 1:
        return damaged(r, saved())
    if choice == 2:
        held = io.BytesIO(saved())
        out = io.BytesIO()
        wanted = r.choice(["mu.npy", "sigma.npy", "about.npy"])
        note, content = odd_array(r)
        with zipfile.ZipFile(held) as old, zipfile.ZipFile(out, "w") as new:
            for name in old.namelist():
                new.writestr(name, content if name == wanted else old.read(name))
        return f"{wanted}: {note}", out.getvalue()
    asymmetric = sigma.copy()
    asymmetric[0, -1] += 1 + np.abs(sigma).max()
    found: dict[str, bytes] = {
        "NaN": saved(mu=np.full_like(mu, np.nan)),
        "inf": saved(sigma=np.where(np.eye(dim) > 0, np.inf, sigma)),
        "huge": saved(sigma=sigma * 1e300, mu=mu * 1e300),
        "negative": saved(sigma=-sigma - np.eye(dim)),
        "asymmetric": saved(sigma=asymmetric),
        "no sigma": saved(sigma=None),
        "short mean": saved(mu=mu[:-1]),
        "other dimensions": saved(mu=mu[:5], sigma=sigma[:5, :5], about=None),
        "matrix mean": saved(mu=mu[None]),
        "scalar mean": saved(mu=np.float64(3)),
        "empty": saved(mu=mu[:0], sigma=sigma[:0, :0]),
        "whole numbers": saved(mu=mu.astype(np.int64)),
        "texts": saved(mu=mu.astype("<U8")),
        "complex": saved(sigma=sigma.astype(complex)),
        "objects": saved(about=np.array([{"a": 1}], dtype=object)),
        "about list": saved(about=np.array(["{}"] * 3)),
        "about number": saved(about=np.array(3)),
        "about bytes": saved(about=np.array(b"{}")),
        "about other network": saved(about=np.array(json.dumps(about | {"key": "other", "features": "x\x1b[31m"}))),
    }
    return r.choice(list(found.items()))


# ---------------------------------------------------------------------------------------------------- zips


def _broken_zip(r: random.Random, content: bytes) -> bytes:
    """A zip whose list or a member of it is damaged."""
    central, end = content.find(b"PK\1\2"), content.rfind(b"PK\5\6")
    changed = bytearray(content)
    choice = r.randrange(6)
    if choice == 0:  # method
        struct.pack_into("<H", changed, central + 10, r.choice([1, 9, 12, 14, 93, 97, 99]))
    elif choice == 1:  # encrypted
        struct.pack_into("<H", changed, central + 8, 1)
    elif choice == 2:  # sizes
        struct.pack_into("<I", changed, central + 24, r.choice([0xFFFFFFFE, 0x7FFFFFFF, 3]))
    elif choice == 3:  # offset of the member
        struct.pack_into("<I", changed, central + 42, r.choice([0xFFFFFFF0, len(content), 7]))
    elif choice == 4:  # offset of the list
        struct.pack_into("<I", changed, end + 16, r.choice([0xFFFFFFF0, len(content), 5]))
    else:
        return content[:end]
    return bytes(changed)


def png(width: int = 28, height: int = 28, mode: str = "L") -> bytes:
    held = io.BytesIO()
    Image.new(mode, (width, height), 7).save(held, "PNG")
    return held.getvalue()


def zips(r: random.Random, good: Good) -> Case:
    """Archives of images that hold none, or lie."""
    image = png()
    found: dict[str, bytes] = {
        "empty": _zip({}),
        "no images": _zip({"a.txt": b"x", "b.pkl": evil_pickle(r)[1]}),
        "no image inside": _zip({"a.png": r.randbytes(200)}),
        "empty image": _zip({"a.png": b"", "b.png": image}),
        "cut image": _zip({"a.png": image, "b.png": image[: len(image) // 2]}),
        "damaged": _broken_zip(r, _zip({"a.png": image})),
        "cut": _zip({"a.png": image})[: r.randrange(4, 60)],
        "noise": b"PK\3\4" + r.randbytes(400),
        "bomb": _image_bomb(),
        "nested": _zip({"a.zip": _zip({"b.zip": _zip({"a.png": image})})}),
        "labels": _zip({"a.png": image, "b.png": image, "dataset.json": _labels(r)}),
        "sizes differ": _zip({"a.png": png(28, 28), "b.png": png(30, 28)}),
        "encrypted": _broken_zip(random.Random(7), _zip({"a.png": image})),
        "folder": _zip({"a.png/": b""}),
        "no zip": b"Rar!\x1a\x07\x00" + bytes(100),
        "HTML": b"<html>404</html>",
        "LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"a" * 64 + b"\nsize 5\n",
    }
    note, content = r.choice(list(found.items()))
    return Case(data_command(r, "data.zip"), {"data.zip": content}, note=note)


@functools.cache
def _image_bomb() -> bytes:
    """A zip whose picture unpacks to 300 MB, which are no picture."""
    return _zip({"a.png": b"\x89PNG\r\n\x1a\n" + bytes(300 << 20)}, zipfile.ZIP_DEFLATED)


def _labels(r: random.Random) -> bytes:
    names = ["a.png", "b.png"]
    wrong: list[Any] = [
        [[names[0], 0]],
        [[names[0], 0], [names[1], -1]],
        [[names[0], 0], [names[1], 10**30]],
        [[names[0], 0], [names[1], 2_000_000]],
        [[names[0], 0], [names[1], "1"]],
        [[names[0], 0], [names[1], 0.5]],
        [[names[0], 0], [names[1], True]],
        [[names[0], 0], [names[1], None]],
        [[names[0], 0], ["c.png", 1]],
        [[names[0], 0], [names[1], 1], [names[1], 0]],
        [[names[0], 0, 1], [names[1]]],
        [names, [0, 1]],
        {"a.png": 0},
        "x",
        3,
        [[[[1]]]],
        [[names[0], 0], [["b.png"], 1]],
    ]
    return json.dumps({"labels": r.choice(wrong)}).encode()


def label_files(r: random.Random, good: Good) -> Case:
    """Folders whose dataset.json is damaged."""
    image = png()
    files: dict[str, Content] = {"data/a.png": image, "data/b.png": image}
    choice = r.randrange(5)
    if choice < 2:
        note, content = "labels", _labels(r)
    elif choice == 4 and r.randrange(3) == 0:
        note, content = "no file", r.choice([fifo, folder])
    else:
        note, content = spoiled_json(r, {"labels": [["a.png", 0], ["b.png", 1]]})
    # Reports list such labels, and edits do not read them.
    command = r.choice(
        [["train", "mnist-quick", "--data", "data"], ["train", "mnist-ect", "--data.source", "data", "--output", "run"]]
    )
    return Case(command, files | {"data/dataset.json": content}, note=f"dataset.json: {note}")


# ---------------------------------------------------------------------------------------------------- images


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _png_of(width: int, height: int, depth: int = 8, colour: int = 0, data: bytes | None = None) -> bytes:
    data = zlib.compress(b"\0" * 1000) if data is None else data
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", head) + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")


@functools.cache
def _png_bomb(side: int) -> bytes:
    packer = zlib.compressobj(1)
    row = bytes(side + 1)
    data = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    return _png_of(side, side, data=data)


@functools.cache
def _saved(kind: str) -> bytes:
    held = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (28, 28, 3), np.uint8)
    image = Image.fromarray(pixels)
    if kind in ("GIF", "TIFF"):
        image.save(held, kind, save_all=True, append_images=[image])
    else:
        image.save(held, kind)
    return held.getvalue()


def odd_image(r: random.Random) -> tuple[str, str, bytes]:
    """An ending, a mutation, and the content of a picture that no reader can read whole."""
    kinds = {"PNG": ".png", "JPEG": ".jpg", "WEBP": ".webp", "GIF": ".gif", "TIFF": ".tif", "BMP": ".bmp"}
    choice = r.randrange(4)
    if choice == 0:
        kind = r.choice(list(kinds))
        note, content = damaged(r, _saved(kind), head=32)
        if kind in ("GIF", "BMP") and note == "cut":
            content = content[:20]
        return kinds[kind], note, content[: len(content) // 2] if note == "cut" else content
    if choice == 1:
        width, height = r.choice([(0, 28), (28, 0), (2**31 - 1, 2**31 - 1), (2**32 - 1, 1), (100_000, 100_000)])
        return ".png", f"{width}x{height}", _png_of(width, height)
    if choice == 2 and r.randrange(3) == 0:
        return ".png", "bomb", _png_bomb(14_000)
    size = struct.pack("<HH", 65535, 65535)
    found: dict[str, tuple[str, bytes]] = {
        "GIF size": (".gif", b"GIF89a" + size + _saved("GIF")[10:200]),
        "GIF frames": (".gif", b"GIF89a" + size + b"\0\0\0" + b"\x2c\0\0\0\0" + size + b"\0" + b"\x02\x01\x00"),
        "BMP size": (".bmp", _saved("BMP")[:18] + struct.pack("<ii", 2**30, 2**30) + _saved("BMP")[26:]),
        "BMP offset": (".bmp", _saved("BMP")[:10] + struct.pack("<I", 2**31) + _saved("BMP")[14:]),
        "JPEG size": (".jpg", _jpeg_size(65500)),
        "JPEG head": (".jpg", b"\xff\xd8\xff\xe0" + bytes(20)),
        "TIFF loop": (".tif", b"II*\0\x08\0\0\0\x01\0\x00\x01\x04\0\1\0\0\0\1\0\0\0\x08\0\0\0"),
        "TIFF counts": (".tif", b"II*\0\x08\0\0\0\xff\xff" + b"\x00\x01\x04\0\xff\xff\xff\xff\0\0\0\0" * 200),
        "TIFF offset": (".tif", b"II*\0\xff\xff\xff\xff"),
        "WebP length": (".webp", b"RIFF\xff\xff\xff\xffWEBPVP8 \xff\xff\xff\xff" + bytes(40)),
        "PNG depth": (".png", _png_of(28, 28, depth=r.choice([0, 3, 64]))),
        "PNG colour": (".png", _png_of(28, 28, colour=r.choice([1, 5, 9]))),
        "PNG no palette": (".png", _png_of(28, 28, colour=3, data=b"")),
        "PNG data": (".png", _png_of(28, 28, data=r.randbytes(100))),
        "PNG short": (".png", _png_of(2800, 2800)),
        "text": (r.choice([".png", ".jpg", ".webp"]), b"not a picture\n"),
        "HTML": (".jpg", b"<!DOCTYPE html><title>x</title>"),
        "SVG": (".png", b"<svg xmlns='http://www.w3.org/2000/svg' width='9999999' height='9999999'/>"),
        "EPS": (".png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99 99\n(canary) (w) file\n"),
        "PDF": (".png", b"%PDF-1.4\n"),
        "MPO": (".jpg", b"\xff\xd8\xff\xe2\0\x10MPF\0II*\0\xff\xff\xff\xff"),
        "FITS": (".png", b"SIMPLE  =                    T".ljust(80) + b"NAXIS   = 99999".ljust(80)),
        "PPM": (".png", b"P6\n999999999 999999999\n255\n"),
        "ICO": (".png", b"\0\0\1\0\xff\xff" + bytes(40)),
        "PSD": (".png", b"8BPS\0\1" + b"\xff" * 40),
    }
    note, (ending, content) = r.choice(list(found.items()))
    return ending, note, content


def _jpeg_size(side: int) -> bytes:
    content = bytearray(_saved("JPEG"))
    at = content.index(b"\xff\xc0") + 5
    struct.pack_into(">HH", content, at, side, side)
    return bytes(content)


def images(r: random.Random, good: Good) -> Case:
    ending, note, content = odd_image(r)
    name = f"picture{ending}"
    choice = r.randrange(6)
    if choice == 0:
        return Case(
            ["edit", "inpaint", "--input", name, "--mask", "good.png", "--output", "o.png"], {name: content}, note=note
        )
    if choice == 1:
        words = ["edit", "inpaint", "--input", "good.png", "--mask", name, "--output", "o.png"]
        return Case(words, {name: content}, note=f"mask: {note}")
    if choice == 2:
        task = r.choice(["vary", "denoise", "upscale", "jpeg", "strokes", "interpolate", "deblur"])
        words = ["edit", task, "--input", name, *(["good.png"] if task == "interpolate" else []), "--output", "o.png"]
        return Case(words, {name: content}, note=f"{task}: {note}")
    files: dict[str, Content] = {f"data/{name}": content, "data/good.png": png()}
    command = data_command(r, "data")
    if command[0] == "edit":
        command = ["edit", "vary", "--input", "data", "--output", "edited"]
    return Case(command, files, note=f"folder: {note}")


# ---------------------------------------------------------------------------------------------------- networks


@functools.cache
def _network() -> bytes:
    """An ONNX network of features: the means of the channels."""
    from onnx import TensorProto, helper

    shape = ["batch", 3, 8, 8]
    graph = helper.make_graph(
        [
            helper.make_node("ReduceMean", ["x"], ["y"], axes=[2, 3], keepdims=0),
        ],
        "features",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    return model.SerializeToString()


def networks(r: random.Random, good: Good) -> Case:
    """Networks of features, and what they declare."""
    declared = {
        "size": 8,
        "channels": 3,
        "scale": 255,
        "mean": [0.5],
        "std": [0.5],
        "resize": "clean",
        "layout": "NCHW",
        "pool": "y",
    }
    content: Content = _network()
    note = "network"
    text: Content = json.dumps(declared)
    choice = r.randrange(3)
    if choice == 0:
        note, content = damaged(r, _network())
        content = content[: len(content) * 2 // 3] if note == "cut" else content
    elif choice == 1:
        wrong: list[dict[str, Any]] = [
            declared | {"size": 9},
            declared | {"size": 10**9},
            declared | {"size": 50_000},
            declared | {"channels": 1},
            declared | {"layout": "NHWC"},
            declared | {"pool": "z"},
            declared | {"pool": "x\x1b[31m"},
            declared | {"probabilities": "y"},
            declared | {"scale": 0},
            declared | {"std": [0]},
            declared | {"std": [1, 2]},
            declared | {"mean": []},
            declared | {"resize": "nearest"},
            declared | {"other": 1},
            {},
        ]
        text = json.dumps(r.choice(wrong))
    else:
        note, text = spoiled_json(r, declared)
    features = ["--features", "onnx:net.onnx"]
    command = r.choice(
        [
            ["evaluate", "data.npz", "--reference", "data.npz", *features],
            ["evaluate", "--reference", "mnist-test", "--num-images", "16", *features],
            ["search", "--reference", "mnist-test", "--num-images", "20", *features],
        ]
    )
    files: dict[str, Content] = {"net.onnx": content, "net.onnx.json": text, "data.npz": linked(good.npz)}
    return Case(command, files, note=note)
