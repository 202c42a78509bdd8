import json

import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from unistep.training.log import RunLog

VALUES = {"loss": 0.5, "images_per_second": 10.0, "seconds": 1.0}


def steps(folder) -> list[int]:
    return [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_lines(tmp_path, capsys):
    with RunLog(tmp_path, "teacher", 10, 0) as log:
        log.write(5, VALUES)
        log.write(10, VALUES)
    assert steps(tmp_path) == [5, 10]
    assert json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0]) == {"step": 5, **VALUES}
    assert list((tmp_path / "tensorboard").glob("events*"))
    shown = capsys.readouterr().err.splitlines()
    assert shown[0].startswith("teacher 5/10  loss 0.5  10 images/s  elapsed 0:01 · left 0:01")
    assert shown[-1].startswith("teacher 10/10")


def test_an_evaluation_is_a_line_of_its_own(tmp_path, capsys):
    """On the screen too, whole however long it is."""
    text = "FD-EffNetLite0@224 [other] 0.01234 ± 0.00056 (best 0.01198 at 1234000)" + " and so on" * 5
    with RunLog(tmp_path, "student", 10, 0) as log:
        log.write(5, VALUES)
        log.say("evaluating")
        log.write_evaluation(5, {"FD": 0.5, "FD/low": 0.25}, text)
        log.write(6, VALUES)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [{"step": 5, **VALUES}, {"step": 5, "FD": 0.5, "FD/low": 0.25}, {"step": 6, **VALUES}]
    assert capsys.readouterr().err.splitlines()[1] == f"student 5/10  {text}"


def test_the_bar_shows_the_loss_again_after_an_evaluation(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    with RunLog(tmp_path, "student", 10, 0) as log:
        log.write(5, VALUES)
        log.say("evaluating")
        log.write_evaluation(5, {"FD": 0.5}, "FD 0.5")
    assert log._bar.shown and log._bar._progress.tasks[0].fields["status"] == "loss 0.5  10 images/s"
    assert "student 5/10  FD 0.5" in capsys.readouterr().err


def test_only_the_first_process_writes(tmp_path, capsys):
    with RunLog(tmp_path / "run", "teacher", 10, 0, active=False) as log:
        log.write(5, VALUES)
        log.advance(6)
        log.say("evaluating")
        log.write_evaluation(5, {"FD": 0.5}, "FD 0.5")
    assert not (tmp_path / "run").exists()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("start", "kept"), [(0, []), (4, [2, 4]), (5, [2, 4]), (100, [2, 4, 6])])
def test_steps_to_be_run_again_are_dropped(tmp_path, start, kept):
    with RunLog(tmp_path, "teacher", 10, 0) as log:
        for step in (2, 4, 6):
            log.write(step, VALUES)
    with RunLog(tmp_path, "teacher", 10, start):
        pass
    assert steps(tmp_path) == kept


def test_torn_and_foreign_lines_are_dropped(tmp_path):
    lines = ['{"step": 1, "loss": 2.0}', "7", "[]", '{"loss": 1}', '{"step": "a"}', '{"step": 2, "lo']
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    with RunLog(tmp_path, "teacher", 10, 5) as log:
        log.write(6, VALUES)
    assert steps(tmp_path) == [1, 6]


def test_nothing_is_shown_where_progress_is_off(tmp_path, capsys):
    with RunLog(tmp_path, "teacher", 10, 0, shown=False) as log:
        log.write(10, VALUES)
        log.write_evaluation(10, {"FD": 0.5}, "FD 0.5")
    assert capsys.readouterr().err == "" and steps(tmp_path) == [10, 10]


def test_long_times_have_hours(tmp_path, capsys):
    with RunLog(tmp_path, "teacher", 100, 0) as log:
        log.write(1, VALUES | {"seconds": 175.2})
    assert "elapsed 2:55 · left 4:49:05" in capsys.readouterr().err


def test_tensorboard_has_samples_and_settings(tmp_path):
    for name, mode in (("grey", "L"), ("colour", "RGB")):
        Image.new(mode, (12, 8), 128 if mode == "L" else (255, 0, 0)).save(tmp_path / f"{name}.png")
    with RunLog(tmp_path, "student", 10, 0) as log:
        log.write_settings({"steps": 10, "optimizer.lr": 1e-3, "betas": [0.9, 0.99], "flip": True, "none": None})
        log.write(5, VALUES)
        for step, name in ((4, "grey"), (5, "colour")):
            log.write_samples(step, tmp_path / f"{name}.png")
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(image.step, image.width, image.height) for image in events.Images("samples")] == [(4, 12, 8), (5, 12, 8)]
    assert "| optimizer.lr | 0.001 |" in events.Tensors("settings/text_summary")[0].tensor_proto.string_val[0].decode()
    assert {"_hparams_/experiment", "_hparams_/session_start_info"} <= set(events.PluginTagToContent("hparams"))
