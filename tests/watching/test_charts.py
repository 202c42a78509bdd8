"""Charts show the values that were logged, whatever they are."""

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from unistep.watching.log import StageLog
from unistep.watching.page.chart import _axis, _log_axis, chart
from unistep.watching.page.curves import Curve, Point, curve_of, distances_of
from unistep.watching.page.markup import escaped, number, short
from unistep.watching.record import RunRecord, StageRecord


def stage(lines, batch_size=2):
    return StageRecord("student", Path("student"), "ect", 100, batch_size, 0, False, StageLog(tuple(lines)))


RUN = RunRecord(Path("mine"), "mine", "finished")


def points(*ys):
    return Curve(0, "mine", tuple(Point(float(x), y, y, y) for x, y in enumerate(ys, 1)))


def svg_of(figure: str) -> ElementTree.Element:
    return ElementTree.fromstring(re.findall(r"<svg viewBox.*?</svg>", figure)[0])


def test_a_curve_goes_through_its_points():
    root = svg_of(chart("loss", [points(1.0, 3.0, 2.0)]))
    line = next(path for path in root.iter("path") if path.get("class") == "c0")
    ys = [float(pair.split()[1]) for pair in line.get("d", "")[1:].split("L")]
    assert ys[1] < ys[2] < ys[0]  # larger values are further up
    assert "mine from 1 to 2, least 1" in root.get("aria-label", "")


@settings(max_examples=40)
@given(st.lists(st.floats(-1e290, 1e290), min_size=1, max_size=6))
@example([1e16, 5e-324])
@example([5e289, 3.0])
@example([1e16, 1e16 + 2])
@example([-1e290, 0.0, 1e290])
def test_any_values(ys):
    for logarithmic in (None, False, True):
        root = svg_of(chart("<b>", [points(*ys)], logarithmic=logarithmic))
        drawn = [n for path in root.iter("path") for n in re.findall(r"-?[\d.]+(?:e[-+]?\d+)?", path.get("d", ""))]
        assert all(-1 <= float(n) <= 400 for n in drawn) and drawn


@given(st.floats(1e-12, 1e12), st.floats(1, 1e9))
def test_axes_hold_what_they_are_for(low, ratio):
    for ticks, first, last in (_axis(low, low * ratio), _log_axis(low, low * ratio)):
        assert 1 <= len(ticks) <= 8 and ticks == sorted(ticks)
        assert first <= low * 1.00001 and last >= low * ratio * 0.9999


def test_many_lines_become_means_with_their_range():
    curve = curve_of(3, RUN, stage((step, {"loss": float(step % 2)}) for step in range(1, 10_001)), "loss")
    assert curve is not None and curve.run == 3 and 200 < len(curve.points) <= 250
    assert curve.points[-1].x == 20_000 and (curve.points[5].low, curve.points[5].y, curve.points[5].high) == (
        0,
        0.5,
        1,
    )
    assert 'class="band b3"' in chart("loss", [curve])


def test_images_are_those_of_the_log():
    """The batch may have been another one before."""
    lines = [(10, {"loss": 1.0, "images": 50.0}), (20, {"loss": 2.0}), (20, {"KD": 3.0, "KD/low": 2.0, "KD/high": 4.0})]
    curve = curve_of(0, RUN, stage(lines), "loss")
    assert curve is not None and [p.x for p in curve.points] == [50, 40]
    distances = distances_of(0, RUN, stage(lines), "KD")
    assert distances is not None and distances.points == (Point(40, 3.0, 2.0, 4.0),)
    assert "95% interval 2 to 4" in chart("KD", [distances])
    assert curve_of(0, RUN, stage(lines), "nothing") is distances_of(0, RUN, stage(lines), "nothing") is None


def test_runs_of_one_colour_differ_in_their_dashes():
    figure = chart("loss", [Curve(i, str(i), points(1.0, 2.0).points) for i in range(24)])
    looks = re.findall(r'<path (class="c\d"(?: stroke-dasharray="[^"]*")?) d="M', figure)
    assert len(set(looks)) == 24


@pytest.mark.parametrize(("value", "text"), [(0.0, "0"), (1234567.0, "1,234,567"), (0.00012345, "0.0001234")])
def test_numbers(value, text):
    assert number(value) == text


def test_short_numbers_and_texts():
    assert [short(n) for n in (0, 0.05, 20_000, 1.5e6, 2e9)] == ["0", "0.05", "20k", "1.5M", "2G"]
    assert [short(n) for n in (7.5e-4, 1e-5, -2.25e-4, 0.0075)] == ["7.5e-4", "1e-5", "-2.25e-4", "0.0075"]
    assert escaped("<a href='x'>\n&") == "&lt;a href=&#x27;x&#x27;&gt;\\n&amp;"
    assert len(escaped("<" * 1000)) < 1700
