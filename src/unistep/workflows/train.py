"""`unistep.train`: the stages of a recipe, into a run directory that outlives a kill."""

import logging
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, Union, overload

from unistep.arguments import plain_arguments
from unistep.checks import check_path, check_range, user_path
from unistep.config import RunConfig, changed, find_recipe, read_run, read_values, run_config, with_teacher
from unistep.config.recipes import CONFIG
from unistep.config.seal import check_config
from unistep.errors import UserError

if TYPE_CHECKING:
    from unistep.formats.model import LoadedModel
    from unistep.workflows.estimate.result import Estimate
    from unistep.workflows.runs.exported import Exported

Recipe: TypeAlias = str | os.PathLike[str] | RunConfig | None
Curve: TypeAlias = list[tuple[int, float]]

_MOST_THREADS = 4096
_TEN_YEARS = 5_256_000  # in minutes; a longer time is a slip


@overload
def train(recipe: Recipe = None, *, dry_run: Literal[True], **arguments: Any) -> "Estimate": ...
@overload
def train(recipe: Recipe = None, *, dry_run: Literal[False] = False, **arguments: Any) -> "Run": ...
@overload
def train(recipe: Recipe = None, *, dry_run: bool, **arguments: Any) -> Union["Run", "Estimate"]: ...
@plain_arguments(empty=["recipe", "output", "resume", "teacher", "init_from"])
def train(
    recipe: Recipe = None,
    *,
    data: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    output: str | os.PathLike[str] | None = None,
    resume: str | os.PathLike[str] | None = None,
    teacher: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    skip_to: str | None = None,
    init_from: str | os.PathLike[str] | None = None,
    max_minutes: float | None = None,
    grace_seconds: float | None = None,
    stall_seconds: float | None = None,
    threads: int | None = None,
    profile: str | os.PathLike[str] | None = None,
    dry_run: bool = False,
    progress: bool = True,
    **overrides: Any,
) -> Union["Run", "Estimate"]:
    """Trains the stages of a recipe, one after the other, or goes on with a run.

    A run that was killed at any moment goes on exactly where it was: by the same call, or by `resume`. Several
    processes share a run (accelerate launch -m unistep train).

    Args:
        recipe: name of a recipe (`unistep recipes` lists them), a .yaml file, or a config; default: the run to resume,
            or the config of the weights that a new run begins from.
        data: images to train on: mnist, a folder, a .zip or an .npz, or keys of `unistep.data.DataConfig`; default: the
            recipe's.
        output: run directory; default: runs/RECIPE.
        resume: run directory to go on with, in place of a recipe.
        teacher: diffusion model in place of the recipe's teacher: a model folder, a run, a file, or owner/name on the
            hub; "null" is none; a mapping holds keys of the stage of that name.
        skip_to: stage of a resumed run to go on with; those before it end where they are.
        init_from: folder of weights that `unistep.export_weights` wrote, which a new run begins from: its finished
            stages are taken as they are, its newest one goes on from its step, with new moments of the optimizer.
        max_minutes: time of this call in minutes, all stages together; when it is over, the run stops after the step
            under way, with a checkpoint to go on from and the model that it has come to; default: none.
        grace_seconds: time in seconds that SIGTERM, SIGUSR1 or Ctrl-C leaves for the step under way and its checkpoint;
            a process that is not done then ends, and the run goes on from the checkpoint before; default: any.
        stall_seconds: longest time in seconds of a step with the evaluation, samples and checkpoint after it; a process
            that takes longer ends with a line that tells where it is; default: any.
        threads: number of CPU threads of this process, 1 beside other work; default: PyTorch's, one a core.
        profile: file for a trace of steps 3 to 12, .json or .json.gz, for Chrome or Perfetto; their times by operator
            and by module are logged; default: none.
        dry_run: count parameters, FLOPs and memory, measure the time of a step, and train nothing.
        progress: show how far it is.
        **overrides: keys of the recipe, nested; a stage has its name, as student={"steps": 500}.

    Returns:
        The run; an estimate of what it would take with `dry_run`.

    Raises:
        UserError: an unknown key, a wrong value, data or models that do not fit, or a folder of something else.
        Interrupted: a signal came; what is done is saved.

    Example:
        >>> import tempfile, unistep
        >>> tiny = {"block_out_channels": [8, 8], "attention_head_dim": 8}
        >>> short = {"steps": 2, "batch_size": 2}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     run = unistep.train(
        ...         "mnist-quick", output=f"{folder}/tiny", progress=False, network=tiny, teacher=short, student=short
        ...     )
        ...     run.stages, run.model().info.kind, len(run.curves["student"]["loss"])
        (('teacher', 'student'), 'consistency', 1)
    """
    deadline = _deadline(max_minutes)
    check_range("threads", threads, 1, _MOST_THREADS)
    if dry_run and resume is not None:
        raise UserError("`dry_run` and `resume` exclude each other; give the recipe")
    from unistep.runtime.lock import FolderLock
    from unistep.training.limits import Limits
    from unistep.workflows.runs.exported import read_exported

    limits = Limits(grace_seconds, stall_seconds)
    trace = None
    if profile is not None:
        from unistep.runtime.profiling import check_trace

        trace = check_trace(profile)
    exported = None if init_from is None else read_exported(user_path(_checked_path("init_from", init_from)))
    with FolderLock("train") as lock:
        if resume is not None and _is_first() and isinstance(resume, str | os.PathLike) and user_path(resume).is_dir():
            lock.acquire(user_path(resume))  # before its config may change
        config, folder = prepared(recipe, data, output, resume, teacher, skip_to, overrides, exported)
        if not dry_run:
            given = {"progress": progress, "lock": lock, "deadline": deadline, "exported": exported, "limits": limits}
            _train(config, folder, threads, trace if _is_first() else None, **given)
            return Run(folder)
    from unistep.runtime.threads import arithmetic_threads
    from unistep.workflows.estimate.estimate import estimate

    with arithmetic_threads(threads):
        return estimate(config, name=folder.name)


def _deadline(max_minutes: float | None) -> float | None:
    """The time of `time.monotonic` at which so many minutes are over."""
    check_range("max_minutes", max_minutes, 0, _TEN_YEARS)
    return None if max_minutes is None else time.monotonic() + 60 * max_minutes


def _checked_path(name: str, value: Any) -> str | os.PathLike[str]:
    """A path that is none of the things that are no path.

    Raises:
        UserError: it is one of them.
    """
    check_path(name, value)
    if isinstance(value, str) and not value.strip():
        raise UserError("is empty; give a path, or leave it out", field=name)
    return value


def _train(config: RunConfig, folder: Path, threads: int | None, trace: Path | None, **given: Any) -> None:
    from unistep.files import write_error
    from unistep.runtime.interrupt import Interrupted
    from unistep.runtime.profiling import profiled
    from unistep.runtime.threads import arithmetic_threads
    from unistep.workflows.runs.loop import train_stages

    try:
        said = logging.getLogger("unistep").info
        with arithmetic_threads(threads), profiled(trace, lambda text: said("profile\n%s", text), steps=True):
            train_stages(config, folder, **given)
    except Interrupted as stopped:
        begun = (folder / "config.yaml").is_file()
        stopped.add_note(f"go on with unistep.train(resume={str(folder)!r})" if begun else "nothing was written")
        raise
    except OSError as error:  # of a place that has no words of its own
        raise write_error(Path(error.filename or folder), error, "resume") from None
    except RuntimeError as error:
        if "onnection" not in str(error) or os.environ.get("WORLD_SIZE", "1") == "1":
            raise
        raise UserError("another process of this run has ended early; see what it printed, then resume") from None


def _is_first() -> bool:
    """Whether this is the first of several processes, or the only one."""
    return os.environ.get("RANK", "0") == "0"


def prepared(
    recipe: Recipe,
    data: str | os.PathLike[str] | Mapping[str, Any] | None,
    output: str | os.PathLike[str] | None,
    resume: str | os.PathLike[str] | None,
    teacher: str | os.PathLike[str] | Mapping[str, Any] | None,
    skip_to: str | None,
    overrides: Mapping[str, Any],
    exported: "Exported | None" = None,
) -> tuple[RunConfig, Path]:
    """The config and the folder that the arguments of `train` mean; a resumed run's folder is brought up to it.

    Raises:
        UserError: as `train`.
    """
    if exported is not None and resume is not None:
        raise UserError("`init_from` is for a new run; a run that is resumed has its weights")
    if exported is not None and recipe is None:
        recipe, output = exported.folder / CONFIG, output or Path("runs") / exported.folder.resolve().name
    if (recipe is None) == (resume is None):
        raise UserError("give a recipe, as mnist-quick, or a run to `resume`" + ", not both" * (recipe is not None))
    for name, value in (("output", output), ("resume", resume), ("teacher", teacher), ("data", data)):
        if not (name in ("teacher", "data") and isinstance(value, Mapping)):
            check_path(name, value)
        if isinstance(value, str) and not value.strip():
            raise UserError("is empty; give a path, or leave it out", field=name)
        kinds = (str, os.PathLike, *((Mapping,) if name in ("teacher", "data") else ()))
        if value is not None and not isinstance(value, kinds):
            words = "a name, a path or a mapping of keys" if Mapping in kinds else "a path"
            raise UserError(f"a {type(value).__name__} must be {words}", field=name)
    if recipe is not None and not isinstance(recipe, str | os.PathLike | RunConfig):
        raise UserError(f"a {type(recipe).__name__} must be a name, a .yaml file or a config", field="recipe")
    changes = dict(overrides)
    if data is not None:
        changes["data"] = data if isinstance(data, Mapping) else {"source": os.fspath(data)}
    if isinstance(teacher, Mapping):
        changes["teacher"], teacher = teacher, None
    if resume is not None:
        return _resumed(user_path(resume), changes, output, teacher, skip_to)
    if skip_to is not None:
        raise UserError("`skip_to` is for a run that has begun; `resume` it")
    config, name = _of_recipe(recipe, changes, teacher)
    if exported is not None:
        from unistep.workflows.runs.beginning import with_finished

        config = with_finished(config, exported)
    return config, user_path(output if output is not None else Path("runs") / name)


def recipe_config(
    recipe: str | os.PathLike[str] | RunConfig,
    changes: Mapping[str, Any],
    teacher: str | os.PathLike[str] | None = None,
) -> RunConfig:
    """The config of a recipe with changes.

    Args:
        recipe: name, .yaml file, or config.
        changes: keys of the recipe, nested.
        teacher: model in place of the recipe's teacher.

    Raises:
        UserError: as `train`.
    """
    return _of_recipe(recipe, changes, teacher)[0]


def _of_recipe(recipe: Any, changes: Mapping[str, Any], teacher: Any) -> tuple[RunConfig, str]:
    if isinstance(recipe, RunConfig):
        from unistep.config.resolve import to_values

        values, name, where = to_values(recipe), "run", ""
    else:
        check_path("recipe", recipe, "give the name of a recipe, a .yaml file or a config")
        path = find_recipe(os.fspath(recipe))
        values, name, where = read_values(path), path.stem, str(path)
        run_config(values, where)  # names the file where the mistake is the recipe's
    return run_config(_changed(values, changes, teacher)), name


def _resumed(
    folder: Path, changes: Mapping[str, Any], output: Any, teacher: Any, skip: str | None
) -> tuple[RunConfig, Path]:
    from unistep.workflows.runs.folder import change_run, skip_to

    if output is not None:
        raise UserError("`output` is for a new run; a run that is resumed stays in its folder")
    values = read_run(folder)
    check_config(folder)
    old = run_config(values, str(folder / "config.yaml"))
    new = run_config(_changed(values, changes, teacher))
    if skip is not None:
        new = skip_to(folder, new, skip)
    change_run(folder, old, new, write=_is_first())
    return new, folder


def _changed(values: Mapping[str, Any], changes: Mapping[str, Any], teacher: Any) -> dict[str, Any]:
    values = changed(values, changes)
    if teacher is None:
        return values
    return with_teacher(values, None if teacher == "null" else _diffusion_model(teacher))


def _diffusion_model(name: str | os.PathLike[str]) -> str:
    """The name of a model; of a run that of its newest diffusion model."""
    from unistep.formats.run_directory import newest_diffusion_stage

    path = user_path(name)
    found = newest_diffusion_stage(path) if path.is_dir() else None
    return os.fspath(found or name)


@dataclass(frozen=True)
class Run:
    """A training run, finished or not.

    Args:
        folder: its directory.
    """

    folder: Path

    @property
    def config(self) -> RunConfig:
        """The resolved config."""
        return run_config(read_run(self.folder), str(self.folder / "config.yaml"))

    @property
    def stages(self) -> tuple[str, ...]:
        """Names of the stages, in their order."""
        return tuple(stage.name for stage in self.config.stages)

    @property
    def finished(self) -> bool:
        """Whether its last stage has made all its steps."""
        from unistep.workflows.runs.folder import steps_done

        last = self.config.stages[-1]
        return steps_done(self.folder, last) >= last.steps and (self.folder / last.name / "model").is_dir()

    @property
    def curves(self) -> dict[str, dict[str, Curve]]:
        """(step, value) of everything that was logged, by stage and by name, as `curves["student"]["loss"]`."""
        import json

        found: dict[str, dict[str, Curve]] = {}
        for stage in self.stages:
            path = self.folder / stage / "metrics.jsonl"
            curves = found.setdefault(stage, {})
            for line in path.read_bytes().split(b"\n") if path.exists() else ():
                try:
                    values = json.loads(line)
                    values["step"]
                except (ValueError, TypeError, KeyError, RecursionError):
                    continue  # cut or damaged; training drops such lines, and says so
                for name, value in values.items():
                    if name != "step":
                        curves.setdefault(name, []).append((values["step"], value))
        return found

    @property
    def best(self) -> Path | None:
        """Model folder of the best model by the run's own measurements; None where nothing was measured."""
        path = self.folder / self.stages[-1] / "best"
        return path if path.is_dir() else None

    @property
    def preview(self) -> Path | None:
        """The newest grid of samples; None where there is none yet."""
        for stage in reversed(self.stages):
            if grids := sorted((self.folder / stage / "samples").glob("step-*.png")):
                return grids[-1]
        return None

    def model(self, stage: str | None = None, *, device: str | None = None) -> "LoadedModel":
        """Opens the model of a stage.

        Args:
            stage: name of the stage; default: the last one that has a model.
            device: cpu, cuda, cuda:1 or mps; default: cuda where there is one.

        Raises:
            UserError: there is no such stage, or it has no checkpoint yet.
        """
        from unistep.workflows.models import load

        return load(self.folder if stage is None else self.folder / self.config.stage(stage).name, device=device)

    def __repr__(self) -> str:
        from unistep.workflows.runs.folder import steps_done

        done = ", ".join(f"{s.name} {steps_done(self.folder, s)}/{s.steps}" for s in self.config.stages)
        return f"Run({self.folder}: {done})"

    def _repr_png_(self) -> bytes | None:
        return None if self.preview is None else self.preview.read_bytes()

    def _repr_html_(self) -> str:
        import base64
        import html

        text = f"<pre>{html.escape(repr(self))}</pre>"
        grid = self._repr_png_()
        return text if grid is None else f'{text}<img src="data:image/png;base64,{base64.b64encode(grid).decode()}">'
