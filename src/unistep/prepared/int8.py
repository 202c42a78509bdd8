"""Models of OpenVINO in int8 by NNCF, with some operations left in floats."""

import contextlib
import io
import logging
import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from unistep.engines.openvino import runtime
from unistep.prepared.network import Trunk
from unistep.prepared.openvino_trunk import compiled, in_sizes

_QUANTIZED = ("Convolution", "MatMul", "GroupConvolution")


def quantized(model: Any, *inputs: Tensor) -> Any:
    """Quantizes an OpenVINO model; its weights stay fp32, with the rounding beside them.

    Args:
        model: model.
        inputs: values to calibrate with, of its inputs in order; it is given one image after the other.
    """
    os.environ.setdefault("NNCF_CI", "1")  # read when it is imported: nothing is reported to a server
    runtime()  # first: NNCF imports it too
    import nncf
    from nncf.openvino.quantization.backend_parameters import BackendParameters
    from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters

    nncf.set_log_level(logging.ERROR)
    order = torch.randperm(len(inputs[0]), generator=torch.Generator().manual_seed(0)).tolist()
    rows = [tuple(x[i : i + 1].numpy() for x in inputs) for i in order]
    options = AdvancedQuantizationParameters(backend_params={BackendParameters.COMPRESS_WEIGHTS: False})
    with contextlib.redirect_stdout(io.StringIO()):  # bars of its own
        return nncf.quantize(
            model,
            nncf.Dataset(rows, list),
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(rows),
            advanced_parameters=options,
        )


def operations(model: Any) -> list[str]:
    """Returns the names of the operations of a quantized model that compute in int8, in order."""
    return [
        node.get_friendly_name()
        for node in model.get_ordered_ops()
        if node.get_type_name() in _QUANTIZED and _roundings(node)
    ]


def without_int8(model: Any, names: Sequence[str]) -> Any:
    """Returns a copy of a quantized model in which the operations `names` do not round their inputs."""
    copy, left = model.clone(), set(names)
    for node in copy.get_ordered_ops():
        if node.get_friendly_name() in left:
            for port in _roundings(node):
                port.replace_source_output(port.get_source_output().get_node().input_value(0))
    # And roundings further up, where all that they are for is among these.
    for node in copy.get_ordered_ops():
        if node.get_type_name() == "FakeQuantize" and _products_after(node) <= left:
            for port in list(node.output(0).get_target_inputs()):
                port.replace_source_output(node.input_value(0))
    return copy


def compressed(model: Any) -> Any:
    """Returns the form of a quantized model that is written: weights in int8, those of other operations in fp16."""
    runtime()
    from openvino._offline_transformations import compress_quantize_weights_transformation

    copy = model.clone()
    compress_quantize_weights_transformation(copy)
    return copy


def trunk_of(model: Any, tile: int) -> Trunk:
    """Returns the trunk that a quantized model computes."""

    return in_sizes(lambda count: compiled(model.clone(), "int8", count), tile)


def _products_after(node: Any) -> set[str]:
    """The names of the next convolutions and matrix products that a value comes to."""
    found, seen, todo = set(), set(), [node]
    while todo:
        for port in todo.pop().output(0).get_target_inputs():
            after = port.get_node()
            name = after.get_friendly_name()
            if name in seen:
                continue
            seen.add(name)
            if after.get_type_name() in _QUANTIZED:
                found.add(name)
            elif after.outputs():
                todo.append(after)
    return found


def _roundings(node: Any) -> list[Any]:
    """The inputs of an operation that a rounding comes before."""
    return [port for port in node.inputs() if port.get_source_output().get_node().get_type_name() == "FakeQuantize"]
