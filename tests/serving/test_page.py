"""The page in a real browser: Chromium, headless, driven by Playwright. Run by `make test-browser`."""

import base64
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from urllib.request import Request, urlopen

import numpy as np
import pytest
from browsing import NEEDED, WAIT, draw, image_of, launched, pictures, screen, until, wait_for
from PIL import Image
from server_process import server_process

import unistep
from unistep.serving.config import ServerConfig
from unistep.serving.run import make_server
from unistep.serving.security import Access

pytestmark = NEEDED


@pytest.fixture(scope="module")
def browser() -> Iterator:
    with launched() as started:
        yield started


@pytest.fixture
def open_page(browser, live):
    """A function that opens the page; at the end nothing may stand in the console, or have been asked elsewhere."""
    contexts, faults = [], []

    def start(path: str = "/", *, address: str = live.address, expected: str = "", **given):
        context = browser.new_context(**{"viewport": {"width": 1200, "height": 900}, "accept_downloads": True} | given)
        context.grant_permissions(["clipboard-read", "clipboard-write"], origin=address)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(WAIT)

        def note(text: str) -> None:
            if not (expected and expected in text):
                faults.append(text)

        page.on("console", lambda message: note(message.text) if message.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("request", lambda request: request.url.startswith((address, "data:", "blob:")) or note(request.url))
        page.goto(address + path)
        return page

    yield start
    for context in contexts:
        context.close()
    assert not faults


def test_making_shows_the_images_of_sample(open_page):
    page = open_page()
    wait_for(page, ".grid", 24)
    screen(page, "make-light")
    page.get_by_role("button", name="3", exact=True).click()
    page.get_by_role("combobox", name="Pictures").select_option("4")
    page.get_by_label("Steps").select_option("2")
    page.get_by_label("Seed", exact=True).fill("7")
    page.keyboard.press("Tab")
    until(page, "document.querySelector('.time').textContent.startsWith('4 pictures')")
    expected = unistep.sample(num_images=4, seed=7, steps=2, class_labels=3, progress=False).pixels
    for shown, pixels in zip(pictures(page, ".grid"), expected, strict=True):
        assert (shown == pixels[0].numpy()).all()
    assert " ms" in page.locator(".time").inner_text()


def test_a_picture_is_enlarged_saved_and_edited(open_page):
    page = open_page()
    wait_for(page, ".grid", 24)
    shown = pictures(page, ".grid")[1]
    page.get_by_role("button", name="Picture 2 of").click()
    with page.expect_download() as saved:
        page.get_by_role("button", name="Download PNG").click()
    assert (np.asarray(Image.open(saved.value.path())) == shown).all()
    page.get_by_role("button", name="More like this").click()
    assert page.get_by_label("Task").input_value() == "vary"
    wait_for(page, ".results", 3)


def test_the_dice_and_the_lock(open_page):
    page = open_page()
    seed = page.get_by_label("Seed", exact=True)
    first = seed.input_value()
    page.get_by_role("button", name="Keep this seed").click()
    page.get_by_role("button", name="Make", exact=True).click()
    assert seed.input_value() == first
    page.get_by_role("button", name="Another seed").click()
    assert seed.input_value() != first


def test_a_drawn_mask_is_painted_anew_and_the_rest_is_kept(open_page):
    page = open_page()
    page.click("#tab-edit")
    until(page, "document.querySelector('#panel').innerText.includes('Mark a part')")
    draw(page, [(0.2, 0.8), (0.8, 0.8), (0.2, 0.9), (0.8, 0.9)])
    wait_for(page, ".results", 3)
    page.wait_for_timeout(500)
    screen(page, "edit-light")
    before = pictures(page, ".compare")[0]
    for result in pictures(page, ".results"):
        assert (result[:14] == before[:14, :, 0]).all()
    page.get_by_label("Before and after").fill("80")
    assert "80%" in page.eval_on_selector(".compare img:last-of-type", "one => one.style.clipPath")


def test_every_task_gives_results(open_page):
    page = open_page()
    page.click("#tab-edit")
    until(page, "document.querySelector('#panel').innerText.includes('Mark a part')")
    for task in ("strokes", "vary", "denoise", "deblur", "upscale", "outpaint"):
        page.eval_on_selector(".results", "one => one.replaceChildren()")
        page.get_by_label("Task").select_option(task)
        wait_for(page, ".results", 3)
        assert page.get_by_role("alert").is_hidden(), task


def test_a_tab_chosen_before_the_models_are_there_opens_with_them(open_page):
    page = open_page()
    held = []
    page.route("**/v1/models", lambda route: held.append(route))
    page.reload()
    page.click("#tab-compare")
    page.click("#tab-walk")
    assert page.get_attribute("#tab-walk", "aria-selected") == "true"
    held[0].continue_()
    until(page, "document.querySelector('#panel .time')?.textContent.includes('frames in')")


def test_tabs_without_models_keep_the_reason_in_sight(open_page):
    page = open_page(expected="500")
    page.route("**/v1/models", lambda route: route.fulfill(status=500, body="{}"))
    page.reload()
    until(page, "!document.querySelector('#notice').hidden")
    for tab in ("edit", "walk", "compare", "make"):
        page.click(f"#tab-{tab}")
        assert "500" in page.get_by_role("alert").inner_text()


def test_the_result_follows_the_brush(open_page):
    page = open_page()
    page.click("#tab-edit")
    wait_for(page, ".easel, .results, #panel", 0)
    page.get_by_label("Task").select_option("strokes")
    page.get_by_role("button", name="Clear all").click()
    draw(page, [(0.3, 0.2), (0.7, 0.2), (0.4, 0.8)], end=False)
    wait_for(page, ".results", 3)  # the button is still down
    first = pictures(page, ".results")[0]
    draw_on = page.locator(".easel").bounding_box()
    page.mouse.move(draw_on["x"] + draw_on["width"] * 0.9, draw_on["y"] + draw_on["height"] * 0.9, steps=6)
    until(
        page,
        "old => document.querySelector('.results img').src !== old",
        image_of(page, ".results"),
    )
    page.mouse.up()
    assert first.shape == (28, 28)


def test_outdated_requests_are_cancelled(open_page):
    page = open_page()
    ended = []
    page.on("requestfailed", lambda request: ended.append(request.url))
    page.get_by_role("combobox", name="Pictures").select_option("96")
    for _ in range(3):
        page.get_by_role("button", name="Make", exact=True).click()
    until(page, "document.querySelector('.time').textContent.startsWith('96 pictures')")
    assert len(ended) >= 2


def test_a_walk_is_played_and_saved(open_page):
    page = open_page()
    page.click("#tab-walk")
    page.get_by_label("Frames").select_option("12")
    until(page, "document.querySelector('#panel .time').textContent.includes('13 frames in')")
    screen(page, "walk-light")
    first = pictures(page, ".film")[0]
    page.get_by_label("Place on the way").fill("8")
    assert (pictures(page, ".film")[0] != first).any()
    page.get_by_role("button", name="Play").click()
    page.wait_for_timeout(400)
    page.get_by_role("button", name="Pause").click()
    with page.expect_download() as saved:
        page.get_by_role("button", name="Save GIF").click()
    with Image.open(saved.value.path()) as film:
        assert film.format == "GIF" and film.n_frames >= 12
        film.seek(film.n_frames - 1)
        film.load()


def test_a_walk_between_two_pictures(open_page, tmp_path):
    page = open_page()
    page.click("#tab-walk")
    until(page, "document.querySelector('#panel .time').textContent.includes('frames in')")
    before = pictures(page, ".film")[0]
    digits = unistep.sample(num_images=2, class_labels=[0, 1], progress=False).pixels
    for number, pixels in enumerate(digits):
        Image.fromarray(pixels[0].numpy()).resize((84, 84)).save(tmp_path / f"{number}.png")
    files = page.locator("input[type=file]")
    files.nth(0).set_input_files(tmp_path / "0.png")
    page.get_by_alt_text("From a picture").wait_for()
    page.locator("input[type=file]").nth(1).set_input_files(tmp_path / "1.png")
    until(page, "document.querySelector('.film img').src !== " + repr(image_of(page, ".film")))
    assert (pictures(page, ".film")[0] != before).any()
    page.click("#code summary")
    page.get_by_role("button", name="unistep", exact=True).click()
    assert "interpolate --input first.png second.png" in page.locator("#snippet").inner_text()


def test_numbers_of_steps_are_compared(open_page):
    page = open_page()
    page.click("#tab-compare")
    wait_for(page, ".lines", 24)
    until(page, "!document.querySelector('.lines').innerText.includes('…')")
    screen(page, "compare-light")
    text = page.locator(".lines").inner_text()
    assert all(name in text for name in ("1 step", "2 steps", "4 steps")) and text.count("a picture") == 3


def test_a_link_restores_what_was_made(open_page):
    page = open_page()
    wait_for(page, ".grid", 24)
    page.get_by_role("combobox", name="Pictures").select_option("4")
    page.get_by_role("button", name="8", exact=True).click()
    page.get_by_role("button", name="Make", exact=True).click()
    until(page, "document.querySelector('.time').textContent.startsWith('4 pictures')")
    page.click("#share")
    link = page.evaluate("navigator.clipboard.readText()")
    other = open_page(link.partition("/#")[2] and "/#" + link.partition("/#")[2])
    wait_for(other, ".grid", 4)
    for one, two in zip(pictures(page, ".grid"), pictures(other, ".grid"), strict=True):
        assert (one == two).all()


def test_a_link_restores_an_edit(open_page):
    page = open_page()
    page.click("#tab-edit")
    until(page, "document.querySelector('#panel').innerText.includes('Mark a part')")
    draw(page, [(0.2, 0.8), (0.8, 0.8)])
    wait_for(page, ".results", 3)
    until(page, "document.querySelector('#panel .time').textContent.includes('results in')")
    page.wait_for_load_state("networkidle")
    page.click("#share")
    link = page.evaluate("navigator.clipboard.readText()")
    other = open_page("/#" + link.partition("/#")[2])
    wait_for(other, ".results", 3)
    other.wait_for_load_state("networkidle")
    for one, two in zip(pictures(page, ".results"), pictures(other, ".results"), strict=True):
        assert (one == two).all()


def test_a_damaged_link_opens_the_page(open_page):
    for fragment in ("x", "e30", base64.b64encode(b'{"tab": "constructor"}').decode(), "%00"):
        wait_for(open_page("/#" + fragment), ".grid", 24)


def test_the_code_makes_the_same_images(open_page, tmp_path):
    page = open_page()
    page.get_by_role("combobox", name="Pictures").select_option("1")
    until(page, "document.querySelector('.time').textContent.startsWith('1 pictures')")
    shown = pictures(page, ".grid")[0]
    page.click("#code summary")
    texts = {}
    for name in ("curl", "Python", "Python (openai)", "Node", "unistep"):
        page.get_by_role("button", name=name, exact=True).click()
        texts[name] = page.locator("#snippet").inner_text()
    page.get_by_role("button", name="Copy", exact=True).click()
    assert page.evaluate("navigator.clipboard.readText()") == texts["unistep"]
    compile(texts["Python (openai)"], "code", "exec")
    subprocess.run([sys.executable, "-c", texts["Python"]], cwd=tmp_path, check=True, timeout=120)
    assert (np.asarray(Image.open(tmp_path / "image-0.png")) == shown).all()
    if shutil.which("node"):
        (tmp_path / "image-0.png").unlink()
        (tmp_path / "code.mjs").write_text(texts["Node"])
        subprocess.run(["node", "code.mjs"], cwd=tmp_path, check=True, timeout=120)
        assert (np.asarray(Image.open(tmp_path / "image-0.png")) == shown).all()
    words = texts["unistep"].split()
    subprocess.run([sys.executable, "-m", *words], cwd=tmp_path, check=True, timeout=180)


@pytest.mark.parametrize(("width", "height", "scheme"), [(390, 844, "dark"), (390, 844, "light"), (1200, 900, "dark")])
def test_phones_and_dark_mode(open_page, width, height, scheme):
    page = open_page(viewport={"width": width, "height": height}, color_scheme=scheme)
    wait_for(page, ".grid", 24)
    kind = f"{'phone' if width < 500 else 'make'}-{scheme}"
    screen(page, kind)
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    brightness = int(background.partition("(")[2].partition(",")[0])
    assert (brightness < 60) == (scheme == "dark")
    for tab in ("make", "edit", "walk", "compare"):
        page.click(f"#tab-{tab}")
        page.wait_for_timeout(300)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), tab
    if width < 500:
        page.click("#tab-edit")
        until(page, "document.querySelector('#panel').innerText.includes('Mark a part')")
        draw(page, [(0.2, 0.8), (0.8, 0.8)])
        wait_for(page, ".results", 3)
        screen(page, f"phone-edit-{scheme}")


def test_everything_has_a_name_and_the_keyboard_reaches_it(open_page):
    page = open_page()
    unnamed = """all => all.filter(one => one.offsetParent && !(one.ariaLabel || one.textContent.trim() || one.title
        || one.labels?.length || one.alt)).map(one => one.outerHTML)"""
    for tab in ("make", "edit", "walk", "compare"):
        page.click(f"#tab-{tab}")
        page.wait_for_timeout(500)
        assert page.eval_on_selector_all("button, input, select, a, [tabindex='0']", unnamed) == [], tab
        assert page.eval_on_selector_all("img:not([alt])", "all => all.length") == 0
        ids = page.eval_on_selector_all("[id]", "all => all.map(one => one.id)")
        assert len(ids) == len(set(ids))
    page.focus("#tab-compare")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.id") == "tab-make"
    page.get_by_role("tab", name="Make").press("ArrowRight")
    assert page.get_by_role("tab", name="Draw and edit").get_attribute("aria-selected") == "true"
    canvas = page.get_by_label("Brush here")
    until(page, "document.querySelector('#panel').innerText.includes('Mark a part')")
    canvas.focus()
    for _ in range(6):
        page.keyboard.press("Shift+ArrowDown")
    wait_for(page, ".results", 3)


def test_a_busy_and_a_gone_server_are_told(open_page):
    config = ServerConfig(rate=1 / 60)
    server = make_server({"mnist": None}, config, Access(), host="127.0.0.1", port=0, dtype="fp32", device="cpu")
    server.start()
    page = open_page(address=server.address, expected="Failed to load resource")
    wait_for(page, ".grid", 24)
    page.get_by_role("button", name="Make", exact=True).click()
    page.get_by_role("alert").get_by_text("The server is busy").wait_for()
    server.stop()
    page.get_by_role("button", name="Make", exact=True).click()
    page.get_by_role("alert").get_by_text("The server does not answer").wait_for()


def test_the_first_minute(browser, record_property):
    started = time.monotonic()
    words = [sys.executable, "-m", "unistep", "serve", "--port", "0"]
    with server_process(words, text=True) as server:
        line = server.stderr.readline()
        address = re.search(r"http://127\.0\.0\.1:\d+", line)
        assert address, line
        page = browser.new_page()
        page.goto(address[0])
        wait_for(page, ".grid", 1)
        seconds = time.monotonic() - started
        page.close()
        server.terminate()
        server.communicate(timeout=60)
        assert server.returncode == 0
    record_property("seconds", seconds)
    print(f"{seconds:.1f} s from the command to the first image seen")
    assert seconds < 60


def test_a_token_is_asked_for(open_page):
    token = "0123456789abcdef-token"
    access = Access(tokens=(token,))
    server = make_server({"mnist": None}, ServerConfig(), access, host="127.0.0.1", port=0, dtype="fp32", device="cpu")
    server.start()
    page = open_page("/livez", address=server.address, expected="401")
    page.on("dialog", lambda dialog: dialog.accept(token))
    page.goto(server.address)
    wait_for(page, ".grid", 24)
    server.stop()


def test_the_page_is_small_and_what_it_sends_is_documented(live):
    from unistep.serving.app import PAGE

    assert sum(path.stat().st_size for path in PAGE.iterdir()) < 150_000
    with urlopen(Request(live.address + "/openapi.json"), timeout=20) as answer:
        assert "/v1/images/edits" in json.load(answer)["paths"]
