"""Programs as ONNX files."""

import importlib
from pathlib import Path
from typing import Any

import torch

from unistep.engines.onnxruntime import OnnxRuntimeEngine
from unistep.errors import UserError
from unistep.exporting.programs import Program
from unistep.exporting.trace import quiet, trace
from unistep.formats.exported.description import KEY, description_text
from unistep.formats.exported.digest import stamp
from unistep.formats.exported.onnx_file import check_onnx

OPSETS = (18, 19, 20, 21, 22, 23)
# Weights beyond this leave the file: protobuf holds 2 GB at most.
_MOST_INSIDE = 1_900_000_000


def write_onnx(
    program: Program, path: Path, metadata: dict[str, Any], *, opset: int = 18, dtype: str = "fp32"
) -> tuple[Path, ...]:
    """Writes a program as an ONNX file.

    Args:
        program: program in eval mode.
        path: file to write.
        metadata: description that the file holds.
        opset: version of ONNX's operators.
        dtype: precision of the weights, which the program has.

    Returns:
        The files that were written: more than one where the weights leave the model.

    Raises:
        UserError: a package is not installed.
    """
    for package in ("onnx", "onnxscript"):
        try:
            importlib.import_module(package)
        except ModuleNotFoundError:
            raise UserError(f"ONNX files are written with {package}", "pip install 'unistep[onnx]'") from None
    graph = trace(program)
    with quiet():
        made = torch.onnx.export(
            graph,
            dynamo=True,
            opset_version=opset,
            input_names=[port.name for port in program.inputs],
            output_names=[program.output.name],
            verbose=False,
        )
    assert made is not None
    size = sum(p.numel() * p.element_size() for p in program.parameters())
    _clean(made.model)
    made.model.metadata_props[KEY] = description_text(metadata)
    outside = size > _MOST_INSIDE
    made.save(path, external_data=outside)
    others = [path.with_name(f"{path.name}.data")] if outside else []
    stamp(path, others)
    return (path, *others)


def open_onnx(path: Path) -> OnnxRuntimeEngine:
    """Opens a file that was just written, as far as it would be opened again.

    Args:
        path: file.
    """
    check_onnx(path)
    return OnnxRuntimeEngine(path)


def _clean(model: Any) -> None:
    """Takes out the exporter's notes, which hold paths of this machine, and names the batch."""
    ir = importlib.import_module("onnx_ir")

    model.metadata_props.clear()
    model.producer_name, model.doc_string = "unistep", None
    graph = model.graph
    batch = graph.inputs[0].shape[0].value
    values = [*graph.inputs, *graph.outputs, *graph.initializers.values()]
    for node in graph:
        node.metadata_props.clear()
        node.doc_string = None
        values += node.outputs
    for value in values:
        value.metadata_props.clear()
        if value.shape is not None:
            value.shape = ir.Shape([_named(side, batch) for side in value.shape])
    graph.metadata_props.clear()


def _named(side: Any, batch: str) -> Any:
    """A side of a shape, in which the batch has its name."""
    if isinstance(side, int) or side.value is None:
        return side
    return str(side.value).replace(batch, "batch")
