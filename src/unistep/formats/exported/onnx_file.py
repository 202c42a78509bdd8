"""ONNX files as models.

An ONNX file is a graph of numeric operations. Before onnxruntime sees it, it is examined here: operators of others,
loops, weights in files elsewhere, tensors that claim more than the file holds and operations that make more than any
model needs are refused.
"""

import mmap
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from unistep.errors import UserError
from unistep.formats.exported.description import AGAIN, KEY, Description, read_description
from unistep.formats.exported.model import exported_model
from unistep.formats.exported.onnx_graph import DOMAINS, Graph, entry, read_graph, refused
from unistep.formats.exported.onnx_shapes import check_sizes
from unistep.formats.exported.sizes import limits
from unistep.formats.exported.wire import WireError, fields_of, message, text
from unistep.formats.location import Location

if TYPE_CHECKING:
    import torch

    from unistep.formats.model import LoadedModel

TITLE = "ONNX"


@dataclass
class Contents:
    """The facts about an ONNX file that its examination finds.

    Args:
        graph: graph of the file.
        description: text of the description; None where there is none.
    """

    graph: Graph
    description: str | None = None

    @property
    def external(self) -> list[tuple[str, int, int]]:
        """Places of weights in other files: name, offset and length."""
        return self.graph.external


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

    description, weights = check_onnx(path)
    return exported_model(description, partial(OnnxRuntimeEngine, path, device), path, TITLE, device, weights)


def check_onnx(path: Path) -> tuple[Description, list[Path]]:
    """Returns the description of an ONNX file that is safe to open, and the files with its weights.

    Args:
        path: file.

    Raises:
        UserError: it is damaged, of another program, or not safe to open.
    """
    contents = examine(path)
    description = read_description(contents.description, path)
    stored = sum(tensor.numbers for tensor in contents.graph.stored.values())
    check_sizes(contents.graph, limits(description.shape, stored), path)
    return description, [path.parent / name for name in sorted({name for name, _, _ in contents.external})]


def examine(path: Path) -> Contents:
    """Reads what an ONNX file claims, and refuses what no exported model needs.

    Args:
        path: file.

    Raises:
        UserError: it is damaged, or holds something that is refused.
    """
    try:
        with path.open("rb") as file:
            # Not closed by hand: pieces of it live on in the frames of an error.
            found = _model(memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)), path)
    except WireError as error:
        raise UserError(f"{path} is no ONNX file, or is damaged ({error})", AGAIN) from None
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} cannot be read ({error})", AGAIN) from None
    for name, offset, length in found.external:
        _check_external(path, name, offset, length)
    return found


def _model(data: memoryview, path: Path) -> Contents:
    graphs, description = [], None
    for number, value in fields_of(data):
        if number == 7:
            graphs.append(read_graph(message(value), path))
        elif number == 8:
            _operators_of_others(message(value), path)
        elif number == 14:
            key, content = entry(message(value))
            description = content if key == KEY else description
        elif number in (20, 25):
            raise refused(path, "functions or training of its own")
    if len(graphs) != 1:
        raise WireError("there are several graphs" if graphs else "there is no graph")
    return Contents(graphs[0], description)


def _operators_of_others(data: memoryview, path: Path) -> None:
    for number, value in fields_of(data):
        if number == 1 and text(value) not in DOMAINS:
            raise refused(path, f"operators of others ({text(value)[:60]})")


def _check_external(path: Path, name: str, offset: int, length: int) -> None:
    """Refuses weights elsewhere than in a file beside the model."""
    target = path.parent / name
    if not name or name in (".", "..") or set(name) & set("/\\:\0") or target.is_symlink():
        raise refused(path, f"weights outside of its folder ({name[:80]})")
    if not target.is_file():
        raise UserError(f"{path} needs its weights, {target.name[:80]}, beside it", "copy both files")
    if offset < 0 or offset + length > target.stat().st_size:
        raise UserError(f"{target} is cut short", "copy both files again")
