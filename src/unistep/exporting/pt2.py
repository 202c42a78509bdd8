"""Programs as .pt2 files: the graph of `torch.export`, and AOTInductor's library for this machine."""

import shutil
import zipfile
from pathlib import Path
from typing import Any

import torch

from unistep.engines.pt2 import Pt2Engine
from unistep.errors import UserError
from unistep.exporting.programs import Program
from unistep.exporting.trace import quiet, trace
from unistep.formats.exported.description import KEY, description_text


def write_torch_export(
    program: Program, path: Path, metadata: dict[str, Any], *, opset: int = 0, dtype: str = "fp32"
) -> tuple[Path, ...]:
    """Writes the graph of a program.

    Args:
        program: program in eval mode.
        path: file to write.
        metadata: description that the file holds.
        opset, dtype: without effect; the program has its precision.
    """
    with quiet():
        torch.export.save(trace(program), path, extra_files={KEY: _description(metadata)})
    return (path,)


def write_aoti(
    program: Program, path: Path, metadata: dict[str, Any], *, opset: int = 0, dtype: str = "fp32"
) -> tuple[Path, ...]:
    """Compiles a program for the processor of this machine; the arguments are those of `write_torch_export`.

    Raises:
        UserError: there is no compiler, or it fails.
    """
    if not any(map(shutil.which, ("g++", "clang++", "c++"))):
        raise UserError("AOTInductor compiles with a C++ compiler, and there is none", "install g++")
    graph = trace(program)
    try:
        with quiet():
            torch._inductor.aoti_compile_and_package(graph, package_path=str(path))
    except Exception as error:  # of the compiler, and of PyTorch
        reason = (str(error) or type(error).__name__).strip().splitlines()[0][:300]
        raise UserError(f"AOTInductor does not compile this program ({reason})", "export it as onnx") from None
    with zipfile.ZipFile(path, "a") as file:
        file.writestr(f"{path.stem}/extra/{KEY}", _description(metadata))
    return (path,)


def open_torch_export(path: Path) -> Pt2Engine:
    """Opens a graph that was just written."""
    return Pt2Engine(path, compiled=False)


def open_aoti(path: Path) -> Pt2Engine:
    """Opens a library that was just written."""
    return Pt2Engine(path, compiled=True)


def _description(metadata: dict[str, Any]) -> str:
    """The description without a digest: the archive has a checksum of every part."""
    return description_text({name: value for name, value in metadata.items() if name != "digest"})
