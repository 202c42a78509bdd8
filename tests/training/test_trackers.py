"""Services that follow a run: begun once, gone on with, and never the end of a training."""

import json
import logging
from typing import get_args

import numpy as np
import pytest
from accelerate.tracking import LOGGER_TYPE_TO_CLASS
from PIL import Image

from unistep.config import RunConfig, StageConfig, find_recipe, read_values, run_config
from unistep.errors import UserError
from unistep.training.config import TrackerName
from unistep.training.log import RunLog
from unistep.training.trackers import FILE, Trackers


class Recorded:
    """A tracker as Accelerate's are, that keeps its calls."""

    def __init__(self, project, **settings):
        self.project, self.settings, self.calls = project, settings, []
        self.broken = False

    def start(self):
        self.calls.append("start")

    def store_init_configuration(self, values):
        self.calls.append(("settings", values))

    def log(self, values, step=None):
        if self.broken:
            raise ConnectionError("the service is away\nand more")
        self.calls.append((step, values))

    def log_images(self, values, step=None):
        self.calls.append((step, [image.size for image in values["samples"]]))

    def finish(self):
        self.calls.append("finish")


class Service:
    """The trackers that were made, in their order."""

    def __init__(self):
        self.made: list[Recorded] = []

    def __call__(self, project, **settings):
        self.made.append(Recorded(project, **settings))
        return self.made[-1]


@pytest.fixture
def service():
    return Service()


def followed(folder, service, title="digits/student"):
    return Trackers(("wandb",), folder, title, {"wandb": service})


def values(loss):
    return {"loss": loss, "images_per_second": 10.0, "seconds": 1.0}


def test_every_service_is_one_of_accelerates():
    assert set(get_args(TrackerName)) <= set(LOGGER_TYPE_TO_CLASS)


def test_numbers_samples_and_settings(tmp_path, service):
    picture = tmp_path / "samples.png"
    Image.fromarray(np.zeros((4, 6), np.uint8)).save(picture)
    with RunLog(tmp_path, "student", 10, 0, trackers=followed(tmp_path, service)) as log:
        log.write_settings({"seed": 3, "betas": (0.9, 0.99), "clip": None})
        log.write(5, values(0.5))
        log.write(6, values(float("nan")))
        log.write_samples(6, picture)
    (one,) = service.made
    assert one.project == "unistep" and one.settings["name"] == "digits/student"
    settings = ("settings", {"seed": 3, "betas": "(0.9, 0.99)", "clip": None})
    rest = {"images_per_second": 10.0, "seconds": 1.0}
    assert one.calls == ["start", settings, (5, values(0.5)), (6, rest), (6, [(6, 4)]), "finish"]


def test_a_resumed_stage_goes_on_with_its_run(tmp_path, service):
    for start in (0, 5):
        with RunLog(tmp_path, "student", 10, start, trackers=followed(tmp_path, service)) as log:
            log.write_settings({"seed": 3})
    first, second = service.made
    assert first.settings["id"] == second.settings["id"] == json.loads((tmp_path / FILE).read_text())["wandb"]
    assert second.calls == ["start", "finish"]  # its settings are there


def test_going_back_to_a_checkpoint_begins_no_other_run(tmp_path, service):
    with RunLog(tmp_path, "student", 10, 0, trackers=followed(tmp_path, service)) as log:
        log.write_settings({})
        log.write(5, values(0.5))
        log.rewind(2, {"lr": 0.1})
        log.write(5, values(0.4))
    (one,) = service.made
    assert [call[0] for call in one.calls[2:-1]] == [5, 2, 5] and one.calls[-1] == "finish"


@pytest.mark.parametrize("text", ["", "[]", "[" * 100_000, '{"wandb": 3}'])
def test_a_damaged_file_begins_another_run(tmp_path, service, text):
    (tmp_path / FILE).write_text(text)
    trackers = followed(tmp_path, service)
    trackers.begin({})
    assert json.loads((tmp_path / FILE).read_text()) == {"wandb": service.made[0].settings["id"]}


def test_a_service_that_fails_is_left_out(tmp_path, service, caplog):
    other = Service()
    trackers = Trackers(("wandb", "trackio"), tmp_path, "digits/student", {"wandb": service, "trackio": other})
    with caplog.at_level(logging.WARNING), RunLog(tmp_path, "student", 10, 0, trackers=trackers) as log:
        log.write_settings({})
        service.made[0].broken = True
        for step in (1, 2):
            log.write(step, values(0.5))
    assert [record.getMessage() for record in caplog.records] == [
        "Weights & Biases no longer follows the run: the service is away"
    ]
    assert [call[0] for call in other.made[0].calls[2:-1]] == [1, 2]
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("error", "problem"),
    [
        (ImportError("no module"), "`trackers` wandb: the package wandb is not installed; pip install wandb"),
        (RuntimeError("No key.\nSee"), "`trackers` wandb: Weights & Biases does not begin (No key); log in by"),
        (RuntimeError(), "`trackers` wandb: Weights & Biases does not begin (RuntimeError); log in by"),
    ],
)
def test_a_service_that_does_not_begin_is_one_line(tmp_path, service, error, problem):
    def refuses(project, **settings):
        raise error

    both = Trackers(("trackio", "wandb"), tmp_path, "digits/student", {"trackio": service, "wandb": refuses})
    with pytest.raises(UserError) as caught:
        both.begin({})
    assert str(caught.value).startswith(problem)
    assert service.made[0].calls[-1] == "finish"  # and no other is left open
    assert not (tmp_path / FILE).exists()


def test_only_the_first_process_is_followed(tmp_path, service):
    with RunLog(tmp_path, "student", 10, 0, active=False, trackers=followed(tmp_path, service)) as log:
        log.write_settings({"seed": 3})
        log.write(5, values(0.5))
    assert not service.made


def test_a_service_stands_there_once():
    with pytest.raises(UserError, match="`trackers` names a service twice; keep one"):
        RunConfig(stages=(StageConfig(name="teacher", method="edm"),), trackers=("wandb", "wandb"))


def test_no_service_is_one_line():
    with pytest.raises(UserError, match=r"`trackers` \['comet'\]: expected names of wandb, mlflow, trackio"):
        run_config(read_values(find_recipe("mnist-quick")) | {"trackers": ["comet"]})
