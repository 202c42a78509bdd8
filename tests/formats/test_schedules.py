"""The schedules that a model carries: which is for how many steps, and how new ones are kept."""

import json
import os

import pytest

from unistep.errors import UserError
from unistep.formats.model import ModelInfo
from unistep.formats.model_folder.schedule import read_info, schedule_file, schedule_object, write_schedules

INFO = ModelInfo(timesteps=(0, 22), schedules=((0, 9, 30), (0, 3, 9, 30, 31)))


def test_a_schedule_by_its_number_of_steps():
    assert [INFO.schedule(steps) for steps in range(1, 7)] == [None, (0, 22), (0, 9, 30), None, (0, 3, 9, 30, 31), None]
    assert ModelInfo().schedule(2) is None
    assert ModelInfo(timesteps=(0, 2, 3)).schedule(3) == (0, 2, 3)
    assert ModelInfo(timesteps=(0, 2, 3)).schedule(2) is None


@pytest.mark.parametrize(
    ("new", "timesteps", "schedules"),
    [
        ((0, 5), (0, 5), INFO.schedules),
        ([0, 1, 2, 3], (0, 22), ((0, 9, 30), (0, 1, 2, 3), (0, 3, 9, 30, 31))),
        ((0, 10, 30), (0, 22), ((0, 10, 30), (0, 3, 9, 30, 31))),
        ((0,), (0, 22), ((0,), *INFO.schedules)),
    ],
)
def test_a_new_schedule_takes_the_place_of_the_old_one(new, timesteps, schedules):
    found = INFO.with_schedule(new)
    assert (found.timesteps, found.schedules) == (timesteps, schedules)
    assert found.schedule(len(new)) == tuple(new)


def test_where_there_are_no_two_steps_yet():
    assert ModelInfo().with_schedule((0, 5)).timesteps == (0, 5)
    info = ModelInfo(timesteps=(0, 2, 3)).with_schedule((0, 5))  # as a config may have it
    assert (info.timesteps, info.schedules) == ((0, 2, 3), ((0, 5),))
    info = ModelInfo(schedules=((0, 5),)).with_schedule((0, 6))
    assert (info.timesteps, info.schedules) == ((0, 6), ())


@pytest.mark.parametrize("new", [(1, 5), (0, 5, 5), (0, 40)])
def test_what_is_no_schedule_is_refused(new):
    with pytest.raises(UserError, match="timesteps"):
        INFO.with_schedule(new)


# ------------------------------------------------------------------------------------------------------- in the file


@pytest.fixture
def path(tmp_path):
    (tmp_path / "scheduler").mkdir()
    path = tmp_path / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(schedule_object(INFO) | {"_note": "kept", "prediction_type": None}))
    return path


def test_all_else_in_the_file_stays(path):
    before = json.loads(path.read_text())
    new = INFO.with_schedule((0, 30)).with_schedule((0, 1, 2))
    write_schedules(path, new)
    after = json.loads(path.read_text())
    assert after["_unistep"].pop("timesteps") == [0, 30]
    assert after["_unistep"].pop("schedules") == [[0, 1, 2], [0, 3, 9, 30, 31]]
    assert (before["_unistep"].pop("timesteps"), before["_unistep"].pop("schedules")) == (
        [0, 22],
        [[0, 9, 30], [0, 3, 9, 30, 31]],
    )
    assert after == before
    assert read_info(path, diffusers_network=True) == new
    assert os.listdir(path.parent) == [path.name]


def test_a_published_file_gets_an_entry_of_ours(path):
    """As diffusers wrote it."""
    content = schedule_object(ModelInfo())
    del content["_unistep"]
    path.write_text(json.dumps(content))
    write_schedules(path, ModelInfo(timesteps=(0, 18)))
    assert json.loads(path.read_text()) == content | {"_unistep": {"timesteps": [0, 18]}}
    write_schedules(path, ModelInfo())
    assert json.loads(path.read_text()) == content | {"_unistep": {}}


def test_a_link_into_a_cache_is_replaced_and_not_followed(path, tmp_path):
    blob = path.rename(tmp_path / "blob")
    before = blob.read_bytes()
    path.symlink_to(blob)
    write_schedules(path, INFO.with_schedule((0, 30)))
    assert blob.read_bytes() == before and not path.is_symlink()
    assert read_info(path, diffusers_network=True).timesteps == (0, 30)


def test_nothing_is_left_where_it_cannot_be_written(path, monkeypatch):
    before = path.read_bytes()

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("unistep.formats.model_folder.schedule.os.replace", full)
    with pytest.raises(UserError, match=r"cannot write .*scheduler_config.json: No space left on device$"):
        write_schedules(path, INFO.with_schedule((0, 30)))
    assert path.read_bytes() == before and os.listdir(path.parent) == [path.name]


def test_a_folder_that_must_not_be_written_to(path, monkeypatch):
    assert schedule_file(path.parents[1]) == path
    monkeypatch.setattr("unistep.formats.model_folder.schedule.os.access", lambda *arguments: False)
    with pytest.raises(UserError, match=f"cannot write {path}: there is no permission"):
        schedule_file(path.parents[1])
