"""`unistep recipes`: the recipes that ship."""

import sys

import yaml

from unistep.errors import UserError


def run(arguments: list[str]) -> None:
    """Without arguments a list; with a name that recipe's YAML."""
    from unistep.config import find_recipe, recipe_names

    if arguments and arguments[0] in ("-h", "--help"):
        print("usage: unistep recipes [NAME]\n\nLists the recipes that ship; with NAME prints that recipe's YAML.")
        sys.exit(0)
    if len(arguments) > 1:
        raise UserError(f"recipes takes one name, not {len(arguments)}")
    if arguments:
        print(find_recipe(arguments[0]).read_text(), end="")
        return
    names = recipe_names()
    width = max(map(len, names))
    for name in names:
        print(f"{name:<{width}}  {yaml.safe_load(find_recipe(name).read_text())['description']}")
