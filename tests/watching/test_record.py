"""The state of a run is that of its files."""

import os

import pytest
from run_files import evaluation, training, write_checkpoint, write_log, write_model, write_run

from unistep.runtime.lock import FolderLock
from unistep.watching.record import read_record

SHORT = {"teacher": {"steps": 40, "batch_size": 64}, "student": {"steps": 20, "batch_size": 32}}


def begun(folder):
    """A run whose teacher has ended, and whose student is at step 10, its log at 15."""
    run = write_run(folder, SHORT)
    write_log(run / "teacher", training(40))
    write_checkpoint(run / "teacher", 40)
    write_model(run / "teacher")
    write_log(run / "student", training(15, every=5, batch_size=32, speed=16.0))
    write_checkpoint(run / "student", 10)
    return run


def test_a_run_that_has_not_begun(tmp_path):
    record = read_record(write_run(tmp_path / "run", SHORT))
    assert (record.name, record.state, record.stage.name, record.methods) == (
        "run",
        "interrupted",
        "teacher",
        "edm > ect",
    )
    assert record.done(record.stage) == 0 and record.measured is None and record.seconds_left is None
    facts = record.to_dict()
    assert facts["stages"][0]["step"] == 0 and facts["stages"][0]["images_per_second"] is None


def test_interrupted_and_running(tmp_path):
    """What is kept counts, and while it is trained what is logged."""
    run = begun(tmp_path / "run")
    record = read_record(run)
    student = record.stage
    assert (record.state, student.name, record.done(student), record.done(record.stages[0])) == (
        "interrupted",
        "student",
        10,
        40,
    )
    assert (student.images_per_second, student.seconds_per_step) == (16, 2)
    with FolderLock("train") as lock:
        lock.acquire(run)
        before = sorted(run.rglob("*"))
        record = read_record(run)
        assert (record.state, record.done(record.stage), record.seconds_left) == ("running", 15, 10)
        assert record.worker["pid"] == os.getpid() and sorted(run.rglob("*")) == before


def test_finished_and_made_longer(tmp_path):
    run = begun(tmp_path / "run")
    write_checkpoint(run / "student", 20)
    assert read_record(run).state == "interrupted"  # its model is not there yet
    write_model(run / "student")
    record = read_record(run)
    assert (record.state, record.done(record.stage)) == ("finished", 20)
    for file in (run / "student/checkpoints").iterdir():
        file.unlink()
    assert read_record(run).state == "finished"  # without its checkpoints too
    write_checkpoint(run / "student", 10)  # as where the time was up
    assert read_record(run).state == "interrupted"


def test_the_best_and_the_last_measurement(tmp_path):
    run = begun(tmp_path / "run")
    write_log(run / "student", [evaluation(5, 0.5), evaluation(10, 0.25), evaluation(15, 0.375)])
    stage = read_record(run).measured
    assert (stage.metric, stage.best.value, stage.best.step, stage.last.value) == ("KD-MNIST", 0.25, 10, 0.375)
    assert stage.best.low == pytest.approx(0.15)


def test_the_last_change_is_that_of_files(tmp_path):
    run = begun(tmp_path / "run")
    os.utime(run / "student/metrics.jsonl", (2e9, 2e9))
    assert read_record(run).changed.timestamp() == 2e9
    os.utime(run / "student/metrics.jsonl", (1e15, 1e15))  # or the latest that the file system has
    assert read_record(run).changed.year > 2400


@pytest.mark.parametrize(
    ("text", "state", "words"),
    [
        (b"", "damaged", "must hold"),
        (b"\x00\xff", "damaged", "not readable YAML"),
        (b"a: [", "damaged", "not readable YAML"),
        (b"[1, 2]", "damaged", "must hold"),
        (b"a: 1", "no run", "has no stages"),
        (b"stages: 3", "no run", "has no stages"),
        (b"stages: {}", "no run", "has no stages"),
        (b"stages: {a: 1}", "no run", "has no stages"),
        (b"stages: {../b: {steps: 1}}", "damaged", "cannot be the name of a stage"),
        (b"teacher: 3", "damaged", "form of before"),
        (b"stages: {a: {steps: -1, batch_size: x, method: [1]}}", "interrupted", ""),
        (b"stages: {a: {}}\ndescription: [1]", "interrupted", ""),
    ],
)
def test_configs_that_are_none(tmp_path, text, state, words):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.yaml").write_bytes(text)
    record = read_record(tmp_path / "run")
    assert record.state == state and words in record.problem and record.to_dict()["state"] == state


def test_a_config_that_was_changed_by_hand(tmp_path):
    run = write_run(tmp_path / "run")
    path = run / "config.yaml"
    path.write_text(path.read_text().replace("steps: ", "steps: 1"))
    record = read_record(run)
    assert record.state == "damaged" and "not those that were written" in record.problem and record.stages


@pytest.mark.parametrize("kind", ["folder", "link", "pipe"])
def test_a_config_that_is_no_file(tmp_path, kind):
    path = tmp_path / "run/config.yaml"
    path.parent.mkdir()
    {"folder": path.mkdir, "link": lambda: path.symlink_to("nowhere"), "pipe": lambda: os.mkfifo(path)}[kind]()
    assert read_record(path.parent).state == "damaged"


def test_a_folder_without_a_config(tmp_path):
    record = read_record(tmp_path)
    assert record.state == "no run" and record.stage is None and record.to_dict()["stages"] == []


def test_exported_weights_are_no_run(tmp_path):
    run = write_run(tmp_path / "run")
    (run / "index.json").write_text("{}")
    assert read_record(run).problem.startswith("exported weights")
