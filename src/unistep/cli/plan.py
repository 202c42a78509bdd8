"""`unistep plan`: a recipe on hardware that is not here."""

import json
import sys

from unistep.cli import command
from unistep.cli.help import help_text
from unistep.cli.parameter import parameters_of
from unistep.cli.parsing import parse
from unistep.cli.recipe_flags import flag_of, nested, parted
from unistep.cli.spelling import spelled
from unistep.config import find_recipe, read_values, run_keys
from unistep.workflows.plan import plan

_PROGRAM = "unistep plan"
_USAGE = f"{_PROGRAM} RECIPE [options] [--KEY VALUE ...]"
_EPILOG = f"""Every key of a recipe is a flag, and overrides it; the keys of a stage begin with its name.

  {_PROGRAM} RECIPE --json                               the numbers as JSON
  {_PROGRAM} lsun256-edm --nodes 4 --gpu H100 --price 2.5
  {_PROGRAM} mnist-quick --gpu cpu --gpus-per-node 2     measured on this machine
"""


def run(arguments: list[str]) -> None:
    """Parses, plans, and prints.

    Args:
        arguments: words after `unistep plan`.

    Raises:
        UserError: no such recipe, an unknown key, a wrong value; spelled in flags.
    """
    own = parameters_of(plan)
    as_json = "--json" in arguments
    base, flags = parted([word for word in arguments if word != "--json"], own)
    if "-h" in base or "--help" in base:
        print(help_text(plan, _USAGE, own, {}, ("recipe",), _EPILOG), end="")
        sys.exit(0)
    with spelled({p.name: p.flag for p in own if p.name != "recipe"}):
        given = parse(base, own, ("recipe",), _PROGRAM)
        values = read_values(find_recipe(given["recipe"]))
    with spelled({name: flag_of(name) for name in (*(p.name for p in own if p.name != "recipe"), *_keys(values))}):
        changes = nested(flags, values, _PROGRAM)
        with command.notes_shown({}):
            made = command.interruptible(plan, **given, **changes)
    print(json.dumps(made.to_dict(), indent=2) if as_json else made)


def _keys(values: dict[str, object]) -> list[str]:
    return [key.name for key in run_keys(values)]
