"""Trunks in int8 by NNCF, with the operations that lose most left in bf16.

Every convolution and matrix product is tried alone in int8. Those whose error is the largest stay in bf16, one after
the other, until the images agree with those of the network as asked.
"""

import contextlib
import io
import logging
import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from unistep.core.denoiser import Denoiser
from unistep.prepared.network import Trunk
from unistep.prepared.openvino_trunk import compiled, in_sizes
from unistep.prepared.probe import Probe, psnr_by_level

_QUANTIZED = ("Convolution", "MatMul", "GroupConvolution")


def quantized(model: Any, *inputs: Tensor) -> Any:
    """Quantizes an OpenVINO model; its weights stay fp32, with the rounding beside them.

    Args:
        model: model.
        inputs: values to calibrate with, of its inputs in order; it is given one image after the other.
    """
    os.environ.setdefault("NNCF_CI", "1")  # read when it is imported: nothing is reported to a server
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
    from openvino._offline_transformations import compress_quantize_weights_transformation

    copy = model.clone()
    compress_quantize_weights_transformation(copy)
    return copy


def trunk_of(model: Any, tile: int) -> Trunk:
    """Returns the trunk that a quantized model computes."""

    return in_sizes(lambda count: compiled(model.clone(), "int8", count), tile)


def most_sensitive(
    model: Any, denoiser_of: Callable[[Any], Denoiser], probe: Probe, on_done: Callable[[int, int], None]
) -> list[str]:
    """Returns the operations in int8 by the error that each makes alone, the largest first.

    Args:
        model: quantized model.
        denoiser_of: function that returns the denoiser of a model.
        probe: noisy images.
        on_done: receives the number of operations tried, and of all.
    """
    names = operations(model)
    reference = probe.images(denoiser_of(without_int8(model, names)))
    errors: dict[str, float] = {}
    for i, name in enumerate(names):
        images = probe.images(denoiser_of(without_int8(model, [other for other in names if other != name])))
        errors[name] = float((images - reference).square().mean())
        on_done(i + 1, len(names))
    return sorted(names, key=errors.__getitem__, reverse=True)


def kept_operations(
    model: Any,
    names: Sequence[str],
    denoiser_of: Callable[[Any], Denoiser],
    probe: Probe,
    reference: Tensor,
    least: float,
) -> int:
    """Returns the number of `names`, from the first on, that must not be in int8 for images that agree as asked.

    Args:
        model: quantized model.
        names: operations, the most sensitive first.
        denoiser_of: function that returns the denoiser of a model.
        probe: noisy images.
        reference: images of eager for them.
        least: least peak signal-to-noise ratio in dB, at every noise level.
    """

    def enough(count: int) -> bool:
        found = psnr_by_level(probe, reference, probe.images(denoiser_of(without_int8(model, names[:count]))))
        return min(found.values()) >= least

    low, high = 0, len(names)
    while low < high:  # the ratio grows with the number, up to rounding
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle + 1, high)
    return low


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
