"""The weights of a model folder: safetensors or PyTorch's .bin, in one file or in shards.

Files are mapped, not read: weights that are fp32 in the file stay there, in a private mapping, so that opening a model
takes as long as reading its weights once, and no memory of its own. Writing to such a weight changes the process'
copy of the page, never the file. A file that is replaced by renaming, as `save_model` and the hub's client do, keeps
existing for processes that have opened it; a program that writes into a file in place disturbs them.
Weights of other types are converted one by one.

A file that is written here holds two digests of its tensors among its metadata, and is refused where they differ:
`unistep.sha256`, of all their bytes, and `unistep.sums`, of the sums of every 4 KB, which is as fast as memory and is
taken where there are both. Against damage one is as good as the other; neither is a signature.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from unistep.errors import UserError
from unistep.files import LAYOUT
from unistep.formats.json_config import shown
from unistep.formats.model_folder.files import choose_weights, shards_of
from unistep.formats.tensor_file import checked_tensors, main_dtype, map_state, not_finite, tensor_name
from unistep.formats.wrappers import unwrap

_DAMAGED = "fetch it again"
_DIGEST, _SUMS = "unistep.sha256", "unistep.sums"
_PAGE = 4096


def find_weights(folder: Path, variant: str | None) -> list[Path]:
    """The files that hold a model folder's weights.

    Raises:
        UserError: there are none of the variant, or an index of shards is damaged or names a file elsewhere.
    """
    try:
        names = [f"unet/{path.name}" for path in (folder / "unet").iterdir()]
    except OSError as error:
        raise UserError(f"cannot read {folder / 'unet'} ({error.strerror}); {LAYOUT}") from None
    chosen = folder / choose_weights(names, variant, folder)
    if chosen.suffix != ".json":
        return [chosen]
    return [folder / name for name in shards_of(chosen, folder)]


def load_weights(
    network: nn.Module, files: list[Path], weights: str | None = None
) -> tuple[torch.dtype, tuple[str, ...]]:
    """Loads weights, as fp32, into a network on the meta device.

    Args:
        network: network without weights.
        files: files of its weights.
        weights: network to choose if the files hold several.

    Returns:
        The dtype of most weights in the files, and notes on what they were wrapped in.

    Raises:
        UserError: a file cannot be read; a tensor is missing, unexpected, of the wrong shape or type, or not finite.
    """
    found, notes = _checked(network, files, weights)
    for file in files:
        check_digest(file)
    dtype = main_dtype(tensor for tensor, _ in found.values())
    where = {name: file for name, (_, file) in found.items()}
    for name in where:  # taken out one by one, as what is mapped counts as memory of the process
        if not_finite({name: found.pop(name)[0].to(torch.float32)}) is not None:
            raise UserError(
                f"{where[name]}: tensor {name} has values that are not finite; training failed, or {_DAMAGED}"
            )
    found, _ = _checked(network, files, weights)
    state = {name: found.pop(name)[0].detach().to(torch.float32).contiguous() for name in where}
    network.load_state_dict(state, assign=True)
    return dtype, notes


def dtype_of_weights(
    network: nn.Module, files: list[Path], weights: str | None = None
) -> tuple[torch.dtype, tuple[str, ...]]:
    """The dtype of most weights in files, which are checked except for their values, and notes as `load_weights`.

    Raises:
        UserError: as `load_weights`.
    """
    found, notes = _checked(network, files, weights)
    return main_dtype(tensor for tensor, _ in found.values()), notes


def save_weights(network: nn.Module, path: Path, dtype: torch.dtype) -> None:
    """Writes a network's weights as safetensors.

    Args:
        network: the network.
        path: file.
        dtype: dtype of the parameters in the file; buffers keep theirs.

    Raises:
        UserError: a weight is not finite in `dtype`: it would be refused when it is read.
    """
    parameters = dict(network.named_parameters())
    state = {
        name: value.detach().to("cpu", dtype if name in parameters else value.dtype).contiguous()
        for name, value in network.state_dict().items()
    }
    if (bad := not_finite(state)) is not None:
        word = str(dtype).removeprefix("torch.")
        raise UserError(f"{path}: tensor {bad} has values that are not finite as {word}; it was not written")
    save_tensors(state, path, {"format": "pt"})


def save_tensors(state: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    """Writes tensors as safetensors, with their digests.

    Args:
        state: tensors in main memory, contiguous, by name.
        path: file.
        metadata: further metadata of the file.
    """
    with path.open("wb"):  # the library's file is for its owner alone; this one has the usual permissions
        usual = path.stat().st_mode
    digests = {_DIGEST: _digest_of(state), _SUMS: _sums_of(dict(state))}
    save_file(dict(state), path, metadata={**metadata, **digests})
    _sort_metadata(path)
    path.chmod(usual & 0o777)


def check_digest(file: Path) -> None:
    """Passes where the tensors of a file are those that were written, and where the file does not say.

    Raises:
        UserError: they are not.
    """
    if file.suffix != ".safetensors":
        return
    try:
        with safe_open(file, "pt") as opened:
            known = opened.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file} cannot be read ({error}); {_DAMAGED}") from None
    name = _SUMS if _SUMS in known else _DIGEST
    if name not in known:
        return
    digest_of = _sums_of if name == _SUMS else _digest_of
    if digest_of(map_state(file, _DAMAGED)) == known[name]:
        return
    raise UserError(
        f"{file} is damaged: its tensors are not those of its digest",
        f"{_DAMAGED}, or remove {name} from its metadata if another program has changed it on purpose",
    )


def _sort_metadata(path: Path) -> None:
    """Puts the metadata of a safetensors file in the order of their names.

    The library writes them in another order each time, and the same weights would give other bytes.
    """
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        metadata = dict(sorted(header.pop("__metadata__").items()))
        text = json.dumps({"__metadata__": metadata, **header}, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) <= size:
            file.seek(8)
            file.write(text.ljust(size))


def _digest_of(tensors: Mapping[str, Tensor]) -> str:
    """The digest of names, types, shapes and bytes."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        content: Any = tensor.reshape(-1).view(torch.uint8).numpy()
        digest.update(content)
    return digest.hexdigest()


def _sums_of(tensors: dict[str, Tensor]) -> str:
    """The digest of names, types, shapes and the sums of every page of bytes, as whole numbers of 64 bits.

    Args:
        tensors: tensors by name; taken out one by one, so that mapped ones leave the memory.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors.pop(name).detach().contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        content = tensor.reshape(-1).view(torch.uint8)
        whole = len(content) // _PAGE * _PAGE
        if content.storage_offset() % 8:
            content = content.clone()
        sums = content[:whole].view(torch.int64).view(-1, _PAGE // 8).sum(1)
        for part in (sums, content[whole:]):
            piece: Any = part.numpy()
            digest.update(piece)
    return digest.hexdigest()


def _checked(
    network: nn.Module, files: list[Path], weights: str | None
) -> tuple[dict[str, tuple[Tensor, Path]], tuple[str, ...]]:
    """All tensors of `files`, mapped, and the file of each; they are those of the network. And notes."""
    content: dict[str, Any] = {}
    origin: dict[int, Path] = {}
    for file in files:
        for name, value in map_state(file, _DAMAGED).items():
            if name in content:
                raise UserError(f"{file}: tensor {shown(name)} is in {origin[id(content[name])].name} too; {_DAMAGED}")
            content[name] = value
            origin[id(value)] = file
    whole = files[0] if len(files) == 1 else files[0].parent
    wrapped = unwrap(content, [network.state_dict()], whole, weights)
    if wrapped is None and weights is not None:
        raise UserError(f"`weights` {weights}: {whole} holds no network of its config.json under a name; leave it out")
    tensors = content if wrapped is None else wrapped.tensors
    found: dict[str, tuple[Tensor, Path]] = {}
    for file in files:
        own = {name: value for name, value in tensors.items() if origin.get(id(value), files[0]) == file}
        found |= {name: (tensor, file) for name, tensor in checked_tensors(own, file, _DAMAGED).items()}
    notes = (wrapped.note,) if wrapped is not None and wrapped.note else ()
    expected = network.state_dict()
    where = files[0] if len(files) == 1 else files[0].parent
    for wrong, word in (
        (expected.keys() - found.keys(), "lacks"),
        (found.keys() - expected.keys(), "has the unexpected"),
    ):
        if wrong:
            more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
            raise UserError(
                f"{where} {word} tensor {tensor_name(min(wrong))}{more}; it does not belong to its config.json"
            )
    for name, (tensor, file) in found.items():
        if tensor.shape != expected[name].shape:
            raise UserError(
                f"{file}: tensor {name} has shape {list(tensor.shape)}, config.json says {list(expected[name].shape)}"
            )
    return found, notes
