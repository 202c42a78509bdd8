"""`unistep recipes`: the recipes that ship."""

import sys

import yaml

from unistep.cli.arguments import check_flags
from unistep.errors import UserError


def run(arguments: list[str]) -> None:
    """Without arguments a list; with a name that recipe's YAML."""
    if "-h" in arguments or "--help" in arguments:
        print("usage: unistep recipes [NAME]\n\nLists the recipes that ship; with NAME prints that recipe's YAML.")
        sys.exit(0)
    check_flags(arguments, ["help"])
    from unistep.config import find_recipe, read_yaml, recipe_names

    if len(arguments) > 1:
        raise UserError(f"recipes takes one name, not {len(arguments)}")
    if arguments:
        path = find_recipe(arguments[0])
        read_yaml(path)  # refuses what is no recipe
        print(path.read_text(), end="")
        return
    names = recipe_names()
    width = max(map(len, names))
    for name in names:
        print(f"{name:<{width}}  {yaml.safe_load(find_recipe(name).read_text())['description']}")
