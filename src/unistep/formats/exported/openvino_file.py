"""OpenVINO files as models: a graph in an .xml, and its weights in a .bin beside it.

The graph is examined before OpenVINO sees it, as that of an ONNX file: operators of others, loops, and weights that lie
elsewhere or claim more than the file holds are refused.
"""

import xml.etree.ElementTree as ET
from functools import partial
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from unistep.errors import UserError
from unistep.formats.exported.description import AGAIN, KEY, Description, read_description
from unistep.formats.exported.model import exported_model
from unistep.formats.exported.openvino_shapes import check_shapes, check_values
from unistep.formats.exported.operators import OPENVINO_OPERATORS
from unistep.formats.exported.sizes import limits
from unistep.formats.location import Location

if TYPE_CHECKING:
    import torch

    from unistep.engines.openvino import OpenVINOEngine
    from unistep.formats.model import LoadedModel

TITLE = "OpenVINO"
_MOST_BYTES = 100_000_000
_MOST_NUMBERS = 1 << 31
_BITS = {"f32": 32, "f16": 16, "bf16": 16, "f64": 64, "i64": 64, "i32": 32, "i16": 16, "i8": 8, "u64": 64, "u32": 32}
_BITS |= {"u16": 16, "u8": 8, "boolean": 8, "u4": 4, "i4": 4, "f8e4m3": 8, "f8e5m2": 8}


def is_openvino(location: Location) -> bool:
    """Returns whether a file begins as a graph of OpenVINO does."""
    return location.is_file and location.head.lstrip().startswith(b"<?xml") and b"<net " in location.head


def load_openvino(path: Path, device: "torch.device | str" = "cpu") -> "LoadedModel":
    """Opens an OpenVINO file that `unistep.export` wrote as a model.

    Args:
        path: .xml file.
        device: cpu, or meta for looking at the description alone.

    Raises:
        UserError: it is damaged, of another program, or not safe to open; OpenVINO is not installed.
    """
    import torch

    if torch.device(device).type not in ("cpu", "meta"):
        raise UserError(f"OpenVINO computes on the CPU here, not on {device}", "give `device` cpu")
    description = read_description(examine(path), path)
    engine = partial(open_checked, path, description)
    return exported_model(description, engine, path, TITLE, device, [path.with_suffix(".bin")])


def open_checked(path: Path, description: Description | None = None) -> "OpenVINOEngine":
    """Opens an OpenVINO file, after its sizes have been compared with those of models.

    Args:
        path: .xml file.
        description: description of it, once `examine` has passed it; None examines it.

    Raises:
        UserError: it is damaged, of another program, or not safe to open; OpenVINO is not installed.
    """
    from unistep.engines.openvino import OpenVINOEngine

    description = description or read_description(examine(path), path)
    most = limits(description.shape, path.with_suffix(".bin").stat().st_size)
    return OpenVINOEngine(path, check=partial(check_shapes, limits=most, path=path))


def examine(path: Path) -> str | None:
    """Reads what an .xml claims, refuses what no exported model needs, and returns the text of its description.

    Raises:
        UserError: it is damaged, or holds something that is refused.
    """
    if path.stat().st_size > _MOST_BYTES:
        raise UserError(f"{path} is larger than any graph of a model", AGAIN)
    weights = path.with_suffix(".bin")
    if weights.is_symlink():
        raise _refused(path, "a link in the place of its weights")
    if not weights.is_file():
        raise UserError(f"{path} needs its weights, {weights.name}, beside it", "copy both files")
    room = weights.stat().st_size
    data = path.read_bytes()
    if b"<!" in data.replace(b"<!--", b""):
        raise _refused(path, "declarations of XML")
    try:
        root = ET.fromstring(data)
    except (ET.ParseError, ValueError, LookupError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({str(error)[:100]})", AGAIN) from None
    layers = root.find("layers")
    if root.tag != "net" or layers is None:
        raise UserError(f"{path} is no graph of OpenVINO", AGAIN)
    for layer in layers:
        _layer(layer, room, path)
    check_values(root, path)
    entry = root.find(f"rt_info/{KEY}")
    return None if entry is None else entry.get("value")


def _layer(layer: ET.Element, room: int, path: Path) -> None:
    kind, version = layer.get("type", ""), layer.get("version", "")
    if kind not in OPENVINO_OPERATORS or not version.startswith("opset"):
        raise _refused(path, f"the operator {kind[:60]!r} of {version[:20]!r}")
    if layer.find("body") is not None or layer.find(".//net") is not None:
        raise _refused(path, "loops or branches")
    for port in layer.iter("port"):
        sides = [_whole(dim.text, path) for dim in port.iter("dim")]
        if prod(max(side, 1) for side in sides) > _MOST_NUMBERS:
            raise _refused(path, "a tensor larger than any of a model")
    if kind != "Const":
        return
    data = layer.find("data")
    values = {} if data is None else data.attrib
    offset, size = (_whole(values.get(name), path) for name in ("offset", "size"))
    sides = [_whole(side, path) for side in values.get("shape", "").split(",") if side.strip()]
    bits = _BITS.get(values.get("element_type", ""))
    if bits is None or min(sides, default=0) < 0 or (prod(sides) * bits + 7) // 8 != size:
        raise UserError(f"{path} is damaged (weights of another size than their shape)", AGAIN)
    if offset < 0 or offset + size > room:
        raise UserError(f"{path.with_suffix('.bin')} is cut short", "copy both files again")


def _whole(text: str | None, path: Path) -> int:
    try:
        if text is None or len(text) > 20:
            raise ValueError
        return int(text)
    except ValueError:
        raise UserError(f"{path} is damaged (a size that is no number)", AGAIN) from None


def _refused(path: Path, held: str) -> UserError:
    return UserError(f"{path} is not opened: it holds {held}, which no exported model does", AGAIN)
