"""Progress displays, seen on a terminal and elsewhere."""

import io
from collections.abc import Callable
from typing import Any

import pytest
from rich.console import Console

from unistep.runtime import progress
from unistep.runtime.progress import Bar, pace, progress_bar, reading_bar, work_bar


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


@pytest.fixture
def screen(monkeypatch) -> Callable[..., str]:
    """screen(show, terminal=True): everything that `show()` writes."""

    def written(show: Callable[[], object], terminal: bool = True) -> str:
        file = io.StringIO()
        monkeypatch.setattr(progress, "may_show", lambda: True)
        monkeypatch.setattr(progress, "new_console", lambda: Console(file=file, force_terminal=terminal, width=100))
        clock = iter(range(100))
        monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
        show()
        return file.getvalue()

    return written


def images(active: bool = True, done: int = 0) -> None:
    with progress_bar(40, done, active=active) as update:
        update(done + 2)


def work(active: bool = True) -> None:
    with work_bar(active) as update:
        update("features of the samples", 0, 30)
        update("features of the samples", 20, 30)
        update("kernel distance", 0, 0)


def download(active: bool = True) -> None:
    content = io.BytesIO(bytes(1000))
    with reading_bar(content, 1000, "weights.pt", active=active) as file:
        assert len(file.read()) == 1000


def steps(active: bool = True) -> None:
    with Bar("student", 50, 5, status=True, timed=True, keep=True, active=active) as bar:
        bar.update(7, status="loss 0.5")


def test_a_terminal_sees_how_far_it_is(screen):
    text = screen(images)
    assert "2/40" in text and "2.0 images/s, 0:19 left" in text


def test_images_that_were_there_do_not_count_for_the_speed(screen):
    text = screen(lambda: images(done=20))
    assert "22/40" in text and "2.0 images/s, 0:09 left" in text


def test_one_piece_of_work_after_the_other(screen):
    text = screen(work)
    assert "kernel distance" in text


def test_a_download_and_steps(screen):
    assert "weights.pt" in screen(download)
    text = screen(steps)
    assert "student" in text and "7/50" in text and "loss 0.5" in text and "left" in text


@pytest.mark.parametrize("show", [images, work, download, steps])
def test_nobody_else_sees_anything(screen, show: Any):
    assert screen(show, terminal=False).strip() == ""
    assert screen(lambda: show(active=False)).strip() == ""


@pytest.mark.parametrize("show", [images, work])
def test_the_library_that_draws_is_not_imported_for_nobody(monkeypatch, show: Any):
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("a bar where nobody sees it")

    for name in ("FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(progress, "Bar", fail)
    monkeypatch.setattr(progress.sys, "stderr", io.StringIO())
    show()
    monkeypatch.setenv("FORCE_COLOR", "1")
    with pytest.raises(AssertionError):
        show()
