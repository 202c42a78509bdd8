"""Trunks in OpenVINO: converted from a trace, kept as trunk.xml and trunk.bin.

The frontend of OpenVINO is called itself, not by `openvino.convert_model`, which reports its use to a server.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unistep.engines.openvino import OpenVINOEngine, Precision, runtime
from unistep.prepared.network import Trunk

FILE = "trunk.xml"
_PRECISIONS: dict[str, Precision] = {"fp32": "f32", "bf16": "bf16", "int8": "bf16"}


def make(trunk: nn.Module, example: tuple[Tensor, Tensor], folder: Path, precision: str) -> None:
    """Converts a trunk, and writes it.

    Args:
        trunk: `TrunkAlone` of a network in fp32.
        example: input of two or more images.
        folder: folder of the files.
        precision: fp32, or bf16, whose weights take half the room.
    """
    model = convert(trunk, example)
    runtime().save_model(model, folder / FILE, compress_to_fp16=precision != "fp32")


@torch.no_grad()
def convert(trunk: nn.Module, example: tuple[Tensor, Tensor]) -> Any:
    """Converts a trunk into an `openvino.Model` with inputs x and emb, of any number of images."""
    runtime()  # first: its parts import it too
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    # Traced with two images or more: a size of 1 would stay in the reshapes of attention.
    traced: Any = torch.jit.trace(trunk, example, check_trace=False)
    frontend = FrontEndManager().load_by_framework("pytorch")
    decoder = TorchScriptPythonDecoder(traced, example_input=example)  # a name, for the frontend does not keep it alive
    model = frontend.convert(frontend.load(decoder))
    model.reshape({port: [-1, *tensor.shape[1:]] for port, tensor in zip(model.inputs, example, strict=True)})
    for port, name in zip(model.inputs, ("x", "emb"), strict=True):
        port.get_tensor().set_names({name})
    return model


def open_trunk(folder: Path, precision: str, tile: int) -> Trunk:
    """Opens a trunk that `make` wrote, on as many threads as PyTorch has now.

    Args:
        folder: folder of the files.
        precision: fp32, bf16 or int8.
        tile: number of images that are mostly computed at once.
    """
    return in_sizes(lambda count: compiled(folder / FILE, precision, count), tile)


def in_sizes(compiles: Callable[[int], Trunk], tile: int) -> Trunk:
    """Returns a trunk for any number of images, of trunks for `tile` images and for one.

    A trunk of one number of images is up to 1.7 times as fast as one of any number.

    Args:
        compiles: function that returns the trunk for so many images; called when it is needed first.
        tile: number of images that are mostly computed at once.
    """
    trunks: dict[int, Trunk] = {}

    def run(x: Tensor, emb: Tensor) -> tuple[Tensor, ...]:
        parts, start = [], 0
        while start < len(x):
            size = tile if len(x) - start >= tile else 1
            if size not in trunks:
                trunks[size] = compiles(size)
            parts.append(trunks[size](x[start : start + size], emb[start : start + size]))
            start += size
        return parts[0] if len(parts) == 1 else tuple(torch.cat(features) for features in zip(*parts, strict=True))

    return run


def compiled(model: Any, precision: str, count: int) -> Trunk:
    """Compiles a trunk into a function of tensors.

    Args:
        model: its file, or an OpenVINO model of it, which is given fixed shapes.
        precision: fp32, bf16 or int8; bf16 where a processor has no bf16 is computed in fp32.
        count: number of images.
    """
    return OpenVINOEngine(model, _PRECISIONS[precision], batch=count).outputs
