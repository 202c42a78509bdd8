""".pt2 files: graphs of `torch.export`, and libraries that AOTInductor compiled of them.

Opening either runs code of the file, so they are opened only where the caller trusts the file; the description alone is
read without.
"""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from unistep.errors import UserError
from unistep.formats.exported.description import KEY, MOST_BYTES, read_description
from unistep.formats.exported.model import exported_model
from unistep.formats.location import Location
from unistep.formats.torch_file import open_zip

if TYPE_CHECKING:
    import torch

    from unistep.formats.model import LoadedModel

TITLE = "exported PyTorch program"


def is_pt2(location: Location) -> bool:
    """Returns whether a file is an archive of PyTorch's exporters."""
    return location.is_file and location.zip_members is not None and "archive_format" in location.zip_members


def load_pt2(path: Path, device: "torch.device | str" = "cpu", trust_code: bool = False) -> "LoadedModel":
    """Opens a .pt2 file as a model.

    Args:
        path: file.
        device: cpu, or meta for looking at the description alone.
        trust_code: whether code that the file holds may run.

    Raises:
        UserError: it is not trusted, damaged, or no exported model.
    """
    import torch

    from unistep.engines.pt2 import Pt2Engine

    text, compiled = _examine(path)
    description = read_description(text, path)
    kind = torch.device(device).type
    if kind not in ("cpu", "meta"):
        raise UserError(f"{path} was exported for the CPU, not for {device}", "give `device` cpu")
    if kind == "cpu" and not trust_code:
        holds = "a compiled library" if compiled else "a graph that PyTorch reads by evaluating and unpickling it"
        raise UserError(
            f"{path} is not opened: it holds {holds}, so that opening it runs code of whoever made it",
            "give `trust_code=True` if you made it or trust who did, or an ONNX or OpenVINO file, which run none",
        )
    return exported_model(description, partial(Pt2Engine, path, compiled=compiled), path, TITLE, device)


def _examine(path: Path) -> tuple[str | None, bool]:
    """The description, and whether the program is compiled; nothing else of the file is read."""
    try:
        with open_zip(path) as file:
            names = file.namelist()
            entry = next((name for name in names if name.endswith(f"extra/{KEY}")), None)
            if entry is not None and file.getinfo(entry).file_size > MOST_BYTES:
                raise UserError(f"{path} has a description that is too large", "export the model again")
            text = None if entry is None else file.read(entry).decode("utf-8", "replace")
    except UserError:
        raise
    except Exception as error:  # BadZipFile, and what a damaged one raises
        raise UserError(f"{path} is damaged ({str(error)[:100]})", "export the model again") from None
    return text, any("/aotinductor/" in name for name in names)
