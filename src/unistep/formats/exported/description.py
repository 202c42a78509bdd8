"""The description in an exported file: which program it is, of which model, as JSON that is checked."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from unistep.documents import DocumentError, parse_json
from unistep.errors import UserError
from unistep.formats.json_config import typed_fields
from unistep.formats.model import ModelInfo
from unistep.text import shown

KEY = "unistep"
"""Key of the description in the metadata of a file."""

FORMAT = 1
"""Version of the description."""

MOST_BYTES = 4_000_000
"""Largest description that makes sense: a model card, and the names of thousands of classes."""

_MOST_SIDE, _MOST_CHANNELS, _MOST_CLASSES = 4096, 64, 1_000_000
_DTYPES = ("fp32", "fp16", "int8")
AGAIN = "export the model again"


@dataclass(frozen=True)
class Description:
    """The facts in an exported file that loading needs.

    Args:
        program: denoiser, sampler or edit.
        dtype: precision of the weights: fp32, fp16 or int8.
        info: noise range, grid and kind of the model.
        shape: channels, height and width of an image.
        classes: number of classes without the null class; 0 for an unconditional model.
        parameters: number of parameters of the network.
        source: name of the model that was exported.
        unistep: version that wrote the file.
        digest: digest of the file with its mark; empty where it states none.
    """

    program: str
    dtype: str
    info: ModelInfo
    shape: tuple[int, int, int]
    classes: int
    parameters: int
    source: str
    unistep: str
    digest: str = ""


def read_description(text: str | None, path: Path) -> Description:
    """Reads the description of a file.

    Args:
        text: JSON; None where the file holds none.
        path: the file, for messages.

    Raises:
        UserError: there is none, or it is damaged, of a newer version or out of range.
    """
    if text is None:
        raise UserError(f"{path} holds no description of a model: it is of another program", AGAIN)
    if len(text) > MOST_BYTES:
        raise _damaged(path, "is too large")
    try:
        raw = parse_json(text)
    except DocumentError as error:
        raise _damaged(path, str(error)) from None
    if not isinstance(raw, dict):
        raise _damaged(path, "is no object")
    version = raw.get("format")
    if version != FORMAT:
        raise UserError(f"{path} has a description of version {shown(version)[:20]}, and {FORMAT} is read", AGAIN)
    image = raw.get("image")
    sides = [image.get(name) for name in ("channels", "height", "width")] if isinstance(image, dict) else []
    channels, height, width = (_whole(one, path, "image") for one in sides) if len(sides) == 3 else (0, 0, 0)
    if not (1 <= channels <= _MOST_CHANNELS and 1 <= height <= _MOST_SIDE and 1 <= width <= _MOST_SIDE):
        raise _damaged(path, "has no image of a size that makes sense")
    if height != width:
        raise UserError(f"{path} is of images of {width}x{height} pixels; square ones are opened", AGAIN)
    classes, parameters = (_whole(raw.get(name, 0), path, name) for name in ("classes", "parameters"))
    if not 0 <= classes <= _MOST_CLASSES:
        raise _damaged(path, f"has {classes} classes")
    program, dtype = raw.get("program"), raw.get("dtype")
    if program not in ("denoiser", "sampler", "edit") or dtype not in _DTYPES:
        raise _damaged(path, "names no program or precision that there is")
    return Description(
        program=program,
        dtype=dtype,
        info=_info(raw.get("model"), path),
        shape=(channels, height, width),
        classes=classes,
        parameters=max(parameters, 0),
        source=shown(raw.get("source", ""))[:200],
        unistep=shown(raw.get("unistep", ""))[:40],
        digest=str(raw.get("digest") or ""),
    )


def _info(raw: Any, path: Path) -> ModelInfo:
    if not isinstance(raw, Mapping):
        raise _damaged(path, "lacks the model")
    known = {field.name for field in fields(ModelInfo)}
    if unknown := sorted(set(map(str, raw)) - known):
        raise _damaged(path, f"has {shown(unknown[0])[:40]}, which no model has")
    try:
        return ModelInfo(**typed_fields(ModelInfo, dict(raw), path))
    except UserError as error:
        text = str(error)
        raise _damaged(path, text if str(path) not in text else text.replace(f"{path}: ", "")) from None


def _whole(value: Any, path: Path, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise _damaged(path, f"has no whole number for {name}")
    return value


def _damaged(path: Path, reason: str) -> UserError:
    return UserError(f"{path} has a description that is damaged ({reason})", AGAIN)


def description_text(metadata: Mapping[str, Any]) -> str:
    """Returns a description as it stands in a file."""
    return json.dumps(metadata)
