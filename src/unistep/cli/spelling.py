"""Names of parameters in messages as the command line spells them: their flags."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from unistep.errors import UserError


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
    """A message with `` `batch_size` `` as `--batch-size` and `` `skip_bad=True` `` as `--skip-bad`.

    Of a key of a recipe, `` `use_labels=False` `` becomes `--use-labels false`.
    """

    def flag(match: re.Match[str]) -> str:
        name, value = match[1], match[3]
        if name not in flags:
            return match[0]
        if value == "False" and not flags[name].startswith("--no-"):
            return f"{flags[name]} false"
        if value in (None, "True", "False"):
            return flags[name]
        return f"{flags[name]} {value.strip(chr(34))}"

    return re.sub(r"`([A-Za-z_][\w.-]*)(=([^`]*))?`", flag, message)
