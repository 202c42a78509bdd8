"""The help of a command, from the signature and the docstring of its function."""

import argparse
import re
import shutil
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import docstring_parser

from unistep.cli.parameter import MISSING, Parameter
from unistep.cli.spelling import spell


class WideFormatter(argparse.RawDescriptionHelpFormatter):
    """Help as wide as the terminal, within bounds, and as its authors broke it into lines."""

    def __init__(self, prog: str) -> None:
        super().__init__(
            prog, max_help_position=26, width=min(110, max(60, shutil.get_terminal_size((100, 24)).columns))
        )

    def _split_lines(self, text: str, width: int) -> list[str]:
        """Leaves flags and hyphened words whole."""
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)


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
            options.add_argument(*_flags(p), help=_entry(p, flags), **action)  # pyright: ignore[reportArgumentType]
    options.add_argument("-h", "--help", action="store_true", help="show this help")
    for title, parameters in groups.items():
        group = parser.add_argument_group(title)
        for p in parameters:
            action = {"action": "store_true"} if p.is_switch else {"metavar": p.metavar}
            group.add_argument(*_flags(p), help=_entry(p, flags), **action)  # pyright: ignore[reportArgumentType]
    return parser.format_help()


def _flags(parameter: Parameter) -> tuple[str, ...]:
    return (parameter.flag,) if parameter.off is None else (parameter.flag, parameter.off)


def _entry(parameter: Parameter, flags: Mapping[str, str]) -> str:
    text = re.sub(r"; in Python also [^;]*", "", parameter.text.rstrip("."))
    text = spell(text, flags).replace("%", "%%")
    default = parameter.default
    if parameter.is_switch:
        return f"do not {text}" if default is True else text
    if default in (None, MISSING) or "default" in text:
        return text
    return f"{text} (default: {default})"
