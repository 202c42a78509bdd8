"""From the values of a recipe, and changes to them, to the config of a run; and back to YAML."""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from unistep.config.run import RunConfig, StageConfig
from unistep.config.values import (
    Key,
    build,
    convert,
    keys_of,
    leaves,
    not_a_section,
    plain,
    unknown_key,
)
from unistep.documents import dump_yaml
from unistep.errors import UserError
from unistep.networks.table import NETWORKS, NetworkName, row_of
from unistep.objectives.methods import METHODS, MethodName
from unistep.text import did_you_mean

_TEACHER = "teacher"
# Keys that tell people something, and training nothing.
_COMMENTS = ("description", "published_at")


def run_keys(values: Mapping[str, Any]) -> list[Key]:
    """All settings of a run with the stages, methods and network of `values`; those of a stage begin with its name.

    Raises:
        UserError: a stage has no method, or one that does not exist.
    """
    found = [key for key in keys_of(RunConfig) if key.name not in ("stages", "network")]
    network = values.get("network") or {}
    if isinstance(network, Mapping):
        found += list(network_keys(network))
    for name, stage in _stages(values).items():
        found += list(stage_keys(name, stage))
    return found


def network_keys(values: Mapping[str, Any]) -> Iterator[Key]:
    """The settings of a network.

    Raises:
        UserError: its name is none.
    """
    name = convert(NetworkName, values.get("name", next(iter(NETWORKS))), "network.name")
    kind = NETWORKS[name].config_class()
    yield Key("network", kind, None, "architecture of all stages; null is that of the model that the first begins from")
    yield Key("network.name", NetworkName, next(iter(NETWORKS)), "kind of network")
    yield from keys_of(kind, "network.")


def stage_keys(name: str, values: Mapping[str, Any]) -> Iterator[Key]:
    """The settings of a stage, those of its method included.

    Raises:
        UserError: its method is missing, or none.
    """
    row = METHODS[_method(name, values)]
    yield Key(name, StageConfig, None, f"stage of method {row.name}, {row.title}; null leaves it out")
    for key in keys_of(StageConfig, f"{name}."):
        if key.name == f"{name}.objective":
            yield replace(key, hint=row.config_class)
            yield from keys_of(row.config_class, f"{name}.objective.", row.published)
        elif key.name == f"{name}.method":
            yield replace(key, default=row.name)
        elif key.name != f"{name}.name":
            yield key


def changed(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with nested changes; a stage is changed by its name, left out by None, and added below `stages`.

    A stage of another method has that method's published numbers, and a network of another name that network's
    defaults, where the changes do not give them.

    Raises:
        UserError: a key does not exist.
    """
    found = copy.deepcopy(dict(values))
    found["stages"] = stages = dict(_stages(found))
    changes = dict(changes)
    for name, change in (changes.pop("stages", None) or {}).items():
        if name not in stages and isinstance(change, Mapping):
            stages[name] = {}  # a new one
        changes[name] = change
    known = [key.name for key in keys_of(RunConfig)]
    for name, change in changes.items():
        if name in stages and change is None:
            del stages[name]
            for stage in stages.values():
                stage |= {role: None for role in ("init", _TEACHER) if stage.get(role) == name}
        elif name in stages:
            if not isinstance(change, Mapping):
                raise not_a_section(name, change, "steps")
            if _renamed(stages[name], change, "method"):
                stages[name] = {key: value for key, value in stages[name].items() if key != "objective"}
            stages[name] = _merged(stages[name], change)
        elif name in known:
            old = found.get(name)
            if name == "network" and _renamed(old, change):
                old = {}
            found[name] = _merged(old, change)
        else:
            raise unknown_key(name, [*stages, *known])
    return found


def with_teacher(values: Mapping[str, Any], model: str | None) -> dict[str, Any]:
    """`values` with another model in place of the teacher, whether it is trained as a stage or named.

    Args:
        values: recipe.
        model: diffusion model, as a stage's `teacher` names one; None is no teacher.

    Raises:
        UserError: no stage of the recipe has a teacher, or nothing is left to be trained.
    """
    found = copy.deepcopy(dict(values))
    stages = dict(_stages(found))
    named = {stage.get(_TEACHER) for stage in stages.values()} - {None}
    dropped = {_TEACHER, *named} & stages.keys()
    for name in dropped:
        del stages[name]
    replaced = bool(dropped)
    for stage in stages.values():
        for role in ("init", _TEACHER):
            name = stage.get(role)
            if name == _TEACHER or name in named or (name is not None and not named and name not in stages):
                stage[role], replaced = model, True
    if model is not None and not replaced:
        raise UserError(
            f"`{_TEACHER}` {model}: no stage of the recipe begins from a model or has a teacher; "
            f"set `{next(iter(stages), 'student')}.init` instead"
        )
    return found | {"stages": stages}


def run_config(values: Mapping[str, Any], where: str = "") -> RunConfig:
    """The config that values stand for; what is missing has its default.

    Args:
        values: recipe; its `stages` and `network` are mappings.
        where: file that they are from, for messages.

    Raises:
        UserError: an unknown key, a value of another type, or what does not fit together.
    """
    network = values.get("network")
    if network is not None and not isinstance(network, Mapping):
        raise not_a_section("network", repr(network), "name", where)
    known = {key.name: key for key in run_keys(values)}
    for key in _names({**values, "stages": {}}):
        if key not in known and key != "stages":
            raise unknown_key(key, [*known, "stages"], where)
    for name, stage in _stages(values).items():
        for key in _names(stage, f"{name}."):
            if key not in known:
                raise unknown_key(key, known, where)
    own = dict(values)
    stages = tuple(_stage(name, stage, where) for name, stage in _stages(values).items())
    if network is not None:
        inner = {key: value for key, value in network.items() if key != "name"}
        own["network"] = build(known["network"].hint, inner, "network.", where=where)
    return build(RunConfig, own | {"stages": stages}, where=where)


def to_values(config: RunConfig) -> dict[str, Any]:
    """The config as nested values; `run_config` reads them back."""
    values = plain(config)
    if config.network is not None:
        row = row_of(config.network)
        values["network"] = {"name": row.name if row else None} | values["network"]
    values["stages"] = {stage.pop("name"): _in_order(stage) for stage in values["stages"]}
    return values


def dump(config: RunConfig) -> str:
    """The resolved config as YAML; a run keeps it."""
    return dump_yaml(to_values(config))


def differences(one: RunConfig, other: RunConfig) -> list[tuple[str, Any, Any]]:
    """(key, value, other value) where two runs train differently; a stage that one lacks has None there."""
    found = []
    left, right = (dict(_flat(config)) for config in (one, other))
    for key in dict.fromkeys([*left, *right]):
        if left.get(key) != right.get(key) and key.rpartition(".")[2] not in _COMMENTS:
            found.append((key, left.get(key), right.get(key)))
    return found


def _flat(config: RunConfig) -> Iterator[tuple[str, Any]]:
    values = to_values(config)
    yield from leaves({key: value for key, value in values.items() if key != "stages"} | values["stages"])


def _in_order(stage: dict[str, Any]) -> dict[str, Any]:
    """Returns the keys in the order of display: method and models, the trainer's settings, the method's settings."""
    first = ("method", "init", "teacher")
    return (
        {key: stage[key] for key in first}
        | {k: v for k, v in stage.items() if k not in (*first, "objective")}
        | {"objective": stage["objective"]}
    )


def _stage(name: str, values: Mapping[str, Any], where: str) -> StageConfig:
    row = METHODS[_method(name, values)]
    given = values.get("objective")
    given = {} if given is None else given
    if not isinstance(given, Mapping):
        raise not_a_section(f"{name}.objective", given, next(iter(row.published), "P_mean"), where)
    objective = build(row.config_class, {**row.published, **given}, f"{name}.objective.", where=where)
    return build(StageConfig, {**values, "name": name, "objective": objective}, f"{name}.", where=where)


def _stages(values: Mapping[str, Any]) -> Mapping[str, dict[str, Any]]:
    stages = values.get("stages") or {}
    if not isinstance(stages, Mapping):
        raise not_a_section("stages", repr(stages), "student.method")
    for name, stage in stages.items():
        if not isinstance(stage, Mapping):
            raise not_a_section(str(name), repr(stage), "method")
    return stages


def _method(name: str, values: Mapping[str, Any]) -> str:
    method = values.get("method")
    if method is None:
        raise UserError(f"`{name}.method` is missing; give one of {', '.join(METHODS)}")
    if not isinstance(method, str) or method not in METHODS:
        raise UserError(
            f"`{name}.method` {method}: must be one of {', '.join(METHODS)}{did_you_mean(str(method), METHODS)}"
        )
    return convert(MethodName, method, f"{name}.method")


def _names(values: Mapping[Any, Any], prefix: str = "") -> Iterator[str]:
    """The dotted names of nested mappings, sections included."""
    for name, value in values.items():
        yield f"{prefix}{name}"
        if isinstance(value, Mapping):
            yield from _names(value, f"{prefix}{name}.")


def _renamed(old: Any, change: Any, key: str = "name") -> bool:
    """Whether a change makes a section another kind."""
    return isinstance(old, Mapping) and isinstance(change, Mapping) and change.get(key, old.get(key)) != old.get(key)


def _merged(old: Any, new: Any) -> Any:
    if not isinstance(old, Mapping) or not isinstance(new, Mapping):
        return new
    return {**old, **{key: _merged(old.get(key), value) for key, value in new.items()}}
