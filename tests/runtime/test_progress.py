import io

import pytest
from rich.console import Console

from unistep.runtime import progress
from unistep.runtime.progress import pace, progress_bar


@pytest.mark.parametrize(
    ("made", "left", "seconds", "text"),
    [
        (0, 10, 5.0, ""),
        (5, 10, 0.0, ""),
        (1000, 9000, 10.0, "100 images/s, 1:30 left"),
        (5, 10, 2.0, "2.5 images/s, 0:04 left"),
        (2, 10, 23.0, "11.5 s/image, 1:55 left"),
        (1, 3600, 2.0, "2.0 s/image, 2:00:00 left"),
        (1, 3723, 1.0, "1.0 images/s, 1:02:03 left"),
        (10, 0, 1.0, "10 images/s, 0:00 left"),
    ],
)
def test_pace(made, left, seconds, text):
    assert pace(made, left, seconds) == text


def screen(monkeypatch, terminal: bool, active: bool = True, done: int = 0) -> str:
    """What a bar of 40 images writes on its way."""
    file = io.StringIO()
    monkeypatch.setattr(
        progress, "Console", lambda stderr: Console(file=file, force_terminal=terminal, width=100) if stderr else None
    )
    clock = iter(range(100))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with progress_bar(40, done, active=active) as update:
        update(done + 2)
    return file.getvalue()


def test_a_terminal_sees_how_far_it_is(monkeypatch):
    text = screen(monkeypatch, terminal=True)
    assert "2/40" in text
    assert "2.0 images/s, 0:19 left" in text


def test_images_that_were_there_do_not_count_for_the_speed(monkeypatch):
    text = screen(monkeypatch, terminal=True, done=20)
    assert "22/40" in text
    assert "2.0 images/s, 0:09 left" in text


@pytest.mark.parametrize(("terminal", "active"), [(False, True), (True, False)])
def test_nobody_else_sees_anything(monkeypatch, terminal, active):
    assert screen(monkeypatch, terminal, active).strip() == ""
