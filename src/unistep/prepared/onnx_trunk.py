"""Trunks in onnxruntime: exported to trunk.onnx, with the weights beside it."""

import contextlib
import io
import logging
from pathlib import Path

import torch
from torch import Tensor, nn

from unistep.engines.onnxruntime import OnnxRuntimeEngine
from unistep.prepared.network import Trunk

FILE = "trunk.onnx"


@torch.no_grad()
def make(trunk: nn.Module, example: tuple[Tensor, Tensor], folder: Path, precision: str) -> None:
    """Exports a trunk.

    Args:
        trunk: `TrunkAlone` of a network in fp32.
        example: input of two or more images.
        folder: folder of the files.
        precision: fp32.
    """
    batch = torch.export.Dim("batch", min=1, max=65_536)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with contextlib.redirect_stdout(io.StringIO()):  # the exporter reports each of its steps
        program = torch.onnx.export(
            trunk,
            example,
            dynamo=True,
            input_names=["x", "emb"],
            dynamic_shapes=({0: batch}, {0: batch}),
            opset_version=18,
            verbose=False,
        )
    assert program is not None
    program.save(folder / FILE, external_data=True)


def open_trunk(folder: Path, precision: str, tile: int) -> Trunk:
    """Opens a trunk that `make` wrote, on as many threads as PyTorch has now."""
    return OnnxRuntimeEngine(folder / FILE).outputs
