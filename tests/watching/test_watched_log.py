"""The log of a stage is read whatever it holds."""

import json

import pytest
from run_files import evaluation, training, write_log

from unistep.watching import log as module
from unistep.watching.log import StageLog, read_log


def test_lines_curves_and_measurements(tmp_path):
    write_log(tmp_path, [*training(20), evaluation(20, 0.5), {"step": 20, "lr": 2e-4, "diverged_at": 21.0}])
    log = read_log(tmp_path / "metrics.jsonl")
    assert (log.step, log.damaged, log.last("lr"), log.last("nothing")) == (20, 0, 2e-4, None)
    assert log.curve("loss") == [(10, 0.1), (20, 0.05)]
    assert log.measured() == ["KD-MNIST"]
    assert log.names()[:2] == ["loss", "lr"]


@pytest.mark.parametrize(
    ("line", "damaged"),
    [
        (b"", 0),
        (b"{", 1),
        (b"[1]", 1),
        (b"3", 1),
        (b"null", 1),
        (b'{"loss": 1}', 1),
        (b'{"step": true}', 1),
        (b'{"step": -1}', 1),
        (b'{"step": 1.5}', 1),
        (b'{"step": "1"}', 1),
        (b"[" * 100_000, 1),
        (b"\xff\xfe\x00", 1),
        (b"x" * 200_000, 1),
        (b'{"step": 1' + b"0" * 5000 + b"}", 1),
    ],
)
def test_damaged_lines_are_passed_over_and_counted(tmp_path, line, damaged):
    path = tmp_path / "metrics.jsonl"
    good = b'{"step": 1, "loss": 2}\n'
    path.write_bytes(good + line + b"\n" + good)
    assert read_log(path) == StageLog(((1, {"loss": 2.0}),) * 2, damaged)
    path.write_bytes(good + line)  # the end of a killed run
    assert read_log(path) == StageLog(((1, {"loss": 2.0}),), 0)


def test_values_that_are_no_numbers_are_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    values = '"a": NaN, "b": -Infinity, "c": null, "d": true, "e": "1", "f": [1], "g": 1e400, "h": 1' + "0" * 400
    path.write_text(f'{{"step": 1, {values}, "loss": 3}}\n')
    assert read_log(path) == StageLog(((1, {"loss": 3.0}),))


@pytest.mark.parametrize("place", ["missing", "folder", "missing/below"])
def test_no_log(tmp_path, place):
    (tmp_path / "folder").mkdir()
    assert read_log(tmp_path / place) == StageLog()


def test_the_state_needs_the_end_and_the_measurements_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_RECENT", 500)
    write_log(tmp_path, [evaluation(5, 0.4), *training(1000)])
    brief, whole = (read_log(tmp_path / "metrics.jsonl", brief=brief) for brief in (True, False))
    assert len(brief.lines) < 6 < len(whole.lines) == 101
    assert (brief.step, brief.lines[0], brief.damaged) == (whole.step, whole.lines[0], 0)


def test_of_a_log_without_end_the_end_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_MOST_BYTES", 100)
    (tmp_path / "log").write_text("".join(json.dumps({"step": step}) + "\n" for step in range(1000)))
    log = read_log(tmp_path / "log")
    assert log.step == 999 and len(log.lines) < 10 and log.damaged == 0
