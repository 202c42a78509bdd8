"""The formats and places that a model can be read from, and written to: one row each.

A new format is one file (or folder) with its functions, and one row here. `unistep.load`, `unistep inspect`,
`unistep convert` and every other command then take it. Rows are tried in order; the first that recognises a model
opens it. The functions are imported when they are used: the names alone need no torch.
"""

import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from unistep.formats.location import Location
    from unistep.formats.model import LoadedModel


@dataclass(frozen=True)
class Format:
    """A row of `FORMATS`.

    Args:
        name: short name.
        title: name in messages and tables, without an article.
        phrase: name with an article, or form of the name, for messages, as "a model folder".
        recognises: `module:function`, called as function(location) with a `Location`; returns whether the model there
            is of this format.
        opens: `module:function`, called as function(path, device, **options), with the name if there is no path;
            returns a `LoadedModel`.
        options: options of `unistep.load` that `opens` takes.
        saves: `module:function`, called as function(path, model, dtype=dtype, origin=origin), where `origin` is the
            origin of the model in words; returns notes on facts that the file does not hold, a line each. None for a
            format that cannot be written.
        ending: ending of a written file; empty for a folder.
        suffixes: endings of files of this format, or of files that belong to it.
    """

    name: str
    title: str
    phrase: str
    recognises: str
    opens: str
    options: tuple[str, ...] = ()
    saves: str | None = None
    ending: str = ""
    suffixes: tuple[str, ...] = ()

    def recognise(self, location: "Location") -> bool:
        """Returns whether the model at a location is of this format."""
        return pkgutil.resolve_name(self.recognises)(location)

    def opener(self) -> "Callable[..., LoadedModel]":
        """Imports the function that opens a model."""
        return pkgutil.resolve_name(self.opens)

    def saver(self) -> Callable[..., tuple[str, ...]]:
        """Imports the function that writes a model; the format must have one."""
        assert self.saves is not None
        return pkgutil.resolve_name(self.saves)


FORMATS: tuple[Format, ...] = (
    Format(
        "model-folder",
        "model folder",
        "a model folder",
        recognises="unistep.formats.model_folder.files:is_model_folder",
        opens="unistep.formats.model_folder.folder:load_model",
        options=("variant", "weights"),
        saves="unistep.formats.model_folder.folder:write_model_folder",
        suffixes=(".safetensors", ".bin"),
    ),
    Format(
        "run",
        "run directory",
        "a run directory",
        recognises="unistep.formats.run_directory:is_run",
        opens="unistep.formats.run_directory:load_run",
        options=("variant",),
    ),
    Format(
        "openai",
        "OpenAI .pt",
        "an OpenAI .pt",
        recognises="unistep.formats.openai.file:is_openai",
        opens="unistep.formats.openai.file:load_openai",
        options=("kind", "attention_head_dim", "num_heads", "sample_size", "weights"),
        saves="unistep.formats.openai.save:write_openai",
        ending=".pt",
        suffixes=(".pt", ".pth", ".ckpt", ".safetensors"),
    ),
    Format(
        "edm",
        "EDM pickle",
        "an EDM .pkl",
        recognises="unistep.formats.edm.file:is_edm",
        opens="unistep.formats.edm.file:load_edm",
        options=("weights",),
        suffixes=(".pkl",),
    ),
    Format(
        "onnx",
        "ONNX",
        "an exported .onnx",
        recognises="unistep.formats.exported.onnx_file:is_onnx",
        opens="unistep.formats.exported.onnx_file:load_onnx",
        suffixes=(".onnx",),
    ),
    Format(
        "openvino",
        "OpenVINO",
        "an exported .xml",
        recognises="unistep.formats.exported.openvino_file:is_openvino",
        opens="unistep.formats.exported.openvino_file:load_openvino",
        suffixes=(".xml",),
    ),
    Format(
        "pt2",
        "exported PyTorch program",
        "an exported .pt2",
        recognises="unistep.formats.exported.pt2_file:is_pt2",
        opens="unistep.formats.exported.pt2_file:load_pt2",
        options=("trust_code",),
        suffixes=(".pt2",),
    ),
    Format(
        "quantized",
        "quantized model",
        "a quantized model",
        recognises="unistep.formats.quantized:is_quantized",
        opens="unistep.formats.quantized:load_quantized",
    ),
    Format(
        "hub",
        "model of the hub",
        "owner/name of the Hugging Face hub",
        recognises="unistep.formats.hub.address:is_hub_model",
        opens="unistep.formats.hub.model:load_hub",
        options=("variant", "weights", "revision", "token", "cache_dir", "local_files_only"),
    ),
)

FILE_SUFFIXES = tuple(dict.fromkeys(suffix for row in FORMATS for suffix in row.suffixes))
"""Endings of files that are or belong to a model."""

# Options of a download; a local model ignores them, as in diffusers, and says so.
DOWNLOAD_OPTIONS = ("revision", "token", "cache_dir", "local_files_only")


def recognise(location: "Location") -> Format | None:
    """The format of the model at a location; None if no row recognises it."""
    return next((row for row in FORMATS if row.recognise(location)), None)


def phrases() -> str:
    """The remedy of a message: "give a model folder, ... or ..."."""
    *first, last = (row.phrase for row in FORMATS)
    return f"give {', '.join(first)} or {last}"
