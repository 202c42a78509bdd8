"""Programs that OpenVINO computes.

OpenVINO picks bf16 by itself where the processor has it, with errors of 0.05: the precision is always given here.
Importing it, and its converters of Python, send telemetry: `runtime` imports it without.
"""

import functools
import importlib
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from unistep.engines.mapped import MappedFile, trim_heap
from unistep.engines.onnxruntime import one_line
from unistep.errors import UserError

Precision = Literal["f32", "bf16", "f16"]


class OpenVINOEngine:
    """An OpenVINO program, an `Engine`.

    Args:
        source: file that OpenVINO reads (.xml with its .bin, or .onnx), or a model of `openvino`.
        precision: precision that it computes in.
        options: further properties of OpenVINO's CPU plugin.
        name: name of the program in messages.
        batch: number of images of every call, for which it is compiled; None is any number.
        check: called with the model before it is compiled; None checks nothing.

    Raises:
        UserError: OpenVINO is not installed, or cannot read or compile the program.
    """

    def __init__(
        self,
        source: Any,
        precision: Precision = "f32",
        options: Mapping[str, Any] | None = None,
        name: str = "",
        batch: int | None = None,
        check: Callable[[Any], None] | None = None,
    ) -> None:
        openvino = runtime()
        self.device = torch.device("cpu")
        self.name = f"OpenVINO {openvino.__version__.partition('-')[0]}"
        self._shown = name or (str(source) if isinstance(source, Path) else "the program")
        settings = {
            "INFERENCE_PRECISION_HINT": precision,
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "PERFORMANCE_HINT": "LATENCY",
        }
        core = shared_core()
        try:
            with ExitStack() as stack:
                model = self._read(Path(source), stack) if isinstance(source, str | Path) else source
                if check is not None:
                    check(model)
                if batch is not None:
                    model.reshape({port: [batch, *list(port.partial_shape)[1:]] for port in model.inputs})
                self._compiled = core.compile_model(model, "CPU", {**settings, **(options or {})})
                del model
        except UserError:
            raise
        except Exception as error:  # RuntimeError, and others of the bindings
            raise UserError(
                f"{self._shown} cannot be opened by OpenVINO ({one_line(error)})", "export it again"
            ) from None
        trim_heap()  # compiling leaves 10 MB or more
        self._request = self._compiled.create_infer_request()
        self._one = threading.Lock()

    def _read(self, path: Path, stack: ExitStack) -> Any:
        """The model of a file; until the stack ends the weights beside it take no memory, but for what is compiled."""
        weights = path.with_suffix(".bin")
        if path.suffix != ".xml" or not weights.is_file() or not weights.stat().st_size:
            return shared_core().read_model(str(path))
        self._weights = MappedFile(weights)  # of which the compiled model may still need a part
        stack.enter_context(self._weights.given_back())
        return shared_core().read_model(
            path.read_text("utf-8"), runtime().Tensor(self._weights.array(), shared_memory=True)
        )

    def __call__(self, *inputs: Tensor) -> Tensor:
        return self.outputs(*inputs)[0]

    def outputs(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Computes the program, and returns all its outputs.

        Args:
            inputs: tensors in the order and the dtypes of the program.

        Raises:
            UserError: OpenVINO cannot compute it.
        """
        values = {i: x.contiguous().numpy() for i, x in enumerate(inputs)}
        with self._one:
            try:
                found = self._request.infer(values, share_inputs=True)
            except Exception as error:
                raise UserError(f"{self._shown} cannot be computed ({one_line(error)})", "export it again") from None
            # Copied: the next call writes where these lie.
            return tuple(torch.from_numpy(np.array(found[i])) for i in range(len(self._compiled.outputs)))


@functools.cache
def shared_core() -> Any:
    """Returns OpenVINO's core, one for the process.

    With the last core OpenVINO unloads what compiles for a CPU, and with that the memory in which the thread that had
    compiled first is to handle signals: the next Ctrl-C would end the process by a segmentation fault (2026.4).

    Raises:
        UserError: OpenVINO is not installed.
    """
    return runtime().Core()


def runtime() -> Any:
    """Imports OpenVINO, without the package by which importing it, and NNCF, tells its maker of each use.

    Raises:
        UserError: it is not installed.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # pyright: ignore[reportArgumentType]  # as if not installed
    try:
        return importlib.import_module("openvino")
    except ModuleNotFoundError:
        raise UserError("OpenVINO is not installed", "pip install 'unistep[openvino]'") from None
