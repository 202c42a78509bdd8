"""Programs as ONNX files in int8, by onnxruntime's static quantization.

Weights are int8 of a scale a channel, activations uint8; both are written as pairs of QuantizeLinear and
DequantizeLinear, which runtimes fuse with the operation between.
"""

import contextlib
import io
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import Tensor

from unistep.engines.onnxruntime import OnnxRuntimeEngine, onnxruntime
from unistep.errors import UserError
from unistep.exporting.int8 import Calibration, check_evaluations
from unistep.exporting.onnx import write_onnx
from unistep.exporting.programs import Program
from unistep.formats.exported.description import KEY, description_text
from unistep.formats.exported.digest import stamp

_QUANTIZED = ["Conv", "Gemm", "MatMul"]
_PERCENTILE = 99.999  # of the values of an activation: the others are clamped


def write_onnx_int8(
    program: Program, path: Path, metadata: dict[str, Any], *, opset: int, calibration: Calibration
) -> tuple[Path, ...]:
    """Writes a program in int8.

    Args:
        program: program in fp32.
        path: file to write.
        metadata: description that the file holds.
        opset: version of ONNX's operators.
        calibration: inputs to calibrate with, and the choice of operations.

    Raises:
        UserError: a package is not installed, or the program does not agree with fp32 in int8.
    """
    check_evaluations(program)
    with TemporaryDirectory(dir=path.parent) as folder:
        source = Path(folder) / "program.onnx"
        if len(write_onnx(program, source, {}, opset=opset)) > 1:
            raise UserError("a model beyond 2 GB is not quantized as ONNX", "export it as openvino")
        quantizer = OnnxQuantizer(source, [port.name for port in program.inputs], calibration.inputs())
        return quantizer.write(calibration.choose(quantizer), path, metadata)


class OnnxQuantizer:
    """An ONNX program that has been calibrated, a `Quantizer`.

    Args:
        source: file of the program in fp32.
        names: names of its inputs.
        batches: inputs to calibrate with.
    """

    def __init__(self, source: Path, names: Sequence[str], batches: Sequence[tuple[Tensor, ...]]) -> None:
        import onnx

        onnxruntime()  # first: its parts import it too
        from onnxruntime.quantization import calibrate

        self._source = onnx.load(source)
        self.operations: Sequence[str] = [node.name for node in self._source.graph.node if node.op_type in _QUANTIZED]
        with TemporaryDirectory() as folder, _quiet():
            calibrator = calibrate.create_calibrator(
                str(source),
                _QUANTIZED,
                augmented_model_path=f"{folder}/augmented.onnx",
                calibrate_method=calibrate.CalibrationMethod.Percentile,
                extra_options={"percentile": _PERCENTILE, "symmetric": False},
            )
            for batch in batches:  # one by one: the values of all activations are held of what is given at once
                calibrator.collect_data(_reader(dict(zip(names, batch, strict=True))))
            self._ranges = calibrator.compute_data()

    def engine(self, kept: Sequence[str]) -> OnnxRuntimeEngine:
        return OnnxRuntimeEngine(self._quantized(kept).SerializeToString())

    def write(self, kept: Sequence[str], path: Path, metadata: dict[str, Any]) -> tuple[Path, ...]:
        made = self._quantized(kept)
        del made.metadata_props[:]
        made.producer_name = "unistep"
        made.metadata_props.add(key=KEY, value=description_text(metadata))
        path.write_bytes(made.SerializeToString())
        stamp(path)
        return (path,)

    def _quantized(self, kept: Sequence[str]) -> Any:
        import onnx

        onnxruntime()
        from onnxruntime.quantization import QuantType
        from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

        copy = onnx.ModelProto()
        copy.CopyFrom(self._source)
        with _quiet():
            quantizer = QDQQuantizer(
                copy,
                True,  # a scale a channel
                False,
                QuantType.QInt8,
                QuantType.QUInt8,
                self._ranges,
                [],
                list(kept),
                _QUANTIZED,
                {"ActivationSymmetric": False, "WeightSymmetric": True},
            )
            quantizer.quantize_model()
        return quantizer.model.model


def _reader(values: dict[str, Tensor]) -> Any:
    """A reader of one batch, as onnxruntime's calibration takes them."""
    onnxruntime()
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = iter([{name: tensor.contiguous().numpy() for name, tensor in values.items()}])

        def get_next(self) -> Any:
            return next(self.left, None)

    return Reader()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps notes of the quantization on its own progress from the terminal."""
    logger = logging.getLogger()
    disabled = logger.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(disabled)
