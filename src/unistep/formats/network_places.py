"""The places of networks in what a file holds: the keys that lead to them, and the prefixes of their names."""

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from unistep.errors import UserError

_MOST_DEPTH = 4
_MOST_NAMES = 300_000
_MOST_NETWORKS = 16
_MOST_PARTS = 40
_MARKS = 6
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
class Place:
    """The place of a network.

    Args:
        keys: keys that lead to a group of tensors.
        prefix: prefix of the network's names in that group.
        tensors: tensors by the names of the network.
        left_out: counters, and entries of the group that belong to no network.
        within: parts of wrappers that were taken out of the names.
        by_order: true if the tensors have no names of their own and are in the order of another network's.
    """

    keys: tuple[str, ...]
    prefix: str
    tensors: dict[str, Any]
    left_out: tuple[str, ...] = ()
    within: tuple[str, ...] = ()
    by_order: bool = False

    @property
    def parts(self) -> tuple[str, ...]:
        """The keys, and the parts of the prefix."""
        return (*self.keys, *self.prefix.split(".")[:-1])


def find_places(
    content: Mapping[str, Any], layouts: Sequence[frozenset[str]], numbers: bool
) -> tuple[list[Place], list[tuple[tuple[str, ...], list[Tensor]]]]:
    """All networks, and all lists of tensors without names, with the keys that lead to them.

    Args:
        content: entries of the file, by name.
        layouts: names of tensors by which a network is recognised.
        numbers: whether counters beside bare names are left out if they are plain numbers and no tensors, too.

    Raises:
        UserError: there are more networks than makes sense.
    """
    places: list[Place] = []
    nameless: list[tuple[tuple[str, ...], list[Tensor]]] = []
    empty: dict[int, Any] = {}  # groups without a network, which a file may show in many places; held, so are their ids
    for keys, group in _groups(content):
        if id(group) in empty:
            continue
        for name, value in group.items():
            if isinstance(value, list | tuple) and len(value) > 1 and all(isinstance(v, Tensor) for v in value):
                if name == "shadow_params" or is_average((*keys, name)):
                    nameless.append(((*keys, name), list(value)))
        names = {_inner(name): name for name in group}
        if len(names) < len(group):  # two names are one without the parts within: they stay
            names = {name: name for name in group}
        if not (prefixes := _prefixes(names, layouts)):
            empty[id(group)] = group
        if len(prefixes) > _MOST_NETWORKS:
            raise UserError(f"it holds {len(prefixes):,} networks; save the one to use in a file of its own")
        found: list[Place] = []
        for prefix in prefixes:
            longer = tuple(other for other in prefixes if other != prefix and other.startswith(prefix))
            own = [name for name in names if name.startswith(prefix) and not (longer and name.startswith(longer))]
            tensors = {name.removeprefix(prefix): group[names[name]] for name in own}
            taken = {name for name in names if name.startswith(tuple(prefixes))}
            rest = [] if "" in prefixes else [names[name] for name in names if name not in taken]
            counters = [name for name, value in tensors.items() if is_counter(name, value)]
            if not keys and not prefix and not numbers:
                counters = [name for name in counters if isinstance(tensors[name], Tensor)]
            if any(counter in layout for layout in layouts for counter in counters):
                counters = []
            for name in counters:
                del tensors[name]
            lead, within = _taken_off({names[name]: name.removeprefix(prefix) for name in own}, prefix)
            found.append(Place(keys, lead, tensors, (*counters, *rest), within))
        places += found + _without_dots(found, group)
    return places, nameless


def is_counter(name: str, value: object) -> bool:
    """Returns whether an entry of a state dict is a counter of a wrapper: a number of a known name."""
    number = value.numel() == 1 if isinstance(value, Tensor) else isinstance(value, bool | int | float | None)
    return number and name.rpartition(".")[2] in _COUNTERS


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
            inner = [(name, _named(v)) for name, v in group.items() if v is not content and not _OPTIMIZER.search(name)]
            todo += [((*keys, name), value) for name, value in inner if value is not None]


def _named(value: object) -> Mapping[str, Any] | None:
    """A group of several by names, where their keys are numbers, such as decays, or their places in a list."""
    if isinstance(value, list | tuple):
        held = 1 < len(value) <= _MOST_NETWORKS and all(isinstance(v, Mapping | list | tuple) for v in value)
        return {str(place): inner for place, inner in enumerate(value)} if held else None
    if not isinstance(value, Mapping):
        return None
    if len(value) <= _MOST_NETWORKS and any(isinstance(key, int | float) for key in value):
        names = {str(key): inner for key, inner in value.items()}
        return names if len(names) == len(value) else value
    return value


def _inner(name: str) -> str:
    """A name without the parts that wrappers of single layers put in."""
    if "_" not in name:
        return name
    return ".".join(part for part in name.split(".") if part not in _WITHIN)


def _prefixes(names: Collection[str], layouts: Sequence[frozenset[str]]) -> list[str]:
    """The prefixes behind which at least a third of the names of a layout stand."""
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
    return _enough(counts, layouts) or _any_prefixes(names, layouts)


def _any_prefixes(names: Collection[str], layouts: Sequence[frozenset[str]]) -> list[str]:
    """The same of prefixes that do not end in a dot, or have too many."""
    counts: Counter[tuple[int, str]] = Counter()
    for number, layout in enumerate(layouts):
        for mark in sorted(layout, key=len)[-_MARKS:]:
            for name in names:
                if name.endswith(mark):
                    counts[number, name.removesuffix(mark)] += 1
    return _enough(counts, [frozenset(sorted(layout, key=len)[-_MARKS:]) for layout in layouts])


def _enough(counts: Counter[tuple[int, str]], layouts: Sequence[frozenset[str]]) -> list[str]:
    # A lone tensor of the same name is no network, except of those that have no other.
    found = (
        prefix
        for (number, prefix), count in counts.items()
        if 3 * count >= len(layouts[number]) and count >= min(2, len(layouts[number]))
    )
    return list(dict.fromkeys(found))


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


def _without_dots(places: Sequence[Place], group: Mapping[str, Any]) -> list[Place]:
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
                    found.append(Place(place.keys, head, tensors))
    return found


def is_online(parts: Collection[str]) -> bool:
    """Returns whether keys or parts of a prefix are those of weights that are not averaged, beside their average."""
    return any(re.match(r"online|current|raw", part.lower()) for part in parts)


def is_average(parts: Collection[str]) -> bool:
    words = [word for part in parts for word in re.split(r"[^a-z0-9]+", part.lower())]
    return any(word in _AVERAGED or re.fullmatch(r"ema\d*", word) for word in words)
