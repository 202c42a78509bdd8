"""`unistep.convert`: a model of any format, written in another."""

import logging
import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from unistep.arguments import plain_arguments
from unistep.errors import UserError
from unistep.text import html_table
from unistep.workflows.models import ModelLike, name_of, opened

if TYPE_CHECKING:
    from unistep.formats.table import Format

_log = logging.getLogger("unistep")
_DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


@dataclass(frozen=True, repr=False)
class Conversion:
    """A model that was written in another format.

    Args:
        path: file or folder that was written.
        format: title of its format.
        dtype: precision of its weights: fp32, fp16 or bf16.
        parameters: number of parameters.
        source: name of the model that was read.
        source_format: title of its format.
        kind: "consistency" or "diffusion".
        image_shape: channels, height, width of an image.
        num_classes: number of classes; 0 for an unconditional model.
        notes: assumptions about the source, and facts that the target does not hold, a line each.
    """

    path: Path
    format: str
    dtype: str
    parameters: int
    source: str
    source_format: str
    kind: str
    image_shape: tuple[int, int, int]
    num_classes: int
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Returns all of it in JSON's types."""
        values = asdict(self)
        return values | {"path": str(self.path), "image_shape": list(self.image_shape), "notes": list(self.notes)}

    def rows(self) -> list[tuple[str, str]]:
        """Returns name and facts of the target and of the source."""
        channels, height, width = self.image_shape
        classes = f", {self.num_classes} classes" if self.num_classes else ""
        images = f"{width}x{height}x{channels} images"
        return [
            (str(self.path), f"{self.format}, {self.dtype}, {self.parameters:,} parameters"),
            (f"from {self.source}", f"{self.source_format}, {self.kind} model of {images}{classes}"),
        ]

    def __repr__(self) -> str:
        return f"Conversion({self.path}: {self.format}, {self.dtype})"

    def _repr_html_(self) -> str:
        return html_table("converted", [*self.rows(), *(("note", note) for note in self.notes)])


@plain_arguments(empty=["target"])
def convert(
    source: ModelLike, target: str | os.PathLike[str], *, dtype: Literal["fp32", "fp16", "bf16"] | None = None
) -> Conversion:
    """Writes a model of any format as a model folder, or as an OpenAI .pt.

    A model folder keeps all of a model, and opens here and, where the network is the plain U-Net, in diffusers. An
    OpenAI .pt holds the weights of ADM U-Nets alone.

    Args:
        source: model folder, run directory, OpenAI .pt, EDM .pkl, or owner/name on the Hugging Face hub; in Python also
            a loaded model or a pipeline.
        target: a folder, or a file that ends in .pt; a model of that name is replaced.
        dtype: precision of the weights that are written; default: that of the source.

    Returns:
        The conversion: formats, precision and notes.

    Raises:
        UserError: the source cannot be opened; the target is of no known format, holds something else or the source, or
            cannot be written; the format has no counterpart of the model.

    Example:
        >>> import tempfile, unistep
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     unistep.convert(unistep.load(), f"{folder}/model", dtype="bf16").parameters
        2814212
    """
    row = format_of_target(os.fspath(target))
    path, name = Path(target), name_of(source)
    check_target(name, path, row)

    import torch

    from unistep.formats.exported.model import check_weights

    model = opened(source, "cpu")
    check_weights(model)
    kept = model.dtype if str(model.dtype).removeprefix("torch.") in _DTYPES.values() else torch.float32
    chosen = kept if dtype is None else getattr(torch, _DTYPES[dtype])
    origin = f"converted from {name} ({model.format}{f', {model.method}' if model.method else ''})"
    notes = (*model.notes, *row.saver()(path, model, dtype=chosen, origin=origin))
    for note in notes:
        _log.info(note)
    return Conversion(
        path=path,
        format=row.title,
        dtype=next(short for short, long in _DTYPES.items() if long == str(chosen).removeprefix("torch.")),
        parameters=sum(p.numel() for p in model.denoiser.parameters()),
        source=name,
        source_format=model.format,
        kind=model.info.kind,
        image_shape=model.image_shape,
        num_classes=model.num_classes,
        notes=notes,
    )


def format_of_target(target: str) -> "Format":
    """The row of `FORMATS` that writes a target of this name: by its ending, or a folder if it has none.

    Raises:
        UserError: the name is empty, or has an ending that no format is written with.
    """
    from unistep.formats.table import FORMATS

    if not target.strip():
        raise UserError("is empty", "give a folder or a file", field="target")
    writable = [row for row in FORMATS if row.saves is not None]
    folder = next(row for row in writable if not row.ending)
    path = Path(target)
    for row in writable:
        if row.ending and path.suffix.lower() == row.ending:
            return row
    # A dot and a digit belong to the name, as of model-0.1; a folder may be called anything.
    if target.endswith(("/", os.sep)) or path.is_dir() or not re.fullmatch(r"\.[A-Za-z]\w*", path.suffix):
        return folder
    endings = " or ".join(row.ending for row in writable if row.ending)
    raise UserError(f"cannot write {path.suffix} files", f"give a folder, or a name that ends in {endings}")


def check_target(source: str, target: Path, row: "Format") -> None:
    """Refuses a target before anything is read.

    Args:
        source: name of the model that is read.
        target: place of the one that is written.
        row: format that it is written in.

    Raises:
        UserError: it cannot be written, or holds something else or the source.
    """
    from unistep.formats.location import locate
    from unistep.formats.table import phrases, recognise

    if not target.exists():
        above = next(folder for folder in target.parents if os.path.lexists(folder))
        if not above.is_dir():
            raise UserError(f"cannot write {target}: {above} is no folder and cannot be made one")
        return
    if Path(source).exists():
        source_path, target_path = Path(source).resolve(), target.resolve()
        if target_path == source_path or target_path in source_path.parents:
            raise UserError(f"{target} is or holds the source {source}", "choose another target")
    if target.is_dir():
        if row.ending:
            raise UserError(f"{target} is a folder", f"choose another name for the {row.ending}")
        if not any(target.iterdir()):
            return
    if recognise(locate(target, phrases())) is not row:
        raise UserError(f"{target} exists and is no {row.title}", "choose another target")
