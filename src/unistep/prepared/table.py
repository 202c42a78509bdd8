"""The runtimes that a network can be computed by: one row each.

A new runtime is one file with two functions, and one row here. It computes the trunk of a network
(`unistep.prepared.network`); what it makes of a network is kept in the cache (`unistep.prepared.store`), and used only
where it agrees with eager.
"""

import importlib.metadata
import importlib.util
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from unistep.errors import UserError

if TYPE_CHECKING:
    from unistep.prepared.network import Trunk

RuntimeName = Literal["eager", "auto", "compiled", "openvino", "onnxruntime", "aoti"]

BOUNDS = {"fp32": 70.0, "bf16": 40.0, "int8": 30.0}
"""Least peak signal-to-noise ratio in dB between the images of a runtime and those of eager in fp32, by precision."""


@dataclass(frozen=True)
class Runtime:
    """A row of `RUNTIMES`.

    Args:
        name: name of the runtime.
        title: name in the documentation, with its kind.
        packages: distributions that must be installed.
        module: module with `make(trunk, example, folder, precision)`, which writes files, and
            `open_trunk(folder, precision, tile)`, which returns the trunk in them; empty for a runtime of PyTorch's
            that is made anew in every process.
        precisions: precisions that it computes in.
        extra: extra of this package that installs `packages`.
        choice: true for a runtime that "auto" tries.
    """

    name: str
    title: str
    packages: tuple[str, ...] = ()
    module: str = ""
    precisions: tuple[str, ...] = ("fp32", "bf16")
    extra: str = ""
    choice: bool = False

    @property
    def installed(self) -> bool:
        """Whether all packages are installed."""
        return all(importlib.util.find_spec(package) is not None for package in self.packages)

    def check_installed(self) -> None:
        """Passes where the packages are installed.

        Raises:
            UserError: one of them is not.
        """
        if not self.installed:
            raise UserError(
                f"`runtime` {self.name} needs {' and '.join(self.packages)}", f"pip install 'unistep[{self.extra}]'"
            )

    def versions(self) -> dict[str, str]:
        """Versions of the packages and of PyTorch, on which what is prepared depends."""
        return {name: importlib.metadata.version(name) for name in ("torch", *self.packages)}

    def maker(self) -> Callable[..., None]:
        """Imports the function that prepares a trunk."""
        return pkgutil.resolve_name(f"{self.module}:make")

    def opener(self) -> "Callable[..., Trunk]":
        """Imports the function that opens a prepared trunk."""
        return pkgutil.resolve_name(f"{self.module}:open_trunk")


RUNTIMES: dict[str, Runtime] = {
    row.name: row
    for row in (
        Runtime("eager", "PyTorch, operation by operation"),
        Runtime("compiled", "torch.compile: compiled anew in every process", precisions=("fp32", "bf16", "fp16")),
        Runtime(
            "openvino",
            "OpenVINO",
            packages=("openvino",),
            module="unistep.prepared.openvino_trunk",
            extra="openvino",
            choice=True,
        ),
        Runtime(
            "onnxruntime",
            "onnxruntime",
            packages=("onnxruntime", "onnx", "onnxscript"),
            module="unistep.prepared.onnx_trunk",
            precisions=("fp32",),
            extra="onnx",
        ),
        Runtime("aoti", "AOTInductor: compiled ahead of time", module="unistep.prepared.aoti_trunk"),
    )
}


def find_runtime(name: str) -> Runtime:
    """Returns the row of a runtime.

    Args:
        name: name of a row.

    Raises:
        UserError: there is no such runtime, or its packages are not installed.
    """
    if name not in RUNTIMES:
        raise UserError(f"`runtime` {name!r} is unknown", f"give {', '.join(get_args(RuntimeName))}")
    row = RUNTIMES[name]
    row.check_installed()
    return row
