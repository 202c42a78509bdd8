"""`unistep train`: a recipe or YAML file plus flags, or a run to resume."""

import os
import sys
from argparse import SUPPRESS
from pathlib import Path

from jsonargparse import ArgumentParser

from unistep.cli.arguments import add_config_file, check_flags, instantiate, new_parser, parse, underscored
from unistep.config import RunConfig, config_keys, config_sections, find_recipe, read_yaml
from unistep.errors import UserError

_DESCRIPTION = """Train a model: `unistep train RECIPE|FILE.yaml [--key value ...]`.

RECIPE is a name from `unistep recipes`, or a YAML file with the keys below. Every key is also a flag and overrides
the recipe. A run killed at any moment goes on exactly where it was: `unistep train --resume RUN`. With --dry-run
nothing is trained, read or written: it tells parameters, FLOPs and memory, and measures how long the run would take."""

_ALONE = "--resume RUN stands alone: the run's own config.yaml is used"


def run(arguments: list[str]) -> None:
    """Parses, trains, and says where the model is."""
    if "-h" in arguments or "--help" in arguments:
        _parser().print_help()
        sys.exit(0)
    for key, section in config_sections():
        if f"--{key}.help" in arguments:
            _section_parser(key, section).print_help()
            sys.exit(0)
    run = parse_run(arguments)
    if "--dry_run" in map(underscored, arguments):
        _dry_run(*run)
    else:
        _train(*run)


def parse_run(arguments: list[str]) -> tuple[RunConfig, Path]:
    """The config that the arguments mean, and the run directory.

    Raises:
        UserError: no such recipe, an unknown key, a wrong value.
    """
    flags = [underscored(a) for a in arguments]
    check_flags(flags, ["output", "resume", "dry_run", "help", *config_keys()])
    if "--dry_run" in flags and any(f.split("=")[0] == "--resume" for f in flags):
        raise UserError("--dry-run and --resume exclude each other: unistep train RECIPE --dry-run")
    if not arguments or arguments[0].startswith("-"):
        recipe, flags = _resumed(arguments), []
        folder = recipe.parent
    else:
        recipe, flags = find_recipe(arguments[0]), arguments[1:]
        folder = Path("runs") / recipe.stem
    read_yaml(recipe)  # refuses unknown keys by name
    parser = _parser()
    parsed = parse(parser, ["--config", str(recipe), *flags], config_keys())
    folder = Path(parsed.pop("output") or folder)
    if parsed.pop("resume"):
        raise UserError(_ALONE)
    parsed.pop("config")
    parsed.pop("dry_run")
    return instantiate(parser, parsed, RunConfig), folder


def _parser() -> ArgumentParser:
    parser = new_parser("train", _DESCRIPTION)
    parser.add_argument("--output", type=str | None, default=None, help="run directory (default: runs/RECIPE)")
    parser.add_argument("--resume", type=str | None, default=None, help="run directory to go on with")
    parser.add_argument("--dry_run", action="store_true", help="train nothing; tell what the run would take")
    add_config_file(parser, "--config", SUPPRESS)  # the recipe
    parser.add_class_arguments(RunConfig, None)
    parser.usage = (
        "unistep train RECIPE|FILE.yaml [--output RUN] [--dry-run] [--key value ...]\n       unistep train --resume RUN"
    )
    return parser


def _section_parser(key: str, section: type) -> ArgumentParser:
    """Knows the flags below `key` and no others, for their help."""
    parser = new_parser("train", f"The keys below {key}, each of them a flag.")
    parser.add_class_arguments(section, key)
    parser.usage = f"unistep train RECIPE|FILE.yaml [--{key}.KEY value ...]"
    return parser


def _resumed(arguments: list[str]) -> Path:
    flag, equals, run = arguments[0].partition("=") if arguments else ("", "", "")
    if flag == "--resume":
        rest = arguments[1:]
        if not equals and rest:
            run, *rest = rest
        if rest:
            raise UserError(_ALONE)
        if not run:
            raise UserError("--resume needs a run directory: unistep train --resume RUN")
        path = Path(run) / "config.yaml"
        if not path.is_file():
            raise UserError(f"{run} is not a run directory: {path} is missing; give the --output of a former run")
        return path
    raise UserError("give a recipe first: unistep train RECIPE [--key value]; or a run: unistep train --resume RUN")


def _dry_run(config: RunConfig, folder: Path) -> None:
    from unistep.runtime.interrupt import Interrupted, signals_raise

    try:
        with signals_raise():
            from unistep.cli.dry_run import show
            from unistep.workflows.estimate.estimate import estimate

            show(folder.name, estimate(config))
    except Interrupted as stopped:
        print(f"{stopped}; nothing was written", file=sys.stderr)
        sys.exit(128 + stopped.signal.value)


def _train(config: RunConfig, folder: Path) -> None:
    from unistep.runtime.interrupt import Interrupted, signals_raise

    main = os.environ.get("RANK", "0") == "0"
    try:
        with signals_raise():
            from unistep.workflows.train import train

            model = train(config, folder)
    except Interrupted as stopped:
        if main:
            begun = (folder / "config.yaml").is_file()
            hint = f"go on with: unistep train --resume {folder}" if begun else "nothing was written"
            print(f"{stopped}; {hint}", file=sys.stderr)
        sys.exit(128 + stopped.signal.value)
    if main:
        print(f"done: {model}\nlook at samples with: unistep sample {folder} --output samples.png")
        if config.evaluated and (best := model.parent / "best").is_dir():
            print(f"the best by its evaluations: {best}")
