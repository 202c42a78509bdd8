"""Arguments of the public functions, checked and normalised by their annotations.

The command line reads the same annotations; so both refuse the same values, and numbers and sequences of NumPy and
PyTorch are as good as Python's.
"""

import functools
import inspect
import os
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypeVar

from unistep.checks import check_choice
from unistep.errors import UserError

P = ParamSpec("P")
R = TypeVar("R")

_RANK = {bool: 0, int: 2, float: 3, str: 5}
_WORDS = {int: "a whole number", float: "a number", str: "text", bool: "True or False"}
_MOST_BITS = 1023
_MANY = {int: "whole numbers", float: "numbers", str: "words"}


def plain_arguments(*, empty: Sequence[str] = ()) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Returns a decorator of functions whose plain arguments are then of the annotated types.

    Numbers and one-dimensional arrays of NumPy and PyTorch become Python's, sequences become lists, and `~` in paths
    the home folder. Members of an annotation that are other objects take whatever is none of the plain types.

    The decorated function raises `UserError` where an argument is of none of its types, or is empty text.

    Args:
        empty: names of parameters whose empty text the function refuses itself, with a remedy of its own.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        parameters = _plain_parameters(function)
        signature = inspect.signature(function)

        @functools.wraps(function)
        def checked(*args: P.args, **kwargs: P.kwargs) -> R:
            try:
                bound = signature.bind(*args, **kwargs)
            except TypeError:
                return function(*args, **kwargs)  # whose error names the function
            for name, value in bound.arguments.items():
                if name in parameters and value is not parameters[name].default:
                    _check_not_empty(parameters[name], value, name in empty)
                    bound.arguments[name] = _plain(parameters[name], value)
            return function(*bound.args, **bound.kwargs)

        return checked

    return decorate


def members(annotation: Any) -> tuple[Any, ...]:
    """Returns the members of a union; of another annotation that alone."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return typing.get_args(annotation)
    return (annotation,)


def plain_kinds(annotation: Any) -> tuple[Any, ...]:
    """Returns the plain members of an annotation, in the order in which a value is tried: Literal, int, float, ..."""
    kinds = [one for one in members(annotation) if one in _RANK or typing.get_origin(one) is Literal or _is_plain(one)]
    return tuple(sorted(kinds, key=lambda k: _RANK.get(k, 1 if typing.get_origin(k) is Literal else 4)))


def is_sequence(kind: Any) -> bool:
    """Returns whether a member of an annotation is a sequence."""
    return typing.get_origin(kind) in (list, tuple, Sequence) and bool(typing.get_args(kind))


def is_path(annotation: Any) -> bool:
    """Returns whether an annotation takes the name of a file or folder."""
    return any(typing.get_origin(one) is os.PathLike for one in members(annotation))


def _is_plain(kind: Any) -> bool:
    return is_sequence(kind) and typing.get_args(kind)[0] in (int, float, str)


def _plain_parameters(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The parameters that take something plain, by name."""
    found = inspect.signature(function).parameters
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return {name: p for name, p in found.items() if plain_kinds(p.annotation) and p.kind not in several}


def _check_not_empty(parameter: inspect.Parameter, value: Any, passes: bool) -> None:
    if isinstance(value, str) and not value.strip() and not passes:
        remedy = f"give a {'path' if is_path(parameter.annotation) else 'value'}"
        required = parameter.default is inspect.Parameter.empty
        raise UserError("is empty", remedy if required else f"{remedy}, or leave it out", field=parameter.name)


def _check_digits(name: str, value: Any) -> None:
    """Refuses whole numbers that no float holds; Python refuses to print the longest of them."""
    for one in value if isinstance(value, list | tuple) else (value,):
        if isinstance(one, int) and one.bit_length() > _MOST_BITS:
            raise UserError("has over 300 digits", "give a smaller number", field=name)


def _plain(parameter: inspect.Parameter, value: Any) -> Any:
    """The value as one of the plain members, or as it is where there are other members."""
    annotation, one = parameter.annotation, plain_scalar(value)
    _check_digits(parameter.name, value)
    if is_path(annotation) and isinstance(value, str | os.PathLike):
        return _at_home(value)
    if value is None and type(None) in members(annotation):
        return None
    kinds = plain_kinds(annotation)
    for kind in kinds:
        if (found := _as(kind, one)) is not None:
            return found
    if all(kind in kinds or kind is type(None) or is_path(kind) for kind in members(annotation)):
        raise _refused(parameter.name, value, kinds, is_path(annotation))
    return value


def _as(kind: Any, value: Any) -> Any:
    """The value as a plain type; None where it is none."""
    if typing.get_origin(kind) is Literal:
        return (
            value if any(value is c or type(value) is type(c) and value == c for c in typing.get_args(kind)) else None
        )
    if is_sequence(kind):
        return _as_list(typing.get_args(kind)[0], value)
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return value
    return value if isinstance(value, kind) and (kind is bool or not isinstance(value, bool)) else None


def _as_list(kind: type, value: Any) -> list[Any] | None:
    # A set has no order, and an iterator can be read once.
    if isinstance(value, str | bytes | Mapping | AbstractSet | Iterator) or not isinstance(value, Iterable):
        return None
    found = [_as(kind, plain_scalar(one)) for one in value]
    return None if any(one is None for one in found) else found


def plain_scalar(value: Any) -> Any:
    """Returns a number or a device of NumPy or PyTorch as Python has it, and anything else as it is."""
    if type(value).__module__ == "torch" and type(value).__name__ == "device":
        return str(value)
    if getattr(value, "shape", None) == () and hasattr(value, "item"):
        return value.item()
    return value


def _at_home(path: str | os.PathLike[str]) -> str | os.PathLike[str]:
    """A path of the same type with the home folder in place of `~`."""
    home = os.path.expanduser(path)
    return path if home == os.fspath(path) else home if isinstance(path, str) else Path(home)


def _refused(name: str, value: Any, kinds: Sequence[Any], path: bool) -> UserError:
    literal = next((kind for kind in kinds if typing.get_origin(kind) is Literal), None)
    if literal is not None and isinstance(value, str):
        try:
            check_choice(name, value, [str(c) for c in typing.get_args(literal)])
        except UserError as error:
            return error
    expected = []
    for kind in kinds:
        if typing.get_origin(kind) is Literal:
            expected.append(f"one of {', '.join(map(str, typing.get_args(kind)))}")
        elif is_sequence(kind):
            expected.append(f"a list of {_MANY[typing.get_args(kind)[0]]}")
        else:
            expected.append("a path" if kind is str and path else _WORDS[kind])
    return UserError(f"{_shown(value)} must be {' or '.join(expected)}", field=name)


def _shown(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"a {type(value).__name__}"
