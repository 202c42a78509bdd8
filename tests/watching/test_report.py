"""A report holds what the folders of runs hold, and nothing that could do something."""

import html.parser
import json
import re

import numpy as np
import pytest
from PIL import Image
from run_files import evaluation, training, write_checkpoint, write_log, write_model, write_run

import unistep
from unistep.config import read_values
from unistep.documents import dump_yaml
from unistep.errors import UserError
from unistep.watching.page import grids as grids_module
from unistep.watching.page.grids import Grid, embedded, grids_of
from unistep.watching.record import read_record

EVIL = "<script>alert(1)</script><img src=http://x.invalid onerror=alert(2)>\"'"
VOID = {"meta", "img", "br"}


class Page(html.parser.HTMLParser):
    """Checks that tags are closed, and collects them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def grid(stage, step, size=(40, 30), noise=False):
    path = stage / "samples" / f"step-{step:08d}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(step).integers(0, 256 if noise else 2, (*size[::-1], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def made(tmp_path):
    """made("name", lr): a run with curves, evaluations and grids."""

    def make(name, lr=4e-4, value=0.5):
        run = write_run(tmp_path / name, {"student": {"steps": 100, "batch_size": 64, "optimizer": {"lr": lr}}})
        student = run / "student"
        write_log(student, [*training(50), evaluation(50, value), *training(100)[5:], evaluation(100, value / 2)])
        write_checkpoint(student, 100)
        write_model(student)
        for step in (20, 50, 100):
            grid(student, step)
        return run

    return make


def read(tmp_path, *runs):
    made = unistep.report(*runs, output=tmp_path / "page.html")
    text = made.path.read_text()
    assert made.num_bytes == made.path.stat().st_size < 5_000_000
    page = Page(text)
    loading = [(tag, a) for tag, a in page.tags if {"src", "href", "srcset", "action"} & a.keys()]
    assert all(tag == "img" and (a["src"] or "").startswith("data:image/") and a["alt"] for tag, a in loading)
    assert not {"script", "iframe", "link", "object", "form"} & {tag for tag, _ in page.tags}
    assert not any(name.startswith("on") for _, a in page.tags for name in a) and "url(" not in text
    assert "default-src 'none'" in text
    return text, page


def test_of_one_run(tmp_path, made):
    text, page = read(tmp_path, made("mine"))
    for words in (
        "<h1>mine</h1>",
        "KD-MNIST",
        "gradient norm",
        "learning rate",
        "images/s",
        "step 50",
        "6,400",
        "64 s",
    ):
        assert words in text, words
    assert len([a for tag, a in page.tags if tag == "img"]) == 3
    assert "student.optimizer.lr" not in text and ">optimizer.lr</th><td>0.0004</td>" in text
    assert len([a for tag, a in page.tags if tag == "svg" and a.get("role") == "img" and a.get("aria-label")]) == 5


def test_of_several_runs(tmp_path, made):
    text, page = read(tmp_path, [made("a/one"), made("a/two", lr=1e-3, value=0.25)])
    assert "<h1>2 runs</h1>" in text and "0.125" in text
    differing = re.findall(r"<h2>Differences of the settings</h2>(.*?)</section>", text)[0]
    rows = re.findall(r'<th scope="row">([\w.]+)</th><td>([^<]*)</td><td>([^<]*)</td>', differing)
    assert rows == [("student.optimizer.lr", "0.0004", "0.001")]
    assert len([a for tag, a in page.tags if tag == "img"]) == 2
    assert text.count("<figcaption>loss") == 1


def test_runs_of_one_name_are_told_apart(tmp_path, made):
    text, _ = read(tmp_path, [made("a/x"), made("b/x")])
    assert "a/x" in text and "b/x" in text and "have the same settings" in text


def test_whatever_files_hold_is_text(tmp_path):
    run = write_run(tmp_path / "run", {"student": {"init": EVIL}})
    values = read_values(run / "config.yaml") | {"description": EVIL, EVIL: 1}
    (run / "config.yaml").write_text(dump_yaml(values))
    write_log(run / "student", [{"step": 1, EVIL: 3.0, "loss": 1.0}, evaluation(1, 0.5, EVIL)])
    with (run / "student/metrics.jsonl").open("a") as file:
        file.write("damaged\n")
    change = {"time": EVIL, "steps": {EVIL: EVIL}, "changed": {EVIL: [EVIL, {EVIL: 1}]}}
    (run / "history.jsonl").write_text(json.dumps(change) + "\n[]\n{\n")
    visit = {"date": EVIL, "device": EVIL, "minutes": EVIL, "distance": EVIL}
    (run / "visits.json").write_text(json.dumps({"visits": [visit]}))
    text, _ = read(tmp_path, run)
    assert "<script" not in text and "onerror=alert(2)&gt;" in text and "1 damaged lines" in text
    read(tmp_path, [run, run])


@pytest.mark.parametrize("content", [b"[]", b"{}", b'{"visits": 3}', b'{"visits": [3]}', b"{"])
def test_damaged_records_beside_a_run_are_left_out(tmp_path, made, content):
    run = made("mine")
    (run / "visits.json").write_bytes(content)
    (run / "history.jsonl").write_bytes(content)
    assert "Changed on the way" not in read(tmp_path, run)[0]


def test_a_run_that_has_not_begun(tmp_path):
    run = write_run(tmp_path / "run")
    text, _ = read(tmp_path, run)
    assert "Nothing was trained yet" in text
    read(tmp_path, [run, run])


def test_a_damaged_grid(tmp_path, made):
    run = made("mine")
    folder = run / "student/samples"
    (folder / "step-00000050.png").write_bytes(b"<svg onload=alert(1)>")
    path = folder / "step-00000020.png"
    path.write_bytes(path.read_bytes()[:60])
    (folder / "step-00000070.png").mkdir()
    text, page = read(tmp_path, run)
    assert text.count(" is damaged</p>") == 3 and len([tag for tag, _ in page.tags if tag == "img"]) == 1


def test_large_grids_become_small(tmp_path):
    path = grid(tmp_path, 3, (600, 400), noise=True)
    whole, small = embedded(Grid(3, path), 1 << 20), embedded(Grid(3, path), 20_000)
    assert whole is not None and (whole.address[:22], whole.width) == ("data:image/png;base64,", 600)
    assert small is not None and small.address.startswith("data:image/jpeg;") and len(small.address) < 27_000
    assert (small.width, small.height) == (600, 400)


def test_too_large_a_picture_is_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(grids_module, "_MOST_PIXELS", 100)
    assert embedded(Grid(3, grid(tmp_path, 3)), 1 << 20) is None


def test_grids_over_time(tmp_path):
    run = write_run(tmp_path / "run")
    for step in (*range(10, 1001, 10), 3):
        grid(run / "student", step, (2, 2))
    (run / "student/samples/other.png").write_bytes(b"")
    student = read_record(run).stages[-1]
    assert [one.step for one in grids_of(student, 6)] == [3, 60, 120, 250, 500, 1000]
    assert [one.step for one in grids_of(student, 1)] == [1000]


def test_refusals(tmp_path, made):
    run = made("mine")
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "config.yaml").write_text("a: [")
    output = tmp_path / "page.html"
    for runs, words in (
        ([], "is empty"),
        ("", "is empty"),
        (tmp_path, "not a run directory"),
        ([run, damaged], "not readable YAML"),
        ([run] * 25, "at most"),
    ):
        with pytest.raises(UserError, match=words):
            unistep.report(runs, output=output)
    with pytest.raises(UserError, match="ends in .html"):
        unistep.report(run, output=tmp_path / "page.png")
    assert not output.exists()


def test_a_page_that_cannot_be_written(tmp_path, made, monkeypatch):
    from unistep import files

    run = made("mine")
    monkeypatch.setattr(files.os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(UserError, match="cannot write .*page.html"):
        unistep.report(run, output=tmp_path / "page.html")
    assert not list(tmp_path.glob("*page*"))


def test_the_folder_is_as_before(tmp_path, made):
    run = made("mine")
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    read(tmp_path, run)
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before
