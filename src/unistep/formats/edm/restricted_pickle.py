"""Reads pickles of networks without executing anything: tensors, plain data and the names of classes come out.

NVIDIA's networks (stylegan3, EDM) are pickled with the source code of their classes; their pickles call
`torch_utils.persistence._reconstruct_persistent_obj(meta)`, which would execute the source in `meta["module_src"]`.
Here `class_name` and `state` become a `PickledObject`, and the source is not used. Tensors in a plain pickle are
bytes that `torch.save` wrote in its layout of before 1.6, which is read here as well. Only the names that this module
lists are accepted, by the stack machine of `pickle_machine`.
"""

import io
import math
import mmap
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unistep.errors import UserError
from unistep.pickle_machine import Class, Function, Names, PickledObject, checked_key, exactly, refusal, run

_MAX_INSTRUCTIONS = 1_000_000
# Elements of a container that a call makes of another one; larger ones are made by instructions.
_MAX_CONVERTED = 64
_TORCH_MAGIC = 0x1950A86A20F9469CFC6C
_TORCH_PROTOCOL = 1001
_AGAIN = "the file is damaged, fetch it again"


def load_restricted(path: Path) -> Any:
    """The object in a pickle file: dicts, lists, tuples, sets, numbers, strings, tensors and `PickledObject`.

    Raises:
        UserError: the file cannot be read, is damaged, or names an object that is not on the list. Nothing in the
            file is executed in any case.
    """
    try:
        with path.open("rb") as file:
            try:
                content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except ValueError:
                raise UserError(f"{path} is empty; fetch it again") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}; give the path of a .pkl file") from None
    with content:
        try:
            # Every storage stands in the file once, so that all of them together are smaller than it.
            return run(content, _NAMES, max_instructions=_MAX_INSTRUCTIONS, room=len(content))
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
        except Exception:  # damaged bytes may fail in any instruction
            raise UserError(f"{path} is no pickle, or is cut short or damaged; fetch it again") from None


def _persistent_object(meta: Any) -> PickledObject:
    """An object of NVIDIA's persistent classes: name and state; the source beside them stays a string."""
    meta = exactly(dict, meta)
    return PickledObject(exactly(str, meta["class_name"]), exactly(dict, meta["state"]))


def _container(kind: type) -> Function:
    """A container made of another one, or an empty one."""

    def call(*args: Any) -> Any:
        (values,) = args or ((),)
        if type(values) not in (list, tuple) or len(values) > _MAX_CONVERTED:
            raise ValueError("not a short list")
        if kind is dict:
            return {checked_key(key): value for key, value in values}
        return set(map(checked_key, values)) if kind is set else kind(values)

    return Function(call)


def _rebuild_tensor(
    storage: Any, offset: Any, size: Any, stride: Any, requires_grad: Any, hooks: Any, metadata: Any = None
) -> Tensor:
    values, size, stride = exactly(Tensor, storage), exactly(tuple, size), exactly(tuple, stride)
    for number in (offset, *size, *stride):
        if exactly(int, number) < 0:
            raise ValueError("a negative size")
    if len(size) != len(stride) or len(size) > 8:
        raise ValueError("a size that does not fit its strides")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    # A tensor larger than its storage repeats values: small in the file, and of any size once it is copied.
    if math.prod(size) > len(values) or (math.prod(size) and last >= len(values)):
        raise UserError(f"a tensor of shape {list(size)} does not fit its storage of {len(values)} numbers; {_AGAIN}")
    return torch.as_strided(values, size, stride, offset)


def _parameter(data: Any, requires_grad: Any, hooks: Any) -> Tensor:
    return exactly(Tensor, data)


def _scalar(dtype: Any, data: Any) -> int | float | bool:
    """A number of numpy's, as Python's."""
    if type(dtype) is not PickledObject or dtype.class_name != "numpy.dtype":
        raise ValueError("no dtype")
    code = exactly(str, dtype.args[0])
    if code not in ("f8", "f4", "f2", "i8", "i4", "i2", "i1", "u8", "u4", "u2", "u1", "b1"):
        raise UserError(f"it holds a numpy scalar of type {code!r:.20}, which no network needs")
    if type(dtype.state) is tuple and dtype.state[1] == ">":
        raise UserError("it was written on a big-endian machine, which is not supported")
    (value,) = np.frombuffer(exactly(bytes, data), np.dtype("<" + code))
    return value.item()


def _storage(data: Any) -> Tensor:
    """The one storage that `torch.storage._load_from_bytes` would load, as a tensor of one axis.

    The bytes are five pickles (a magic number, the protocol, the machine, the storage by a persistent id, the list of
    ids), the number of values in 8 bytes, and the values.
    """
    stream = io.BytesIO(exactly(bytes, data))
    found: list[tuple[torch.dtype, str, int]] = []
    stands_for_it = object()

    def persistent(pid: Any) -> object:
        kind, dtype, key, _, numel, view = exactly(tuple, pid)
        if kind != "storage" or type(dtype) is not torch.dtype or view is not None or found:
            raise ValueError("not a storage")
        found.append((dtype, exactly(str, key), exactly(int, numel)))
        return stands_for_it

    def part() -> Any:
        return run(stream, _STORAGES, max_instructions=100, persistent=persistent)

    if part() != _TORCH_MAGIC or part() != _TORCH_PROTOCOL or exactly(dict, part()).get("little_endian") is not True:
        raise ValueError("not a file of torch")
    if part() is not stands_for_it:
        raise ValueError("not a storage")
    ((dtype, key, numel),) = found
    if part() != [key]:
        raise ValueError("not one storage")
    written = int.from_bytes(stream.read(8), "little")
    # A copy: tensors need memory that they may write to.
    values = bytearray(stream.getbuffer()[stream.tell() :])
    if not written == numel == len(values) / dtype.itemsize:
        raise UserError(f"a storage of {numel} numbers has {len(values)} bytes; {_AGAIN}")
    return torch.frombuffer(values, dtype=dtype) if values else torch.empty(0, dtype=dtype)


def _method(owner: Any, name: Any) -> PickledObject:
    """A method of an object, by which ECT's loss names its schedule: its name alone, which is never looked up."""
    if type(owner) is not PickledObject:
        raise refusal("builtins.getattr")
    return PickledObject("a method", args=(exactly(str, name),))


def _array(*args: Any) -> PickledObject:
    # Arrays stay as they are stored: no network has any.
    return PickledObject("numpy.ndarray", args=args)


_STORAGES: Names = {
    ("torch", "FloatStorage"): torch.float32,
    ("torch", "DoubleStorage"): torch.float64,
    ("torch", "HalfStorage"): torch.float16,
    ("torch", "BFloat16Storage"): torch.bfloat16,
    ("torch", "LongStorage"): torch.int64,
    ("torch", "IntStorage"): torch.int32,
    ("torch", "ShortStorage"): torch.int16,
    ("torch", "CharStorage"): torch.int8,
    ("torch", "ByteStorage"): torch.uint8,
    ("torch", "BoolStorage"): torch.bool,
}
_NAMES: Names = {
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): Function(_persistent_object),
    ("dnnlib.util", "EasyDict"): _container(dict),
    ("collections", "OrderedDict"): _container(dict),
    ("torch", "Size"): _container(tuple),
    ("torch._utils", "_rebuild_tensor_v2"): Function(_rebuild_tensor),
    ("torch._utils", "_rebuild_parameter"): Function(_parameter),
    ("torch.storage", "_load_from_bytes"): Function(_storage, cost=len),
    ("builtins", "getattr"): Function(_method, protocol=4),
    ("numpy", "dtype"): Class("numpy.dtype"),
    ("numpy", "ndarray"): Class("numpy.ndarray"),
    **{(builtins, kind.__name__): _container(kind)
       for builtins in ("builtins", "__builtin__") for kind in (dict, list, set, tuple)},
    **{("torch.nn.modules.container", name): Class(f"torch.nn.modules.container.{name}")
       for name in ("ModuleDict", "ModuleList", "Sequential")},
    **{(f"numpy.{core}.multiarray", name): Function(call)
       for core in ("core", "_core") for name, call in (("scalar", _scalar), ("_reconstruct", _array))},
}  # fmt: skip
