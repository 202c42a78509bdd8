"""`unistep runs`, as a user meets it."""

import json
import subprocess
import sys

import pytest
from run_files import evaluation, training, write_checkpoint, write_log, write_run


@pytest.fixture
def begun(here):
    run = write_run(here / "runs/mine", {"teacher": {"steps": 40}})
    write_log(run / "teacher", [*training(20), evaluation(20, 0.25)])
    write_checkpoint(run / "teacher", 20)
    return run


def test_the_table(run, here, begun, monkeypatch):
    (here / "runs/other").mkdir()
    (here / "runs/broken").mkdir()
    (here / "runs/broken/config.yaml").write_text("a: [")
    monkeypatch.setenv("COLUMNS", "100")
    outcome = run("runs")
    assert (outcome.code, outcome.err) == (0, "")
    for words in ("mine", "interrupted", "20/40", "100 images/s", "KD-MNIST 0.25", "no run", "broken: runs/broken"):
        assert words in outcome.out
    monkeypatch.setenv("COLUMNS", "200")
    assert "MNIST, class-conditional" in run("runs", here / "runs").out


def test_json(run, begun):
    found = json.loads(run("runs", "--json").out)
    assert found["folder"] == "runs"
    (one,) = found["runs"]
    assert (one["name"], one["state"], one["stages"][0]["best"]["value"]) == ("mine", "interrupted", 0.25)


def test_an_empty_folder_and_none(run, refused, here):
    refused(["runs"], "runs does not exist")
    (here / "runs").mkdir()
    assert run("runs").out == "no runs in runs\n"
    refused(["runs", "a\0b"], "no path")


def test_nothing_heavy_is_loaded(begun, here):
    code = (
        "import sys\nfrom unistep.cli.main import main\nmain(['runs'])\n"
        "assert not {'torch', 'numpy', 'accelerate', 'PIL'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=here, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
