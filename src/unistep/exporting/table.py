"""The formats that programs are exported in: one row each.

A new format is one file with a function that writes a program and a function that opens what was written, and one row
here. Rows name modules, which are imported on use.
"""

import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from unistep.engines.engine import Engine


@dataclass(frozen=True)
class Target:
    """A row of `TARGETS`.

    Args:
        name: name on the command line.
        title: name in messages.
        runtime: package that computes the files, for the comparison; empty for none in Python.
        writes: `module:function`, called as function(program, path, metadata, opset=opset, dtype=dtype); returns the
            files that were written.
        opens: `module:function`, called as function(path); returns an `Engine`.
        quantizes: `module:function` that writes a program in int8, called as function(program, path, metadata,
            opset=opset, calibration=calibration); empty for formats without int8.
        int8_needs: package that quantizes.
        ending: ending of the file; empty for a folder.
        dtypes: precisions that can be written.
        halves: whether a program is in fp16 before it is written so; otherwise its weights are rounded on writing.
        programs: programs that can be written, the default first where `steps` and the like are not given.
        options: further parameters of `export` that `writes` takes, by name.
    """

    name: str
    title: str
    runtime: str
    writes: str
    opens: str
    ending: str
    quantizes: str = ""
    int8_needs: str = ""
    dtypes: tuple[str, ...] = ("fp32", "fp16")
    halves: bool = True
    programs: tuple[str, ...] = ("denoiser", "sampler", "edit")
    options: tuple[str, ...] = ()

    def writer(self) -> Callable[..., tuple[Path, ...]]:
        """Imports the function that writes."""
        return pkgutil.resolve_name(self.writes)

    def quantizer(self) -> Callable[..., tuple[Path, ...]]:
        """Imports the function that writes in int8."""
        return pkgutil.resolve_name(self.quantizes)

    def opener(self) -> "Callable[[Path], Engine]":
        """Imports the function that opens."""
        return pkgutil.resolve_name(self.opens)


_ROWS = (
    Target(
        "onnx",
        "ONNX",
        "onnxruntime",
        writes="unistep.exporting.onnx:write_onnx",
        opens="unistep.exporting.onnx:open_onnx",
        ending=".onnx",
        quantizes="unistep.exporting.onnx_int8:write_onnx_int8",
        int8_needs="onnxruntime",
        dtypes=("fp32", "fp16", "int8"),
    ),
    Target(
        "openvino",
        "OpenVINO",
        "openvino",
        writes="unistep.exporting.openvino:write_openvino",
        opens="unistep.formats.exported.openvino_file:open_checked",
        ending=".xml",
        quantizes="unistep.exporting.openvino_int8:write_openvino_int8",
        int8_needs="nncf",
        dtypes=("fp32", "fp16", "int8"),
        halves=False,
    ),
    Target(
        "torch-export",
        "torch.export",
        "torch",
        writes="unistep.exporting.pt2:write_torch_export",
        opens="unistep.exporting.pt2:open_torch_export",
        ending=".pt2",
        dtypes=("fp32",),
    ),
    Target(
        "aoti",
        "AOTInductor",
        "torch",
        writes="unistep.exporting.pt2:write_aoti",
        opens="unistep.exporting.pt2:open_aoti",
        ending=".pt2",
        dtypes=("fp32",),
    ),
    Target(
        "web",
        "a web page",
        "onnxruntime",
        writes="unistep.exporting.web.page:write_web",
        opens="unistep.exporting.web.page:open_network",
        ending="",
        programs=("denoiser",),
        options=("runtime_folder",),
    ),
)

TARGETS: Mapping[str, Target] = MappingProxyType({row.name: row for row in _ROWS})
"""The rows by name; the first is the default."""

# A Literal of the names at run time, for help texts; to a type checker a string.
if TYPE_CHECKING:
    TargetName = str
else:
    TargetName = Literal[*TARGETS]
