"""An exported page in Chromium, from a plain static host in a subfolder. Run by `make test-browser`."""

import base64
import functools
import http.server
import io
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from browsing import NEEDED, WAIT, draw, image_of, launched, pictures, screen, until, wait_for
from PIL import Image

import unistep
from unistep.core.pixels import to_uint8
from unistep.core.random import ImageRandom, image_seed
from unistep.errors import UserError
from unistep.generation.labels import random_labels
from unistep.generation.plan import make_plan

pytestmark = NEEDED


class Host:
    """A static host as `python -m http.server` is one: no headers, no knowledge of pages."""

    def __init__(self, root: Path) -> None:
        self.asked: list[str] = []
        asked = self.asked

        class Handler(http.server.SimpleHTTPRequestHandler):
            def log_message(self, format: str, *args: object) -> None:
                asked.append(self.path)

        handler = functools.partial(Handler, directory=str(root))
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture(scope="module")
def root(tmp_path_factory, saved) -> Path:
    """A folder with three pages below it."""
    place = tmp_path_factory.mktemp("static")
    try:
        for name in ("digits", "half"):
            dtype = "fp16" if name == "half" else "fp32"
            unistep.export("mnist", place / "pages" / name, to="web", dtype=dtype, batches=[2], progress=False)
        flow_map, fields = {"flow_map": True, "sigma_min": 0.0, "guidance_scale": 2.0}, {"num_class_embeds": 3}
        model = saved("consistency", info=flow_map, end_embedding=True, guidance_embedding=True, **fields)
        (place / "model").symlink_to(model)
        unistep.export(model, place / "pages" / "map", to="web", batches=[2], progress=False)
    except UserError as error:
        pytest.skip(f"no onnxruntime-web: {error}")
    return place


@pytest.fixture
def host(root) -> Iterator[Host]:
    started = Host(root)
    yield started
    started.stop()


@pytest.fixture(scope="module")
def browser() -> Iterator:
    with launched() as started:
        yield started


@pytest.fixture
def open_page(browser, host):
    """A function that opens a page as a first visitor; nothing may stand in the console or be asked of another host."""
    contexts, faults = [], []

    def start(path: str = "/pages/digits/", *, expected: str | None = None, loads: bool = True, **given):
        context = browser.new_context(**{"viewport": {"width": 1200, "height": 900}, "accept_downloads": True} | given)
        context.grant_permissions(["clipboard-read", "clipboard-write"], origin=host.address)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(WAIT)

        def note(text: str) -> None:
            if expected is None or expected not in text:
                faults.append(text)

        page.on("console", lambda message: note(message.text) if message.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: faults.append(str(error)))
        context.on("request", lambda one: one.url.startswith((host.address, "data:", "blob:")) or note(one.url))
        page.goto(host.address + path)
        if loads:
            page.locator("#runs").get_by_text("Computed in this browser").wait_for()
        return page

    yield start
    for context in contexts:
        context.close()
    assert not faults


def makes(page, bodies: str) -> np.ndarray:
    """Images that the page's own module makes of some requests, one after the other."""
    code = f"""async () => {{ const {{ make }} = await import("./page/api.js"), all = [];
        for (const body of {bodies}) {{
            const made = [];
            await make(body, (number, url) => {{ made[number] = url; }});
            all.push(...made);
        }}
        return all; }}"""
    return np.stack([picture(url) for url in page.evaluate(code)]).astype(int)


def picture(url: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))))


def marks(page) -> None:
    """Waits until the page asks for marks on its picture."""
    until(page, "document.querySelector('#panel').innerText.includes('Mark a part')")


def test_a_first_visitor_makes_the_images_of_sample(open_page):
    page = open_page()
    wait_for(page, ".grid", 24)
    until(page, "document.querySelector('.time').textContent.startsWith('24 pictures')")
    screen(page, "make-light", "web")
    assert page.evaluate("crossOriginIsolated") and "thread" in page.locator("#runs").inner_text()
    assert page.locator("#api").is_hidden()
    expected = unistep.sample(num_images=24, progress=False).pixels.numpy()[:, 0]
    assert (np.abs(np.stack(pictures(page, ".grid")) - expected.astype(int)) <= 1).mean() >= 0.999
    page.get_by_role("button", name="Picture 2 of").click()
    page.get_by_role("button", name="More like this").click()
    wait_for(page, ".results", 3)


def test_a_hundred_seeds_make_the_images_of_python(open_page, record_property):
    page = open_page()
    mine = makes(page, "Array.from({ length: 100 }, (_, seed) => ({ n: 1, seed }))")
    model, seeds = unistep.load("mnist"), range(100)
    labels = torch.cat([random_labels(seed, [0], 10) for seed in seeds])
    random = ImageRandom([image_seed(seed, 0) for seed in seeds])
    with torch.no_grad():
        made = make_plan(model.info).sample(model.denoiser, random.randn(1, 28, 28), labels, random)
    theirs = to_uint8(made).numpy()[:, 0].astype(int)
    for seed in (0, 41, 99):
        assert (
            np.abs(theirs[seed] - unistep.sample(num_images=1, seed=seed, progress=False).pixels.numpy()) <= 1
        ).all()
    apart = np.abs(mine - theirs)
    record_property("equal", float((apart == 0).mean()))
    print(f"100 seeds: {(apart == 0).mean():.5%} of pixels equal, {(apart <= 1).mean():.5%} to one level")
    assert (apart <= 1).mean() >= 0.999 and apart.max() <= 8
    mine = makes(page, "[{ n: 12, seed: 5, steps: 2, class_labels: [3, 8] }]")
    theirs = unistep.sample(num_images=12, seed=5, steps=2, class_labels=[3, 8], progress=False).pixels.numpy()[:, 0]
    assert (np.abs(mine - theirs) <= 1).mean() >= 0.999


def test_a_flow_map_jumps_as_in_python(open_page, root):
    page = open_page("/pages/map/")
    mine = makes(page, "[{ n: 12, seed: 5, steps: 4 }, { n: 12, seed: 6 }]")
    for seed, steps, made in ((5, 4, mine[:12]), (6, 1, mine[12:])):
        theirs = unistep.sample(root / "model", num_images=12, seed=seed, steps=steps, progress=False).pixels.numpy()
        assert (np.abs(made - theirs[:, 0]) <= 1).mean() >= 0.999
    page.click("#tab-edit")
    marks(page)
    draw(page, [(0.2, 0.8), (0.8, 0.8)])
    wait_for(page, ".results", 3)
    assert page.get_by_role("alert").is_hidden()


def test_after_the_first_load_nothing_is_asked_and_the_host_may_go(open_page, host):
    page = open_page()
    wait_for(page, ".grid", 24)
    before = list(host.asked)
    assert all(path.startswith(("/pages/digits", "/favicon.ico")) for path in before)
    assert not any("asyncify" in path for path in before)  # which only a GPU needs
    for tab in ("edit", "walk", "compare", "make"):
        page.click(f"#tab-{tab}")
        page.wait_for_timeout(300)
    page.get_by_role("button", name="Make", exact=True).click()
    until(page, "document.querySelector('.time').textContent.startsWith('24 pictures')")
    wait_for(page, ".grid", 24)  # the line may still be that of the first images, while they are replaced
    first = pictures(page, ".grid")
    # Chromium looks for a newer service worker by itself.
    assert set(host.asked[len(before) :]) <= {"/pages/digits/sw.js", "/pages/digits/files.js"}
    page.click("#share")
    link = page.evaluate("navigator.clipboard.readText()")
    assert link.startswith(f"{host.address}/pages/digits/#")
    host.stop()
    page.goto("about:blank")
    page.goto(link)
    page.locator("#runs").get_by_text("thread").wait_for()
    until(page, "document.querySelector('.time')?.textContent.startsWith('24 pictures')")
    wait_for(page, ".grid", 24)
    assert all((one == two).all() for one, two in zip(first, pictures(page, ".grid"), strict=True))


@pytest.mark.slow
def test_a_drawn_mask_is_painted_as_python_paints_it(open_page, tmp_path):
    page = open_page()
    page.click("#tab-edit")
    marks(page)
    draw(page, [(0.2, 0.8), (0.8, 0.8), (0.2, 0.9), (0.8, 0.9)])
    wait_for(page, ".results", 3)
    until(page, "document.querySelector('#panel .time').textContent.includes('results in')")
    page.wait_for_timeout(1500)
    screen(page, "edit-light", "web")
    before, made = pictures(page, ".compare")[0], np.stack(pictures(page, ".results")).astype(int)
    assert (made[:, :14] == before[:14, :, 0]).all()
    link = page.evaluate("JSON.parse(atob(location.hash.slice(1).replaceAll('-', '+').replaceAll('_', '/'))).edit")
    mask = tmp_path / "mask.png"
    marked = picture(link["mask"])[..., 3] > 64
    Image.fromarray((marked * 255).astype(np.uint8)).save(mask)
    expected = unistep.edit(
        "mnist", Image.fromarray(before[..., 0]), "inpaint", mask=mask, candidates=3, seed=link["seed"],
        class_labels=link.get("label"), progress=False,
    )[0].candidates.numpy()[:, 0]  # fmt: skip
    assert (np.abs(made - expected) <= 1).mean() >= 0.99


def test_the_result_follows_the_brush_in_every_task(open_page):
    page = open_page()
    page.click("#tab-edit")
    marks(page)
    tasks = page.get_by_label("Task").locator("option").all()
    assert [one.get_attribute("value") for one in tasks] == [
        "inpaint", "strokes", "vary", "denoise", "deblur", "upscale", "outpaint",
    ]  # fmt: skip
    page.get_by_label("Task").select_option("strokes")
    page.get_by_role("button", name="Clear all").click()
    draw(page, [(0.3, 0.2), (0.7, 0.2), (0.4, 0.8)], end=False)
    wait_for(page, ".results", 3)  # the button is still down
    first = image_of(page, ".results")
    box = page.locator(".easel").bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.9, box["y"] + box["height"] * 0.9, steps=6)
    until(page, "old => document.querySelector('.results img').src !== old", first)
    page.mouse.up()
    for task in ("vary", "denoise", "deblur", "upscale", "outpaint"):
        page.eval_on_selector(".results", "one => one.replaceChildren()")
        page.get_by_label("Task").select_option(task)
        wait_for(page, ".results", 3)
        assert page.get_by_role("alert").is_hidden(), task


def test_walks_comparisons_and_code(open_page, tmp_path):
    page = open_page()
    page.click("#tab-walk")
    page.get_by_label("Frames").select_option("12")
    until(page, "document.querySelector('#panel .time').textContent.includes('13 frames in')")
    page.get_by_label("Place on the way").fill("8")
    screen(page, "walk-light", "web")
    expected = unistep.edit("mnist", None, "walk", seeds=[3, 8], frames=12, progress=False).frames.numpy()
    assert (np.abs(pictures(page, ".film")[0] - expected[8, 0].astype(int)) <= 1).mean() >= 0.999
    with page.expect_download() as saved:
        page.get_by_role("button", name="Save GIF").click()
    assert Path(saved.value.path()).read_bytes().startswith(b"GIF89a")
    page.click("#tab-compare")
    wait_for(page, ".lines", 24)
    until(page, "!document.querySelector('.lines').innerText.includes('…')")
    screen(page, "compare-light", "web")
    page.click("#tab-make")
    until(page, "document.querySelector('.time').textContent.startsWith('24 pictures')")
    page.click("#code summary")
    texts = {}
    for name in ("Python", "unistep", "JavaScript"):
        page.get_by_role("button", name=name, exact=True).click()
        texts[name] = page.locator("#snippet").inner_text()
    names: dict[str, object] = {}
    exec(texts["Python"].replace("images.png", str(tmp_path / "images.png")), names)
    assert len(names["images"]) == 24 and texts["unistep"].startswith("unistep sample mnist --num-images 24")
    # As it stands on a page, but for its import, which is one of a module.
    code = re.sub(r"import ({.*}) from (\S+);", r"const \1 = await import(\2);", texts["JavaScript"])
    page.evaluate(f"async () => {{ {code} }}")
    until(page, "document.querySelectorAll('body > img').length === 24")


def test_the_policy_forbids_everything_from_elsewhere(open_page):
    page = open_page(expected="Content Security Policy")
    answer = page.evaluate("fetch('http://127.0.0.1:1/').then(() => 'sent', error => error.name)")
    policy = page.evaluate("fetch('./').then(answer => answer.headers.get('Content-Security-Policy'))")
    assert answer == "TypeError" and policy.startswith("default-src 'none'") and "unsafe-inline" not in policy
    assert page.evaluate("try { eval('1') } catch (error) { error.name }") is not None


@pytest.mark.slow
def test_two_pages_of_one_host_keep_their_own_files(open_page):
    page = open_page()
    wait_for(page, ".grid", 24)
    page.goto(page.url.split("#")[0].replace("digits", "half"))
    page.locator("#runs").get_by_text("Computed in this browser").wait_for()
    wait_for(page, ".grid", 24)
    sizes = page.evaluate("""async () => { const all = {};
        for (const name of await caches.keys()) {
            const cache = await caches.open(name), model = (await cache.keys()).find(one => one.url.endsWith(".onnx"));
            all[model.url] = (await (await cache.match(model)).arrayBuffer()).byteLength;
        }
        return Object.values(all); }""")
    assert len(sizes) == 2 and 1.8 < sizes[0] / sizes[1] < 2.2
    expected = unistep.sample(num_images=24, progress=False).pixels.numpy()[:, 0]
    apart = np.abs(np.stack(pictures(page, ".grid")) - expected.astype(int))
    print(f"fp16: {(apart <= 1).mean():.4%} of pixels to one level, {(apart <= 2).mean():.4%} to two")
    assert (apart <= 2).mean() >= 0.99


def test_without_a_service_worker_one_thread_is_left(open_page):
    page = open_page(service_workers="block", expected="registration blocked")
    wait_for(page, ".grid", 24)
    assert page.locator("#runs").inner_text() == "Computed in this browser, on 1 thread."


def test_a_missing_network_is_told(open_page, root):
    network = root / "pages" / "digits" / "model.onnx"
    network.rename(network.with_suffix(".gone"))
    try:
        page = open_page(service_workers="block", loads=False, expected="")
        page.get_by_role("alert").wait_for()
        assert "model.onnx" in page.get_by_role("alert").inner_text()
    finally:
        network.with_suffix(".gone").rename(network)


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (390, "light")])
def test_phones(open_page, width, scheme):
    page = open_page(viewport={"width": width, "height": 844}, color_scheme=scheme)
    wait_for(page, ".grid", 24)
    screen(page, f"phone-{scheme}", "web")
    page.click("#tab-edit")
    marks(page)
    draw(page, [(0.2, 0.8), (0.8, 0.8)])
    wait_for(page, ".results", 3)
    screen(page, f"phone-edit-{scheme}", "web")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.slow
def test_a_gpu_is_compared_and_left_where_it_is_slow(root):
    """WebGPU in software: right, and slower than the processor."""
    host = Host(root)
    with launched(["--enable-unsafe-webgpu"]) as started:
        page = started.new_page()
        page.set_default_timeout(WAIT)
        page.goto(f"{host.address}/pages/digits/")
        page.locator("#runs").get_by_text("Computed in this browser").wait_for()
        found = page.locator("#runs").get_attribute("title")
        page.reload()
        page.locator("#runs").get_by_text("Computed in this browser").wait_for()
        again = page.locator("#runs").get_attribute("title")
        page.goto(f"{host.address}/pages/half/")
        page.locator("#runs").get_by_text("Computed in this browser").wait_for()
        half = page.locator("#runs").get_attribute("title")
        halves = page.evaluate("navigator.gpu?.requestAdapter().then(one => !!one?.features.has('shader-f16'))")
    host.stop()
    if found == "GPU: there is none":
        pytest.skip("this Chromium has no WebGPU in software")
    assert found.startswith(("GPU: slower", "GPU: does not run the network: too slow"))
    assert again == "GPU: known to be wrong or slower"
    if not halves:
        assert half.startswith("GPU: does not run the network") and "f16" in half
