"""Programs as OpenVINO files, .xml and .bin, by way of ONNX.

`openvino.convert_model` sends telemetry; the reader of ONNX files in `Core` does not.
"""

import contextlib
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from unistep.engines.openvino import runtime, shared_core
from unistep.exporting.onnx import write_onnx
from unistep.exporting.programs import Program
from unistep.formats.exported.description import KEY, description_text
from unistep.formats.exported.digest import stamp


def write_openvino(
    program: Program, path: Path, metadata: dict[str, Any], *, opset: int = 18, dtype: str = "fp32"
) -> tuple[Path, ...]:
    """Writes a program as .xml and .bin.

    Args:
        program: program in fp32.
        path: .xml file to write; the .bin lies beside it.
        metadata: description that the file holds.
        opset: version of ONNX's operators on the way.
        dtype: precision of the weights in the file; it computes in fp32 unless the runtime is asked for another.
    """
    openvino = runtime()
    with TemporaryDirectory(dir=path.parent) as folder:
        onnx = Path(folder) / "program.onnx"
        write_onnx(program, onnx, {}, opset=opset)
        model = shared_core().read_model(str(onnx))
        model.set_rt_info(description_text(metadata), [KEY])
        with contextlib.suppress(AttributeError):
            model.set_friendly_name(f"unistep-{program.name}")
        openvino.save_model(model, str(path), compress_to_fp16=dtype == "fp16")
        del model
    stamp(path, [path.with_suffix(".bin")])
    return path, path.with_suffix(".bin")
