"""The keys of a recipe as flags: `--student.optimizer.lr 1e-4`."""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, TypeAlias, get_args, get_origin

from unistep.cli.help import WideFormatter
from unistep.cli.parameter import Parameter
from unistep.cli.parsing import hyphened
from unistep.cli.spelling import spell
from unistep.config import changed, run_config, run_keys
from unistep.config.resolve import to_values
from unistep.config.run import RunConfig, StageConfig
from unistep.config.values import Key, keys_of, kind_in_words, leaves, parse_text
from unistep.errors import UserError
from unistep.text import nearest

# The keys that are changed most, in the order of the help.
_STAGE_KNOBS = ("steps", "batch_size", "optimizer.lr", "accumulation", "init", "sample_every")
_RUN_KNOBS = ("data.source", "data.resolution", "data.flip", "seed", "precision", "use_labels", "evaluate_every")
# What other programs call a key.
_ELSEWHERE = {
    "epochs": "steps",
    "iterations": "steps",
    "num_steps": "steps",
    "max_steps": "steps",
    "learning_rate": "lr",
    "batch": "batch_size",
    "ema": "ema_decays",
    "dataset": "source",
}
Flags: TypeAlias = Sequence[tuple[str, str | None]]


def flag_of(key: str) -> str:
    """`--student.batch-size` of `student.batch_size`."""
    return f"--{key.replace('_', '-')}"


def parted(words: Sequence[str], own: Sequence[Parameter]) -> tuple[list[str], Flags]:
    """Separates the arguments of the command from the keys of the recipe.

    Args:
        words: words after the command's name.
        own: parameters of the command.

    Returns:
        The words of the command's own arguments, and the keys of the recipe with their values.
    """
    flags = {p.flag: p for p in own}
    base: list[str] = []
    keys: list[tuple[str, str | None]] = []
    rest = [hyphened(word) for word in words]
    while rest:
        word = rest.pop(0)
        flag, equals, value = word.partition("=")
        takes = not equals and bool(rest) and not rest[0].startswith("--")
        if not word.startswith("--") or flag in flags or flag == "--help":
            base.append(word)
            if takes and flag in flags and not flags[flag].is_switch:
                base.append(rest.pop(0))
        else:
            keys.append((flag[2:], value if equals else rest.pop(0) if takes and not flag.endswith(".help") else None))
    return base, keys


def check_without_recipe(flags: Flags) -> None:
    """Refuses flags that are no key of any recipe.

    Raises:
        UserError: names the first one.
    """
    known = {_plain(key.name) for key in keys_of(RunConfig)}
    for flag, _ in flags:
        if flag and "." not in flag and _name(flag) not in known:
            near = nearest(_name(flag), known)
            raise UserError(
                f"unknown option --{flag}" + (f"; did you mean {flag_of(near)}?" if near else "; see --help")
            )


def nested(flags: Flags, values: Mapping[str, Any], program: str) -> dict[str, Any]:
    """The changes that flags make to the values of a recipe, nested.

    Raises:
        UserError: a flag is no key, has no value, or one of another kind.
    """
    before = {_plain(key.name): key for key in run_keys(values)}
    kinds = {name: key for name, key in before.items() if _decides_keys(key)}
    first: dict[str, Any] = {}
    for flag, text in flags:
        if (key := kinds.get(_name(flag))) is not None and text is not None:
            _put(first, key.name, parse_text(key, text), values)
    keys = run_keys(changed(values, first))
    known = before | {_plain(key.name): key for key in keys}  # those of a stage that is left out are passed over
    found: dict[str, Any] = {}
    for flag, text in flags:
        key = known.get(_name(flag))
        if key is None:
            raise _unknown(flag, keys, values)
        if text is None and key.hint is bool:
            text = "true"
        if text is None:
            raise UserError(f"--{flag} needs a value; see {program} --help")
        _put(found, key.name, parse_text(key, text), values)
    return found


def knobs() -> dict[str, list[Parameter]]:
    """The flags that are changed most, by the title that they stand under; no recipe is read."""
    stage = {key.name: key for key in keys_of(StageConfig)}
    run = {key.name: key for key in keys_of(RunConfig)}
    of_student = [_parameter(stage[name], f"student.{name}", None) for name in _STAGE_KNOBS]
    guidance = "scale of classifier-free guidance by the teacher, which needs --teacher.objective.label-dropout 0.1"
    of_student.append(Parameter("student.objective.guidance", (float,), None, guidance))
    of_student.append(Parameter("teacher.steps", (int,), None, "the same of the stage `teacher`, as all of these"))
    return {
        "keys of a recipe that are changed most, of the stage `student`": of_student,
        "and of the run": [_parameter(run[name], name, None) for name in _RUN_KNOBS],
    }


def of_recipe(values: Mapping[str, Any], section: str, usage: str) -> str:
    """The help of a recipe's keys, with its values as defaults.

    Args:
        values: recipe.
        section: flag whose keys are listed, as "student.objective.help"; empty lists all.
        usage: beginning of a command that takes them.

    Raises:
        UserError: there is no such section.
    """
    keys, config = run_keys(values), to_values(run_config(values))
    held = dict(leaves({k: v for k, v in config.items() if k != "stages"} | config["stages"]))
    prefix = ""
    if section:
        by_name = {_plain(key.name): key for key in keys if key.is_section}
        name = _name(section.removesuffix(".help"))
        if name not in by_name:
            near = nearest(name, by_name)
            hint = f"; did you mean --{near}.help?" if near else ""
            raise UserError(f"unknown option --{section}{hint}")
        prefix = f"{by_name[name].name}."
    parser = argparse.ArgumentParser(
        usage=f"{usage} [--{prefix}KEY VALUE ...]", formatter_class=WideFormatter, add_help=False
    )
    flags = {key.name: flag_of(key.name) for key in keys}
    for title, group in _groups(keys, prefix):
        if group:
            shown = parser.add_argument_group(spell(title, flags))
            for key in group:
                text = _text(key, held.get(key.name, key.default))
                shown.add_argument(flag_of(key.name), metavar=_metavar(key), help=spell(text, flags).replace("%", "%%"))
    return parser.format_help()


def _groups(keys: Sequence[Key], prefix: str) -> Iterator[tuple[str, list[Key]]]:
    """The keys below a prefix that hold a value, by the section that they stand in."""
    sections = [key for key in keys if key.is_section and key.name.startswith(prefix)]
    own = {key.name: f"{key.name}: {(key.text or _described(key.hint)).rstrip('.')}" for key in sections}
    titles = {prefix.rstrip("."): f"keys below {prefix.rstrip('.')}" if prefix else "the run"} | own
    found: dict[str, list[Key]] = {name: [] for name in titles}
    for key in keys:
        if not key.is_section and key.name.startswith(prefix):
            found[key.name.rpartition(".")[0]].append(key)
    yield from ((titles[name], group) for name, group in found.items())


def _described(kind: type) -> str:
    return (kind.__doc__ or "").strip().partition("\n")[0].rstrip(".")


def _parameter(key: Key, name: str, default: Any) -> Parameter:
    return Parameter(name, _kinds(key.hint), default, _text(key, None))


def _text(key: Key, value: Any) -> str:
    text = key.text.rstrip(".")
    if value in (None, "", ()):
        return text
    shown = str(value).lower() if isinstance(value, bool) else str(list(value) if isinstance(value, tuple) else value)
    return f"{text} (default: {shown})" if text else f"default: {shown}"


def _kinds(hint: Any) -> tuple[Any, ...]:
    """Returns the types of a flag's value, for its placeholder; a bool takes a value here."""
    options = get_args(hint) if get_origin(hint) is not Literal and get_args(hint) else (hint,)
    if get_origin(hint) is tuple:
        options = (Sequence[get_args(hint)[0]],)
    kinds = tuple(Literal["true", "false"] if option is bool else option for option in options)
    return tuple(kind for kind in kinds if kind is not type(None)) or (str,)


def _metavar(key: Key) -> str:
    hint = _kinds(key.hint)[0]
    if get_origin(hint) is Literal:
        return "{" + ",".join(map(str, get_args(hint))) + "}"
    if get_args(hint) and get_origin(get_args(hint)[0]) is Literal:
        return "NAME,..."
    return {int: "N", float: "X", str: "TEXT"}.get(hint, "N,..." if "int" in kind_in_words(key.hint) else "X,...")


def _decides_keys(key: Key) -> bool:
    """Whether other keys depend on it: a stage or the network as a whole, its method or its name."""
    whole = key.is_section and "." not in key.name
    return whole or key.name.endswith((".method", "network.name")) and key.name.count(".") == 1


def _name(flag: str) -> str:
    return _plain(flag).removeprefix("stages.")


def _plain(name: str) -> str:
    return name.replace("-", "_")


def _put(changes: dict[str, Any], key: str, value: Any, values: Mapping[str, Any]) -> None:
    """Sets a dotted key; those of stages stand below `stages`."""
    path = key.split(".")
    if path[0] in (values.get("stages") or {}):
        path.insert(0, "stages")
    for name in path[:-1]:
        inner = changes.setdefault(name, {})
        if inner is None:  # the section was left out before
            inner = changes[name] = {}
        changes = inner
    last, old = path[-1], changes.get(path[-1])
    changes[last] = {**old, **value} if isinstance(old, Mapping) and isinstance(value, Mapping) else value


def _unknown(flag: str, keys: Sequence[Key], values: Mapping[str, Any]) -> UserError:
    """The error of a flag that is no key, with those that are called so."""
    name, stages = _name(flag), tuple(f"{stage}." for stage in values.get("stages") or {})
    wanted = _ELSEWHERE.get(name, name)
    same = [key.name for key in keys if key.name.rpartition(".")[2] == wanted and not key.is_section]
    same = [key for key in same if key.startswith(stages)] or same
    if "." not in name and 0 < len(same) <= 4:
        return UserError(f"unknown option --{flag}; did you mean {' or '.join(map(flag_of, same))}?")
    near = nearest(name, [key.name for key in keys])
    return UserError(f"unknown option --{flag}" + (f"; did you mean {flag_of(near)}?" if near else "; see --help"))
