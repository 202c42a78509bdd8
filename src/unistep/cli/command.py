"""One command from one function: flags, defaults and help from its signature and docstring.

A command's module gives the function and prints its result; parsing, help, notes, signals and the spelling of errors
are here, once. A parameter of a type that no command line can hold is left out.
"""

import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

from unistep.cli.help import help_text
from unistep.cli.parameter import MISSING, Parameter, parameters_of
from unistep.cli.parsing import parse
from unistep.cli.spelling import spell, spelled
from unistep.errors import UserError
from unistep.text import shown

T = TypeVar("T")


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
    of_show = [Parameter(name, (bool,), False, text) for name, text in (switches or {}).items()]
    if "-h" in arguments or "--help" in arguments:
        print(help_text(function, usage, [*own, *of_show], _group(which), positionals, epilog), end="")
        sys.exit(0)
    program = " ".join(usage.splitlines()[0].split()[:2])
    spelling = {p.name: p.name.upper() if p.name in positionals else p.flag for p in (*own, *of_show, *which)}
    with spelled(spelling):
        values = parse(arguments, [*own, *of_show, *which], positionals, program)
        if opens:
            required = any(p.name == opens and p.default is MISSING for p in own)
            values = _with_options(values, opens, [p.name for p in which], required)
        chosen = {p.name: values.pop(p.name) for p in of_show}
        with notes_shown(spelling):
            show(interruptible(function, **values), **chosen)


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


class _Notes(logging.Handler):
    def __init__(self, flags: Mapping[str, str]) -> None:
        super().__init__()
        self._flags = flags

    def emit(self, record: logging.LogRecord) -> None:
        """Prints one line."""
        kind = "warning" if record.levelno >= logging.WARNING else "note"
        print(f"{kind}: {shown(spell(record.getMessage(), self._flags))}", file=sys.stderr)


def _with_default(parameter: Parameter, default: Any) -> Parameter:
    text = parameter.text if default is None else re.sub(r"default: [^;]*$", f"default: {default}.", parameter.text)
    return replace(parameter, default=default, text=text)


def _group(which: Sequence[Parameter]) -> dict[str, Sequence[Parameter]]:
    return {"options that say which model is meant": which} if which else {}


def _which_model(own: Sequence[Parameter]) -> list[Parameter]:
    from unistep.workflows.models import load

    taken = {p.name for p in own} | {"model"}
    return [p for p in parameters_of(load) if p.name not in taken and p.name not in ("device", "dtype", "runtime")]


def _with_options(values: dict[str, Any], model: str, options: Sequence[str], required: bool) -> dict[str, Any]:
    from unistep.workflows.models import ModelSource

    given = {name: values.pop(name) for name in options}
    given = {name: value for name, value in given.items() if value is not None and value is not False}  # 0 is a value
    if isinstance(values[model], str) and not values[model].strip():
        alone = "" if required else ", or leave it out for the embedded model of digits"
        raise UserError(f"`{model}` is empty; name one{alone}")
    for name, value in given.items():
        if isinstance(value, str) and not value.strip():
            raise UserError(f"`{name}` is empty; give a value, or leave it out")
    return values | {model: ModelSource(values[model], given) if given else values[model]}
