"""Classes by number or name, as a user gives them."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, TypeAlias

from unistep.errors import UserError
from unistep.text import nearest, shown

_log = logging.getLogger("unistep")

ClassLabels: TypeAlias = int | str | Sequence[int] | Sequence[int | str] | None
"""Class of all images, or several: numbers, or names that the model has for its classes; also text as `cat,2`."""

_NAMES_SHOWN = 5


def class_numbers(class_labels: Any, names: Sequence[str]) -> int | list[int] | None:
    """Returns classes by their numbers.

    Text is the name of a class, else the names or numbers of several with commas between them. A name goes before the
    number that it looks like.

    Args:
        class_labels: number, text, or several of both; None stays.
        names: name of each class of the model; empty if it has none.

    Raises:
        UserError: a name that the model does not have; the nearest one is named.
    """
    if class_labels is None:
        return None
    if isinstance(class_labels, str):
        if class_labels in names:
            return names.index(class_labels)
        found = [_number(word.strip(), names, class_labels) for word in class_labels.split(",")]
        return found[0] if len(found) == 1 else found
    if isinstance(class_labels, Iterable) and getattr(class_labels, "shape", None) != ():
        if isinstance(class_labels, bytes | Mapping | AbstractSet):  # of no order, or of no classes
            raise _refused(class_labels)
        return [_number(one, names) for one in class_labels]
    return _number(class_labels, names)


def without_names(class_labels: Any, names: Sequence[str]) -> Any:
    """Returns classes with numbers in place of names; what holds no text stays as it is.

    Args:
        class_labels: number, text, tensor, or several numbers and texts.
        names: name of each class of the model; empty if it has none.

    Raises:
        UserError: a name that the model does not have; the nearest one is named.
    """
    several = class_labels if isinstance(class_labels, list | tuple) else (class_labels,)
    return class_numbers(class_labels, names) if any(isinstance(one, str) for one in several) else class_labels


def _number(label: Any, names: Sequence[str], whole: str | None = None) -> int:
    if isinstance(label, str):
        if label in names:
            return names.index(label)
        if not (label.isascii() and label.isdigit() and len(label) < 4000):
            text = shown(label if whole is None else whole)
            raise UserError(f"{text[:80] or repr('')}: {_known(label, names)}", field="class_labels")
        label = int(label)
    if getattr(label, "shape", None) == () and hasattr(label, "item"):
        label = label.item()
    if isinstance(label, bool) or not isinstance(label, int):
        raise _refused(label)
    if 0 <= label < len(names) and names[label].isdigit() and int(names[label]) != label:
        _log.info("class %d is the one that is called %s", label, shown(names[label]))
    return label


def _known(label: str, names: Sequence[str]) -> str:
    """The end of the message for a class of that name, which there is not."""
    if not names:
        return "the classes of this model have no names; give their numbers, as 0,1,2"
    near = nearest(label, names)
    some = ", ".join(shown(name) for name in names[:_NAMES_SHOWN]) + (", ..." if len(names) > _NAMES_SHOWN else "")
    hint = f"did you mean {shown(near)}?" if near else f"there are {some}"
    return f"no class is called {shown(label)[:80] or repr('')}; {hint}"


def _refused(label: object) -> UserError:
    text = " ".join(repr(label).split())[:60]
    return UserError(f"{text} must be a class number, the name of a class, or a list of them", field="class_labels")
