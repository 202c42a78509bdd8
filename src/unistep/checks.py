"""Range checks of numbers and places that a user gives."""

import os
from collections.abc import Sequence
from pathlib import Path

from unistep.errors import UserError

MAX_SEED = 2**63 - 1


def check_range(field: str, value: float | None, least: float, most: float) -> None:
    """Refuses a number outside [least, most]; None passes.

    Args:
        field: name of the parameter.
        value: number to be checked.
        least: smallest valid value.
        most: largest valid value.

    Raises:
        UserError: `value` is outside the range, or no number.
    """
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value:
        raise UserError(f"{value!r} must be a number", field=field)
    if value < least:
        raise UserError(
            f"{value:g} must be at least {least:g}"
            if isinstance(value, float)
            else f"{value} must be at least {least}",
            field=field,
        )
    if value > most:
        raise UserError(
            f"{value:g} must be at most {most:g}" if isinstance(value, float) else f"{value} must be at most {most}",
            field=field,
        )


def check_one_of(**given: object) -> None:
    """Refuses more than one argument that is not None.

    Raises:
        UserError: two or more are given; they are named.
    """
    names = [f"`{name}`" for name, value in given.items() if value is not None]
    if len(names) > 1:
        raise UserError(f"{' and '.join(names)} exclude each other", "give one")


def check_choice(field: str, value: str | None, choices: Sequence[str]) -> None:
    """Refuses a word that is not among `choices`, and names the nearest; None passes.

    Raises:
        UserError: `value` is none of them.
    """
    if value is None or value in choices:
        return
    from unistep.text import nearest

    near = nearest(value, choices) if isinstance(value, str) else None
    hint = f"did you mean {near}?" if near else ""
    raise UserError(f"{value or repr(value)}: must be one of {', '.join(choices)}", hint, field=field)


def check_file(field: str, name: str | os.PathLike[str] | None, endings: Sequence[str]) -> None:
    """Refuses the name of a file to be written that is empty, a folder, of another ending, or not writable.

    Args:
        field: name of the parameter.
        name: path of the file; None passes.
        endings: valid endings, as (".png",).

    Raises:
        UserError: the file cannot be written under that name.
    """
    if name is None:
        return
    path = user_path(name)
    if path.suffix.lower() not in endings:
        raise UserError(f"{str(name) or repr('')}: give a file that ends in {' or '.join(endings)}", field=field)
    if path.is_dir():
        raise UserError(f"{name} is a folder; give another name", field=field)
    check_place(field, path)


def check_path(field: str, name: object, remedy: str = "give a path") -> None:
    """Refuses what is no path; None passes.

    Args:
        field: name of the parameter.
        name: value to be checked.
        remedy: end of the message, with all that may be given.

    Raises:
        UserError: `name` is neither text nor a path of texts, holds a NUL, or is longer than a path can be.
    """
    if name is None:
        return
    if not isinstance(name, str | os.PathLike) or not isinstance(os.fspath(name), str):
        raise UserError(f"is of type {type(name).__name__}", remedy, field=field)
    _check_name(os.fspath(name), field)


def user_path(name: str | os.PathLike[str]) -> Path:
    """Returns the path of a name, with the home folder in place of `~`, or of `~user` where there is such a user.

    Raises:
        UserError: the name holds a NUL, or is longer than a path can be.
    """
    _check_name(os.fspath(name))
    # The method of Path raises where there is none.
    return Path(os.path.expanduser(name))


def _check_name(name: str, field: str = "") -> None:
    """Refuses a name of which the system would make an error of its own."""
    if "\0" in name:
        raise UserError(f"{name[:40]} is no path: it holds a NUL", "give another", field=field)
    content = name.encode("utf-8", "surrogatepass")
    if len(content) >= 4096 or any(len(part) > 255 for part in content.split(b"/")):
        raise UserError(f"{name[:40]}... is no path: it is too long", "give a shorter one", field=field)


def check_place(field: str, path: Path) -> None:
    """Refuses a path at which no file or folder can be made.

    Args:
        field: name of the parameter.
        path: place of the file or folder.

    Raises:
        UserError: what is above `path` is not a folder, or there is no permission to write.
    """
    above = next(folder for folder in path.absolute().parents if os.path.lexists(folder))
    if not above.is_dir():
        reason = f"{above} is not a folder"
    elif not os.access(path if path.is_dir() else above, os.W_OK | os.X_OK):
        reason = f"there is no permission to write in {path if path.is_dir() else above}"
    elif path.exists() and not os.access(path, os.W_OK):
        reason = "there is no permission to write"
    else:
        return
    raise UserError(f"cannot write {path}: {reason}; choose another `{field}`")
