"""One command from one function: flags, defaults and help from its signature and docstring.

A command's module gives the function and prints its result; parsing, help, notes, signals and the spelling of errors
are here, once. A parameter of a type that no command line can hold is left out.
"""

import argparse
import inspect
import logging
import os
import re
import shutil
import sys
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal, TypeVar

import docstring_parser

from unistep.arguments import is_path, is_sequence, plain_kinds
from unistep.errors import UserError
from unistep.text import nearest

T = TypeVar("T")
_MISSING = inspect.Parameter.empty


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
        return f"--{'no-' if self.default is True else ''}{(self.other_name or self.name).replace('_', '-')}"

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
        hint = f", as {example[1]}" if example and _takes_many(self) else ""
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


def run_command(
    arguments: Sequence[str],
    function: Callable[..., T],
    show: Callable[..., None],
    *,
    usage: str,
    positionals: Sequence[str] = (),
    opens: str | None = None,
    defaults: Mapping[str, Any] | None = None,
    leave_out: Sequence[str] = (),
    flags: Mapping[str, str] | None = None,
    several: Sequence[str] = (),
    switches: Mapping[str, str] | None = None,
    epilog: str = "",
) -> None:
    """Parses, calls the function, and shows its result.

    Args:
        arguments: words after the command's name.
        function: public function that the command calls; its signature gives the flags, its docstring the help.
        show: prints the result; called as show(result, **switches).
        usage: lines of the help's beginning, as "unistep sample [MODEL] [options]".
        positionals: names of parameters that stand without a flag, in order; one that takes a sequence takes the rest.
        opens: name of the parameter that is a model; the flags of `unistep.load` that say which model is meant are
            added.
        defaults: default values that differ from the function's.
        leave_out: names of parameters that have no flag.
        flags: names of flags that differ from their parameter's, without dashes.
        several: names of parameters whose flag takes several words, as `--input A B`.
        switches: flags without a value that `show` takes and not the function, by name, with their help.
        epilog: end of the help.

    Raises:
        UserError: a mistake in the arguments or inputs, spelled in flags.
        SystemExit: the help was asked for (0), or a signal came (128 + its number).
    """
    defaults = defaults or {}
    own = [p for p in parameters_of(function) if p.name not in leave_out]
    own = [p if p.name not in defaults else _with_default(p, defaults[p.name]) for p in own]
    own = [replace(p, other_name=(flags or {}).get(p.name, ""), several=p.name in several) for p in own]
    which = _which_model(own) if opens else []
    shown = [Parameter(name, (bool,), False, text) for name, text in (switches or {}).items()]
    if "-h" in arguments or "--help" in arguments:
        print(help_text(function, usage, [*own, *shown], _group(which), positionals, epilog), end="")
        sys.exit(0)
    program = " ".join(usage.splitlines()[0].split()[:2])
    spelling = {p.name: p.name.upper() if p.name in positionals else p.flag for p in (*own, *shown, *which)}
    with spelled(spelling):
        values = parse(arguments, [*own, *shown, *which], positionals, program)
        if opens:
            required = any(p.name == opens and p.default is _MISSING for p in own)
            values = _with_options(values, opens, [p.name for p in which], required)
        chosen = {p.name: values.pop(p.name) for p in shown}
        with notes_shown(spelling):
            show(interruptible(function, **values), **chosen)


def parse(
    arguments: Sequence[str], parameters: Sequence[Parameter], positionals: Sequence[str], program: str
) -> dict[str, Any]:
    """The given values by name.

    Args:
        arguments: words after the command's name.
        parameters: parameters that have a flag or a position.
        positionals: names of the parameters that are given without a flag, in order.
        program: name of the command, as "unistep sample".

    Returns:
        Values of the given parameters by name, without those that were left out.

    Raises:
        UserError: an unknown flag, a value of the wrong kind, or a required value that is missing.
    """
    parser = argparse.ArgumentParser(prog=program, exit_on_error=False, allow_abbrev=False, add_help=False)
    by_name = {p.name: p for p in parameters}
    for name in positionals:
        nargs = "*" if _takes_many(by_name[name]) else "?"
        parser.add_argument(name, nargs=nargs, default=None)
    flagged = [p for p in parameters if p.name not in positionals]
    for p in flagged:
        switch = {"action": "store_const", "const": p.default is not True}
        several = {"nargs": "*", "action": "extend"}
        action = switch if p.is_switch else several if p.several else {"nargs": "?", "const": _MISSING}
        parser.add_argument(p.flag, dest=p.name, default=None, **action)  # pyright: ignore[reportArgumentType]
    words = [hyphened(a) for a in arguments]
    check_flags(words, [p.flag for p in flagged], program)
    _check_switches(words, [p.flag for p in flagged if p.is_switch])
    try:
        # Intermixed: those without a flag may stand on both sides of a flag.
        joined = _joined(words, {p.flag for p in flagged if not p.is_switch})
        found, unknown = parser.parse_known_intermixed_args(joined)
    except argparse.ArgumentError as error:
        raise UserError(f"{error}; see {program} --help") from None
    if unknown:
        raise UserError(f"unexpected argument {unknown[0]}; see {program} --help")
    values: dict[str, Any] = {}
    for p in parameters:
        value = getattr(found, p.name)
        if value is _MISSING or p.several and value == []:
            raise UserError(f"{p.flag} needs a value; see {program} --help")
        if value is None or value == [] and p.name in positionals:
            if p.default is _MISSING:
                raise UserError(f"`{p.name}` is missing; see {program} --help")
            values[p.name] = p.default
        elif p.is_switch or isinstance(value, list):
            values[p.name] = value
        else:
            values[p.name] = p.convert(value)
    return values


def _joined(words: Sequence[str], flags: set[str]) -> list[str]:
    """Joins a flag and the value after it that begins with a negative number, which argparse may take for a flag."""
    joined: list[str] = []
    for word in words:
        if joined and joined[-1] in flags and re.match(r"-[\d.]", word):
            joined[-1] = f"{joined[-1]}={word}"
        else:
            joined.append(word)
    return joined


def _check_switches(words: Sequence[str], switches: Sequence[str]) -> None:
    """Refuses a switch with a value, which would be taken for the model or the images."""
    for word, following in pairwise([*words, ""]):
        flag, equals, _ = word.partition("=")
        if flag in switches and (equals or following.lower() in ("true", "false", "yes", "no", "on", "off", "0", "1")):
            raise UserError(f"{flag} takes no value; give it alone, or leave it out")


def hyphened(argument: str) -> str:
    """`--num_images=5` as `--num-images=5`: flags may be written either way."""
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument[2:].partition("=")
    return f"--{name.replace('_', '-')}{equals}{value}"


def check_flags(words: Sequence[str], flags: Sequence[str], program: str) -> None:
    """Refuses flags that do not exist, and names the nearest.

    Raises:
        UserError: a word that begins as a flag does, and is none.
    """
    for word in words:
        flag = word.partition("=")[0]
        # A dash before anything but a letter is a negative number's.
        if re.match(r"--.|-[A-Za-z]", word) and flag not in flags:
            near = nearest(flag.lstrip("-"), [f.lstrip("-") for f in flags])
            hint = f"did you mean --{near}?" if near else "see --help"
            raise UserError(f"unknown option {flag}; {hint}")


@contextmanager
def spelled(flags: Mapping[str, str]) -> Iterator[None]:
    """While entered, a `UserError` names parameters as their flags.

    Args:
        flags: flag of each parameter, by its name in Python.

    Raises:
        UserError: one raised inside, with flags in place of parameters.
    """
    try:
        yield
    except UserError as error:
        raise UserError(spell(str(error), flags)) from None


def spell(message: str, flags: Mapping[str, str]) -> str:
    """A message with `` `batch_size` `` as `--batch-size` and `` `skip_bad=True` `` as `--skip-bad`."""

    def flag(match: re.Match[str]) -> str:
        name, value = match[1], match[3]
        if name not in flags:
            return match[0]
        if value in (None, "True", "False"):
            return flags[name]
        return f"{flags[name]} {value.strip(chr(34))}"

    return re.sub(r"`([A-Za-z_][\w.-]*)(=([^`]*))?`", flag, message)


@contextmanager
def notes_shown(flags: Mapping[str, str] | None = None) -> Iterator[None]:
    """While entered, what the package logs is printed on stderr as `note: ...` and `warning: ...`.

    Args:
        flags: flag of each parameter that a note may name, by its name in Python.
    """
    logger, handler = logging.getLogger("unistep"), _Notes(flags or {})
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def interruptible(function: Callable[..., T], *args: Any, **values: Any) -> T:
    """Calls a function; after SIGINT or SIGTERM prints what is kept (the exception's notes) and exits.

    Raises:
        SystemExit: a signal came; 128 + its number.
    """
    from unistep.runtime.interrupt import Interrupted, signals_raise

    try:
        with signals_raise():
            return function(*args, **values)
    except Interrupted as stopped:
        notes = getattr(stopped, "__notes__", ["nothing was written"])
        if os.environ.get("RANK", "0") == "0":
            print("; ".join([str(stopped), *notes]), file=sys.stderr)
        sys.exit(128 + stopped.signal.value)


class WideFormatter(argparse.RawDescriptionHelpFormatter):
    """Help as wide as the terminal, within bounds, and as its authors broke it into lines."""

    def __init__(self, prog: str) -> None:
        super().__init__(
            prog, max_help_position=26, width=min(110, max(60, shutil.get_terminal_size((100, 24)).columns))
        )


class _Notes(logging.Handler):
    def __init__(self, flags: Mapping[str, str]) -> None:
        super().__init__()
        self._flags = flags

    def emit(self, record: logging.LogRecord) -> None:
        """Prints one line."""
        kind = "warning" if record.levelno >= logging.WARNING else "note"
        print(f"{kind}: {spell(record.getMessage(), self._flags)}", file=sys.stderr)


def _with_default(parameter: Parameter, default: Any) -> Parameter:
    text = parameter.text if default is None else re.sub(r"default: [^;]*$", f"default: {default}.", parameter.text)
    return replace(parameter, default=default, text=text)


def _group(which: Sequence[Parameter]) -> dict[str, Sequence[Parameter]]:
    return {"options that say which model is meant": which} if which else {}


def _which_model(own: Sequence[Parameter]) -> list[Parameter]:
    from unistep.workflows.models import load

    taken = {p.name for p in own} | {"model"}
    return [p for p in parameters_of(load) if p.name not in taken and p.name not in ("device", "dtype")]


def _with_options(values: dict[str, Any], model: str, options: Sequence[str], required: bool) -> dict[str, Any]:
    from unistep.workflows.models import ModelSource

    given = {name: values.pop(name) for name in options}
    given = {name: value for name, value in given.items() if value is not None and value is not False}  # 0 is a value
    if isinstance(values[model], str) and not values[model].strip():
        alone = "" if required else ", or leave it out for the embedded MNIST model"
        raise UserError(f"`{model}` is empty; name one{alone}")
    for name, value in given.items():
        if isinstance(value, str) and not value.strip():
            raise UserError(f"`{name}` is empty; give a value, or leave it out")
    return values | {model: ModelSource(values[model], given) if given else values[model]}


def _takes_many(parameter: Parameter) -> bool:
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


def help_text(
    function: Callable[..., Any],
    usage: str,
    own: Sequence[Parameter],
    groups: Mapping[str, Sequence[Parameter]],
    positionals: Sequence[str],
    epilog: str = "",
) -> str:
    """The help of a command.

    Args:
        function: function whose docstring is the description.
        usage: lines of the help's beginning.
        own: parameters of the function.
        groups: further flags, by the title that they stand under.
        positionals: names of parameters that stand without a flag.
        epilog: end of the help.
    """
    further = [p for group in groups.values() for p in group]
    parsed = docstring_parser.parse(function.__doc__ or "", docstring_parser.DocstringStyle.GOOGLE)
    text = "\n\n".join(t for t in (parsed.short_description, parsed.long_description) if t)
    text = re.sub(r"(?s)\n*(Examples?:|>>> ).*", "", text)
    flags = {p.name: p.name.upper() if p.name in positionals else p.flag for p in (*own, *further)}
    parser = argparse.ArgumentParser(
        usage=usage.replace("\n", "\n       "),
        description=spell(text, flags),
        epilog=epilog or None,
        formatter_class=WideFormatter,
        add_help=False,
    )
    by_name = {p.name: p for p in own}
    group = parser.add_argument_group("arguments") if positionals else parser
    for name in positionals:
        group.add_argument(name.upper(), nargs="?", help=_entry(by_name[name], flags))
    options = parser.add_argument_group("options")
    for p in own:
        if p.name not in positionals:
            action = {"action": "store_true"} if p.is_switch else {"metavar": p.metavar}
            options.add_argument(p.flag, help=_entry(p, flags), **action)  # pyright: ignore[reportArgumentType]
    options.add_argument("-h", "--help", action="store_true", help="show this help")
    for title, parameters in groups.items():
        group = parser.add_argument_group(title)
        for p in parameters:
            action = {"action": "store_true"} if p.is_switch else {"metavar": p.metavar}
            group.add_argument(p.flag, help=_entry(p, flags), **action)  # pyright: ignore[reportArgumentType]
    return parser.format_help()


def _entry(parameter: Parameter, flags: Mapping[str, str]) -> str:
    text = re.sub(r"; in Python also [^;]*", "", parameter.text.rstrip("."))
    text = spell(text, flags).replace("%", "%%")
    default = parameter.default
    if parameter.is_switch:
        return f"do not {text}" if default is True else text
    if default in (None, _MISSING) or "default" in text:
        return text
    return f"{text} (default: {default})"
