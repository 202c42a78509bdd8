"""ONNX files as models.

An ONNX file is a graph of numeric operations. Before onnxruntime sees it, it is examined here: operators of others,
loops, weights in files elsewhere and tensors that claim more than the file holds are refused.
"""

import mmap
import struct
from dataclasses import dataclass, field
from functools import partial
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from unistep.errors import UserError
from unistep.formats.exported.description import AGAIN, KEY, MOST_BYTES, read_description
from unistep.formats.exported.model import exported_model
from unistep.formats.exported.operators import CONSTANT, ONNX_OPERATORS, check_factors, check_growth
from unistep.formats.exported.wire import WireError, fields_of, integers, message, text
from unistep.formats.location import Location

if TYPE_CHECKING:
    import torch

    from unistep.formats.model import LoadedModel

TITLE = "ONNX"
_DOMAINS = ("", "ai.onnx")
_MOST_NODES = 200_000
_EXTERNAL = 1
# Bits of a number, by the code of its type in ONNX.
_BITS = {1: 32, 2: 8, 3: 8, 4: 16, 5: 16, 6: 32, 7: 64, 9: 8, 10: 16, 11: 64, 12: 32, 13: 64, 16: 16, 21: 4, 22: 4}


@dataclass
class Contents:
    """The facts about an ONNX file that its examination finds.

    Args:
        description: text of the description; None where there is none.
        external: places of weights in other files: name, offset and length.
        nodes: number of operations.
        factors: values of short lists of floats by name, such as factors of a size.
    """

    description: str | None = None
    external: list[tuple[str, int, int]] = field(default_factory=list)
    nodes: int = 0
    factors: dict[str, list[float]] = field(default_factory=dict)


def is_onnx(location: Location) -> bool:
    """Returns whether a file begins as ONNX does: with the version of its form, then its producer or its operators."""
    head = location.head
    if not location.is_file or head[:1] != b"\x08":
        return False
    after = head[2:3] in (b"\x12", b"\x1a", b"\x22", b"\x28", b"\x32", b"\x3a", b"\x42")
    return 3 <= head[1] <= 64 and after if len(head) > 2 else location.path.suffix.lower() == ".onnx"


def load_onnx(path: Path, device: "torch.device | str" = "cpu") -> "LoadedModel":
    """Opens an ONNX file that `unistep.export` wrote as a model.

    Args:
        path: file.
        device: device of the model, as far as onnxruntime computes on it.

    Raises:
        UserError: it is damaged, of another program, or not safe to open; onnxruntime is not installed.
    """
    from unistep.engines.onnxruntime import OnnxRuntimeEngine

    contents = examine(path)
    description = read_description(contents.description, path)
    weights = [path.parent / name for name in sorted({name for name, _, _ in contents.external})]
    return exported_model(description, partial(OnnxRuntimeEngine, path, device), path, TITLE, device, weights)


def examine(path: Path) -> Contents:
    """Reads what an ONNX file claims, and refuses what no exported model needs.

    Args:
        path: file.

    Raises:
        UserError: it is damaged, or holds something that is refused.
    """
    found = Contents()
    try:
        with path.open("rb") as file:
            # Not closed by hand: pieces of it live on in the frames of an error.
            _model(memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)), found, path)
    except WireError as error:
        raise UserError(f"{path} is no ONNX file, or is damaged ({error})", AGAIN) from None
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} cannot be read ({error})", AGAIN) from None
    for name, offset, length in found.external:
        _check_external(path, name, offset, length)
    return found


def _model(data: memoryview, found: Contents, path: Path) -> None:
    graphs = 0
    for number, value in fields_of(data):
        if number == 7:
            graphs += 1
            _graph(message(value), found, path)
        elif number == 8:
            _operators_of_others(message(value), path)
        elif number == 14:
            key, content = _entry(message(value))
            if key == KEY:
                found.description = content
        elif number in (20, 25):
            raise _refused(path, "functions or training of its own")
    if graphs != 1:
        raise WireError("there is no graph" if not graphs else "there are several graphs")


def _operators_of_others(data: memoryview, path: Path) -> None:
    for number, value in fields_of(data):
        if number == 1 and text(value) not in _DOMAINS:
            raise _refused(path, f"operators of others ({text(value)[:60]})")


def _entry(data: memoryview) -> tuple[str, str]:
    """The key and the value of an entry."""
    found = {1: "", 2: ""}
    for number, value in fields_of(data):
        if number in found:
            if len(message(value)) > MOST_BYTES:
                raise WireError("an entry that is too large")
            found[number] = text(value)
    return found[1], found[2]


def _graph(data: memoryview, found: Contents, path: Path) -> None:
    constants: dict[str, list[int]] = {}
    nodes = []
    for number, value in fields_of(data):
        if number == 1:
            nodes.append(message(value))
        elif number == 5:
            name, numbers = _tensor(message(value), found, path)
            if numbers is not None:
                constants[name] = numbers
        elif number == 15:
            raise _refused(path, "sparse tensors")
    found.nodes += len(nodes)
    if found.nodes > _MOST_NODES:
        raise _refused(path, f"more than {_MOST_NODES:,} operations")
    for node in nodes:
        _node(node, constants, found, path)


def _node(data: memoryview, constants: dict[str, list[int]], found: Contents, path: Path) -> None:
    inputs, outputs, operator, domain, own = [], [], "", "", None
    for number, value in fields_of(data):
        if number == 1:
            inputs.append(text(value))
        elif number == 2:
            outputs.append(text(value))
        elif number == 4:
            operator = text(value)
        elif number == 7:
            domain = text(value)
        elif number == 5:
            own = _attribute(message(value), found, path) or own
    if domain not in _DOMAINS:
        raise _refused(path, f"operators of others ({domain[:60]})")
    if operator not in ONNX_OPERATORS:
        raise _refused(path, f"the operator {operator[:60]!r}")
    if operator == CONSTANT and outputs and "" in found.factors:
        found.factors[outputs[0]] = found.factors.pop("")  # of the attribute, which has no name
    if operator == CONSTANT and own is not None and outputs:
        constants[outputs[0]] = own
    check_growth(path, operator, [constants.get(name) for name in inputs])
    if operator == "Resize":
        check_factors(path, [found.factors.get(name, []) for name in inputs])


def _attribute(data: memoryview, found: Contents, path: Path) -> list[int] | None:
    """The integers of an attribute that is a constant tensor."""
    numbers = None
    for number, value in fields_of(data):
        if number == 5:
            _, numbers = _tensor(message(value), found, path)
        elif number in (6, 11):
            raise _refused(path, "loops or branches")
        elif number in (10, 22, 23):
            raise _refused(path, "lists of tensors")
    return numbers


def _tensor(data: memoryview, found: Contents, path: Path) -> tuple[str, list[int] | None]:
    """The name of a tensor, and its numbers where they are few integers."""
    dims: list[int] = []
    kind, name, raw, integers64, entries, place, listed = 0, "", None, [], {}, 0, 0
    for number, value in fields_of(data):
        if number == 1:
            dims += integers(value)
        elif number == 2 and isinstance(value, int):
            kind = value
        elif number == 8:
            name = text(value)
        elif number == 9:
            raw = message(value)
        elif number == 7:
            integers64 += integers(value) if len(dims) <= 1 else []
            listed += 1 if isinstance(value, int) else len(value)
        elif number in (4, 5, 10, 11):
            listed += 1 if isinstance(value, int) else len(value)
        elif number == 13:
            key, content = _entry(message(value))
            entries[key] = content
        elif number == 14 and isinstance(value, int):
            place = value
    if kind not in _BITS:
        raise _refused(path, "a tensor of no numbers")
    if len(dims) > 8 or min(dims, default=0) < 0:
        raise WireError("a tensor of no shape")
    size = (prod(dims) * _BITS[kind] + 7) // 8
    if entries or place == _EXTERNAL:
        found.external.append(_external(entries, size))
        return name, None
    if raw is not None and len(raw) != size:
        raise WireError("a tensor of another size than its shape")
    if raw is None and prod(dims) > listed:
        raise WireError("a tensor of another size than its shape")
    if kind == 1 and raw is not None and len(dims) == 1 and dims[0] <= 8:
        found.factors[name] = list(struct.unpack(f"<{dims[0]}f", raw))
    if kind != 7 or prod(dims) > 64:
        return name, None
    if raw is None:
        return name, integers64
    return name, [int.from_bytes(raw[i : i + 8], "little", signed=True) for i in range(0, len(raw), 8)]


def _external(entries: dict[str, str], size: int) -> tuple[str, int, int]:
    try:
        offset, length = int(entries.get("offset", "0")), int(entries.get("length", str(size)))
    except ValueError:
        raise WireError("a place of weights that is none") from None
    if length != size:
        raise WireError("weights of another size than their shape")
    return entries.get("location", ""), offset, length


def _check_external(path: Path, name: str, offset: int, length: int) -> None:
    """Refuses weights elsewhere than in a file beside the model."""
    target = path.parent / name
    if not name or name in (".", "..") or set(name) & set("/\\:\0") or target.is_symlink():
        raise _refused(path, f"weights outside of its folder ({name[:80]})")
    if not target.is_file():
        raise UserError(f"{path} needs its weights, {target.name[:80]}, beside it", "copy both files")
    if offset < 0 or offset + length > target.stat().st_size:
        raise UserError(f"{target} is cut short", "copy both files again")


def _refused(path: Path, held: str) -> UserError:
    return UserError(f"{path} is not opened: it holds {held}, which no exported model does", AGAIN)
