"""The page about one run, or about several side by side."""

import datetime
from collections.abc import Iterator, Sequence
from pathlib import Path

from unistep.text import version_of
from unistep.watching.listing import ago, duration, speed
from unistep.watching.page.chart import chart, swatch
from unistep.watching.page.costs import costs, images_of, time, visits
from unistep.watching.page.curves import Curve, curve_of, distances_of
from unistep.watching.page.grids import Grid, embedded, grids_of
from unistep.watching.page.markup import escaped, folded, number, table
from unistep.watching.page.settings import differences, history, settings_tables
from unistep.watching.record import RunRecord, StageRecord

_PICTURE_BYTES = 3_000_000  # of all grids together; as text they take a third more
_MOST_GRIDS = 6  # of a stage, in the report of one run
# Name in a log, name on the page, unit, whether the axis is logarithmic; None lets the values decide.
_CHARTS: tuple[tuple[str, str, str, bool | None], ...] = (
    ("loss", "loss", "", None),
    ("grad_norm", "gradient norm", "", None),
    ("lr", "learning rate", "", False),
    ("images_per_second", "speed", "images/s", False),
)
_NO_CHARTS = {"images", "seconds"}
# Nothing is loaded, and nothing runs: not even what an escape might have missed.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def page(runs: Sequence[RunRecord], now: datetime.datetime) -> str:
    """The whole page.

    Args:
        runs: runs, at least one, with whole logs.
        now: time of the report.
    """
    title = runs[0].name if len(runs) == 1 else f"{len(runs)} runs: {', '.join(run.name for run in runs)}"
    content = _of_one(runs[0], now) if len(runs) == 1 else _of_several(runs, now)
    style = (Path(__file__).parent / "style.css").read_text(encoding="utf-8")
    made = f"unistep {version_of()}, {now.astimezone():%Y-%m-%d %H:%M %Z}"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escaped(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
        f"{content}\n<footer>{escaped(made)}</footer>\n</body>\n</html>\n"
    )


def _of_one(run: RunRecord, now: datetime.datetime) -> str:
    line = f"{_state(run)} {escaped(run.description)}<br><small>{escaped(run.folder)}</small>"
    parts = [_head(escaped(run.name), line), "<main>", *_warnings(run)]
    parts.append(_facts(run, now))
    if charts := _distances([run]):
        parts.append(_section("Distance", f'<div class="charts">{charts}</div>'))
    begun = [stage for stage in run.stages if stage.begun]
    each = _PICTURE_BYTES // max(_MOST_GRIDS * len(begun), 1)
    for stage in reversed(begun):
        content = _stage_charts([run], stage.name)
        pictures = "".join(_figure(grid, f"step {grid.step:,}", each) for grid in grids_of(stage, _MOST_GRIDS))
        if pictures:
            content += f'<h3>Samples over time</h3><div class="strip" tabindex="0">{pictures}</div>'
        words = f"Stage {escaped(stage.name)} <small>{escaped(stage.method)}</small>"
        parts.append(_section(words, content or '<p class="hint">Nothing was logged yet.</p>'))
    parts.append(_section("Cost", costs([run], [escaped(run.name)]) + visits(run)))
    changed = history(run)
    parts.append(
        _section("Settings", settings_tables(run) + (f"<h3>Changed on the way</h3>{changed}" if changed else ""))
    )
    return "".join([*parts, "</main>"])


def _of_several(runs: Sequence[RunRecord], now: datetime.datetime) -> str:
    heads = [f"{swatch(i)}{escaped(run.name)}" for i, run in enumerate(runs)]
    legend = "".join(f"<li>{head}</li>" for head in heads)
    parts = [_head(f"{len(runs)} runs", "", legend), "<main>"]
    parts += [warning for run in runs for warning in _warnings(run, named=True)]
    parts.append(_section("Runs", _overview(runs, heads, now)))
    if charts := _distances(runs):
        parts.append(_section("Distance", f'<div class="charts">{charts}</div>'))
    for name in dict.fromkeys(stage.name for run in runs for stage in reversed(run.stages) if stage.begun):
        parts.append(_section(f"Stage {escaped(name)}", _stage_charts(runs, name)))
    if pictures := "".join(_last_grids(runs, heads)):
        parts.append(_section("Last samples", f'<div class="side">{pictures}</div>'))
    parts.append(_section("Differences of the settings", differences(runs, heads)))
    parts.append(_section("Cost", costs(runs, heads)))
    everything = "".join(
        folded(f"{head} <small>{escaped(run.folder)}</small>", settings_tables(run) + history(run) + visits(run))
        for head, run in zip(heads, runs, strict=True)
    )
    parts.append(_section("All settings", everything))
    return "".join([*parts, "</main>"])


def _head(title: str, line: str, legend: str = "") -> str:
    below = f'<ul class="legend sticky" aria-label="runs">{legend}</ul>' if legend else ""
    return f"<header><h1>{title}</h1>{f'<p>{line}</p>' if line else ''}</header>{below}"


def _section(title: str, content: str) -> str:
    return f"<section><h2>{title}</h2>{content}</section>"


def _state(run: RunRecord) -> str:
    return f'<span class="state {run.state.replace(" ", "-")}">{run.state}</span>'


def _warnings(run: RunRecord, *, named: bool = False) -> Iterator[str]:
    name = f"{run.name}: " if named else ""
    if run.problem:
        yield f'<p class="warn">{escaped(f"{name}{run.problem}")}</p>'
    for stage in run.stages:
        if stage.log.damaged:
            text = f"{name}{stage.log.damaged} damaged lines of the log of {stage.name} are left out"
            yield f'<p class="warn">{escaped(text)}</p>'


def _facts(run: RunRecord, now: datetime.datetime) -> str:
    """The facts that are asked for first."""
    stage, measured = run.stage, run.measured
    assert stage is not None
    steps = "?" if stage.steps is None else f"{stage.steps:,}"
    seconds = sum(one.seconds or 0 for one in run.stages)
    images = sum(images_of(run, one) or 0 for one in run.stages if one.begun)
    facts = [("stage", f"{escaped(stage.name)} <small>{escaped(stage.method)}</small>")]
    facts.append(("step", f"{run.done(stage):,} <small>of {steps}</small>"))
    if run.seconds_left is not None:
        facts.append(("left of the stage", escaped(duration(run.seconds_left))))
    facts += [("time", escaped(time(seconds))), ("images", f"{images:,.0f}")]
    if stage.images_per_second is not None:
        facts.append(("speed", escaped(speed(stage.images_per_second, stage.seconds_per_step))))
    if measured and measured.best and measured.last:
        best, last = measured.best, measured.last
        name = escaped(measured.metric)
        facts.append((f"best {name}", f"{number(best.value)} <small>at step {best.step:,}</small>"))
        facts.append((f"last {name}", f"{number(last.value)} <small>at step {last.step:,}</small>"))
    facts.append(("changed", escaped(ago(run.changed, now))))
    return f"<dl>{''.join(f'<div><dt>{name}</dt><dd>{value}</dd></div>' for name, value in facts)}</dl>"


def _overview(runs: Sequence[RunRecord], heads: Sequence[str], now: datetime.datetime) -> str:
    rows = []
    for run, head in zip(runs, heads, strict=True):
        stage, measured = run.stage, run.measured
        assert stage is not None
        best, last = (measured.best, measured.last) if measured else (None, None)
        at = f" <small>at step {best.step:,}</small>" if best else ""
        rows.append(
            (
                head,
                _state(run),
                f"{escaped(stage.name)} <small>{escaped(stage.method)}</small>",
                f"{run.done(stage):,}" + (f" of {stage.steps:,}" if stage.steps else ""),
                escaped(measured.metric) if measured else "",
                number(best.value) + at if best else "",
                number(last.value) if last else "",
                escaped(ago(run.changed, now)),
            )
        )
    columns = ["run", "state", "stage", "step", "distance", "best", "last", "changed"]
    kept = [i for i in range(len(columns)) if any(row[i] for row in rows)]
    return table([columns[i] for i in kept], [[row[i] for i in kept] for row in rows], kind="numbers")


def _distances(runs: Sequence[RunRecord]) -> str:
    """A chart for each kind of measurement."""
    by_name: dict[str, list[Curve]] = {}
    for i, run in enumerate(runs):
        for stage in run.stages:
            for name in stage.log.measured():
                if curve := distances_of(i, run, stage, name):
                    by_name.setdefault(name, []).append(curve)
    return "".join(chart(name, curves, unit="lower is better") for name, curves in by_name.items())


def _stage_charts(runs: Sequence[RunRecord], stage: str) -> str:
    """The charts of a stage, the usual ones first and whatever else was logged folded."""
    found: dict[str, list[Curve]] = {}
    for i, run in enumerate(runs):
        for one in run.stages:
            for name in one.log.names() if one.name == stage else ():
                if (curve := curve_of(i, run, one, name)) and not _is_measurement(name, one):
                    found.setdefault(name, []).append(curve)
    usual = {name: row for row in _CHARTS for name in found if name == row[0] or name.startswith(f"{row[0]}/")}
    first = "".join(
        chart(name.replace(row[0], row[1], 1), found[name], unit=row[2], logarithmic=row[3])
        for name, row in usual.items()
    )
    others = [name for name in found if name not in usual and name not in _NO_CHARTS]
    rest = "".join(chart(name.replace("_", " "), found[name]) for name in others)
    content = f'<div class="charts">{first}</div>' if first else ""
    return content + (folded("more curves", f'<div class="charts">{rest}</div>') if rest else "")


def _is_measurement(name: str, stage: StageRecord) -> bool:
    return any(name == metric or name.startswith(f"{metric}/") for metric in stage.log.measured())


def _last_grids(runs: Sequence[RunRecord], heads: Sequence[str]) -> Iterator[str]:
    """The newest grid of each run."""
    for run, head in zip(runs, heads, strict=True):
        for stage in reversed(run.stages):
            if grids := grids_of(stage, 1):
                words = f"{head} <small>{escaped(stage.name)}, step {grids[-1].step:,}</small>"
                yield _figure(grids[-1], words, _PICTURE_BYTES // len(runs), run.name)
                break


def _figure(grid: Grid, caption: str, most_bytes: int, run: str = "") -> str:
    picture = embedded(grid, most_bytes)
    if picture is None:
        said = f'<p class="warn">{escaped(grid.path.name)} is damaged</p>'
        return f"<figure><figcaption>{caption}</figcaption>{said}</figure>"
    text = f"samples{f' of {run}' if run else ''} after {grid.step:,} steps"
    size = f'width="{picture.width}" height="{picture.height}"'
    return (
        f'<figure><figcaption>{caption}</figcaption><img src="{picture.address}" {size} alt="{escaped(text)}"></figure>'
    )
