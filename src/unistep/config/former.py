"""Recipes and runs of the form before stages had names, which had one `teacher` and one `student`."""

from dataclasses import replace
from typing import Any

from unistep.config.values import plain
from unistep.errors import UserError

_KEYS = {"teacher", "student", "teacher_model", "song"}
_METHOD_KEYS = ("objective", "continuous", "progressive")


def converted(values: dict[str, Any], where: str) -> dict[str, Any]:
    """The values in the form of now; those that have it already are returned as they are.

    Raises:
        UserError: the former form with mistakes in it.
    """
    if "stages" in values or not _KEYS & values.keys():
        return values
    try:
        return _converted(values)
    except (AttributeError, TypeError, ValueError) as error:
        raise UserError(
            f"{where} has the form of before `stages`, and is not valid in it ({error}); "
            "`unistep recipes` prints recipes of the form of now"
        ) from None


def _converted(values: dict[str, Any]) -> dict[str, Any]:
    found = {key: value for key, value in values.items() if key not in _KEYS}
    if values.get("song") is not None:
        found["network"] = {"name": "song", **values["song"]}
    elif values.get("network") is not None:
        patched = values["network"].get("patch_size", 1) > 1
        own = {key: value for key, value in values["network"].items() if patched or key != "patch_size"}
        found["network"] = {"name": "patched-adm" if patched else "adm", **own}
    teacher, student, model = (values.get(key) for key in ("teacher", "student", "teacher_model"))
    stages: dict[str, Any] = {}
    if teacher is not None:
        stages["teacher"] = {"method": "edm", **teacher}
    if student is not None:
        stages["student"] = _student(dict(student), "teacher" if teacher is not None else model)
    return found | {"stages": stages}


def _student(student: dict[str, Any], taught_by: str | None) -> dict[str, Any]:
    from unistep.objectives.methods import METHODS

    given = {key: value for key in _METHOD_KEYS if (value := student.pop(key, None)) is not None}
    if len(given) > 1:
        raise ValueError(f"{' and '.join(given)} exclude each other")
    key, numbers = next(iter(given.items()), ("objective", {}))
    kind = METHODS[{"objective": "cd", "continuous": "sct", "progressive": "pd"}[key]].config_class
    config = kind(**numbers)
    rows = [row for row in METHODS.values() if row.config_class is kind]
    # All numbers are written out, so the row most like them only gives the name.
    nearest = max(rows, key=lambda row: _likeness(row.config(), config))
    own = {"method": nearest.name, "init": taught_by if student.pop("from_teacher", True) else None}
    return own | {"teacher": taught_by if config.needs_teacher else None} | student | {"objective": plain(config)}


def _likeness(one: Any, other: Any) -> tuple[bool, int]:
    """Returns the likeness of two configs of a class: agreement in `needs_teacher`, and the number of equal slots."""
    equal = sum(getattr(one, slot) == getattr(other, slot) for slot in one.slots)
    return one.needs_teacher == replace(other, guidance=1.0).needs_teacher, equal
