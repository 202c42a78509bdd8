"""A page as a folder: what is in it, where its runtime comes from, and what is refused."""

import dataclasses
import hashlib
import json
import os
import re
import stat
import tarfile
from pathlib import Path

import pytest

import unistep
from unistep.errors import UserError
from unistep.exporting.web import runtime
from unistep.exporting.web.page import OWN, SERVED
from unistep.workflows.models import EMBEDDED_TEACHER


@pytest.fixture
def package(tmp_path, monkeypatch) -> Path:
    """npm's package with small files in place of its own, which are the known ones now."""
    folder, files = tmp_path / "package" / "dist", []
    folder.mkdir(parents=True)
    for one in runtime.FILES:
        (folder / one.source).write_text(f"// {one.source}")
        known = hashlib.sha256((folder / one.source).read_bytes()).hexdigest()
        files.append(dataclasses.replace(one, sha256=known))
    monkeypatch.setattr(runtime, "FILES", tuple(files))
    monkeypatch.setattr("unistep.exporting.web.page.FILES", tuple(files))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return folder


@pytest.fixture
def npm(tmp_path, monkeypatch):
    """A function that puts a script in the place of npm."""
    place = tmp_path / "bin"
    place.mkdir()

    def put(script: str) -> None:
        path = place / "npm"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", f"{place}{os.pathsep}{os.environ['PATH']}")

    return put


def pack(package: Path, path: Path) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        archive.add(package.parent, "package")
    return path


def test_a_page_is_a_folder_of_static_files(package, tmp_path):
    made = unistep.export("mnist", tmp_path / "site" / "digits", to="web", runtime_folder=package, batches=[1, 2])
    folder = made.path
    model = json.loads((folder / "model.json").read_text())
    assert model["id"] == "mnist" and (model["width"], model["schedules"]) == (28, [[0, 23]])
    assert model["sha256"] == hashlib.sha256((folder / "model.onnx").read_bytes()).hexdigest()
    listed = json.loads((folder / "files.js").read_text().removeprefix("self.FILES = ").rstrip(";\n"))
    there = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    names = {name for name, _ in listed["first"]} | set(listed["later"])
    assert there - names == {"files.js", "sw.js", "runtime/LICENSE"} and names <= there
    assert all((folder / name).stat().st_size == size for name, size in listed["first"])
    assert made.num_bytes == sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert made.comparisons and sorted(os.listdir(folder.parent)) == ["digits", "digits.export.json"]


def test_a_page_names_no_other_place():
    for path in (*SERVED.iterdir(), *OWN.iterdir(), OWN.parent / "sw.js"):
        text = path.read_text()
        assert re.findall(r"(?:https?:)?//[a-z][\w.-]+\.[a-z]{2,}", text) in ([], ["http://www.w3.org"]), path
    index = (SERVED / "index.html").read_text()
    assert re.findall(r'(?:src|href)="(/[^"]*)"', index) == [] and "'unsafe" not in index
    assert sum(path.stat().st_size for path in (*SERVED.iterdir(), *OWN.iterdir())) < 150_000


def test_npm_fetches_the_runtime_once(package, npm, tmp_path):
    archive = pack(package, tmp_path / "onnxruntime-web.tgz")
    npm(f'echo "$@" >> {tmp_path}/asked; cp {archive} .')
    for _ in range(2):
        files = runtime.runtime_files()
    assert (tmp_path / "asked").read_text() == f"pack onnxruntime-web@{runtime.VERSION}\n"
    assert {one.name: path.read_text() for one, path in files.items()}["ort.wasm.min.js"] == "// ort.wasm.min.mjs"
    damaged = next(iter(files.values()))
    damaged.write_text("damaged")
    runtime.runtime_files()
    assert damaged.read_text() != "damaged"


def test_another_file_of_npm_is_refused(package, npm, tmp_path):
    (package / runtime.FILES[2].source).write_text("another")
    archive = pack(package, tmp_path / "onnxruntime-web.tgz")
    npm(f"cp {archive} .")
    with pytest.raises(UserError, match="is another file than known"):
        runtime.runtime_files()
    assert not list((tmp_path / "cache").rglob("*.wasm"))


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo 'npm error code ENOTFOUND' >&2; exit 1", "npm cannot fetch onnxruntime-web .* (ENOTFOUND)"),
        ("exit 1", "(no reason)"),
        ("exit 0", "npm gave no file"),
        ("echo nothing > x.tgz", "cannot keep onnxruntime-web"),
    ],
)
def test_without_a_network_the_remedy_is_a_folder(package, npm, script, message):
    npm(script)
    with pytest.raises(UserError, match=message.replace("(", r"\(").replace(")", r"\)")) as caught:
        runtime.runtime_files()
    assert "`runtime_folder`" in str(caught.value) and "\n" not in str(caught.value)


def test_without_npm_the_remedy_is_a_folder(package, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="npm, which is not installed.*runtime_folder"):
        runtime.runtime_files()


def test_a_folder_of_the_user_is_checked(package, tmp_path):
    for folder in (package, package.parent):
        assert len(runtime.runtime_files(folder)) == len(runtime.FILES)
    with pytest.raises(UserError, match="there is no such folder"):
        runtime.runtime_files(tmp_path / "nowhere")
    first, last = package / runtime.FILES[0].source, package / runtime.FILES[-1].source
    last.write_text("of another version")
    with pytest.raises(UserError, match="is not the file of onnxruntime-web 1"):
        runtime.runtime_files(package)
    first.unlink()
    with pytest.raises(UserError, match=f"lacks {first.name}"):
        runtime.runtime_files(package)


def test_refusals_leave_nothing(package, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(UserError, match="a page needs a consistency model"):
        unistep.export(EMBEDDED_TEACHER, out / "page", to="web", runtime_folder=package)
    with pytest.raises(UserError, match="holds no sampler"):
        unistep.export("mnist", out / "page", to="web", steps=2)
    with pytest.raises(UserError, match="`runtime_folder` is not for ONNX"):
        unistep.export("mnist", out / "page.onnx", runtime_folder=package)
    assert not out.exists() or os.listdir(out) == []
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(UserError, match="holds something already"):
        unistep.export("mnist", tmp_path / "full", to="web")
