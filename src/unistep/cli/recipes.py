"""`unistep recipes`: the recipes that ship."""

from unistep.cli.command import run_command
from unistep.config.recipes import recipes


def run(arguments: list[str]) -> None:
    """Prints a list of the recipes, or the YAML of one."""
    run_command(arguments, recipes, print, usage="unistep recipes [RECIPE]", positionals=("recipe",))
