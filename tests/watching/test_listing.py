"""Lists of runs."""

import datetime
import os

import pytest
from run_files import evaluation, training, write_checkpoint, write_log, write_run

from unistep.errors import UserError
from unistep.watching.listing import ago, duration, list_runs, speed


@pytest.fixture
def folder(tmp_path):
    for place, name in enumerate(("old", "below/new", "below/deep/er/newest")):
        run = write_run(tmp_path / "runs" / name, {"student": {"steps": 20, "batch_size": 32}})
        os.utime(run / "config.yaml", (1e9 + place, 1e9 + place))
    (tmp_path / "runs/other/things").mkdir(parents=True)
    (tmp_path / "runs/.hidden").mkdir()
    (tmp_path / "runs/file").write_text("")
    return tmp_path / "runs"


def test_the_newest_first_and_what_is_no_run_last(folder):
    listing = list_runs(folder)
    assert [run.name for run in listing] == ["below/deep/er/newest", "below/new", "old", "other"]
    assert (listing["other"].state, len(listing)) == ("no run", 4)
    assert repr(listing) == f"RunListing({folder}: 3 interrupted, 1 no run)"
    assert [run.name for run in list_runs(folder / "old")] == ["old"]


def test_a_model_is_named_as_one(folder):
    (folder / "other/model_index.json").write_text("{}")
    assert list_runs(folder)["other"].problem == "a model, which `unistep inspect` describes"


def test_rows(folder):
    run = folder / "old"
    write_log(run / "student", [*training(10, batch_size=32, speed=8.0), evaluation(10, 0.25), evaluation(10, 0.5)])
    write_checkpoint(run / "student", 10)
    row = dict(zip(list_runs(folder).columns, list_runs(folder).rows()[0], strict=True))
    assert row.pop("changed").endswith(" ago") and row.pop("description").startswith("MNIST")
    assert row == {
        "run": "old",
        "state": "interrupted",
        "stage": "student",
        "step": "10/20",
        "speed": "8 images/s, 4 s/step",
        "best": "KD-MNIST 0.25",
        "last": "0.5",
    }


def test_names_are_escaped(tmp_path):
    write_run(tmp_path / "runs/<b>\n\x1b[1m")
    listing = list_runs(tmp_path / "runs")
    assert listing.rows()[0][0] == "<b>\\n\\x1b[1m" and "&lt;b&gt;\\n" in listing._repr_html_()


def test_links_in_a_circle_end(folder):
    (folder / "below/circle").symlink_to(folder)
    (folder / "again").symlink_to(folder / "old")
    (folder / "nowhere").symlink_to(folder / "missing")
    assert len(list_runs(folder)) == 4 + 1  # a link to a run that is there is no run of its own


@pytest.mark.parametrize("name", ["run", "runs/file", "runs/othr/below"])
def test_no_folder(folder, name):
    with pytest.raises(UserError, match="does not exist; did you mean .*runs.*\\?$|is no folder"):
        list_runs(folder.parent / name)


def test_words():
    assert [duration(s) for s in (0, 119, 120, 7199, 7200, 172_800)] == [
        "0 s",
        "119 s",
        "2 min",
        "120 min",
        "2 h",
        "2 d",
    ]
    noon = datetime.datetime(2026, 1, 1, 12, tzinfo=datetime.UTC)
    assert (ago(None, noon), ago(noon + datetime.timedelta(hours=1), noon)) == ("", "0 s ago")
    assert (speed(None, None), speed(1234.5, 0.1), speed(0.5, 64)) == ("", "1,234 images/s", "0.5 images/s, 64 s/step")
