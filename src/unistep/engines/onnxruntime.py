"""Programs that onnxruntime computes."""

import importlib
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unistep.errors import UserError


class OnnxRuntimeEngine:
    """An ONNX program, an `Engine`.

    Args:
        source: file, or its bytes.
        device: cpu, or cuda with a build of onnxruntime for it.
        name: name of the file in messages.

    Raises:
        UserError: onnxruntime is not installed, does not compute on the device, or cannot read the program.
    """

    def __init__(self, source: Path | bytes, device: torch.device | str = "cpu", name: str = "") -> None:
        runtime = onnxruntime()
        self.device = torch.device("cpu")
        self.name = f"onnxruntime {runtime.__version__}"
        shown = name or (str(source) if isinstance(source, Path) else "the program")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 4  # errors come as exceptions, and need not be printed
        try:
            self._session: Any = runtime.InferenceSession(
                source if isinstance(source, bytes) else str(source), options, providers=_providers(runtime, device)
            )
        except Exception as error:  # onnxruntime's own, which share no base
            raise UserError(f"{shown} cannot be opened by onnxruntime ({one_line(error)})", "export it again") from None
        self._inputs = [one.name for one in self._session.get_inputs()]
        self._shown = shown

    def __call__(self, *inputs: Tensor) -> Tensor:
        return self.outputs(*inputs)[0]

    def outputs(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Computes the program, and returns all its outputs.

        Args:
            inputs: tensors in the order and the dtypes of the program.

        Raises:
            UserError: onnxruntime cannot compute it.
        """
        values = {name: x.contiguous().numpy() for name, x in zip(self._inputs, inputs, strict=True)}
        try:
            return tuple(torch.from_numpy(output) for output in self._session.run(None, values))
        except Exception as error:  # onnxruntime's own, which share no base
            raise UserError(f"{self._shown} cannot be computed ({one_line(error)})", "export it again") from None


def onnxruntime() -> Any:
    """Returns the module of onnxruntime, which sends no telemetry; whatever needs it imports it by this function.

    Raises:
        UserError: it is not installed.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read when it is imported
    try:
        return importlib.import_module("onnxruntime")
    except ModuleNotFoundError:
        raise UserError("ONNX files are computed by onnxruntime", "pip install 'unistep[onnx]'") from None


def _providers(runtime: Any, device: torch.device | str) -> list[Any]:
    device = torch.device(device)
    providers: list[Any] = ["CPUExecutionProvider"]
    if device.type == "cuda" and "CUDAExecutionProvider" in runtime.get_available_providers():
        providers.insert(0, ("CUDAExecutionProvider", {"device_id": device.index or 0}))
    elif device.type != "cpu":
        raise UserError(f"this onnxruntime does not compute on {device}", "install onnxruntime-gpu, or use the CPU")
    return providers


def one_line(error: Exception) -> str:
    """Returns the first line of an error of a runtime, without the runtime's own places."""
    text = (str(error) or type(error).__name__).strip().splitlines()
    return text[-1 if text[0].startswith("Exception from src") else 0][:300]
