"""The config of a training run, and the recipes that ship."""

from unistep.config.recipes import RECIPES, find_recipe, read_run, read_values, recipe_names
from unistep.config.resolve import changed, differences, dump, run_config, run_keys, with_teacher
from unistep.config.run import LPIPSConfig, RunConfig, StageConfig

__all__ = [
    "RECIPES",
    "LPIPSConfig",
    "RunConfig",
    "StageConfig",
    "changed",
    "differences",
    "dump",
    "find_recipe",
    "read_run",
    "read_values",
    "recipe_names",
    "run_config",
    "run_keys",
    "with_teacher",
]
