"""Charts as inline SVG, which takes its colours from the page's style and is described for those who do not see it."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

from unistep.watching.page.curves import Curve
from unistep.watching.page.markup import escaped, folded, number, short, table

_WIDTH, _HEIGHT = 340, 210
_LEFT, _RIGHT, _TOP, _BOTTOM = 48, 10, 10, 34
_DASHES = ("", "7 3", "2 3", "9 3 2 3")
COLOURS = 6
"""Number of colours; runs of the same colour differ in their dashes."""
_LOG_FROM = 30  # ratio of the largest to the smallest value from which an axis is logarithmic
_ROWS = 12


def chart(title: str, curves: Sequence[Curve], *, unit: str = "", logarithmic: bool | None = None) -> str:
    """A figure with the curves, and their values as a table that unfolds.

    Args:
        title: name of the values.
        curves: curves, at least one.
        unit: unit of the values; empty for none.
        logarithmic: whether the axis of the values is, where all are positive; None lets the values decide.
    """
    xs = [point.x for curve in curves for point in curve.points]
    ys = [y for curve in curves for point in curve.points for y in (point.low, point.high)]
    right = max(xs) or 1.0
    if logarithmic is None:
        logarithmic = max(ys) > _LOG_FROM * min(ys)
    logarithmic = logarithmic and min(ys) > 0
    ticks, low, high = _log_axis(min(ys), max(ys)) if logarithmic else _axis(min(ys), max(ys))
    scale: Callable[[float], float] = (lambda y: math.log10(max(y, low))) if logarithmic else (lambda y: y)
    bottom, span = scale(low), (scale(high) - scale(low)) or 1.0

    def x_at(x: float) -> float:
        return round(_LEFT + (_WIDTH - _LEFT - _RIGHT) * x / right, 1)

    def y_at(y: float) -> float:
        return round(_HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * (scale(y) - bottom) / span, 1)

    x_ticks = [tick for tick in _axis(0, right)[0] if tick <= right * 1.0001]
    parts = [_grid(x_ticks, ticks, x_at, y_at)]
    parts += [_band(curve, x_at, y_at) for curve in curves if not curve.dots]
    parts += [_dots(curve, x_at, y_at) if curve.dots else _line(curve, x_at, y_at) for curve in curves]
    text = f"{title}{f' in {unit}' if unit else ''} over images; " + "; ".join(map(_words, curves))
    said = f"{escaped(title)}{f' <small>{escaped(unit)}</small>' if unit else ''}"
    return (
        f"<figure><figcaption>{said}{' <small>(logarithmic)</small>' if logarithmic else ''}</figcaption>"
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escaped(text)}">{"".join(parts)}</svg>'
        f"{folded('values', _values(title, curves))}</figure>"
    )


def swatch(run: int) -> str:
    """A piece of a run's line, for legends and tables."""
    return (
        f'<svg class="swatch" viewBox="0 0 26 8" aria-hidden="true"><path class="c{run % COLOURS}" d="M0 4H26"'
        f"{_dashes(run)}/></svg>"
    )


def _words(curve: Curve) -> str:
    first, last = curve.points[0].y, curve.points[-1].y
    return f"{curve.name} from {number(first)} to {number(last)}, least {number(min(p.y for p in curve.points))}"


def _values(title: str, curves: Sequence[Curve]) -> str:
    rows = []
    for curve in curves:
        points = curve.points[:: -(-len(curve.points) // _ROWS)]
        points = points if points[-1] is curve.points[-1] else (*points, curve.points[-1])
        for point in points:
            within = f"{number(point.low)} to {number(point.high)}" if point.low < point.high else ""
            rows.append((escaped(curve.name), f"{point.x:,.0f}", number(point.y), within))
    return table(["run", "images", escaped(title), "95% interval" if curves[0].dots else "range"], rows)


def _grid(
    x_ticks: Sequence[float], ticks: Sequence[float], x_at: Callable[[float], float], y_at: Callable[[float], float]
) -> str:
    floor, end = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    lines = "".join(f'<path class="grid" d="M{_LEFT} {y_at(tick)}H{end}"/>' for tick in ticks)
    names = "".join(f'<text x="{_LEFT - 6}" y="{y_at(tick) + 4}" class="y">{short(tick)}</text>' for tick in ticks)
    below = "".join(f'<text x="{x_at(tick)}" y="{floor + 17}" class="x">{short(tick)}</text>' for tick in x_ticks)
    return f'{lines}<path class="axis" d="M{_LEFT} {floor}H{end}"/>{names}{below}' + (
        f'<text x="{end}" y="{_HEIGHT - 3}" class="y">images</text>'
    )


def _line(curve: Curve, x_at: Callable[[float], float], y_at: Callable[[float], float]) -> str:
    if len(curve.points) == 1:
        return _dots(curve, x_at, y_at)
    path = "L".join(f"{x_at(p.x)} {y_at(p.y)}" for p in curve.points)
    look = f'class="c{curve.run % COLOURS}"{_dashes(curve.run)}'
    return f'<path {look} d="M{path}"><title>{escaped(_words(curve))}</title></path>'


def _band(curve: Curve, x_at: Callable[[float], float], y_at: Callable[[float], float]) -> str:
    """The range of the lines that each point stands for."""
    if not any(p.low < p.high for p in curve.points):
        return ""
    there = [f"{x_at(p.x)} {y_at(p.high)}" for p in curve.points]
    back = [f"{x_at(p.x)} {y_at(p.low)}" for p in reversed(curve.points)]
    return f'<path class="band b{curve.run % COLOURS}" d="M{"L".join(there + back)}Z"/>'


def _dots(curve: Curve, x_at: Callable[[float], float], y_at: Callable[[float], float]) -> str:
    """Measurements, joined, each with its interval; the lowest has a ring."""
    colour, best = curve.run % COLOURS, min(curve.points, key=lambda p: p.y)
    parts = [
        f'<path class="c{colour} thin"{_dashes(curve.run)} d="M{x_at(a.x)} {y_at(a.y)}L{x_at(b.x)} {y_at(b.y)}"/>'
        for a, b in pairwise(curve.points)
    ]
    for p in curve.points:
        text = f"{curve.name}: {number(p.y)} after {p.x:,.0f} images"
        if p.low < p.high:
            text += f", 95% interval {number(p.low)} to {number(p.high)}"
            parts.append(f'<path class="c{colour} thin" d="M{x_at(p.x)} {y_at(p.low)}V{y_at(p.high)}"/>')
        ring = f'<circle class="ring c{colour}" cx="{x_at(p.x)}" cy="{y_at(p.y)}" r="7"/>' if p is best else ""
        dot = f'<circle class="d{colour}" cx="{x_at(p.x)}" cy="{y_at(p.y)}" r="3.5"/>'
        parts.append(f"<g><title>{escaped(text)}</title>{dot}{ring}</g>")
    return "".join(parts)


def _dashes(run: int) -> str:
    dashes = _DASHES[run // COLOURS % len(_DASHES)]
    return f' stroke-dasharray="{dashes}"' if dashes else ""


def _axis(low: float, high: float) -> tuple[list[float], float, float]:
    """Round numbers for the axis of values from `low` to `high`, and its ends; it begins at 0 where that is near."""
    low = 0.0 if 0 < low < 0.4 * high else low
    if low == high:
        low, high = (low - abs(low) * 0.1 - 1e-9, high + abs(high) * 0.1 + 1e-9) if low else (0.0, 1.0)
    raw = max((high - low) / 4, 1e-300)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(size * power for size in (1, 2, 2.5, 5, 10) if size * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-6), math.ceil(high / step - 1e-6)
    return [i * step for i in range(first, last + 1)], first * step, last * step


def _log_axis(low: float, high: float) -> tuple[list[float], float, float]:
    """Round numbers for the logarithmic axis of positive values, at most six of them, and its ends."""
    low = max(low, high * 1e-12, 1e-300)
    powers = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 2)
    marks = [size * 10.0**power for power in powers for size in (1, 3)]
    first = max(mark for mark in marks if mark <= low * 1.000001)
    last = min(mark for mark in marks if mark >= high * 0.999999)
    ticks = [mark for mark in marks if first <= mark <= last]
    if len(ticks) > 6:
        whole = [10.0**power for power in powers if first <= 10.0**power <= last]
        ticks = whole[:: -(-len(whole) // 6)]
    return ticks, first, last
