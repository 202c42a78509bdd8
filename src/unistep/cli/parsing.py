"""The words of a command line as the values of a function's parameters."""

import argparse
import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from unistep.cli.parameter import MISSING, Parameter, takes_many
from unistep.errors import UserError
from unistep.text import nearest


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
        nargs = "*" if takes_many(by_name[name]) else "?"
        parser.add_argument(name, nargs=nargs, default=None)
    flagged = [p for p in parameters if p.name not in positionals]
    for p in flagged:
        switch = {"action": "store_const", "const": p.default is not True}
        several = {"nargs": "*", "action": "extend"}
        action = switch if p.is_switch else several if p.several else {"nargs": "?", "const": MISSING}
        parser.add_argument(p.flag, dest=p.name, default=None, **action)  # pyright: ignore[reportArgumentType]
        if p.off is not None:
            parser.add_argument(p.off, dest=p.name, default=None, action="store_const", const=False)
    words = [hyphened(a) for a in arguments]
    pairs = [(p.flag, p.off) for p in flagged if p.off is not None]
    off = [second for _, second in pairs]
    check_flags(words, [*(p.flag for p in flagged), *off], program)
    _check_switches(words, [*(p.flag for p in flagged if p.is_switch), *off])
    for pair in pairs:
        if all(flag in words for flag in pair):
            raise UserError(f"{pair[0]} and {pair[1]} exclude each other; give one")
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
        if value is MISSING or p.several and value == []:
            raise UserError(f"{p.flag} needs a value; see {program} --help")
        if value is None or value == [] and p.name in positionals:
            if p.default is MISSING:
                greedy = next((q for q in flagged if q.several and len(getattr(found, q.name) or ()) > 1), None)
                if greedy is not None and p.name in positionals:
                    before = f"{greedy.flag} takes all words that follow it; give `{p.name}` first"
                    raise UserError(f"`{p.name}` is missing: {before}, as {program} {p.name.upper()} {greedy.flag} ...")
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
