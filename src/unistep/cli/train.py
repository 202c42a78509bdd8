"""`unistep train`: a recipe with its keys as flags, or a run to go on with."""

import os
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

from unistep.checks import user_path
from unistep.cli.command import interruptible, notes_shown
from unistep.cli.help import help_text
from unistep.cli.parameter import parameters_of
from unistep.cli.parsing import parse
from unistep.cli.recipe_flags import Flags, check_without_recipe, flag_of, knobs, nested, of_recipe, parted
from unistep.cli.spelling import spelled
from unistep.config import RunConfig, find_recipe, read_run, read_values, run_keys
from unistep.config.recipes import CONFIG
from unistep.documents import DocumentError, parse_yaml
from unistep.errors import UserError
from unistep.text import shown
from unistep.workflows.train import Run, prepared, train

if TYPE_CHECKING:
    from unistep.workflows.estimate.result import Estimate

_PROGRAM = "unistep train"
_USAGE = f"""{_PROGRAM} RECIPE [options] [--KEY VALUE ...]
{_PROGRAM} --resume RUN [options] [--KEY VALUE ...]
{_PROGRAM} --init-from OUT [options] [--KEY VALUE ...]"""
_EPILOG = f"""Every key of a recipe is a flag, and overrides it; the keys of a stage begin with its name.

  {_PROGRAM} RECIPE --help                     all keys of a recipe, and its values
  {_PROGRAM} RECIPE --student.objective.help   those below one of them
  {_PROGRAM} RECIPE --dry-run                  parameters, FLOPs, memory and time, without training
"""


def run(arguments: list[str]) -> None:
    """Parses, trains, and prints where the model is; with --dry-run prints what it would take."""
    base, flags = parted(arguments, parameters_of(train))
    asked = [name for name, _ in flags if name.endswith(".help")] or [a for a in base if a in ("-h", "--help")]
    if asked:
        print(_help([a for a in base if a not in ("-h", "--help")], asked[0]), end="")
        sys.exit(0)
    given, values = _given(base, flags)
    with _spelled(values):
        changes = nested(flags, values, _PROGRAM)
        with notes_shown({"resume": "--resume"}):
            _show(interruptible(_train, given, changes))


def parse_run(arguments: list[str]) -> tuple[RunConfig, Path]:
    """Parses the arguments of `unistep train`.

    Args:
        arguments: words after `unistep train`.

    Returns:
        The config of the run and its directory.

    Raises:
        UserError: no such recipe, an unknown key, a wrong value; spelled in flags.
    """
    base, flags = parted(arguments, parameters_of(train))
    given, values = _given(base, flags)
    with _spelled(values):
        found = _arguments(given, nested(flags, values, _PROGRAM))
        own = {name: found.pop(name) for name in ("recipe", "data", "output", "resume", "teacher", "skip_to")}
        of_call = (
            "init_from",
            "max_minutes",
            "grace_seconds",
            "stall_seconds",
            "threads",
            "profile",
            "dry_run",
            "progress",
        )
        return prepared(**own, overrides={k: v for k, v in found.items() if k not in of_call})


def _given(base: list[str], flags: Flags = ()) -> tuple[dict[str, Any], dict[str, Any]]:
    """The command's own arguments, and the values that the other flags change."""
    own = parameters_of(train)
    with spelled({p.name: p.flag for p in own if p.name != "recipe"}):
        given = parse(base, own, ("recipe",), _PROGRAM)
        if given["recipe"] is None and given["resume"] is None and given["init_from"]:
            exported = user_path(given["init_from"])
            if not (exported / CONFIG).is_file():
                raise UserError(f"{exported} holds no exported weights: {CONFIG} is missing", field="init_from")
            given |= {"recipe": str(exported / CONFIG), "output": given["output"] or f"runs/{exported.resolve().name}"}
        if given["recipe"] is None and given["resume"] is None:
            check_without_recipe(flags)
        return given, _values(given["recipe"], given["resume"])


def _spelled(values: Mapping[str, Any]) -> AbstractContextManager[None]:
    names = [p.name for p in parameters_of(train) if p.name != "recipe"]
    # The keys that all others depend on, which may be wrong themselves.
    stages = values.get("stages")
    first = ["network.name", *(f"{stage}.method" for stage in (stages if isinstance(stages, Mapping) else ()))]
    with spelled({name: flag_of(name) for name in first}):
        keys = [key.name for key in run_keys(values)]
    return spelled({name: flag_of(name) for name in (*names, *first, "network", *keys)})


def _help(base: list[str], asked: str) -> str:
    """The help of the command, or of the keys of a recipe where one is given."""
    own = parameters_of(train)
    if not any(not a.startswith("-") or a.startswith("--resume") for a in base):
        return help_text(train, _USAGE, own, knobs(), ("recipe",), _EPILOG)
    given, values = _given(base)
    program = f"{_PROGRAM} {given['recipe'] or '--resume ' + given['resume']}"
    return of_recipe(values, "" if asked.startswith("-") else asked, program)


def _values(recipe: str | None, resume: str | None) -> dict[str, Any]:
    """The values that the flags change."""
    if recipe is not None and resume is not None:
        raise UserError(f"`resume` stands without a recipe: {_PROGRAM} --resume RUN")
    if resume is not None:
        if not resume:
            raise UserError(f"`resume` needs a run directory: {_PROGRAM} --resume RUN")
        return read_run(user_path(resume))
    if recipe is None:
        raise UserError(f"give a recipe first: {_PROGRAM} RECIPE [--KEY VALUE]; or a run: {_PROGRAM} --resume RUN")
    return read_values(find_recipe(recipe))


def _train(given: Mapping[str, Any], changes: Mapping[str, Any]) -> Union[Run, "Estimate"]:
    """Trains; where a signal stops the run, tells how to go on."""
    from unistep.runtime.interrupt import Interrupted

    try:
        return train(**_arguments(given, changes))
    except Interrupted as stopped:
        folder = given["resume"] or given["output"] or Path("runs") / find_recipe(given["recipe"]).stem
        if (user_path(folder) / "config.yaml").is_file():
            stopped.__notes__ = [f"go on with: {_PROGRAM} --resume {folder}"]
        raise


def _arguments(given: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `train`: `--data` and `--teacher` may stand beside keys below them, and hold keys in braces."""
    found = {**given, **{name: value for name, value in changes.items() if name != "data"}}
    data, teacher = _mapping(given["data"]), _mapping(given["teacher"])
    if data is not None or "data" in changes:
        source = data if isinstance(data, Mapping) else {} if data is None else {"source": data}
        found["data"] = {**source, **changes.get("data", {})}
    if isinstance(teacher, Mapping):
        stages = dict(found.get("stages", {}))
        found |= {"teacher": None, "stages": stages | {"teacher": {**teacher, **stages.get("teacher", {})}}}
    return found


def _mapping(text: str | None) -> str | Mapping[str, Any] | None:
    """The keys that a flag's text holds in braces, else the text."""
    if text is None or not text.startswith("{"):
        return text
    try:
        value = parse_yaml(text)
    except DocumentError:
        return text
    return value if isinstance(value, Mapping) else text


def _show(result: Union[Run, "Estimate"]) -> None:
    if os.environ.get("RANK", "0") != "0":
        return
    if not isinstance(result, Run):
        print(result)
        return
    folder, stages = result.folder, result.stages
    if not result.finished:  # the time was up, and a note tells how to go on
        print(f"not finished: {shown(repr(result))}")
    else:
        print(f"done: {shown(folder / stages[-1] / 'model')}")
    print(f"look at samples with: unistep sample {shown(folder)} --output samples.png")
    if result.best is not None:
        print(f"the best by its evaluations: {result.best}")
