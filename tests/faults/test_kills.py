"""Runs that are killed at any instant, many times, and end in the numbers of the run that was not."""

import random
import signal
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.faults

KILLS = 5
# Recipe, number of processes, first step that is no number, and how many runs.
CHAINS = {
    "evaluation": (1, -1, 5),
    "averages and accumulation": (1, -1, 5),
    "phases": (1, -1, 3),
    "two processes": (2, -1, 4),
    "skipped steps": (1, 10, 3),
}
# Operations on files of a whole run, roughly.
OPERATIONS = 250


def steps_logged(run: Path) -> int:
    return sum(file.read_bytes().count(b"\n") for file in run.glob("*/metrics.jsonl"))


def kill_at_a_step(runner, draw: random.Random, started, run: Path) -> None:
    """After some more lines of the log, and a moment.

    Of several processes, after one line at least: without a launcher, which would end them all, PyTorch lets a process
    whose partner was killed before they met wait for half an hour.
    """
    lines = draw.randrange(len(started) > 1, 6)
    wanted, end = steps_logged(run) + lines, time.monotonic() + 120
    while steps_logged(run) < wanted and time.monotonic() < end and all(p.is_alive() for p, _ in started):
        time.sleep(0.01)
    time.sleep(draw.uniform(0, 0.2))
    victim = draw.choice(started)[0]
    if victim.pid is not None and victim.is_alive():
        victim.kill()


@pytest.mark.parametrize(("name", "number"), [(name, i) for name, (_, _, n) in CHAINS.items() for i in range(n)])
def test_killed_again_and_again(name, number, recipe, runner, uninterrupted, assert_same_outcome, tmp_path, tell):
    processes, bad, _ = CHAINS[name]
    whole, draw = uninterrupted(name, processes, bad), random.Random(f"{name} {number}")
    kills, runs = 0, 0
    while kills < KILLS:
        runs += 1
        run = tmp_path / f"run-{runs}"
        command, ended = (str(recipe(name)), "--output", str(run)), None
        options = {"run": run, "processes": processes, "bad": bad}
        while ended is None or ended.killed:
            if kills == KILLS:
                ended = runner.run(*command, **options)
                assert not ended.killed, ended.said
            elif draw.random() < 0.5:
                victim, at = draw.randrange(processes), draw.randrange(1, OPERATIONS // 2)
                ended = runner.run(*command, **options, kill={victim: at})
            else:
                started = runner.start(*command, **options)
                kill_at_a_step(runner, draw, started, run)
                ended = runner.end(started)
            kills += ended.killed
            # Where one process is killed the other says so, in one line, unless the run had ended by then.
            others = {code for code in ended.codes if code != -signal.SIGKILL}
            complete = not ended.killed or (run / "student" / "model").exists()
            assert others <= {*([2] if ended.killed else []), *([0] if complete else [])}, ended.said
            assert "Traceback" not in ended.said, ended.said
        assert_same_outcome(run, whole)
    tell(f"SIGKILL, {name}", "the bits of the uninterrupted run", kills)
