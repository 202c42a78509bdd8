"""curve.png: the numbers that a search has computed, in a panel for each number of steps, and its gain."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unistep.core.noise import karras_sigma
from unistep.errors import UserError
from unistep.files import whole_file
from unistep.formats.model import ModelInfo
from unistep.searching.record import Schedule
from unistep.searching.scores import EVEN, FOUND, OWN, USUAL, Found, listed

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_STYLES = {FOUND: ("black", "*"), EVEN: ("tab:red", "s"), OWN: ("tab:green", "D"), USUAL: ("tab:red", "s")}
_Z95 = 1.96
_MOST_NAMED = 8  # curves with a name, and points of a schedule in one: a legend of more leaves no room for the curves


def check_matplotlib() -> None:
    """Passes where curves can be drawn.

    Raises:
        UserError: matplotlib is not installed.
    """
    try:
        import matplotlib.figure  # noqa: F401
    except ModuleNotFoundError:
        raise UserError("the curve is drawn with matplotlib: pip install 'unistep[evaluate]'") from None


def save_curves(path: Path, found: Sequence[Found], info: ModelInfo, title: str, metric: str) -> None:
    """Draws the results of a search to a file, which appears whole.

    Args:
        path: place of the PNG.
        found: results, at least one.
        info: information of the model, for the noise levels of its grid.
        title: title of the picture.
        metric: title of the numbers.

    Raises:
        UserError: matplotlib is not installed, or the file cannot be written.
    """
    png = curves_png(found, info, title, metric)
    try:
        with whole_file(path) as temporary:
            temporary.write_bytes(png)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}; choose another `output`") from None


def curves_png(found: Sequence[Found], info: ModelInfo, title: str, metric: str) -> bytes:
    """Returns the picture of `save_curves` as the content of a PNG.

    Raises:
        UserError: matplotlib is not installed.
    """
    check_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = len(found) + (len(found) > 1)
    columns = min(panels, 3)
    rows = -(-panels // columns)
    figure = Figure(figsize=(5.4 * columns + 1.2, 4.4 * rows), layout="constrained", dpi=110)
    FigureCanvasAgg(figure)
    axes: list[Axes] = figure.subplots(rows, columns, squeeze=False).flatten().tolist()
    for one, panel in zip(found, axes, strict=False):
        _draw_curves(panel, one, info, metric)
    if len(found) > 1:
        _draw_gain(axes[len(found)], found, metric)
    for panel in axes[panels:]:
        panel.set_visible(False)
    figure.suptitle(title)
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()


def _draw_curves(panel: "Axes", found: Found, info: ModelInfo, metric: str) -> None:
    """Every point of the schedule elsewhere, the others where they are."""
    free = found.schedule[len(found.schedule) - len(found.curves) :]
    for step, curve in enumerate(found.curves, start=len(found.schedule) - len(free) + 1):
        name = f"step {step}" if len(found.curves) > 1 else f"{('first', 'second')[step - 1]} step at"
        if step - len(found.schedule) + len(free) > _MOST_NAMED:
            name = None
        panel.plot(list(curve), list(curve.values()), "o-", markersize=4, linewidth=1, alpha=0.8, label=name)
    for name in (EVEN, OWN, USUAL):
        judged = found.of(name)
        if judged is not None and FOUND not in judged.names:
            label = f"{name}: {_short(judged.schedule)}"
            panel.axhline(judged.searched, color=_STYLES[name][0], linestyle="--", linewidth=1, label=label)
    best = found.of(FOUND)
    if best is not None:
        label = f"found: {_short(found.schedule)}"
        panel.plot(free, [best.searched] * len(free), "*", color="black", markersize=11, linestyle="", label=label)
    panel.set_title(f"{found.steps} steps, on the images of the search", fontsize=10)
    panel.set_ylabel(metric)
    panel.grid(alpha=0.3)
    panel.legend(fontsize=8)
    if found.unit == "sigmas":
        panel.set_xlabel("noise level (sigma)")
        panel.set_xscale("log")
        panel.xaxis.set_major_formatter("{x:g}")
        panel.invert_xaxis()  # as an edit goes
        return
    panel.set_xlabel("timestep (index of the grid)")
    panel.set_xlim(0, info.num_train_timesteps - 1)
    _add_sigmas(panel, info)


def _short(schedule: Schedule) -> str:
    """Returns a schedule as text, without its middle where that is long."""
    if len(schedule) <= _MOST_NAMED:
        return listed(schedule)
    return f"{listed(schedule[: _MOST_NAMED // 2])},...,{listed(schedule[-1:])}"


def _add_sigmas(panel: "Axes", info: ModelInfo) -> None:
    """The noise levels above the timesteps."""
    import torch

    last = info.num_train_timesteps - 1
    places = sorted({round(last * i / 5) for i in range(6)})
    grid = (info.num_train_timesteps, info.sigma_min, info.sigma_max, info.rho)
    sigmas = karras_sigma(torch.tensor(places, dtype=torch.float64), *grid).tolist()
    top = panel.secondary_xaxis("top")
    top.set_xticks(places, [f"{sigma:.2g}" for sigma in sigmas], fontsize=8)
    top.set_xlabel("sigma", fontsize=8)


def _draw_gain(panel: "Axes", found: Sequence[Found], metric: str) -> None:
    """The schedules against the number of steps, on fresh images, with their 95% intervals."""
    for shift, (name, (color, marker)) in enumerate(_STYLES.items()):
        points: list[Any] = [(one.steps, one.of(name)) for one in found]
        points = [(steps, judged.fresh) for steps, judged in points if judged is not None]
        if not points:
            continue
        panel.errorbar(
            [steps + 0.06 * (shift - 1) for steps, _ in points],
            [estimate.value for _, estimate in points],
            yerr=[_Z95 * estimate.standard_error for _, estimate in points],
            color=color,
            marker=marker,
            linewidth=1,
            capsize=3,
            label=name,
        )
    panel.set_title("on fresh images, with 95% intervals", fontsize=10)
    panel.set_xlabel("steps (network evaluations)")
    panel.set_ylabel(metric)
    panel.set_xticks([one.steps for one in found])
    panel.grid(alpha=0.3)
    panel.margins(y=0.3)  # room above the bars
    panel.legend(fontsize=8, loc="upper center", ncols=2)
