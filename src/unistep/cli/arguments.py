"""jsonargparse with errors of one line: what is wrong, and the nearest thing that is right."""

import argparse
import difflib
import re
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import TypeVar

import jsonargparse
from jsonargparse import ArgumentParser, Namespace

from unistep.errors import UserError


def new_parser(command: str, description: str) -> ArgumentParser:
    """The parser of one command."""
    name = f"unistep {command}"
    return ArgumentParser(prog=name, description=description, exit_on_error=False, print_config=None)


def add_config_file(parser: ArgumentParser, flag: str, help: str) -> None:
    """A flag that takes a YAML file whose keys are the parser's."""
    parser.add_argument(flag, action=jsonargparse.ActionConfigFile, help=help)  # pyright: ignore[reportPrivateImportUsage]


def parse(parser: ArgumentParser, arguments: Sequence[str], keys: Iterable[str] | None = None) -> Namespace:
    """Parses the arguments of a command.

    Args:
        parser: parser of the command.
        arguments: words after the command's name.
        keys: valid flags without their dashes; default: the parser's.

    Returns:
        The values by the names of the flags.

    Raises:
        UserError: an unknown flag, a flag without its value, or a wrong value, in one line.
    """
    arguments = [underscored(a) for a in arguments]
    known = [*(keys or ()), *(s.lstrip("-") for action in parser._actions for s in action.option_strings)]
    check_flags(arguments, known)
    for flag, value in pairwise([*arguments, "--"]):
        # argparse would say it of the outermost key: of --teacher for --teacher.steps.
        if flag.startswith("--") and "=" not in flag and value.startswith("--") and _takes_value(parser, flag):
            raise UserError(f"{flag} needs a value; see {parser.prog} --help")
    try:
        return parser.parse_args(list(arguments))
    except argparse.ArgumentError as error:
        message = str(error)
        if unexpected := message.partition("unrecognized arguments: ")[2]:
            raise UserError(f"unexpected argument {unexpected}; see {parser.prog} --help") from None
        raise UserError(one_line(message, known)) from None


def _takes_value(parser: ArgumentParser, flag: str) -> bool:
    return flag != "--" and all(a.nargs != 0 for a in parser._actions if flag in a.option_strings)


def underscored(argument: str) -> str:
    """`--num-images=5` as `--num_images=5`: flags may be written either way."""
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument[2:].partition("=")
    return f"--{name.replace('-', '_')}{equals}{value}"


T = TypeVar("T")


def instantiate(parser: ArgumentParser, parsed: Namespace, config: type[T]) -> T:
    """Builds `config` and the dataclasses that it contains.

    Args:
        parser: parser of the command.
        parsed: values as `parse` returns them.
        config: dataclass to build.

    Raises:
        UserError: a value that the checks of a dataclass refuse.
    """
    try:
        return config(**vars(parser.instantiate(parsed)))
    except UserError:
        raise
    except (ValueError, TypeError) as error:
        raise UserError(one_line(str(error))) from None


MAX_SEED = 2**63 - 1


def check_range(name: str, value: int | None, least: int, most: int) -> None:
    """Refuses a number that is out of its range.

    Args:
        name: name of the parameter.
        value: the number; None is not checked.
        least: smallest valid number.
        most: largest valid number.

    Raises:
        UserError: the number is out of the range.
    """
    if value is not None and value < least:
        raise UserError(f"{name} {value} must be at least {least}")
    if value is not None and value > most:
        raise UserError(f"{name} {value} must be at most {most}")


def check_flags(arguments: Sequence[str], known: Iterable[str]) -> None:
    """Refuses flags that do not exist.

    Args:
        arguments: words after the command's name.
        known: valid flags without their dashes.

    Raises:
        UserError: an unknown flag; the nearest valid one is named.
    """
    known = list(known)
    for argument in arguments:
        # A dash before anything but a letter is a negative number's.
        if not re.match(r"--.|-[A-Za-z]", argument):
            continue
        flag = argument.split("=", 1)[0]
        if flag.lstrip("-") not in known:
            near = nearest(flag.lstrip("-"), known)
            raise UserError(f"unknown option {flag}" + (f"; did you mean --{near}?" if near else "; see --help"))


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The one of `known` that is most like `word`, in either case; None where none is."""
    folded = {k.lower(): k for k in known}
    near = difflib.get_close_matches(word.lower(), folded, n=1, cutoff=0.5)
    return folded[near[0]] if near else None


def one_line(message: str, known: Sequence[str] = ()) -> str:
    """Returns an error of jsonargparse in one line: the key, the expected type, the nearest valid value.

    Args:
        message: message of the error.
        known: valid keys.
    """
    keys = re.findall(r'(?:Parser key|Problem with given value for key|key) "([\w.]+)"', message)
    name = ".".join(dict.fromkeys(keys))
    if expected := re.search(r"Expected an? (.+?)\. Got value: (.*)", message):
        return _wrong_value(name, expected[2], expected[1], known)
    if section := re.search(r'Unable to load config "(.*)"', message):
        return _wrong_value(name, section[1], "Config", known)
    if unknown := re.search(r"(?:Group '([\w.]+)' does not accept option|Option) '([^']+)'", message):
        key = ".".join(filter(None, [name, *unknown.groups()]))
        near = nearest(key, known)
        return f"unknown key {key}" + (f"; did you mean {near}?" if near else "")
    # In a union's list of failures the last is `Expected a None`; ours is what a config's own checks said.
    failures = [f for f in re.findall(r"^\s*- (.+)$", message, re.MULTILINE) if not f.startswith("Expected")]
    own = [f for f in failures if not f.startswith(("Problem with given class_path", "Does not validate against"))]
    # Of unions within each other the inner one is named last and its value first.
    subtypes, value = re.findall(r"Subtypes: \[(.*)\]", message), re.search(r"Given value: (.*)", message)
    if keys and subtypes and value and not own:
        return _wrong_value(name, value[1], subtypes[-1], known)
    lines = own or [s.strip() for s in message.splitlines() if s.strip()] or [message]
    # Such checks name the field alone, which several sections may have.
    section = re.search(r"Subtypes: \[<class '[\w.]*?(\w+)Config'>", message) if own else None
    return (f"{section[1].lower()}: " if section else "") + re.sub(r"\s+", " ", lines[0])


def _wrong_value(name: str, value: str, kind: str, known: Sequence[str]) -> str:
    """Returns the message for a wrong value of a key, whose type `kind` is in jsonargparse's notation."""
    given = f"--{name} {value or repr('')}"
    if literal := re.search(r"Literal\[(.*?)\]", kind):
        choices = [c.strip().strip("'\"") for c in literal[1].split(",")]
        near = difflib.get_close_matches(value, choices, n=1, cutoff=0.4)
        return f"{given}: must be one of {', '.join(choices)}" + (f"; did you mean {near[0]}?" if near else "")
    kind = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", kind).replace(", NoneType", " or null")
    if "tuple" in kind:
        kind = re.sub(r"tuple\[(\w+), \.\.\.\]", r"list of \1", kind).replace("tuple", "list") + ", in brackets"
    if re.search(r"Config\b", kind):
        inner = next((k for k in known if k.startswith(f"{name}.")), f"{name}.KEY")
        return f"{given}: it has keys of its own, as --{inner}"
    return f"{given}: expected {kind}"
