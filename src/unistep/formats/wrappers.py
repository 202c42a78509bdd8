"""Networks inside what training scripts save: below keys, behind prefixes of their names, beside counters and averages.

    {"state_dict": {"model.conv_in.weight": ...}, "epoch": 3}     a key, and the prefix of an attribute
    {"n_averaged": 5, "module._orig_mod.conv_in.weight": ...}     a counter, and the prefixes of wrappers
    {"model": {...}, "ema": {...}}                                two networks, of which one is chosen
    {"model": {...}, "ema": {"shadow_params": [...]}}             averages without names, in the order of the network's

No list of wrappers is needed: a prefix is whatever stands before the names of a network that is looked for. It must
stand before a third of them, so that the prefix of a lone tensor of the same name is none.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from unistep.errors import UserError
from unistep.formats.json_config import shown
from unistep.formats.network_places import Place, find_places, is_average, is_online


@dataclass(frozen=True)
class Wrapped:
    """A network that was found in a file.

    Args:
        tensors: tensors by the names of the network.
        label: word or words that tell it from the others in the file; empty if it is alone and bare.
        note: sentence on the prefixes that were taken off and the entries that were left out; empty for none.
    """

    tensors: dict[str, Any]
    label: str = ""
    note: str = ""


def unwrap(
    content: Mapping[str, Any],
    layouts: Sequence[Collection[str]],
    where: object,
    weights: str | None = None,
    *,
    numbers: bool = False,
) -> Wrapped | None:
    """The network in a file of tensors, whatever it is wrapped in.

    Args:
        content: entries of the file, by name.
        layouts: names of tensors by which a network is recognised, all or some; one collection for each layout.
        where: file, for messages.
        weights: network to choose if there are several: a key or prefix, "ema" for averaged weights or "model" for
            those that are not; None if there is one.
        numbers: whether counters beside bare names are left out if they are plain numbers and no tensors, too.

    Returns:
        The network; None if there is none of these layouts.

    Raises:
        UserError: there are several networks and `weights` names none of them, or one that cannot be used.
    """
    try:
        places, nameless = find_places(content, [frozenset(layout) for layout in layouts], numbers)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    if not places:
        if nameless:
            raise UserError(_nameless(where, nameless[0][0]), "give a file with the names of the weights")
        return None
    useless: list[tuple[str, ...]] = []
    for keys, values in nameless:
        if (base := next((place for place in places if _same_order(place.tensors, values)), None)) is None:
            useless.append(keys)
        else:
            tensors = dict(zip(base.tensors, values, strict=True))
            places.append(Place(keys, "", tensors, by_order=True))
    labels = _labels(places)
    place, label = _chosen(places, labels, where, weights, useless)
    note = "; ".join([*_said(place), *(f"{_words(keys)} were left out: weights without names" for keys in useless)])
    return Wrapped(place.tensors, label, f"{Path(str(where)).name}: {note}" if note else "")


def _same_order(tensors: Mapping[str, Any], values: Sequence[Tensor]) -> bool:
    shapes = [getattr(tensor, "shape", None) for tensor in tensors.values()]
    return shapes == [value.shape for value in values]


def _labels(places: Sequence[Place]) -> list[str]:
    """The first part of each place that not all places have; all parts where these are the same for two."""
    if len(places) == 1:
        return [".".join(places[0].parts)]
    common = set(places[0].parts).intersection(*(place.parts for place in places[1:]))
    labels = [next((part for part in place.parts if part not in common), "") for place in places]
    if len(set(labels)) < len(labels):
        labels = [".".join(place.parts) for place in places]
    return [label or ("model" if "model" not in labels else "(no name)") for label in labels]


def _chosen(
    places: Sequence[Place],
    labels: Sequence[str],
    where: object,
    weights: str | None,
    useless: Sequence[tuple[str, ...]],
) -> tuple[Place, str]:
    there = ", ".join(label if label.isprintable() and len(label) <= 60 else shown(label) for label in labels)
    if weights is None:
        if len(places) > 1:
            first = next((label for place, label in zip(places, labels, strict=True) if _averaged(place)), labels[0])
            remedy = f"choose one by `weights`, as {shown(first)}"
            raise UserError(f"{where} holds several networks ({there})", remedy)
        return places[0], labels[0]
    if found := _matching(places, labels, weights):
        if len(found) > 1:
            raise UserError(f"`weights` {weights}: {where} holds several such networks ({there})", "name one of them")
        return places[found[0]], labels[found[0]]
    for keys in useless:
        if weights in keys or (weights == "ema" and is_average(keys)):
            raise UserError(_nameless(where, keys), "choose other `weights`")
    if len(places) == 1:
        alone = f"one network alone ({there})" if there else "one network alone, which has no name"
        raise UserError(f"`weights` {shown(weights)}: {where} holds {alone}", "leave it out")
    raise UserError(f"`weights` {shown(weights)}: {where} holds {there}", "choose one of these")


def _matching(places: Sequence[Place], labels: Sequence[str], weights: str) -> list[int]:
    """The positions of the networks that a word means: by the whole label, by a part of it, or by its meaning."""
    full = [".".join(place.parts) for place in places]
    every = range(len(places))
    common = set() if len(places) == 1 else set(places[0].parts).intersection(*(p.parts for p in places[1:]))
    for found in (
        [i for i in every if weights in (labels[i], full[i])],
        [i for i in every if weights in places[i].parts and weights not in common],
        [i for i in every if places[i].parts[:1] == (weights,) and len({place.parts[:1] for place in places}) > 1],
        [i for i in every if weights == "ema" and _averaged(places[i])],
        [i for i in every if weights == "model" and not _averaged(places[i])],
    ):
        if found:
            averaged = [i for i in found if _averaged(places[i])]
            return averaged if weights == "ema" and averaged else found
    return []


def _averaged(place: Place) -> bool:
    return place.by_order or (is_average(place.parts) and not is_online(place.parts))


def _nameless(where: object, keys: Sequence[str]) -> str:
    return f"{where} holds averaged weights as a list without names ({_words(keys)}), which fit no network"


def _said(place: Place) -> list[str]:
    """The parts of a sentence on what was taken off and left out."""
    said = []
    if place.keys:
        said.append(f"its network is the one under {_words(place.keys)}")
    if place.by_order:
        said.append("whose weights have no names and are taken in the order of the other network's")
    if place.prefix:
        said.append(f"the prefix {_word(place.prefix)} was taken off the names of its tensors")
    if place.within:
        said.append(f"{' and '.join(place.within)} was taken out of the names of its tensors")
    if place.left_out:
        more = f" and {len(place.left_out) - 3} more" if len(place.left_out) > 3 else ""
        said.append(f"left out: {', '.join(map(_word, place.left_out[:3]))}{more}")
    return said


def _words(keys: Sequence[str]) -> str:
    return ".".join(map(_word, keys))


def _word(text: str) -> str:
    return text if text.isprintable() and len(text) <= 60 else shown(text)
