"""Numbers and names of classes, as all sources of labels are held to them."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Sequence

import numpy as np

from unistep.data.names import brief
from unistep.data.reader import Labels
from unistep.errors import UserError
from unistep.text import shown

_LOG = logging.getLogger(__name__)

MOST_LABEL = 100_000
"""Largest class number: every number up to the largest becomes a row of the network's class embedding."""

_SHOWN = 10


def check_label(label: object, source: str, thing: str) -> int:
    """Returns a class number, or refuses what is none.

    Args:
        label: number as it was read.
        source: file that holds it, for messages.
        thing: image that has it, for messages.

    Raises:
        UserError: it is no whole number, negative, or too large.
    """
    if isinstance(label, bool) or not isinstance(label, int):
        raise UserError(f"{source}: {thing} has the label {brief(label)}; labels are class numbers from 0")
    if not 0 <= label <= MOST_LABEL:
        text = brief(label) if abs(label) < 10**100 else "beyond all bounds"
        raise UserError(f"{source}: {thing} has the label {text}; class numbers go from 0 to {MOST_LABEL:,}")
    return label


def check_classes(labels: Labels, location: str) -> Labels:
    """Returns labels as they are where their classes have images; says which have none, or refuses.

    Args:
        labels: classes of all images of a source.
        location: source, for messages.

    Raises:
        UserError: a number is out of range, or more classes have no image than have one.
    """
    if not len(labels.values):
        return labels
    low, high = int(labels.values.min()), int(labels.values.max())
    for label in (low, high):
        check_label(label, shown(location), "an image")
    total = len(labels.names) if labels.names is not None else high + 1
    if total > MOST_LABEL + 1:
        raise UserError(f"{shown(location)}: it has {total:,} classes, more than the {MOST_LABEL:,} that are supported")
    empty = np.flatnonzero(np.bincount(labels.values, minlength=total) == 0)
    if not len(empty):
        return labels
    numbers = ", ".join(map(str, empty[:_SHOWN].tolist())) + ("..." if len(empty) > _SHOWN else "")
    which = f"{len(empty):,} of the classes 0 to {total - 1:,} have no image ({numbers})"
    remedy = "number the classes from 0 without gaps, or leave labels unread with `use_labels=False`"
    if 2 * len(empty) > total:
        raise UserError(f"{shown(location)}: {which}; {remedy}")
    _LOG.warning("%s: %s, and a model will not learn them; %s", shown(location), which, remedy)
    return labels


def class_order(names: Collection[str], location: str) -> list[str]:
    """The names of classes in the order of their numbers: as numbers where all of them are, else as text.

    Args:
        names: names of the classes, each once.
        location: source, for messages.

    Raises:
        UserError: two names are the same number, such as 1 and 01.
    """
    if not all(re.fullmatch(r"[0-9]{1,18}", name) for name in names):
        return sorted(names)
    ordered = sorted(names, key=int)
    for one, other in zip(ordered, ordered[1:], strict=False):
        if int(one) == int(other):
            raise UserError(
                f"{shown(location)}: the classes {one} and {other} are the same number; rename one, or leave labels"
                " unread with `use_labels=False`"
            )
    if (int(ordered[0]), int(ordered[-1])) != (0, len(ordered) - 1):
        _LOG.warning(
            "%s: the numbers %s to %s of its classes are not 0 to %d: class 0 is %s, class %d is %s",
            *(shown(location), ordered[0], ordered[-1], len(ordered) - 1),
            *(ordered[0], len(ordered) - 1, ordered[-1]),
        )
    return ordered


def classes_line(names: Sequence[str]) -> str:
    """Numbers and names of classes in words, as `2 classes: 0 cat, 1 dog`.

    Args:
        names: names of the classes.
    """
    count = len(names)
    what = f"{count:,} class{'es' * (count != 1)}"
    parts = [f"{number} {brief(name)}" for number, name in enumerate(names[:_SHOWN])]
    return f"{what}: {', '.join(parts)}{f', and {count - _SHOWN:,} more' if count > _SHOWN else ''}"


def are_numbers(names: Sequence[str]) -> bool:
    """Returns whether the names of classes are their numbers, and so tell nothing."""
    return all(name == str(number) for number, name in enumerate(names))
