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
    with TemporaryDirectory(dir=path.parent) as folder:
        model = read_program(program, Path(folder), opset)
        return save(model, path, metadata, halves=dtype == "fp16")


def read_program(program: Program, folder: Path, opset: int = 18) -> Any:
    """Returns the model of OpenVINO of a program.

    Args:
        program: program in fp32.
        folder: folder of files that the model reads as long as it is there.
        opset: version of ONNX's operators on the way.
    """
    runtime()
    onnx = folder / "program.onnx"
    write_onnx(program, onnx, {}, opset=opset)
    model = shared_core().read_model(str(onnx))
    with contextlib.suppress(AttributeError):
        model.set_friendly_name(f"unistep-{program.name}")
    return model


def save(model: Any, path: Path, metadata: dict[str, Any], *, halves: bool) -> tuple[Path, ...]:
    """Writes a model of OpenVINO.

    Args:
        model: model.
        path: .xml file to write; the .bin lies beside it.
        metadata: description that the file holds.
        halves: whether weights in fp32 are written in fp16.
    """
    model.set_rt_info(description_text(metadata), [KEY])
    runtime().save_model(model, str(path), compress_to_fp16=halves)
    stamp(path, [path.with_suffix(".bin")])
    return path, path.with_suffix(".bin")
