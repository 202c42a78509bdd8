"""Damaged and hostile files of models: pickles, files of torch.save, safetensors, settings of model folders."""

import functools
import io
import json
import random
import struct
import zipfile
from typing import Any

from fuzz_case import Case, Content, Good, below, damaged, fifo, folder, model_command

CANARY = "canary"

# ---------------------------------------------------------------------------------------------------- pickles

_CALLS = [
    ("os", "system", f"touch {CANARY}"),
    ("posix", "system", f"touch {CANARY}"),
    ("subprocess", "getoutput", f"touch {CANARY}"),
    ("builtins", "eval", f"open('{CANARY}', 'w')"),
    ("builtins", "exec", f"open('{CANARY}', 'w')"),
    ("builtins", "__import__", "antigravity"),
    ("builtins", "print", "hello"),
    ("builtins", "breakpoint", ""),
    ("torch", "load", "x"),
    ("torch.hub", "load", "x"),
    ("numpy", "load", "x"),
    ("shutil", "rmtree", "."),
    ("pathlib", "Path", CANARY),
    ("runpy", "run_path", "x.py"),
    ("importlib", "import_module", "this"),
    ("webbrowser", "open", "http://127.0.0.1"),
    ("pickle", "loads", "x"),
    ("code", "interact", ""),
    ("unistep.cli.main", "main", "demo"),
    ("torch._utils", "_rebuild_tensor_v2", "x"),
    ("collections", "OrderedDict.fromkeys", "x"),
    ("dnnlib.util.os", "system", f"touch {CANARY}"),
]


def _text(word: str) -> bytes:
    content = word.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(content)) + content


def evil_pickle(r: random.Random) -> tuple[str, bytes]:
    """A pickle that calls a function in one of the ways that there are."""
    module, name, argument = r.choice(_CALLS)
    way = r.choice(["reduce", "stack", "inst", "obj", "newobj", "newobj_ex", "build", "nested", "extension"])
    classic = f"c{module}\n{name}\n".encode()
    body = {
        "reduce": classic + _text(argument) + b"\x85R",
        "stack": _text(module) + _text(name) + b"\x93" + _text(argument) + b"\x85R",
        "inst": b"(" + _text(argument) + f"i{module}\n{name}\n".encode(),
        "obj": b"(" + classic + _text(argument) + b"o",
        "newobj": classic + _text(argument) + b"\x85\x81",
        "newobj_ex": classic + _text(argument) + b"\x85}\x92",
        "build": classic + b"}" + _text("__setstate__") + classic + b"sb",
        "nested": b"}" + _text("ema") + classic + _text(argument) + b"\x85Rs",
        "extension": b"\x82\x01" + _text(argument) + b"\x85R",
    }[way]
    return f"{way} {module}.{name}", b"\x80\x04" + body + b"."


@functools.cache
def _collisions(count: int) -> bytes:
    """A dictionary whose keys have one hash."""
    keys = (((2**61 - 1) * (i + 1)).to_bytes(10, "little") for i in range(count))
    return b"\x80\x04}(" + b"".join(b"\x8a\x0a" + key + b"K\0" for key in keys) + b"u."


def odd_pickle(r: random.Random) -> tuple[str, bytes]:
    """A pickle that is large, deep, slow or malformed."""
    n = r.randrange(1000, 200_000)
    huge = r.choice([2**31 - 1, 2**32 - 1])
    found: dict[str, bytes] = {
        "deep lists": b"\x80\x04" + b"]" * n + b"a" * (n - 1) + b".",
        "deep tuples": b"\x80\x04" + b")" + b"\x85" * n + b".",
        "deep dictionaries": b"\x80\x04" + b"}K\0" * n + b"}" + b"s" * n + b".",
        "marks": b"\x80\x04" + b"(" * n + b".",
        "doubling": b"\x80\x04]\x94"
        + b"".join(b"(h" + bytes([i]) + b"h" + bytes([i]) + b"t\x94" for i in range(200))
        + b".",
        "far memo": b"\x80\x04Nr" + struct.pack("<I", huge) + b".",
        "absent memo": b"\x80\x04j" + struct.pack("<I", huge) + b".",
        "collisions": _collisions(r.choice([2000, 20_000, 60_000])),
        "huge long": b"\x80\x04\x8b" + struct.pack("<i", 2**31 - 1) + b"\1" * 100 + b".",
        "negative long": b"\x80\x04\x8b" + struct.pack("<i", -5) + b".",
        "long in digits": b"\x80\x04L" + b"9" * n + b"L\n.",
        "int in digits": b"\x80\x04I" + b"9" * n + b"\n.",
        "huge text": b"\x80\x04\x8d" + struct.pack("<Q", 2**62) + b"abc.",
        "huge bytes": b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"abc.",
        "huge bytearray": b"\x80\x05\x96" + struct.pack("<Q", 2**50) + b"abc.",
        "huge frame": b"\x80\x04\x95" + struct.pack("<Q", 2**63 - 1) + b"N.",
        "protocol": b"\x80\xffN.",
        "no stop": b"\x80\x04" + b"N" * n,
        "underflow": b"\x80\x04" + r.choice([b"a", b"s", b"u", b"R", b"b", b"0", b"e", b"\x86"]) + b".",
        "persistent": b"\x80\x04" + _text("x") + b"Q.",
        "out of band": b"\x80\x05\x97.",
        "nothing": b"\x80\x04N.",
        "list": b"\x80\x04]K\1a.",
        "empty dictionary": b"\x80\x04}.",
        "self": b"\x80\x04]\x94h\0a.",
        "half a text": b"\x80\x04X\x10\0\0\0ab",
        "not UTF-8": b"\x80\x04X\x02\0\0\0\xff\xfe.",
        "unknown instruction": b"\x80\x04" + bytes([r.choice([1, 0x7F, 0xA0, 0xFF])]) + b".",
        "float text": b"\x80\x04Fnan?\n.",
        "many pops": b"\x80\x04" + b"N0" * n + b".",
    }
    return r.choice(list(found.items()))


def pickles(r: random.Random, good: Good) -> Case:
    choice = r.randrange(8)
    if choice < 3:
        note, content = evil_pickle(r)
    elif choice < 7:
        note, content = odd_pickle(r)
    else:
        note, content = damaged(r, good.pkl.read_bytes())
    suffix = r.choice([".pkl", ".pkl", ".pkl", ".pt", ".pth", ".ckpt"])
    return Case(model_command(r, f"model{suffix}"), {f"model{suffix}": content}, note=note)


# ---------------------------------------------------------------------------------------------------- torch.save


def _zip(files: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", method, compresslevel=1) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return held.getvalue()


@functools.cache
def _bomb(filler: bytes, head: bytes, tail: bytes, megabytes: int) -> bytes:
    files = {"archive/data.pkl": head + filler * (megabytes << 20) + tail, "archive/version": b"3\n"}
    return _zip(files, zipfile.ZIP_DEFLATED)


def torch_files(r: random.Random, good: Good) -> Case:
    choice = r.randrange(7)
    version = {"archive/version": b"3\n"}
    if choice == 0:
        note, content = evil_pickle(r)
        content = _zip({"archive/data.pkl": content, **version}, r.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))
    elif choice <= 2:
        note, content = odd_pickle(r)
        content = _zip({"archive/data.pkl": content, **version}, r.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))
    elif choice == 3:
        filler, head, tail = r.choice(
            [(b"N0", b"\x80\x02", b"N."), (b"(", b"\x80\x02", b"."), (b"\0", b"\x80\x02", b"")]
        )
        note, content = "deflated", _bomb(filler, head, tail, 100)
    elif choice == 4:
        note, content = damaged(r, good.pt.read_bytes())
    elif choice == 5:
        note, content = "members", _odd_zip(r, good.pt.read_bytes())
    else:
        note, content = "tensor", _odd_tensor(r)
    suffix = r.choice([".pt", ".pt", ".pth", ".ckpt", ".bin"])
    return Case(model_command(r, f"model{suffix}"), {f"model{suffix}": content}, note=note)


def _odd_zip(r: random.Random, content: bytes) -> bytes:
    """The file with its list of members damaged."""
    central, end = content.find(b"PK\1\2"), content.rfind(b"PK\5\6")
    choice = r.randrange(4)
    if choice == 0:  # offset of the list
        changed = bytearray(content)
        struct.pack_into("<I", changed, end + 16, r.choice([0xFFFFFFF0, 0x7FFFFFFF]))
        return bytes(changed)
    if choice == 1:
        return content[:central] + b"PK\1\7" + content[central + 4 :]
    if choice == 2:
        return content[:end]
    return content[: central + r.randrange(4, end - central)]


def _odd_tensor(r: random.Random) -> bytes:
    """A tensor that claims more than its storage, or another kind than floats."""
    kind, size, shape, stride = r.choice(
        [
            ("FloatStorage", 4, (10**9, 10**9), (1, 1)),
            ("FloatStorage", 4, (2**62,), (0,)),
            ("FloatStorage", 10**15, (4,), (1,)),
            ("FloatStorage", 4, (-1,), (1,)),
            ("FloatStorage", 4, (4,), (-1,)),
            ("LongStorage", 2, (2,), (1,)),
            ("BoolStorage", 4, (4,), (1,)),
            ("UntypedStorage", 4, (4,), (1,)),
            ("NoStorage", 4, (4,), (1,)),
        ]
    )

    def whole(number: int) -> bytes:
        return b"\x8a\x09" + number.to_bytes(9, "little", signed=True)

    def numbers(values: tuple[int, ...]) -> bytes:
        return b"(" + b"".join(map(whole, values)) + b"t"

    storage = b"(" + _text("storage") + f"ctorch\n{kind}\n".encode() + _text("0") + _text("cpu") + whole(size) + b"tQ"
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\0" + numbers(shape) + numbers(stride) + b"\x89"
    tensor += b"ccollections\nOrderedDict\n)RtR"
    name = r.choice(["time_embed.0.weight", "input_blocks.0.0.weight", "x", "a\nb", "\x1b[31m"])
    content = b"\x80\x02}(" + _text(name) + tensor + b"u."
    return _zip({"archive/data.pkl": content, "archive/data/0": bytes(16), "archive/version": b"3\n"})


# ---------------------------------------------------------------------------------------------------- safetensors


def safetensors(r: random.Random, good: Good) -> Case:
    source = r.choice([good.model, good.plain])
    whole = (source / "unet/diffusion_pytorch_model.safetensors").read_bytes()
    size = int.from_bytes(whole[:8], "little")
    header, data = json.loads(whole[8 : 8 + size]), whole[8 + size :]
    note, content = _safetensors(r, header, data)
    files = good.copy_of(source, {"unet/diffusion_pytorch_model.safetensors": content})
    if r.randrange(4) == 0:
        return Case(model_command(r, "model.safetensors"), {"model.safetensors": content}, note=f"alone: {note}")
    command = model_command(r, "model")
    if note == "NaN" and command[0] == "inspect":  # which reads no weights
        command = ["sample", "model", "--num-images", "1"]
    return Case(command, below("model", files), note=note)


def _safetensors(r: random.Random, header: dict[str, Any], data: bytes) -> tuple[str, bytes]:
    def made(text: str | bytes, length: int | None = None, rest: bytes = data) -> bytes:
        content = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
        return struct.pack("<Q", len(content) if length is None else length) + content + rest

    name = r.choice([n for n in header if n != "__metadata__"])
    entry = header[name]

    def other(**values: Any) -> str:
        return json.dumps(header | {name: {k: v for k, v in (entry | values).items() if v is not ...}})

    start, end = entry["data_offsets"]
    text = json.dumps(header)
    found: dict[str, bytes] = {
        "length huge": made(text, 2**63),
        "length beyond": made(text, len(text) + len(data) + r.randrange(1, 10**6)),
        "length zero": made(text, 0),
        "length short": made(text, len(text) - r.randrange(1, 50)),
        "no JSON": made(r.randbytes(500)),
        "not UTF-8": made(text.encode().replace(b"weight", b"w\xffight", 1)),
        "deep": made('{"a":' * 5000 + "1" + "}" * 5000),
        "list": made("[1, 2]"),
        "empty": made("{}", rest=b""),
        "dtype": made(other(dtype=r.choice(["NaN", "F99", "", None, 3, "I64", "BOOL", "C64"]))),
        "no dtype": made(other(dtype=...)),
        "offsets negative": made(other(data_offsets=[-4, end])),
        "offsets beyond": made(other(data_offsets=[start, end + 10**12])),
        "offsets swapped": made(other(data_offsets=[end, start])),
        "offsets text": made(other(data_offsets="0")),
        "offsets three": made(other(data_offsets=[start, end, end])),
        "overlap": made(other(data_offsets=[0, end - start] if start else [4, end - start + 4])),
        "shape huge": made(other(shape=[2**40, 2**40])),
        "shape negative": made(other(shape=[-1])),
        "shape float": made(other(shape=[1.5])),
        "shape": made(other(shape=[*entry["shape"], 2])),
        "name": made(text.replace(name, r.choice(["x", "\\u001b[2J", "a\\nb"]) * r.choice([1, 50]), 1)),
        "twice": made(text[:-1] + f', "{name}": {json.dumps(entry)}' + "}"),
        "NaN": made(text, rest=b"\xff\xff\xff\x7f" * (len(data) // 4) + data[: len(data) % 4]),
        "gap": made(text, rest=data + bytes(r.randrange(1, 100))),
        "cut": made(text, rest=data[: r.randrange(len(data))]),
        "head alone": b"\1\0\0",
        "pickle": evil_pickle(r)[1],
        "HTML": b"<!DOCTYPE html><html><head><title>404</title></head></html>",
        "LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"a" * 64 + b"\nsize 12345\n",
    }
    return r.choice(list(found.items()))


# ---------------------------------------------------------------------------------------------------- settings

_PLACES = ["unet/config.json", "scheduler/scheduler_config.json", "model_index.json"]
# Entries that may hold anything: they change nothing that is computed.
_FREE = {"_diffusers_version", "dropout", "method"}


def spoiled_json(r: random.Random, value: dict[str, Any]) -> tuple[str, str | bytes]:
    """The text of an object that is none, or has one value of another kind."""
    text = json.dumps(value)
    if r.randrange(3) == 0:
        found: dict[str, str | bytes] = {
            "empty": "",
            "spaces": "  \n",
            "null": "null",
            "number": "3",
            "list": "[]",
            "text": '"x"',
            "cut": text[: r.randrange(1, len(text) - 1)],
            "comma": text[:-1] + ",}",
            "comment": "// settings\n" + text,
            "single quotes": text.replace('"', "'"),
            "deep": '{"a":' * 100_000 + "1" + "}" * 100_000,
            "deep lists": "[" * 200_000,
            "twice": text[:-1] + ", " + text[1:],
            "not UTF-8": text.encode().replace(b'"', b'"\xff', 1),
            "noise": r.randbytes(300),
            "zeros": bytes(300),
            "NUL": text + "\0",
            "two objects": text + text,
            "large": text[:-1] + ', "_x": "' + "x" * 3_000_000 + '"}',
            "digits": text[:-1] + ', "_x": ' + "9" * 10_000 + "}",
            "HTML": "<html><body>502 Bad Gateway</body></html>",
            "LFS": "version https://git-lfs.github.com/spec/v1\noid sha256:" + "a" * 64 + "\nsize 619\n",
        }
        return r.choice(list(found.items()))
    path = r.choice([p for p in _paths(value) if p[-1] not in _FREE])
    old = functools.reduce(lambda inner, key: inner[key], path, value)
    # The parts of a pipeline may have any name.
    of_parts = isinstance(old, str) and "unet" in value
    wrong = [w for w in _wrong_values(r) if not _same_kind(old, w) and not (of_parts and w.startswith('"'))]
    mark, new = "@@@", r.choice(wrong)
    changed = json.loads(text)
    functools.reduce(lambda inner, key: inner[key], path[:-1], changed)[path[-1]] = mark
    return f"{'.'.join(map(str, path))} = {new[:60]}", json.dumps(changed).replace(f'"{mark}"', new, 1)


def _paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for key, one in inner for found in [(*path, key), *_paths(one, (*path, key))]]


def _wrong_values(r: random.Random) -> list[str]:
    return [
        "NaN",
        "Infinity",
        "-Infinity",
        "1e999",
        "9" * 400,
        "-7",
        "1.5",
        '"x"',
        '"\\u001b[31m\\n```<script>"',
        '"\\ud800"',
        "[]",
        "[1, 2]",
        "{}",
        '{"a": 1}',
        "[[[[1]]]]",
        "true",
        "[" * 500 + "]" * 500,
        f'"{"y" * r.randrange(1000, 50_000)}"',
    ]


def _same_kind(old: Any, text: str) -> bool:
    """Whether a value may be valid in place of another."""
    if old is None or text in ("{}", "[]") and isinstance(old, dict | list):
        return True
    if isinstance(old, bool):
        return text == "true"
    if isinstance(old, int | float):
        return text in ("1.5", "[1, 2]")
    return isinstance(old, dict) and text == '{"a": 1}'


def settings(r: random.Random, good: Good) -> Case:
    source = r.choice([good.model, good.plain])
    place = r.choice(_PLACES)
    if r.randrange(12) == 0:
        changed: Content | None = r.choice([fifo, folder, None])
        note = "no file"
    else:
        note, changed = spoiled_json(r, json.loads((source / place).read_text()))
    files = good.copy_of(source, {place: changed})
    return Case(model_command(r, "model"), below("model", files), note=f"{place}: {note}")


def edm_file() -> bytes:
    """A pickle as EDM writes them, of which a tenth is there: enough to be damaged."""
    import pickle

    state = {"ema": {f"weight {i}": list(range(50)) for i in range(50)}}
    return pickle.dumps(state, protocol=4)
