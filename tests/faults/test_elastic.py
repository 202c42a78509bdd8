"""Runs under torchrun whose processes are killed, and which torchrun starts again: they end in the same numbers."""

import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.faults

KILLS = 3
DEADLINE = 500.0


def steps_logged(run: Path) -> int:
    return sum(file.read_bytes().count(b"\n") for file in run.glob("*/metrics.jsonl"))


def agent(recipe: Path, run: Path, *launcher: str, options: tuple[str, ...] = ()) -> subprocess.Popen[bytes]:
    """One agent of torchrun, whose words go to files of its own."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    # Else processes that are started again find the addresses of those before them.
    environment["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    command = [sys.executable, "-m", "torch.distributed.run", *launcher, "-m", "unistep", "train", str(recipe)]
    said = (run.parent / f"said-{len([*run.parent.glob('said-*')])}").open("wb")
    command += ["--output", str(run), "--grace-seconds", "5", *options]
    return subprocess.Popen(command, env=environment, stdout=said, stderr=subprocess.STDOUT)


def workers(started: subprocess.Popen[bytes]) -> list[psutil.Process]:
    try:
        return [p for p in psutil.Process(started.pid).children() if "train" in p.cmdline()]
    except psutil.NoSuchProcess:
        return []


def until_more(run: Path, lines: int, *agents: subprocess.Popen[bytes]) -> None:
    """Waits for some more lines of the log."""
    wanted, end = steps_logged(run) + lines, time.monotonic() + DEADLINE
    while steps_logged(run) < wanted and all(a.poll() is None for a in agents):
        assert time.monotonic() < end, said(run)
        time.sleep(0.02)


def said(run: Path) -> str:
    return "\n".join(file.read_text(errors="replace") for file in sorted(run.parent.glob("said-*")))


def wait(started: subprocess.Popen[bytes], run: Path) -> None:
    try:
        assert started.wait(DEADLINE) == 0, said(run)
    finally:
        started.kill()


@pytest.mark.parametrize("processes", [2, 4])
def test_killed_ranks_are_started_again(processes, recipe, runner, uninterrupted, assert_same_outcome, tmp_path, tell):
    whole, draw = uninterrupted("two processes", processes), random.Random(f"elastic {processes}")
    run = tmp_path / "run"
    launcher = ("--standalone", f"--nproc_per_node={processes}", f"--max-restarts={KILLS}", "--monitor-interval=0.2")
    started = agent(recipe("two processes"), run, *launcher)
    kills = 0
    for _ in range(KILLS):
        until_more(run, draw.randrange(1, 4), started)
        time.sleep(draw.uniform(0, 0.3))
        if alive := workers(started):
            draw.choice(alive).kill()
            kills += 1
    wait(started, run)
    assert_same_outcome(run, whole)
    tell(f"SIGKILL of a rank, torchrun, {processes} processes", "the bits of the uninterrupted run", kills)


def test_a_rank_that_hangs(recipe, uninterrupted, assert_same_outcome, tmp_path, tell):
    whole, run = uninterrupted("two processes", 2), tmp_path / "run"
    launcher = ("--standalone", "--nproc_per_node=2", "--max-restarts=1", "--monitor-interval=0.2")
    started = agent(recipe("two processes"), run, *launcher, options=("--stall-seconds", "20"))
    until_more(run, 2, started)
    hung = workers(started)[1]
    hung.send_signal(signal.SIGSTOP)
    wait(started, run)
    assert "unistep: error: process 0 of 2 hangs for 20 s, in step" in said(run)
    assert_same_outcome(run, whole)
    tell("a rank that hangs, torchrun", "the bits of the uninterrupted run")


def test_one_of_two_machines_is_lost(recipe, uninterrupted, assert_same_outcome, tmp_path, tell):
    """Two agents, one of which is killed with its process, and comes again."""
    whole, run = uninterrupted("two processes", 2), tmp_path / "run"
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    launcher = ("--nnodes=2", "--nproc_per_node=1", "--max-restarts=3", "--monitor-interval=0.2", "--rdzv_id=run")
    launcher += ("--rdzv_backend=c10d", f"--rdzv_endpoint=127.0.0.1:{port}", "--local-addr=127.0.0.1")
    first = agent(recipe("two processes"), run, *launcher)
    time.sleep(2)  # so that it is the one whose address the others know
    second = agent(recipe("two processes"), run, *launcher)
    until_more(run, 3, first, second)
    lost = workers(second)
    second.kill()
    for process in lost:
        process.kill()
    second.wait()
    again = agent(recipe("two processes"), run, *launcher)
    wait(first, run)
    wait(again, run)
    assert_same_outcome(run, whole)
    tell("one of two agents of torchrun killed", "the bits of the uninterrupted run")
