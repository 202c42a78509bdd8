"""Programs of `torch.export`, and those that AOTInductor compiled.

Both run code of the file: AOTInductor's holds a shared library, and PyTorch's reader of graphs evaluates expressions
and unpickles objects. So both are for files of a trusted origin alone; the caller asks.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unistep.errors import UserError


class Pt2Engine:
    """A program in a .pt2 file, an `Engine`.

    Args:
        path: file of a trusted origin.
        compiled: whether AOTInductor compiled it.

    Raises:
        UserError: PyTorch cannot open it.
    """

    def __init__(self, path: Path, *, compiled: bool) -> None:
        self.device = torch.device("cpu")
        self.name = f"PyTorch {torch.__version__.partition('+')[0]}, {'AOTInductor' if compiled else 'torch.export'}"
        try:
            if compiled:
                from torch._inductor import aoti_load_package

                self._run: Any = aoti_load_package(str(path))
            else:
                self._run = torch.export.load(path).module()
        except Exception as error:  # of many kinds
            reason = (str(error) or type(error).__name__).strip().splitlines()[0][:300]
            raise UserError(
                f"{path} cannot be opened by PyTorch ({reason})", "export it again, on this machine"
            ) from None

    def __call__(self, *inputs: Tensor) -> Tensor:
        with torch.no_grad():
            return self._run(*inputs)
