"""The folder of a run: whose it is, what may change when it goes on, and what has changed.

config.yaml                      the resolved config, and the digest of its lines
data.json                        the fingerprint of the images
history.jsonl                    what was changed when the run went on, a line each time; absent where nothing was
teacher/  student/  ...          a stage each: checkpoints/, samples/, metrics.jsonl, tensorboard/, model/
.lock                            held while a process trains the run
"""

import datetime
import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from unistep.config import RunConfig, StageConfig, differences, dump, read_values, run_config
from unistep.config.recipes import CONFIG
from unistep.config.seal import check_config, sealed
from unistep.errors import UserError
from unistep.files import whole_file, write_error
from unistep.formats.checkpoint import checkpoint_steps
from unistep.runtime.lock import LOCK, FolderLock

HISTORY = "history.jsonl"

# What may change in the middle of a stage; the rest would make it another run.
_FREE = {
    "description",
    "precision",
    "compile",
    "engine",
    "activation_checkpointing",
    "trackers",
    "evaluate_every",
    "data.cache_dir",
    "data.memory_limit",
}
_FREE_SECTIONS = ("evaluation", "lpips")
_FREE_OF_STAGES = {"steps", "batch_size", "accumulation", "log_every", "sample_every", "checkpoint_every"}
_FREE_OF_STAGES |= {
    "keep_checkpoints",
    "snapshot_every",
    "timesteps",
    "schedules",
    "num_train_timesteps",
    "published_at",
}
_FREE_OF_STAGES |= {"max_skipped", "rollback_lr", "max_rollbacks"}
_FREE_OF_STAGES |= {f"optimizer.{name}" for name in ("lr", "betas", "eps", "weight_decay", "warmup_steps", "decay")}
_FREE_OF_STAGES |= {f"optimizer.{name}" for name in ("final_lr", "decay_steps", "clip_grad_norm")}
_SHOWN = 4

# Names that a killed process may leave in the folder of a run before its config is there.
_LEFT = {LOCK, "config.tmp", f".{CONFIG}.tmp"}


def claim_folder(folder: Path, config: RunConfig, lock: FolderLock | None = None) -> None:
    """Writes the config, or checks that the one there is the same run's.

    Args:
        folder: folder of the run.
        config: its config.
        lock: lock of the folder, which is taken before anything is written; None takes none.

    Raises:
        UserError: the folder holds a run of another config, or something else, or another process trains it.
    """
    path = folder / CONFIG
    if path.exists():
        if lock is not None:
            lock.acquire(folder)
        _check_same(folder, config)
        check_config(folder)
        return
    if folder.exists() and (not folder.is_dir() or any(p.name not in _LEFT for p in folder.iterdir())):
        raise UserError(f"{folder} exists and is not a run directory; choose another `output`")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(folder, error, "choose another `output`") from None
    if lock is not None:
        lock.acquire(folder)
        if path.exists():  # of another process, which was faster and has ended
            _check_same(folder, config)
            return
    write_config(folder, config)


def write_config(folder: Path, config: RunConfig) -> None:
    """Writes the config with the digest of its lines, whole or not at all.

    Raises:
        UserError: it cannot be written.
    """
    path, text = folder / CONFIG, dump(config)
    try:
        with whole_file(path, durable=True) as temporary:
            temporary.write_text(sealed(text), encoding="utf-8")
        (folder / "config.tmp").unlink(missing_ok=True)  # of former versions
    except OSError as error:
        raise write_error(path, error, "choose another `output`") from None


def change_run(folder: Path, old: RunConfig, new: RunConfig, *, write: bool = True) -> None:
    """Writes a changed config and a line of the history; does nothing where nothing has changed.

    Args:
        folder: folder of the run.
        old: config so far.
        new: config from now on.
        write: False only checks the changes, as on all processes but the first.

    Raises:
        UserError: a change would make it another run; the key is named.
    """
    changes = differences(old, new)
    check_changes(folder, old, changes)
    if not (changes and write):
        return
    entry = {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "steps": {stage.name: steps_done(folder, stage) for stage in old.stages},
        "changed": {key: [before, after] for key, before, after in changes},
    }
    write_config(folder, new)
    path, line = folder / HISTORY, json.dumps(entry).encode() + b"\n"
    try:
        before = path.read_bytes() if path.exists() else b""
        with whole_file(path) as temporary:
            temporary.write_bytes(before + line)
    except OSError as error:
        raise write_error(path, error, "resume") from None


def check_changes(folder: Path, old: RunConfig, changes: list[tuple[str, Any, Any]]) -> None:
    """Refuses changes that the steps done so far do not allow.

    A stage that has not begun may change as it likes, one that a later stage has begun after not at all.

    Raises:
        UserError: names the first such key.
    """
    begun = [stage for stage in old.stages if steps_done(folder, stage)]
    for key, before, after in changes:
        reason = _reason_against(key, old, begun)
        if reason:
            raise UserError(
                f"`{key}` {_text(after)}: the run has {_text(before)}, and {reason}; choose another `output`"
            )


def _reason_against(key: str, old: RunConfig, begun: list[StageConfig]) -> str:
    """Returns the reason against the change of a key; empty where it may change."""
    section, _, rest = key.partition(".")
    stage = next((stage for stage in begun if stage.name == section), None)
    if stage is None:
        of_run = section in {f.name for f in fields(RunConfig)}
        free = key in _FREE or section in _FREE_SECTIONS
        return "all its stages share it" if of_run and begun and not free else ""
    if stage is not begun[-1]:
        return f"stage {begun[-1].name} has begun after it"
    if rest == "steps" and stage.objective.fixed_length:
        return "the phases of its method follow the length"
    return "" if rest in _FREE_OF_STAGES else "the stage has begun with it"


def skip_to(folder: Path, config: RunConfig, name: str) -> RunConfig:
    """The config with the stages before `name` ended where they are.

    Raises:
        UserError: there is no such stage, or one before it has no checkpoint.
    """
    index = config.stages.index(config.stage(name))
    stages = list(config.stages)
    for i, stage in enumerate(stages[:index]):
        done = steps_done(folder, stage)
        if not done:
            raise UserError(
                f"`skip_to` {name}: the stage {stage.name} has no checkpoint yet; train it up to its first one, "
                f"after {stage.checkpoint_every} steps"
            )
        if done < stage.steps:
            stages[i] = replace(stage, steps=done)
    return replace(config, stages=tuple(stages))


def steps_done(folder: Path, stage: StageConfig) -> int:
    """Number of steps of a stage that are in its newest checkpoint."""
    return max(checkpoint_steps(folder / stage.name / "checkpoints"), default=0)


def _check_same(folder: Path, config: RunConfig) -> None:
    try:
        held = run_config(read_values(folder / CONFIG))
    except UserError as error:
        raise UserError(f"{folder} holds a run with another config ({error}); choose another `output`") from None
    changes = differences(held, config)
    if not changes:
        return
    shown = ", ".join(f"{key} {_text(before)} instead of {_text(after)}" for key, before, after in changes[:_SHOWN])
    more = f" and {len(changes) - _SHOWN} more" if len(changes) > _SHOWN else ""
    raise UserError(
        f"{folder} holds a run with another config: {shown}{more}; choose another `output`, `resume` it, or delete it"
    )


def _text(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
