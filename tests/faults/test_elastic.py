"""Runs under torchrun whose processes are killed, and which torchrun starts again: they end in the same numbers."""

import collections
import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from unistep import pack_dataset
from unistep.data import decode_worker

pytestmark = pytest.mark.faults

STAGES = ("teacher", "student")
DEADLINE = 500.0
PORT = 29500  # in namespaces that nobody else listens in


@dataclass(frozen=True)
class Machine:
    """A network of its own, that commands are run in.

    Args:
        address: address by which the other machine reaches it.
        enter: beginning of the command line of what runs in it.
    """

    address: str
    enter: tuple[str, ...]


@contextlib.contextmanager
def two_machines() -> Iterator[tuple[Machine, Machine]]:
    """Two network namespaces joined by a cable; the test is skipped where they cannot be had.

    Each lives as long as a process that reads its input, so that they are gone even where the tests are killed: the
    devices go with the namespaces, and nothing is set in that of this machine.
    """
    missing = [name for name in ("ip", "unshare", "nsenter") if shutil.which(name) is None]
    if missing:
        pytest.skip(f"network namespaces need {', '.join(missing)} (packages iproute2 and util-linux)")
    command, pipe = ["unshare", "--net", "sh", "-c", "echo ready; exec cat"], subprocess.PIPE
    holders = [subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe) for _ in range(2)]
    try:
        for holder in holders:
            if holder.stdout.readline() != b"ready\n":  # type: ignore[union-attr]
                pytest.skip(f"no network namespaces here: {holder.communicate()[1].decode().strip()}")
        machines = [
            Machine(f"10.77.0.{n}", ("nsenter", f"--target={holder.pid}", "--net", "--"))
            for n, holder in enumerate(holders, 1)
        ]
        peer = ("peer", "name", "cable", "netns", str(holders[1].pid))
        made = subprocess.run([*machines[0].enter, "ip", "link", "add", "cable", "type", "veth", *peer], stderr=pipe)
        if made.returncode:
            pytest.skip(f"no pair of network devices here: {made.stderr.decode().strip()}")
        for machine in machines:
            for words in (f"addr add {machine.address}/24 dev cable", "link set cable up", "link set lo up"):
                subprocess.run([*machine.enter, "ip", *words.split()], check=True)
        yield machines[0], machines[1]
    finally:
        for holder in holders:
            holder.kill()
            holder.communicate()


def steps_logged(run: Path) -> int:
    return sum(file.read_bytes().count(b"\n") for file in run.glob("*/metrics.jsonl"))


def agent(
    recipe: Path, run: Path, *launcher: str, options: tuple[str, ...] = (), machine: Machine | None = None
) -> subprocess.Popen[bytes]:
    """One agent of torchrun, whose words go to files of its own."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2] / "src")}
    # Else processes that are started again find the addresses of those before them.
    environment["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    command = [sys.executable, "-m", "torch.distributed.run", *launcher, "-m", "unistep", "train", str(recipe)]
    if machine is not None:
        # The name of this machine is not that of an address there, which Gloo would take.
        environment["GLOO_SOCKET_IFNAME"] = "cable"
        command = [*machine.enter, *command]
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


def half_written(run: Path) -> bool:
    """Whether a checkpoint is being written."""
    folders = [folder for stage in STAGES if (folder := run / stage / "checkpoints").is_dir()]
    with contextlib.suppress(OSError):  # what is gone by the time that it is looked at
        return any(
            path.suffix == ".tmp" or (path.suffix == ".parts" and not path.with_suffix(".pt").exists())
            for folder in folders
            for path in folder.iterdir()
        )
    return False


def until_a_save(run: Path, started: subprocess.Popen[bytes]) -> bool:
    """Waits for a checkpoint that is being written; says whether one was seen."""
    end = time.monotonic() + DEADLINE
    while not half_written(run):
        if started.poll() is not None or not workers(started):
            return False
        assert time.monotonic() < end, said(run)
        time.sleep(0.001)
    return True


def kill_some(kind: str, run: Path, draw: random.Random, started: subprocess.Popen[bytes]) -> bool:
    """Kills one process of a run, or all; says whether it did."""
    until_more(run, draw.randrange(1, 4), started)
    if kind == "during a save":
        if not until_a_save(run, started):
            return False
    else:
        time.sleep(draw.uniform(0, 0.3))
    alive = workers(started)
    if not alive:
        return False
    for process in alive if kind == "all ranks" else [draw.choice(alive)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    return True


# Fifty kills in all: recipe, number of processes, engine, kills of each kind.
CHAINS = [
    ("two processes", 2, "ddp", (4, 3, 4)),
    ("two processes", 2, "fsdp", (3, 3, 4)),
    ("three processes", 3, "fsdp", (3, 3, 3)),
    ("two processes", 4, "ddp", (4, 3, 3)),
    ("two processes", 4, "fsdp", (3, 3, 4)),
]
KINDS = ("a rank", "all ranks", "during a save")


def test_there_are_fifty():
    assert sum(sum(counts) for *_, counts in CHAINS) == 50


@pytest.mark.parametrize(("name", "processes", "engine", "counts"), CHAINS)
def test_killed_ranks_are_started_again(
    name, processes, engine, counts, recipe, uninterrupted, assert_same_outcome, tmp_path, tell
):
    whole, draw = uninterrupted(name, processes, engine=engine), random.Random(f"elastic {processes} {engine}")
    left, killed, runs = dict(zip(KINDS, counts, strict=True)), collections.Counter(), 0
    while any(left.values()):
        runs += 1
        run = tmp_path / f"{runs}" / "run"
        run.parent.mkdir()
        launcher = ("--standalone", f"--nproc_per_node={processes}", "--max-restarts=50", "--monitor-interval=0.2")
        started = agent(recipe(name), run, *launcher, options=("--engine", engine))
        while any(left.values()) and started.poll() is None:
            kind = draw.choice([kind for kind, count in left.items() if count])
            if kill_some(kind, run, draw, started):
                left[kind] -= 1
                killed[kind] += 1
        wait(started, run)
        assert_same_outcome(run, whole)
    for kind, count in killed.items():
        tell(f"SIGKILL, {kind}, torchrun, {processes} x {engine}", "the bits of the uninterrupted run", count)


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


def test_a_worker_that_hangs(recipe, uninterrupted, assert_same_outcome, tmp_path, tell):
    """A process that decodes images for the second rank."""
    whole, run, shards = uninterrupted("two processes", 2), tmp_path / "run", tmp_path / "shards"
    pack_dataset(recipe("two processes").parent / "digits.npz", shards, format="shards", progress=False)
    launcher = ("--standalone", "--nproc_per_node=2", "--max-restarts=1", "--monitor-interval=0.2")
    data = ("--data.source", str(shards), "--data.stream", "true", "--data.workers", "1")
    started = agent(recipe("two processes"), run, *launcher, options=("--stall-seconds", "20", *data))
    until_more(run, 2, started)
    [hung] = [one for one in workers(started)[1].children() if decode_worker.__name__ in one.cmdline()]
    hung.send_signal(signal.SIGSTOP)
    wait(started, run)
    line = next(line for line in said(run).splitlines() if "unistep: error: process 1 of 2 hangs for 20 s" in line)
    assert ", in step " in line and f", waiting for {shards}/" in line and line.endswith(".png")
    assert not hung.is_running()
    assert_same_outcome(run, whole)
    tell("a process that decodes hangs, torchrun", "the bits of the uninterrupted run")


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


def test_one_of_two_networks_is_lost(recipe, uninterrupted, assert_same_outcome, tmp_path, tell):
    """Two agents that have a network in common and nothing else; one is killed with its process, and comes again."""
    whole, run = uninterrupted("two processes", 2), tmp_path / "run"
    started: list[subprocess.Popen[bytes]] = []
    with two_machines() as machines:

        def start(number: int) -> subprocess.Popen[bytes]:
            launcher = ("--nnodes=2", "--nproc_per_node=1", "--max-restarts=3", "--monitor-interval=0.2")
            launcher += ("--rdzv_id=run", "--rdzv_backend=c10d", f"--rdzv_endpoint={machines[0].address}:{PORT}")
            launcher += (f"--rdzv_conf=is_host={1 - number}", f"--local-addr={machines[number].address}")
            started.append(agent(recipe("two processes"), run, *launcher, machine=machines[number]))
            return started[-1]

        try:
            first, second = start(0), start(1)
            until_more(run, 3, first, second)
            lost = workers(second)
            assert lost, said(run)
            second.kill()
            for process in lost:
                process.kill()
            second.wait()
            again = start(1)
            wait(first, run)
            wait(again, run)
        finally:
            for one in started:
                for process in workers(one):
                    process.kill()
                one.kill()
                one.wait()
    assert_same_outcome(run, whole)
    tell("one of two network namespaces lost", "the bits of the uninterrupted run")
