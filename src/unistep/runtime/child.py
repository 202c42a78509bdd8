"""Processes of this package beside the one that runs: what they are started with, and where they answer."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TextIO


def child_environment(changes: Mapping[str, str] | None = None) -> dict[str, str]:
    """Returns the environment of a process that imports the same package, wherever it was imported from.

    Args:
        changes: variables that differ.
    """
    paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))} | dict(changes or {})


def own_output() -> TextIO:
    """Returns the standard output for the answers of this process; what libraries print goes to stderr from now on."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return answers
