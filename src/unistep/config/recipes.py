"""Recipe files: where they are, and how they are read."""

import os
from pathlib import Path
from typing import Any

from unistep.checks import user_path
from unistep.config.former import converted
from unistep.documents import read_yaml
from unistep.errors import UserError
from unistep.files import check_regular_file
from unistep.text import did_you_mean

RECIPES = Path(__file__).parents[1] / "recipes"
CONFIG = "config.yaml"
"""Name of the file in a run directory that holds the run's config."""

_REMEDY = "`unistep recipes` prints recipes that are valid"


def recipe_names() -> list[str]:
    """The recipes that ship, sorted."""
    return sorted(p.stem for p in RECIPES.glob("*.yaml"))


def recipes(recipe: str | None = None) -> str:
    """Lists the recipes that ship, each with its description; or shows one.

    Args:
        recipe: name of a recipe, or a .yaml file; default: all that ship.

    Returns:
        A line for each recipe, or the text of the one.

    Raises:
        UserError: there is no such recipe, or it is not valid.
    """
    if recipe is not None:
        path = find_recipe(recipe)
        if path.parent != RECIPES:
            from unistep.config.resolve import run_config

            run_config(read_values(path), str(path))  # refuses what is no recipe
        return path.read_text(encoding="utf-8").rstrip("\n")
    names = recipe_names()
    width = max(map(len, names))
    return "\n".join(f"{name:<{width}}  {read_values(find_recipe(name))['description']}" for name in names)


def find_recipe(name: str) -> Path:
    """The YAML file of a recipe's name, or of a path.

    Raises:
        UserError: there is none; the nearest name is named.
    """
    if name.endswith((".yaml", ".yml")):
        path = user_path(name)
        if not os.path.lexists(path) or path.is_dir():
            raise UserError(f"recipe file {name} does not exist")
        check_regular_file(path, "give a YAML file, or a recipe by its name")
        return path
    path = RECIPES / f"{name}.yaml"
    if not path.is_file() and Path(name).is_file():
        raise UserError(f"{name} is a file, and no recipe by its name; a recipe ends in .yaml")
    if not path.is_file():
        raise UserError(f"unknown recipe {name!r}{did_you_mean(name, recipe_names())}", "`unistep recipes` lists them")
    return path


def read_values(path: Path) -> dict[str, Any]:
    """The values of a recipe file or of a run's config.yaml, not yet checked; `stages` is a mapping of mappings.

    Raises:
        UserError: not YAML, or not a mapping.
    """
    values = read_yaml(path, _REMEDY)
    if not isinstance(values, dict):
        raise UserError(f"{path} must hold `key: value` lines")
    return converted(values, str(path))


def read_run(folder: Path) -> dict[str, Any]:
    """The values of a run's config, in the form of now.

    Raises:
        UserError: the folder is no run, or its config is damaged.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise UserError(f"{folder} is not a run directory: {path} is missing; give the folder of a former run")
    return read_values(path)
