"""Chromium, headless, driven by Playwright; and what tests of a page do with it."""

import base64
import io
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

try:
    from playwright import sync_api as api
except ImportError:
    api = None
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
NEEDED = [
    pytest.mark.browser,
    pytest.mark.skipif(api is None, reason="playwright is not installed"),
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium"),
]
WAIT = int(os.environ.get("UNISTEP_WAIT", "90_000"))
SCREENS = os.environ.get("UNISTEP_SCREENS")


_DRIVERS = []  # those that are running; Playwright allows one a thread


@contextmanager
def launched(flags: Sequence[str] = ()) -> Iterator:
    """A running browser; another may be running already."""
    with ExitStack() as stack:
        driver = _DRIVERS[-1] if _DRIVERS else stack.enter_context(api.sync_playwright())
        _DRIVERS.append(driver)
        stack.callback(_DRIVERS.pop)
        started = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", *flags])
        yield started
        started.close()


def pictures(page, within: str) -> list[np.ndarray]:
    urls = page.eval_on_selector_all(f"{within} img", "all => all.map(one => one.src)")
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))) for url in urls]


def until(page, expression: str, argument: object = None) -> None:
    """Waits until an expression is true; Playwright's own way needs `eval`, which the page forbids."""
    end = time.monotonic() + WAIT / 1000
    while not page.evaluate(expression, argument):
        assert time.monotonic() < end, expression
        page.wait_for_timeout(50)


def image_of(page, within: str) -> str:
    return page.eval_on_selector(f"{within} img", "one => one.src")


def wait_for(page, within: str, count: int) -> None:
    until(page, f"document.querySelectorAll('{within} img').length >= {count}")


def draw(page, points: list[tuple[float, float]], end: bool = True) -> None:
    box = page.locator(".easel").bounding_box()
    places = [(box["x"] + box["width"] * x, box["y"] + box["height"] * y) for x, y in points]
    page.mouse.move(*places[0])
    page.mouse.down()
    for place in places[1:]:
        page.mouse.move(*place, steps=3)
    if end:
        page.mouse.up()


def screen(page, name: str, kind: str = "serve") -> None:
    if SCREENS:
        file = io.BytesIO(page.screenshot(animations="disabled"))
        image = Image.open(file).convert("RGB").quantize(255, dither=Image.Dither.NONE)
        image.save(Path(SCREENS) / f"{kind}-{name}.png", optimize=True)
