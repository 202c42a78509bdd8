"""Networks inside what training scripts save: below keys, behind prefixes of their names, beside counters and averages.

    {"state_dict": {"model.conv_in.weight": ...}, "epoch": 3}     a key, and the prefix of an attribute
    {"n_averaged": 5, "module._orig_mod.conv_in.weight": ...}     a counter, and the prefixes of wrappers
    {"model": {...}, "ema": {...}}                                two networks, of which one is chosen
    {"model": {...}, "ema": {"shadow_params": [...]}}             averages without names, in the order of the network's

No list of wrappers is needed: a prefix is whatever stands before the names of a network that is looked for. It must
stand before most of them, so that the prefix of a lone tensor of the same name is none.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from unistep.errors import UserError
from unistep.formats.json_config import shown

_MOST_DEPTH = 4
_MOST_NAMES = 1_000_000
_MOST_PARTS = 40
_OPTIMIZER = re.compile(r"optim|^opt$|^exp_avg|moment", re.IGNORECASE)
# Parts of names that wrappers of single layers put in: torch.compile, activation checkpointing, FSDP.
_WITHIN = {"_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module", "_forward_module"}
_COUNTERS = {
    "n_averaged",
    "num_batches_tracked",
    "num_updates",
    "optimization_step",
    "decay",
    "step",
    "steps",
    "initted",
    "epoch",
    "iteration",
    "global_step",
}
_AVERAGED = {"average", "averaged", "averages", "avg", "shadow", "swa", "polyak"}


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


@dataclass(frozen=True)
class _Place:
    """The place of a network: keys that lead to a group of tensors, a prefix of the names in it, parts within them."""

    keys: tuple[str, ...]
    prefix: str
    tensors: dict[str, Any]
    left_out: tuple[str, ...] = ()
    within: tuple[str, ...] = ()
    by_order: bool = False

    @property
    def parts(self) -> tuple[str, ...]:
        return (*self.keys, *self.prefix.split(".")[:-1])


def unwrap(
    content: Mapping[str, Any], layouts: Sequence[Collection[str]], where: object, weights: str | None = None
) -> Wrapped | None:
    """The network in a file of tensors, whatever it is wrapped in.

    Args:
        content: entries of the file, by name.
        layouts: names of tensors by which a network is recognised, all or some; one collection for each layout.
        where: file, for messages.
        weights: network to choose if there are several: a key or prefix, "ema" for averaged weights or "model" for
            those that are not; None if there is one.

    Returns:
        The network; None if there is none of these layouts.

    Raises:
        UserError: there are several networks and `weights` names none of them, or one that cannot be used.
    """
    places, nameless = _places(content, [frozenset(layout) for layout in layouts])
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
            places.append(_Place(keys, "", tensors, by_order=True))
    labels = _labels(places)
    place, label = _chosen(places, labels, where, weights, useless)
    note = "; ".join([*_said(place), *(f"{_words(keys)} were left out: weights without names" for keys in useless)])
    return Wrapped(place.tensors, label, f"{Path(str(where)).name}: {note}" if note else "")


def is_counter(name: str, value: object) -> bool:
    """Returns whether an entry of a state dict is a counter of a wrapper: a number of a known name."""
    number = value.numel() == 1 if isinstance(value, Tensor) else isinstance(value, bool | int | float | None)
    return number and name.rpartition(".")[2] in _COUNTERS


def _places(
    content: Mapping[str, Any], layouts: Sequence[frozenset[str]]
) -> tuple[list[_Place], list[tuple[tuple[str, ...], list[Tensor]]]]:
    """All networks, and all lists of tensors without names."""
    places: list[_Place] = []
    nameless: list[tuple[tuple[str, ...], list[Tensor]]] = []
    for keys, group in _groups(content):
        for name, value in group.items():
            if isinstance(value, list) and len(value) > 1 and all(isinstance(v, Tensor) for v in value):
                if name == "shadow_params" or _is_average((name,)):
                    nameless.append(((*keys, name), value))
        names = {_inner(name): name for name in group}
        if len(names) < len(group):  # two names are one without the parts within: they stay
            names = {name: name for name in group}
        prefixes = _prefixes(names, layouts)
        found: list[_Place] = []
        for prefix in prefixes:
            longer = tuple(other for other in prefixes if other != prefix and other.startswith(prefix))
            own = [name for name in names if name.startswith(prefix) and not (longer and name.startswith(longer))]
            tensors = {name.removeprefix(prefix): group[names[name]] for name in own}
            taken = {name for name in names if name.startswith(tuple(prefixes))}
            rest = [] if "" in prefixes else [names[name] for name in names if name not in taken]
            counters = [name for name, value in tensors.items() if is_counter(name, value)]
            if not keys and not prefix:  # a number in a bare state dict is refused by whoever reads it
                counters = [name for name in counters if isinstance(tensors[name], Tensor)]
            if any(counter in layout for layout in layouts for counter in counters):
                counters = []
            for name in counters:
                del tensors[name]
            lead, within = _taken_off({names[name]: name.removeprefix(prefix) for name in own}, prefix)
            found.append(_Place(keys, lead, tensors, (*counters, *rest), within))
        places += found + _without_dots(found, group)
    return places, nameless


def _taken_off(names: Mapping[str, str], prefix: str) -> tuple[str, tuple[str, ...]]:
    """The prefix of names as they are in the file, and the parts of wrappers within them.

    Args:
        names: names of the network by those in the file.
        prefix: prefix of the latter without the parts of wrappers.
    """
    leads = {raw.removesuffix(name) if raw.endswith(name) else None for raw, name in names.items()}
    if len(leads) == 1 and (lead := leads.pop()) is not None:
        return lead, ()
    parts = {part for raw in names for part in raw.split(".")}
    return prefix, tuple(sorted(parts & _WITHIN))


def _without_dots(places: Sequence[_Place], group: Mapping[str, Any]) -> list[_Place]:
    """Averages of these networks beside them whose names have lost their dots, as buffers of latent diffusion have."""
    heads: dict[str, dict[str, Any]] = {}
    for name, value in group.items():
        head, dot, body = name.rpartition(".")
        heads.setdefault(head + dot, {})[body] = value
    found = []
    for place in places:
        parts = place.prefix.split(".")[:-1]
        for lead in ("".join(parts[at:]) for at in range(len(parts) + 1)):
            bodies = {lead + name.replace(".", ""): name for name in place.tensors}
            for head, values in heads.items():
                if len(bodies) == len(place.tensors) > 1 and values.keys() >= bodies.keys() and head != place.prefix:
                    tensors = {name: values[body] for body, name in bodies.items()}
                    found.append(_Place(place.keys, head, tensors))
    return found


def _groups(content: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], Mapping[str, Any]]]:
    """The mappings by names in a mapping, itself first, with the keys that lead to them; those of optimizers not."""
    todo: list[tuple[tuple[str, ...], Mapping[str, Any]]] = [((), content)]
    seen = 0  # of names: a file may show one mapping in many places
    while todo and seen < _MOST_NAMES:
        keys, group = todo.pop(0)
        seen += 1 + len(group)
        if not all(isinstance(name, str) for name in group):
            continue
        yield keys, group
        if len(keys) < _MOST_DEPTH:
            inner = [(name, value) for name, value in group.items() if isinstance(value, Mapping)]
            todo += [((*keys, name), value) for name, value in inner if not _OPTIMIZER.search(name)]


def _inner(name: str) -> str:
    """A name without the parts that wrappers of single layers put in."""
    if "_" not in name:
        return name
    return ".".join(part for part in name.split(".") if part not in _WITHIN)


def _prefixes(names: Collection[str], layouts: Sequence[frozenset[str]]) -> list[str]:
    """The prefixes behind which at least half the names of a layout stand."""
    counts: Counter[tuple[int, str]] = Counter()
    for name in names:
        end = -1
        for _ in range(_MOST_PARTS):
            suffix = name[end + 1 :]
            for number, layout in enumerate(layouts):
                if suffix in layout:
                    counts[number, name[: end + 1]] += 1
            end = name.find(".", end + 1)
            if end < 0:
                break
    enough = (prefix for (number, prefix), count in counts.items() if 2 * count >= len(layouts[number]))
    return list(dict.fromkeys(enough))


def _same_order(tensors: Mapping[str, Any], values: Sequence[Tensor]) -> bool:
    shapes = [getattr(tensor, "shape", None) for tensor in tensors.values()]
    return shapes == [value.shape for value in values]


def _is_average(parts: Collection[str]) -> bool:
    words = [word for part in parts for word in re.split(r"[^a-z0-9]+", part.lower())]
    return any(word in _AVERAGED or re.fullmatch(r"ema\d*", word) for word in words)


def _labels(places: Sequence[_Place]) -> list[str]:
    """The parts of each place that not all places have; all of them where these are the same for two."""
    common = set(places[0].parts).intersection(*(place.parts for place in places[1:]))
    labels = [".".join(part for part in place.parts if part not in common) for place in places]
    if len(places) == 1:
        return [".".join(places[0].parts)]
    if len(set(labels)) < len(labels):
        labels = [".".join(place.parts) for place in places]
    return [label or ("model" if "model" not in labels else "(no name)") for label in labels]


def _chosen(
    places: Sequence[_Place],
    labels: Sequence[str],
    where: object,
    weights: str | None,
    useless: Sequence[tuple[str, ...]],
) -> tuple[_Place, str]:
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
        if weights in keys or (weights == "ema" and _is_average(keys)):
            raise UserError(_nameless(where, keys), "choose other `weights`")
    if len(places) == 1:
        alone = f"one network alone ({there})" if there else "one network alone, which has no name"
        raise UserError(f"`weights` {shown(weights)}: {where} holds {alone}", "leave it out")
    raise UserError(f"`weights` {shown(weights)}: {where} holds {there}", "choose one of these")


def _matching(places: Sequence[_Place], labels: Sequence[str], weights: str) -> list[int]:
    """The positions of the networks that a word means: by the whole label, by a part of it, or by its meaning."""
    full = [".".join(place.parts) for place in places]
    every = range(len(places))
    common = set() if len(places) == 1 else set(places[0].parts).intersection(*(p.parts for p in places[1:]))
    for found in (
        [i for i in every if weights in (labels[i], full[i])],
        [i for i in every if weights in places[i].parts and weights not in common],
        [i for i in every if weights == "ema" and _averaged(places[i])],
        [i for i in every if weights == "model" and not _averaged(places[i])],
    ):
        if found:
            return found
    return []


def _averaged(place: _Place) -> bool:
    return place.by_order or _is_average(place.parts)


def _nameless(where: object, keys: Sequence[str]) -> str:
    return f"{where} holds averaged weights as a list without names ({_words(keys)}), which fit no network"


def _said(place: _Place) -> list[str]:
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
