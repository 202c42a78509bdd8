"""The files of a model folder, by the names that diffusers gives them.

Of the weights a folder may hold several sets: as safetensors and as .bin, in one file or in shards with an index,
plain and as variants:

    diffusion_pytorch_model.safetensors                 diffusion_pytorch_model.fp16.safetensors
    diffusion_pytorch_model.safetensors.index.json      diffusion_pytorch_model.safetensors.index.fp16.json
"""

import re
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from unistep.documents import DocumentError, parse_json
from unistep.errors import UserError
from unistep.files import LAYOUT, check_regular_file
from unistep.formats.location import Location

INDEX = "model_index.json"
REQUIRED = (INDEX, "unet/config.json", "scheduler/scheduler_config.json")
CARD = "README.md"
QUANTIZED = "int8"

_MOST_BYTES, _MOST_BYTES_OF_SHARDS = 1_000_000, 16_000_000

_STEM = "unet/diffusion_pytorch_model"
_ENDINGS = ("safetensors", "bin")  # in order of preference


def is_model_folder(location: Location) -> bool:
    """Returns whether there is a model folder; one whose network is quantized has the layout without the weights."""
    quantized = (location.path / QUANTIZED / "about.json").is_file()
    return location.is_folder and (location.path / INDEX).exists() and not quantized


def choose_weights(names: Collection[str], variant: str | None, where: object) -> str:
    """The file of the weights, or the index of their shards.

    Args:
        names: files of the folder, relative to it.
        variant: variant of the weights, such as "fp16"; None for the plain weights.
        where: folder, for the message.

    Raises:
        UserError: there are none of the variant; names those that exist.
    """
    if name := _find_weights(names, variant):
        return name
    there = [f"variant {name}" for name in _variants(names)]
    if _find_weights(names, None):
        there.insert(0, "the plain ones (no variant)")
    wanted = f"weights of variant {variant}" if variant else "plain weights"
    raise UserError(f"{where} has no {wanted}; it has {', '.join(there) or f'no {_STEM}.safetensors or .bin at all'}")


def shards_of(index: Path, where: object) -> list[str]:
    """The files that an index of shards names, relative to the folder; all of them are in unet/.

    Raises:
        UserError: the file is no such index.
    """
    ending = next(ending for ending in _ENDINGS if f".{ending}.index" in index.name)
    check_regular_file(index, LAYOUT, most_bytes=_MOST_BYTES_OF_SHARDS)
    with suppress(DocumentError, KeyError, TypeError, AttributeError):
        names = sorted(set(parse_json(index.read_bytes())["weight_map"].values()))
        if names and all(re.fullmatch(rf"\w[\w.-]*\.{ending}", name) for name in names):
            return [f"unet/{name}" for name in names]
    raise UserError(f"{where}: unet/{index.name} is not an index of shards; tell the model's owner")


def check_components(index: Path, where: object) -> None:
    """Refuses a pipeline of more parts than a U-Net and a scheduler (text encoder, autoencoder).

    Raises:
        UserError: the pipeline has more parts, or `index`, its model_index.json, is damaged.
    """
    check_regular_file(index, LAYOUT, most_bytes=_MOST_BYTES)
    try:
        parts = parse_json(index.read_bytes()).items()
    except (DocumentError, AttributeError):
        raise UserError(f"{where}: {index.name} is damaged; tell the model's owner") from None
    known = ("unet", "scheduler")
    for name, kind in parts:
        pair = isinstance(kind, list) and len(kind) == 2 and all(isinstance(word, str) for word in kind)
        if (name in known and not pair) or (name == "_class_name" and not isinstance(kind, str)):
            made = "the name of a pipeline" if name == "_class_name" else "a library and a class"
            raise UserError(f"{where}: {name} of {index.name} is not {made}", "get or make the file again")
    if others := [name for name, kind in parts if isinstance(kind, list) and any(kind) and name not in known]:
        raise UserError(f"{where} is not a consistency model of pixels: it has a {others[0]} too; check the name")


def is_whole(folder: Path, variant: str | None) -> bool:
    """Returns whether a folder has all files of a model folder, with weights of the variant."""
    names = _names(folder)
    weights = _find_weights(names, variant)
    if weights is None or not names.issuperset(REQUIRED):
        return False
    with suppress(UserError):
        return not weights.endswith(".json") or names.issuperset(shards_of(folder / weights, folder))
    return False


def variants_of(folder: Path) -> list[str]:
    """The variants of a folder's weights, without the plain ones."""
    return _variants(_names(folder))


def _find_weights(names: Collection[str], variant: str | None) -> str | None:
    dotted = f".{variant}" if variant else ""
    for ending in _ENDINGS:
        for name in (f"{_STEM}{dotted}.{ending}", f"{_STEM}.{ending}.index{dotted}.json"):
            if name in names:
                return name
    return None


def _variants(names: Collection[str]) -> list[str]:
    endings = "|".join(_ENDINGS)
    pattern = re.compile(rf"{_STEM}(?:\.(\w+)\.(?:{endings})|\.(?:{endings})\.index\.(\w+)\.json)")
    return sorted({match[1] or match[2] for name in names if (match := pattern.fullmatch(name))})


def _names(folder: Path) -> set[str]:
    """Files in the folder and the folders in it; links that lead nowhere are left out."""
    return {path.relative_to(folder).as_posix() for path in (*folder.glob("*"), *folder.glob("*/*")) if path.is_file()}
