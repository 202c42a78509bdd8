"""jsonargparse with errors of one line: what is wrong, and the nearest thing that is right."""

import argparse
import difflib
import re
from collections.abc import Iterable, Sequence
from typing import TypeVar

import jsonargparse
from jsonargparse import ArgumentParser, Namespace

from unistep.errors import UserError


def new_parser(command: str, description: str) -> ArgumentParser:
    """The parser of one command."""
    return ArgumentParser(prog=f"unistep {command}", description=description, exit_on_error=False)


def add_config_file(parser: ArgumentParser, flag: str, help: str) -> None:
    """A flag that takes a YAML file whose keys are the parser's."""
    parser.add_argument(flag, action=jsonargparse.ActionConfigFile, help=help)  # pyright: ignore[reportPrivateImportUsage]


def parse(parser: ArgumentParser, arguments: Sequence[str], keys: Iterable[str] | None = None) -> Namespace:
    """Parses, or raises a UserError of one line.

    Args:
        parser: of the command.
        arguments: after the command's name.
        keys: valid flags without their dashes; None takes them from the parser.
    """
    arguments = [underscored(a) for a in arguments]
    known = set(keys or ()) | {s.lstrip("-") for action in parser._actions for s in action.option_strings}
    check_flags(arguments, known)
    try:
        return parser.parse_args(list(arguments))
    except argparse.ArgumentError as error:
        raise UserError(one_line(str(error))) from None


def underscored(argument: str) -> str:
    """`--num-images=5` as `--num_images=5`: flags may be written either way."""
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument[2:].partition("=")
    return f"--{name.replace('-', '_')}{equals}{value}"


T = TypeVar("T")


def instantiate(parser: ArgumentParser, parsed: Namespace, config: type[T]) -> T:
    """Builds `config` and the dataclasses within; what their checks refuse becomes a UserError."""
    try:
        return config(**vars(parser.instantiate(parsed)))
    except UserError:
        raise
    except (ValueError, TypeError) as error:
        raise UserError(one_line(str(error))) from None


def check_flags(arguments: Sequence[str], known: set[str]) -> None:
    """Refuses flags that do not exist, and names the nearest."""
    for argument in arguments:
        if not argument.startswith("--") or argument == "--":
            continue
        name = argument[2:].split("=", 1)[0]
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f"; did you mean --{near[0]}?" if near else "; see --help"
            raise UserError(f"unknown option --{name}{hint}")


def one_line(message: str) -> str:
    """The gist of a jsonargparse error: which key, what was expected, the nearest valid value."""
    keys = re.findall(r'(?:Parser key|Problem with given value for key|key) "([\w.]+)"', message)
    expected = re.search(r"Expected an? (.+?)\. Got value: (.*)", message)
    if expected and keys:
        kind, value = expected.groups()
        name = ".".join(dict.fromkeys(keys))
        if literal := re.search(r"Literal\[(.*)\]", kind):
            choices = [c.strip().strip("'\"") for c in literal[1].split(",")]
            near = difflib.get_close_matches(value, choices, n=1, cutoff=0.4)
            hint = f"; did you mean {near[0]}?" if near else ""
            return f"--{name} {value}: must be one of {', '.join(choices)}{hint}"
        kind = re.sub(r"<class '([\w.]+)'>", r"\1", kind)
        return f"--{name} {value}: expected {kind}"
    # In a union's list of failures the last is `Expected a None`; ours is what a config's own checks said.
    failures = [f for f in re.findall(r"^\s*- (.+)$", message, re.MULTILINE) if not f.startswith("Expected")]
    own = [f for f in failures if not f.startswith("Problem with given class_path")]
    lines = own or [s.strip() for s in message.splitlines() if s.strip()] or [message]
    return re.sub(r"\s+", " ", lines[0])
