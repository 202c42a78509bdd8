"""Programs as OpenVINO files in int8, by NNCF; what is not in int8 computes in fp32."""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from unistep.engines.openvino import OpenVINOEngine
from unistep.exporting.int8 import Calibration, check_evaluations
from unistep.exporting.openvino import read_program, save
from unistep.exporting.programs import Program
from unistep.prepared import int8


def write_openvino_int8(
    program: Program, path: Path, metadata: dict[str, Any], *, opset: int, calibration: Calibration
) -> tuple[Path, ...]:
    """Writes a program in int8.

    Args:
        program: program in fp32.
        path: .xml file to write; the .bin lies beside it.
        metadata: description that the file holds.
        opset: version of ONNX's operators on the way.
        calibration: inputs to calibrate with, and the choice of operations.

    Raises:
        UserError: a package is not installed, or the program does not agree with fp32 in int8.
    """
    check_evaluations(program)
    with TemporaryDirectory(dir=path.parent) as folder:
        quantizer = OpenVINOQuantizer(read_program(program, Path(folder), opset), calibration.inputs())
        files = quantizer.write(calibration.choose(quantizer), path, metadata)
        del quantizer
    return files


class OpenVINOQuantizer:
    """A model of OpenVINO that has been calibrated, a `Quantizer`.

    Args:
        model: model in fp32.
        batches: inputs to calibrate with.
    """

    def __init__(self, model: Any, batches: Sequence[tuple[Tensor, ...]]) -> None:
        inputs = [torch.cat(parts) for parts in zip(*batches, strict=True)]
        self._whole = int8.quantized(model, *inputs)
        self.operations: Sequence[str] = int8.operations(self._whole)

    def engine(self, kept: Sequence[str]) -> OpenVINOEngine:
        return OpenVINOEngine(int8.without_int8(self._whole, kept))

    def write(self, kept: Sequence[str], path: Path, metadata: dict[str, Any]) -> tuple[Path, ...]:
        made = int8.compressed(int8.without_int8(self._whole, kept))
        if made.has_rt_info(["nncf"]):
            del made.get_rt_info()["nncf"]  # settings of the quantization
        return save(made, path, metadata, halves=True)
