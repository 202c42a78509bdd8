"""One parameter of a function, as the command line takes it: its flag, and the value that a text stands for."""

import inspect
import re
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import docstring_parser

from unistep.arguments import is_path, is_sequence, plain_kinds
from unistep.errors import UserError
from unistep.text import nearest

MISSING = inspect.Parameter.empty


@dataclass(frozen=True)
class Parameter:
    """One parameter of a function, as the command line takes it.

    Args:
        name: name in Python.
        kinds: types that its text may be of, in the order in which they are tried: Literal, int, float, Sequence, str.
        default: value where the flag is absent; `inspect.Parameter.empty` where it is required.
        text: its entry in the docstring.
        other_name: name of the flag where that is another.
        several: whether the flag takes several words.
        is_path: whether the text is the name of a file or folder.
    """

    name: str
    kinds: tuple[Any, ...]
    default: Any
    text: str
    other_name: str = ""
    several: bool = False
    is_path: bool = False

    @property
    def flag(self) -> str:
        """`--num-images`; `--no-progress` of a switch that is on by default."""
        return f"--{'no-' if self.default is True else ''}{self._word}"

    @property
    def off(self) -> str | None:
        """`--no-clip` of a switch that is neither on nor off by default; None of others."""
        return f"--no-{self._word}" if self.is_switch and self.default is None else None

    @property
    def _word(self) -> str:
        return (self.other_name or self.name).replace("_", "-")

    @property
    def is_switch(self) -> bool:
        """Whether the flag takes no value."""
        return self.kinds == (bool,)

    @property
    def metavar(self) -> str:
        """Placeholder of the value in the help."""
        kind = next((k for k in self.kinds if is_sequence(k)), self.kinds[0])
        if self.several:
            return "NAME ..."
        if typing.get_origin(kind) is Literal:
            return "{" + ",".join(map(str, typing.get_args(kind))) + "}"
        if is_sequence(kind):
            return {int: "N,...", float: "X,...", str: "NAME,..."}[typing.get_args(kind)[0]]
        word = "PATH" if self.is_path and self.name != "model" else re.split("[._]", self.name.upper())[-1]
        return {int: "N", float: "X"}.get(kind, word)

    def convert(self, text: str) -> Any:
        """The value that `text` stands for.

        Raises:
            UserError: it is none of `kinds`.
        """
        for kind in self.kinds:
            try:
                return _convert(text, kind)
            except ValueError:
                continue
        first = self.kinds[0]
        if typing.get_origin(first) is Literal:
            choices = [str(c) for c in typing.get_args(first)]
            near = nearest(text, choices)
            hint = f"; did you mean {near}?" if near else ""
            raise UserError(f"`{self.name}` {text or repr('')}: must be one of {', '.join(choices)}{hint}")
        example = re.search(r"\bas (\S+?)[;.]?(\s|$)", self.text)
        hint = f", as {example[1]}" if example and takes_many(self) else ""
        raise UserError(f"`{self.name}` {text or repr('')}: expected {_describe(self.kinds)}{hint}")


def parameters_of(function: Callable[..., Any]) -> list[Parameter]:
    """The parameters of a function that a command line can give."""
    parsed = docstring_parser.parse(function.__doc__ or "", docstring_parser.DocstringStyle.GOOGLE)
    texts: dict[str, str] = {}
    for entry in parsed.params:
        for name in entry.arg_name.split(", "):
            texts[name] = re.sub(r"\s+", " ", entry.description or "")
    found = []
    for p in inspect.signature(function).parameters.values():
        kinds = plain_kinds(p.annotation)
        if kinds and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
            text = texts.get(p.name, "")
            found.append(Parameter(p.name, kinds, p.default, text, is_path=is_path(p.annotation)))
    return found


def takes_many(parameter: Parameter) -> bool:
    return any(is_sequence(kind) for kind in parameter.kinds)


def _convert(text: str, kind: Any) -> Any:
    """Raises ValueError where `text` is none of the kind."""
    if typing.get_origin(kind) is Literal:
        named = {str(choice): choice for choice in typing.get_args(kind)}
        return named[text] if text in named else _no()
    if is_sequence(kind):
        of = typing.get_args(kind)[0]
        parts = [part.strip() for part in text.strip("[]() ").split(",")]
        return [of(part) if part else _no() for part in parts]
    return kind(text)


def _no() -> Any:
    raise ValueError


def _describe(kinds: Sequence[Any]) -> str:
    for kind in kinds:
        if is_sequence(kind):
            words = {int: "whole numbers", float: "numbers", str: "words"}[typing.get_args(kind)[0]]
            return f"{words} separated by commas"
    return {int: "int", float: "float"}.get(kinds[0], "text")
