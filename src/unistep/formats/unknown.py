"""Reasons why something is not a model, in one line with the remedy."""

from unistep.errors import UserError
from unistep.files import stand_in
from unistep.formats.embedded import EMBEDDED_NAMES
from unistep.formats.location import Location
from unistep.formats.model_folder.files import INDEX
from unistep.formats.table import FILE_SUFFIXES, phrases
from unistep.text import nearest


def refusal(location: Location) -> UserError:
    """Makes the error for a location that no format recognises."""
    if location.is_folder:
        return UserError(_folder(location))
    return UserError(_file(location) if location.exists else _missing(location))


def _file(location: Location) -> str:
    path, head = location.path, location.head
    if not head:
        return f"{path} is empty; fetch it again"
    if found := stand_in(head, "a checkpoint"):
        return f"{path} {found}"
    if location.is_safetensors:
        folder = next((p for p in path.absolute().parents[:2] if (p / INDEX).exists()), None)
        instead = f"give the model folder: {folder}" if folder else f"give the folder that holds {INDEX}"
        return f"{path} is a safetensors file: weights without their architecture; {instead}"
    if head.startswith(b"PK"):
        if location.zip_members is None:
            return f"{path} is a zip file that is cut short or damaged; fetch it again"
        if "constants.pkl" in location.zip_members:
            return f"{path} is a TorchScript program, which is not run; give the model's state dict"
        return f"{path} is a zip file and no checkpoint of PyTorch's; {phrases()}"
    if not any(byte < 9 or 13 < byte < 27 for byte in head):
        return f"{path} is a text file and not a checkpoint; {phrases()}"
    return f"{path} is not a checkpoint of a known kind; {phrases()}"


def _folder(location: Location) -> str:
    path = location.path
    if (path / "config.json").exists():
        above = path.absolute().parent
        if (above / INDEX).exists():
            return f"{path} is only the network of a model folder; give the folder above: {above}"
        return (
            f"{path} holds a network without its noise range; make it unet/ of a model folder, "
            f"with {INDEX} and scheduler/ beside it"
        )
    try:
        files = sorted(p.name for p in path.iterdir() if p.suffix in FILE_SUFFIXES)
    except OSError as error:
        return f"cannot read {path}: {error.strerror or error}"
    if files:
        more = f" and {len(files) - 3} more" if len(files) > 3 else ""
        return f"{path} is not a model folder (no {INDEX}); give one of its files: {', '.join(files[:3])}{more}"
    return f"{path} is not a model folder: it holds no {INDEX}"


def _missing(location: Location) -> str:
    name, parent = location.name, location.path.parent
    if "://" in name:
        return f"{name} is an address; fetch the file and give its path, or give owner/name of the Hugging Face hub"
    if str(parent) != "." and not parent.exists():
        return f"{name} does not exist, nor does the folder {parent}; {phrases()}"
    near = nearest(name, EMBEDDED_NAMES) if str(parent) == "." else None
    meant = f"did you mean the embedded {near}? Else " if near else ""
    return f"{name} does not exist; {meant}{phrases()}"
