"""Two processes that train one run: the second says so and changes nothing."""

import socket
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.faults

NAME = "averages and accumulation"


def wait_for(path: Path) -> None:
    end = time.monotonic() + 120
    while not path.exists() and time.monotonic() < end:
        time.sleep(0.01)
    assert path.exists()


@pytest.mark.parametrize("second", ["the same call", "resume", "resume with changes"])
def test_two_at_once(second, recipe, runner, uninterrupted, assert_same_outcome, tmp_path, tell):
    whole, run = uninterrupted(NAME), tmp_path / "run"
    command = [str(recipe(NAME)), "--output", str(run)]
    started = runner.start(*command, run=run)
    wait_for(run / "teacher" / "checkpoints" / "step-00000003.pt")
    config = (run / "config.yaml").read_bytes()
    resumed = ["--resume", str(run)]
    changed = [*resumed, "--student.steps", "99"]
    other = {"the same call": command, "resume": resumed, "resume with changes": changed}[second]
    ended = runner.run(*other, run=run)
    assert ended.refused, ended.said
    (process, _), *_ = started
    assert f"process {process.pid} on {socket.gethostname()}" in ended.errors[0]
    assert (run / "config.yaml").read_bytes() == config
    assert runner.end(started).codes == [0]
    assert_same_outcome(run, whole)
    tell("two processes on one run", "the second is refused in one line")


def test_two_begin_at_once(recipe, runner, uninterrupted, assert_same_outcome, tmp_path, tell):
    """Whichever is first: one of them trains, or each in turn."""
    whole, run = uninterrupted(NAME), tmp_path / "run"
    command = [str(recipe(NAME)), "--output", str(run)]
    both = [runner.start(*command, run=run) for _ in range(2)]
    ended = [runner.end(started) for started in both]
    assert sorted(e.codes[0] for e in ended) in ([0, 2], [0, 0]), [e.said for e in ended]
    assert all(e.codes == [0] or e.refused for e in ended)
    assert_same_outcome(run, whole)
    tell("two processes on one run", "begun at once: the bits of the whole run")
