"""Opens any model: looks at what a thing is, not at what it is called, and hands it to the reader of that format.

    a folder with model_index.json     diffusers' layout
    a PyTorch file                     OpenAI's state dicts; zip files, and those of torch before 1.6
    a plain pickle                     NVIDIA's EDM networks
    owner/name, where no such path is  a model folder of the Hugging Face hub

Nothing that a file contains is executed.
"""

import re
import zipfile
from pathlib import Path

import torch

from unistep.errors import UserError
from unistep.files import check_regular_file
from unistep.formats.model import Kind, LoadedModel
from unistep.formats.model_folder.folder import load_model
from unistep.formats.openai.file import load_openai

MODEL_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
FILE_SUFFIXES = (".pt", ".pth", ".ckpt", ".pkl", ".bin", ".safetensors")
# The number that a file of torch.save begins with where it is no zip file, as the pickle has it.
_OLD_TORCH = (0x1950A86A20F9469CFC6C).to_bytes(10, "little")
_GIVE = "give a model folder, a .pt file of OpenAI's, a .pkl file of EDM's, or owner/name of the Hugging Face hub"


def open_model(
    name: str | Path,
    device: torch.device | str = "cpu",
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    variant: str | None = None,
    kind: Kind | None = None,
    attention_head_dim: int | None = None,
    sample_size: int | None = None,
) -> LoadedModel:
    """Opens a model folder, an OpenAI .pt, an EDM .pkl or a model of the Hugging Face hub.

    Args:
        name: a path, or owner/name on the hub; a path that exists goes first.
        device: where the model goes; "meta" is for looking at it, its weights are not used.
        revision: branch, tag or commit on the hub.
        token: for private models of the hub; True: the stored one must be there, False: send none.
        cache_dir: where downloads are kept.
        local_files_only: take from the cache what was downloaded before, and ask nobody.
        variant: of the weights in a model folder, as "fp16".
        kind: "consistency" or "diffusion", for a .pt, which does not tell; elsewhere it must be what the model says.
        attention_head_dim: channels of an attention head, for a .pt; None is 64.
        sample_size: side of the images in pixels, for a .pt; None is worked out.

    Raises:
        UserError: there is no such model, or it is damaged or of an unknown kind; what was tried is said.
    """
    path = Path(name)
    own = {"attention_head_dim": attention_head_dim, "sample_size": sample_size}
    try:
        exists = path.exists()
    except OSError as error:  # a name too long, a folder that may not be looked into
        raise UserError(f"cannot read {name}: {error.strerror or error}") from None
    if exists and not path.is_dir():
        reader = reader_of(path)
        if variant is not None:
            raise UserError(f"variant {variant} is for model folders; {path} is a file, and has one set of weights")
        if reader == "openai":
            heads = 64 if attention_head_dim is None else attention_head_dim
            return load_openai(path, device, kind=kind, attention_head_dim=heads, sample_size=sample_size)
        _refuse(own, name)
        from unistep.formats.edm.file import load_edm

        return _of_kind(load_edm(path, device), kind, name)
    _refuse(own, name)
    if exists:
        if not (path / "model_index.json").exists():
            raise UserError(_not_a_model_folder(path))
        return _of_kind(load_model(path, device, variant=variant), kind, name)
    if not is_model_id(str(name)):
        raise UserError(_not_there(str(name)))
    from unistep.formats.hub.download import fetch_folder

    try:
        folder = fetch_folder(
            str(name),
            revision=revision,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            variant=variant,
        )
    except UserError as error:
        raise UserError(f"there is no file or folder {name}; as a model of the hub: {error}") from None
    return _of_kind(load_model(folder, device, variant=variant), kind, name)


def is_model_id(name: str) -> bool:
    """Whether `name` has the form owner/name of a model on the hub, and not that of a file."""
    return bool(MODEL_ID.fullmatch(name)) and not name.endswith(FILE_SUFFIXES)


def reader_of(path: Path) -> str:
    """ "openai" or "edm": which reader a file is for, by its content.

    Raises:
        UserError: neither; what the file is instead.
    """
    check_regular_file(path, _GIVE)
    with path.open("rb") as file:
        head = file.read(512)
    if head.startswith(b"PK"):
        return _check_zip(path)
    if head.startswith(b"\x80"):  # every pickle since protocol 2
        return "openai" if _OLD_TORCH in head[:40] else "edm"
    raise UserError(f"{path} {_what_it_is(head, path)}")


def _check_zip(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as file:
            names = {entry.rpartition("/")[2] for entry in file.namelist()}
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        raise UserError(f"{path} is a zip file that is cut short or damaged; fetch it again") from None
    if "constants.pkl" in names:
        raise UserError(f"{path} is a TorchScript program, which is not run; give the model's state dict")
    if "data.pkl" not in names:
        raise UserError(f"{path} is a zip file and no checkpoint of PyTorch's; {_GIVE}")
    return "openai"


def _what_it_is(head: bytes, path: Path) -> str:
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not head:
        return "is empty; fetch it again"
    if start.startswith(b"version https://git-lfs"):
        return "is a git-lfs pointer and not the file itself; fetch it with: git lfs pull"
    if start.startswith((b"<!doctype", b"<html", b"<?xml", b"<head", b"<!--")):
        return "is a web page and not a checkpoint; the download went wrong, fetch it again"
    if head[8:9] == b"{" and 0 < int.from_bytes(head[:8], "little") < path.stat().st_size:
        folder = next((p for p in path.absolute().parents[:2] if (p / "model_index.json").exists()), None)
        instead = f"give the model folder: {folder}" if folder else "give the folder that holds model_index.json"
        return f"is a safetensors file: weights without their architecture; {instead}"
    if not any(byte < 9 or 13 < byte < 27 for byte in head):
        return f"is a text file and not a checkpoint; {_GIVE}"
    return f"is not a checkpoint of a known kind; {_GIVE}"


def _not_a_model_folder(path: Path) -> str:
    if (path / "config.json").exists():
        above = path.absolute().parent
        if (above / "model_index.json").exists():
            return f"{path} is only the network of a model folder; give the folder above: {above}"
        return (
            f"{path} holds a network without its noise range; make it unet/ of a model folder, "
            "with model_index.json and scheduler/ beside it"
        )
    try:
        files = sorted(p.name for p in path.iterdir() if p.suffix in (".pt", ".pth", ".ckpt", ".pkl"))
    except OSError as error:
        return f"cannot read {path}: {error.strerror or error}"
    if files:
        more = f" and {len(files) - 3} more" if len(files) > 3 else ""
        return (
            f"{path} is not a model folder (no model_index.json); give one of its files: {', '.join(files[:3])}{more}"
        )
    return f"{path} is not a model folder: it holds no model_index.json"


def _not_there(name: str) -> str:
    if "://" in name:
        return f"{name} is an address; fetch the file and give its path, or give owner/name of the Hugging Face hub"
    parent = Path(name).parent
    if str(parent) != "." and not parent.exists():
        return f"{name} does not exist, nor does the folder {parent}; {_GIVE}"
    return f"{name} does not exist; {_GIVE}"


def _refuse(options: dict[str, int | None], name: str | Path) -> None:
    for option, value in options.items():
        if value is not None:
            raise UserError(f"{option} {value} is for OpenAI's .pt files, which do not tell it; {name} is none")


def _of_kind(model: LoadedModel, kind: Kind | None, name: str | Path) -> LoadedModel:
    if kind not in (None, model.info.kind):
        raise UserError(f"kind {kind}: {name} says that it is a {model.info.kind} model; leave kind out")
    return model
