import collections
import copyreg
import functools
import io
import os
import pickle
import random
import runpy
import struct
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from unistep.errors import UserError
from unistep.formats.edm import restricted_pickle
from unistep.formats.edm.restricted_pickle import load_restricted
from unistep.pickle_machine import PickledObject


def read(tmp_path: Path, content: bytes) -> Any:
    path = tmp_path / "file.pkl"
    path.write_bytes(content)
    return load_restricted(path)


class Calls:
    """Pickles as a call of `function`; `extra` are the state and items that follow."""

    def __init__(self, function: Any, *args: Any, extra: tuple[Any, ...] = ()) -> None:
        self.reduced = (function, args, *extra)

    def __reduce__(self) -> Any:
        return self.reduced


# ------------------------------------------------------------------------------------------------ what is read

DATA: dict[str, Any] = {
    "floats": torch.randn(3, 4, generator=torch.Generator().manual_seed(0)),
    "parameter": nn.Parameter(torch.arange(6.0).reshape(2, 3)),
    "view": torch.arange(20, dtype=torch.float64)[3:15].reshape(3, 4).t(),
    "scalar": torch.tensor(3.5),
    "empty": torch.zeros(0, 4),
    **{str(d): torch.tensor([0, 1, 1]).to(d) for d in (torch.float16, torch.bfloat16, torch.int64, torch.bool)},
    "size": torch.Size([2, 3]),
    "nested": [(), (1,), (1, 2, 3, 4), {"a": [None, True, False, {"b": ()}]}],
    "numbers": (0, -1, 255, 65536, -(2**40), 2**64, 1.5, float("inf")),
    "text": ("", "é", "x" * 300, "x" * 70_000, b"", b"x" * 300),
    "set": {1, "a"},
    "ordered": collections.OrderedDict(a=1, b=2),
    "numpy": (np.sqrt(0.5), np.int64(-4), np.float32(0.1), np.bool_(True)),
}


@pytest.mark.parametrize("protocol", [3, 4])
def test_data_comes_back(tmp_path: Path, protocol: int):
    loaded = read(tmp_path, pickle.dumps(DATA, protocol))
    assert loaded.keys() == DATA.keys()
    for name, value in DATA.items():
        if isinstance(value, Tensor):
            assert type(loaded[name]) is Tensor and loaded[name].dtype == value.dtype
            assert torch.equal(loaded[name], value), name
        else:
            assert loaded[name] == value, name
    assert [type(number) for number in loaded["numpy"]] == [float, int, float, bool]
    assert type(loaded["ordered"]) is dict


def test_memory_is_the_tensors_own(tmp_path: Path):
    loaded = read(tmp_path, pickle.dumps(DATA))
    loaded["floats"] += 1
    assert torch.equal(loaded["floats"], DATA["floats"] + 1)


def test_shared_and_circular_objects(tmp_path: Path):
    shared: list[Any] = [1]
    shared.append(shared)
    loaded = read(tmp_path, pickle.dumps([shared, shared]))
    assert loaded[0] is loaded[1] and loaded[0][1] is loaded[0]


def test_modules_are_inert(tmp_path: Path):
    loaded = read(tmp_path, pickle.dumps(nn.ModuleDict({"a": nn.ModuleList()})))
    assert type(loaded) is PickledObject and loaded.class_name == "torch.nn.modules.container.ModuleDict"
    assert loaded.state["_modules"]["a"].class_name.endswith(".ModuleList")


@pytest.fixture
def persistence(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """`torch_utils.persistence._reconstruct_persistent_obj`, as far as pickling by its name needs it."""

    def reconstruct(meta: Any) -> Any:
        return exec(meta["module_src"])

    reconstruct.__module__ = "torch_utils.persistence"
    reconstruct.__qualname__ = reconstruct.__name__ = "_reconstruct_persistent_obj"
    module: Any = types.ModuleType("torch_utils.persistence")
    module._reconstruct_persistent_obj = reconstruct
    monkeypatch.setitem(sys.modules, "torch_utils", types.ModuleType("torch_utils"))
    monkeypatch.setitem(sys.modules, "torch_utils.persistence", module)
    return reconstruct


def test_persistent_objects_are_data_and_their_source_is_not_executed(tmp_path: Path, persistence: Any):
    canary = tmp_path / "canary"
    meta = {
        "type": "class",
        "version": 6,
        "module_src": f"open({str(canary)!r}, 'w')",
        "class_name": "EDMPrecond",
        "state": {"__class__": "os.system", "__setstate__": 1, "sigma_data": 0.5},
    }
    content = pickle.dumps(Calls(persistence, meta))
    assert read(tmp_path, content) == PickledObject("EDMPrecond", meta["state"])
    assert not canary.exists()
    pickle.loads(content)
    assert canary.exists()  # the source would have been executed


# ------------------------------------------------------------------------------------------------ what is refused


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def inner(*objects: Any) -> bytes:
    """A pickle of a storage whose bytes are these pickles, after torch's header."""
    header = [0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}]
    return pickle.dumps(
        Calls(torch.storage._load_from_bytes, b"".join(pickle.dumps(o, 2) for o in [*header, *objects]))
    )


def zipped(evil: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(evil, stream)
    return pickle.dumps(Calls(torch.storage._load_from_bytes, stream.getvalue()))


def tensor_with_hooks(hooks: Any) -> bytes:
    storage = torch.arange(4.0).storage()
    return pickle.dumps(Calls(torch._utils._rebuild_tensor_v2, storage, 0, (4,), (1,), False, hooks))


class Nested:
    def __init__(self, evil: Any, depth: int) -> None:
        self.inside = evil if depth == 0 else {"x": [Nested(evil, depth - 1)]}

    def __reduce__(self) -> Any:
        return dict, ([("a", self.inside)],)


# By name: the bytes that do harm when a shell command is given, and what the refusal must name. All of them create
# the canary when `pickle.loads` reads them, which the test checks too.
HARMFUL: dict[str, tuple[Callable[[str], bytes], str]] = {
    "os.system, protocol 4": (lambda sh: pickle.dumps(Calls(os.system, sh), 4), "posix.system"),
    "os.system, protocol 3": (lambda sh: pickle.dumps(Calls(os.system, sh), 3), "posix.system"),
    "os.system, protocol 2": (lambda sh: pickle.dumps(Calls(os.system, sh), 2), "posix.system"),
    "os.system, protocol 0": (lambda sh: pickle.dumps(Calls(os.system, sh), 0), "posix.system"),
    "os.system by its other name": (lambda sh: b"cos\nsystem\n" + text(sh) + b"\x85R.", "os.system"),
    "subprocess": (lambda sh: pickle.dumps(Calls(subprocess.check_call, sh.split())), "subprocess.check_call"),
    "eval": (lambda sh: pickle.dumps(Calls(eval, f"__import__('os').system({sh!r})")), "builtins.eval"),
    "exec": (lambda sh: pickle.dumps(Calls(exec, f"import os; os.system({sh!r})")), "builtins.exec"),
    "nested": (lambda sh: pickle.dumps(Nested(Calls(os.system, sh), 6)), "posix.system"),
    "as a key": (lambda sh: b"}" + pickle.dumps(Calls(os.system, sh), 2)[2:-1] + b"Ns.", "posix.system"),
    "thrown away": (lambda sh: pickle.dumps(Calls(os.system, sh), 2)[:-1] + b"0N.", "posix.system"),
    "partial": (lambda sh: pickle.dumps(Calls(functools.partial(os.system, sh))), "functools.partial"),
    "getattr": (
        lambda sh: b"cbuiltins\ngetattr\ncbuiltins\n__import__\n" + text("os") + b"\x85R" + text("system") + b"\x86R"
        + text(sh) + b"\x85R.",
        "builtins.getattr",
    ),
    "import": (
        lambda sh: b"cimportlib\nimport_module\n" + text(module(sh)) + b"\x85R.",
        "importlib.import_module",
    ),
    "state of __setstate__": (
        lambda sh: pickle.dumps(Calls(nn.ModuleDict, extra=({"_modules": Calls(os.system, sh)},))),
        "posix.system",
    ),
    "INST": (lambda sh: b"(" + text(sh) + b"iposix\nsystem\n.", "posix.system"),
    "OBJ": (lambda sh: b"(cposix\nsystem\n" + text(sh) + b"o.", "posix.system"),
    "EXT": (lambda sh: b"\x82\xf1" + text(sh) + b"\x85R.", "opcode EXT1"),
    "a tensor's hooks": (lambda sh: tensor_with_hooks(Calls(os.system, sh)), "posix.system"),
    "in place of a storage": (lambda sh: inner(Calls(os.system, sh)), "posix.system"),
    "torch.save in place of a storage": (lambda sh: zipped(Calls(os.system, sh)), "cut short or damaged"),
    "torch.load": (lambda sh: saved_for_torch_load(sh), "torch.serialization.load"),
    "runpy": (lambda sh: pickle.dumps(Calls(runpy.run_path, script(sh))), "runpy.run_path"),
}  # fmt: skip


def script(sh: str) -> str:
    path = Path(sh.split()[-1]).with_suffix(".py")
    path.write_text(f"import os; os.system({sh!r})")
    return str(path)


def module(sh: str) -> str:
    """A module that can be imported while the test runs: see `test_nothing_is_executed`."""
    script(sh)
    return "canary"


def saved_for_torch_load(sh: str) -> bytes:
    path = Path(sh.split()[-1]).with_suffix(".pt")
    torch.save(Calls(os.system, sh), path)
    return pickle.dumps(Calls(torch.load, str(path)))


@pytest.fixture
def extension(request: pytest.FixtureRequest) -> Iterator[None]:
    """An extension code for os.system, which a program may have registered, and used; for the test of it alone."""
    if request.node.callspec.params["name"] != "EXT":
        yield
        return
    copyreg.add_extension("posix", "system", 0xF1)
    pickle.loads(b"\x82\xf1.")
    yield
    copyreg.remove_extension("posix", "system", 0xF1)
    copyreg.clear_extension_cache()


@pytest.mark.parametrize("name", HARMFUL)
@pytest.mark.filterwarnings("ignore")
def test_nothing_is_executed(name: str, tmp_path: Path, extension: None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    monkeypatch.syspath_prepend(tmp_path)
    canary = tmp_path / "canary"
    make, named = HARMFUL[name]
    content = make(f"touch {canary}")
    assert not canary.exists()
    with pytest.raises(UserError, match="file.pkl") as caught:
        read(tmp_path, content)
    assert not canary.exists()
    assert named in str(caught.value) and "\n" not in str(caught.value)
    try:
        pickle.loads(content)
    except Exception:
        pass
    assert canary.exists()  # or the file is harmless, and the test tests nothing


# Not harmful by themselves in this process, but on no list.
@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"Pposix.system\n.", "opcode PERSID"),
        (text("a") + b"Q.", "opcode BINPERSID"),
        (b"\x83\x01\x02.", "opcode EXT2"),
        (b"\x84\x01\x02\x03\x04.", "opcode EXT4"),
        (b"ccollections\nOrderedDict\n)}\x92.", "opcode NEWOBJ_EX"),
        (b"(ccollections\nOrderedDict\no.", "opcode OBJ"),
        (b"(icollections\nOrderedDict\n.", "collections.OrderedDict"),
        (b"\x97.", "opcode NEXT_BUFFER"),
        (b"I1\n.", "opcode INT"),
        (b"cdnnlib.util\ncall_func_by_name\n.", "dnnlib.util.call_func_by_name"),
        (b"ctorch_utils.persistence\n_src_to_module\n.", "torch_utils.persistence._src_to_module"),
        (b"ctorch.nn.modules.linear\nLinear\n.", "torch.nn.modules.linear.Linear"),
        (b"ctorch.storage\n_load_from_bytes.__globals__\n.", "torch.storage._load_from_bytes.__globals__"),
        (text("a\nb\x1b[2J") + text("c" * 10_000) + b"\x93.", r"names a\nb\x1b[2J.cccc"),
    ],
)
def test_what_is_not_listed_is_named(content: bytes, named: str, tmp_path: Path):
    with pytest.raises(UserError) as caught:
        read(tmp_path, content)
    assert named in str(caught.value)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 400


PERMITTED_CALL = b"ccollections\nOrderedDict\n)R"


@pytest.mark.parametrize(
    "content",
    [
        PERMITTED_CALL + b"}" + text("__class__") + text("x") + b"sb.",  # BUILD on a dict
        b"ccollections\nOrderedDict\n}" + text("__code__") + text("x") + b"sb.",  # on a function
        b"]}" + text("append") + text("x") + b"sb.",  # on a list
        b"ctorch.nn.modules.container\nModuleDict\n)\x81}b}b.",  # twice
        b"]]a" + text("x") + b")R.",  # a call of a string
        text("x") + b"]a.",  # an item of a string
        b"](" + text("y") + b"\x90.",  # elements of a set into a list
        b"0.",
        b".",
        b"\x85.",
        b"(\x85.",
        b"h\x05.",
        b"]N\x93.",
        b"ctorch.storage\n_load_from_bytes\n)R.",
        b"ctorch.storage\n_load_from_bytes\nN\x85R.",
        b"cnumpy.core.multiarray\nscalar\nNN\x86R.",
        b"ctorch_utils.persistence\n_reconstruct_persistent_obj\n}\x85R.",
        b"ctorch._utils\n_rebuild_parameter\nNNN\x87R.",
    ],
)
def test_nonsense_is_refused(content: bytes, tmp_path: Path):
    with pytest.raises(UserError, match="cut short or damaged") as caught:
        read(tmp_path, content)
    assert "\n" not in str(caught.value)


def test_files_that_are_no_pickles(tmp_path: Path):
    for content in (b"PK\x03\x04", b"<!doctype html>\n<html>", b"\x80", bytes(1000), b"\xff" * 1000):
        with pytest.raises(UserError, match="cut short or damaged|opcode"):
            read(tmp_path, content)
    with pytest.raises(UserError, match="is empty"):
        read(tmp_path, b"")
    with pytest.raises(UserError, match="cannot read"):
        load_restricted(tmp_path / "missing.pkl")
    with pytest.raises(UserError, match="cannot read"):
        load_restricted(tmp_path)


# ------------------------------------------------------------------------------------------------ bombs


def tensor(size: Any, stride: Any, offset: Any = 0) -> bytes:
    return pickle.dumps(
        Calls(torch._utils._rebuild_tensor_v2, torch.arange(6.0).storage(), offset, size, stride, False, {})
    )


@pytest.mark.parametrize(
    ("size", "stride", "offset"),
    [
        ((7,), (1,), 0),
        ((6,), (1,), 1),
        ((10**12,), (0,), 0),
        ((10**6, 10**6), (0, 0), 0),
        ((2, 3), (4, 1), 0),
        ((2,), (10**30,), 0),
    ],
)
def test_tensors_beyond_their_storage(size: Any, stride: Any, offset: int, tmp_path: Path):
    with pytest.raises(UserError, match="does not fit its storage of 6 numbers"):
        read(tmp_path, tensor(size, stride, offset))


@pytest.mark.parametrize(
    ("size", "stride", "offset"),
    [
        ((-1,), (1,), 0),
        ((2,), (-1,), 5),
        ((2,), (1,), -1),
        ((2,), (1, 1), 0),
        ((1,) * 100, (1,) * 100, 0),
        ((2.0,), (1,), 0),
    ],
)
def test_sizes_that_are_none(size: Any, stride: Any, offset: int, tmp_path: Path):
    with pytest.raises(UserError, match="damaged"):
        read(tmp_path, tensor(size, stride, offset))
    assert torch.equal(read(tmp_path, tensor((2, 2), (3, 1), 1)), torch.tensor([[1.0, 2], [4, 5]]))


def test_storages_that_claim_more_than_they_have(tmp_path: Path):
    honest = pickle.dumps(torch.arange(1000.0))
    numel = b"M\xe8\x03"  # 1000 in two bytes
    assert honest.count(numel) >= 2
    at = honest.index(numel)
    with pytest.raises(UserError, match="a storage of 1001 numbers has 4000 bytes"):
        read(tmp_path, honest[:at] + b"M\xe9\x03" + honest[at + 3 :])


def test_one_storage_loaded_many_times(tmp_path: Path):
    stream = io.BytesIO()
    torch.save(torch.zeros(10_000).storage(), stream, _use_new_zipfile_serialization=False)
    data = stream.getvalue()
    load = b"ctorch.storage\n_load_from_bytes\n"
    content = b"B" + struct.pack("<I", len(data)) + data + b"q\x000](" + (load + b"h\x00\x85R") * 100 + b"e."
    with pytest.raises(UserError, match="more bytes than the file has"):
        read(tmp_path, content)


@pytest.mark.parametrize(
    "content",
    [
        b"Nr\xff\xff\xff\xff.",  # the memo of pickle.Unpickler becomes 64 GiB
        b"\x80\x04\x95" + struct.pack("<Q", 2**40) + b"N.",  # a frame of a terabyte
    ],
)
def test_large_numbers_allocate_nothing(content: bytes, tmp_path: Path):
    assert read(tmp_path, content) is None


@pytest.mark.parametrize(
    "content",
    [
        b"\x8e" + struct.pack("<Q", 2**60) + b"x",  # bytes of which there is one
        b"\x8d" + struct.pack("<Q", 2**40) + b"x",
        b"\x8b" + struct.pack("<i", 2**30) + b"x",
        b"})" + b"2\x86" * 60 + b"Ns.",  # a key whose hash takes 2^60 steps
        b"})" + b"\x85" * 20_000 + b"Ns.",  # a key whose hash overflows the stack of C
        b"\x8a\xff" + b"\x7f" * 255 + b".",
        b"cbuiltins\nlist\n](" + b"N" * 1000 + b"e\x85R.",
    ],
)
def test_bombs_are_refused(content: bytes, tmp_path: Path):
    with pytest.raises(UserError, match="cut short or damaged"):
        read(tmp_path, content)


def test_deep_nesting_is_no_recursion(tmp_path: Path):
    depth = 20_000
    loaded = read(tmp_path, b"]" * depth + b"a" * (depth - 1) + b".")
    for _ in range(depth - 1):
        (loaded,) = loaded
    assert loaded == []


def test_the_number_of_instructions_is_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(restricted_pickle, "_MAX_INSTRUCTIONS", 1000)
    assert len(read(tmp_path, b"(" + b"]" * 996 + b"l.")) == 996
    with pytest.raises(UserError, match="more than 1000 instructions"):
        read(tmp_path, b"(" + b"]" * 999 + b"l.")


# ------------------------------------------------------------------------------------------------ damage


def test_truncated_files(tmp_path: Path):
    content = pickle.dumps(DATA)
    for part in range(20):
        with pytest.raises(UserError, match="cut short or damaged") as caught:
            read(tmp_path, content[: max(1, len(content) * part // 20)])
        assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore:invalid escape sequence")
def test_damaged_files_give_an_error_or_other_data(tmp_path: Path):
    chance = random.Random(0)
    content = bytearray(pickle.dumps({k: v for k, v in DATA.items() if k != "text"}))
    refused = 0
    for _ in range(120):
        damaged = bytearray(content)
        for _ in range(chance.choice([1, 2, 20])):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        try:
            read(tmp_path, bytes(damaged))
        except UserError as error:
            refused += 1
            assert str(error).isprintable()
    assert refused > 40
