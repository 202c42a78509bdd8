"""Processes that wait for each other; started by hand, so that nobody but they notice when one of them dies."""

import os
import socket
from pathlib import Path

import pytest

from unistep.errors import UserError
from unistep.runtime.processes import Processes, join_processes

SCRIPT = Path(__file__).with_name("wait_for_others.py")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture
def run_three(start_script, tmp_path):
    """run_three(killed=n): exit code and words of each of three processes, of which the n-th is killed."""

    def run(killed: int | None = None) -> list[tuple[int | None, str]]:
        port = free_port()
        files = [tmp_path / f"said-{rank}" for rank in range(3)]
        os.mkfifo(tmp_path / "pipe")
        names = {"port": port, "killed": killed, "pipe": str(tmp_path / "pipe")}
        started = [start_script(SCRIPT, rank=rank, said=str(files[rank]), **names) for rank in range(3)]
        for process in started:
            process.join(60)
        return [(p.exitcode, f.read_text() if f.exists() else "") for p, f in zip(started, files, strict=True)]

    return run


def test_all_arrive(run_three):
    for rank, (code, said) in enumerate(run_three()):
        assert (code, said.partition("; ")[0]) == (0, f"process {rank} of 3 saw all")
        assert rank != 0 or said.endswith("waited True")


def test_one_is_killed(run_three):
    """It cannot say goodbye; the others fail at once instead of waiting for ever."""
    first, second, third = run_three(killed=1)
    assert second == (-9, "")
    assert first == third == (3, "another process of this run has ended early; see what it printed, then repeat")


def test_alone(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    alone = join_processes()
    assert alone == Processes() and alone.first
    alone.wait(lambda: pytest.fail("there is nobody to wait for"))


def test_an_environment_that_makes_no_sense(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "many")
    with pytest.raises(UserError, match="WORLD_SIZE=many, RANK=0, LOCAL_RANK=0, which are not all numbers"):
        join_processes()


def test_nobody_to_reach(monkeypatch):
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(
        UserError, match=r"process 0 of 2 cannot reach the others \(.*MASTER_ADDR.*\); start all by torchrun"
    ):
        join_processes()
