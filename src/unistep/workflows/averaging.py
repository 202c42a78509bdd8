"""The snapshots of a stage, and the models that their combinations are."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unistep.errors import UserError
from unistep.files import whole_file
from unistep.formats.model import LoadedModel
from unistep.formats.run_directory import load_run
from unistep.formats.snapshots import FOLDER, Snapshot, check_snapshot, find_snapshots
from unistep.training.power_average import Profile, combination, exponent


@dataclass(frozen=True)
class StageAverages:
    """Averages that the snapshots of a stage give.

    Args:
        folder: folder of the stage.
        snapshots: its snapshots, whose averages began together.
        step: step that the averages end at.
    """

    folder: Path
    snapshots: tuple[Snapshot, ...]
    step: int

    @property
    def stage(self) -> str:
        """Name of the stage."""
        return self.folder.name

    @property
    def time(self) -> int:
        """Number of steps that are averaged."""
        return self.step - self.snapshots[0].begun

    def error(self, length: float) -> float:
        """Returns the difference between the profile of a length and that of the combination, as a share."""
        return self._factors(length)[1]

    def model(self, length: float) -> LoadedModel:
        """Returns the stage's model with the weights of an average.

        Args:
            length: relative length of the average.

        Raises:
            UserError: a snapshot is damaged, or of another network than the model.
        """
        model = load_run(self.folder)
        network: Any = model.denoiser
        total: dict[str, Tensor] = {}
        factors = iter(self._factors(length)[0])
        for snapshot in self.snapshots:
            check_snapshot(snapshot)
            for own in snapshot.lengths:
                factor = next(factors)
                for name, value in snapshot.average(own).items():
                    total[name] = total.get(name, torch.zeros(value.shape)).add_(value, alpha=factor)
        parameters = dict(network.named_parameters())
        alike = parameters.keys() == total.keys() and all(total[n].shape == p.shape for n, p in parameters.items())
        if not alike:
            raise UserError(f"{self.folder / FOLDER} has averages of another network than {model.path}")
        with torch.no_grad():
            for name, p in parameters.items():
                p.copy_(total[name])
        return replace(model, dtype=torch.float32)

    def _factors(self, length: float) -> tuple[list[float], float]:
        profiles = [
            Profile(exponent(float(own)), snapshot.step - snapshot.begun)
            for snapshot in self.snapshots
            for own in snapshot.lengths
        ]
        return combination(profiles, Profile(exponent(length), self.time))


def stage_averages(run: Path, stages: Sequence[str], step: int | None) -> StageAverages:
    """Returns the averages of a run's first stage of `stages` that has snapshots.

    Args:
        run: run directory.
        stages: names of stages, in the order in which they are looked at.
        step: step that the averages end at; None is that of the last snapshot.

    Raises:
        UserError: there are no snapshots, a file is damaged, or none reaches so far.
    """
    for name in stages:
        found = find_snapshots(run / name / FOLDER)
        if not found:
            continue
        # A phase begins its averages anew: those before it are of another model.
        own = tuple(one for one in found if one.begun == found[-1].begun)
        last = own[-1].step
        if step is not None and not own[0].step <= step <= last:
            raise UserError(f"{step}: the snapshots of {name} are of the steps {own[0].step} to {last}", field="step")
        return StageAverages(run / name, own, step or last)
    where = f"{run} has" if len(stages) > 1 else f"{run / stages[0]} has"
    raise UserError(f"{where} no snapshots of averages", f"train with `{stages[0]}.ema_lengths=[0.05, 0.1]`")


def save_sweep(path: Path, measured: Mapping[float, tuple[float, float, float]], title: str, name: str) -> None:
    """Draws distances over lengths to a file, which appears whole.

    Args:
        path: place of the PNG.
        measured: distance and the ends of its interval, by length.
        title: title of the distance.
        name: title of the picture.

    Raises:
        UserError: the file cannot be written.
    """
    from matplotlib.figure import Figure

    lengths = sorted(measured)
    values, low, high = zip(*(measured[length] for length in lengths), strict=True)
    below = [value - end for value, end in zip(values, low, strict=True)]
    above = [end - value for value, end in zip(values, high, strict=True)]
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.errorbar(lengths, values, (below, above), marker="o", capsize=3, color="tab:blue")
    best = min(lengths, key=lambda length: measured[length][0])
    axes.plot(best, measured[best][0], marker="*", markersize=14, color="black", linestyle="none")
    axes.set(xlabel="length of the average, as a share of the training", ylabel=title, title=name, xscale="log")
    axes.set_xticks(lengths, [f"{length:g}" for length in lengths])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    try:
        with whole_file(path) as temporary:
            figure.savefig(temporary, format="png", dpi=120)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}; choose another `plot`") from None
