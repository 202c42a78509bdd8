"""Disks that are too small, at 20 sizes: one line, nothing half-written, and the same numbers with more room."""

import os
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.faults

NAME = "averages and accumulation"
SIZES = 20


def mounted(place: Path, size: int, again: bool = False) -> bool:
    """Whether there is a file system of so many bytes at a place now."""
    options = f"size={size // 1024}k" + (",remount" if again else "")
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)], capture_output=True)
    return done.returncode == 0


@pytest.fixture
def place(tmp_path) -> Iterator[Path]:
    place = tmp_path / "disk"
    place.mkdir()
    if os.name != "posix" or not mounted(place, 1 << 20):
        pytest.skip("mounting is not allowed here")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def size_of(run: Path) -> int:
    return sum(-(-p.stat().st_size // 4096) * 4096 + 4096 for p in run.rglob("*"))


def half_written(run: Path) -> list[str]:
    return [str(p) for p in run.rglob("*") if p.name.endswith((".tmp", ".old")) or p.name == ".lock"]


@pytest.mark.parametrize("number", range(SIZES))
def test_a_small_disk(number, place, recipe, runner, uninterrupted, assert_same_outcome, tell):
    whole = uninterrupted(NAME)
    size = max(16_384, int(size_of(whole) * 1.05 * number / SIZES))
    assert mounted(place, size, again=True)
    run = place / "run"
    command = (str(recipe(NAME)), "--output", str(run))
    ended = runner.run(*command, run=run)
    if ended.codes == [0]:
        outcome = "it was enough"
    else:
        assert ended.refused and "cannot write" in ended.errors[0] and str(run) in ended.errors[0], ended.said
        assert "No space left on device" in ended.errors[0]
        assert half_written(place) == []
        assert mounted(place, 1 << 28, again=True)
        again = runner.run(*command, run=run)
        assert again.codes == [0], again.said
        outcome = "one line, then the bits of the whole run"
    assert_same_outcome(run, whole)
    tell("a disk too small", outcome)


@pytest.mark.parametrize("kilobytes", [1, 4, 16, 64])
def test_a_limit_on_the_size_of_files(kilobytes, recipe, runner, uninterrupted, assert_same_outcome, tmp_path, tell):
    """Of this process and its children."""
    whole, run = uninterrupted(NAME), tmp_path / "run"
    command = (str(recipe(NAME)), "--output", str(run))
    started = runner.start(*command, run=run)
    for process, _ in started:
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (kilobytes * 1024, resource.RLIM_INFINITY))
    ended = runner.end(started)
    assert ended.refused and "File too large" in ended.errors[0], ended.said
    assert not run.exists() or half_written(run) == []
    again = runner.run(*command, run=run)
    assert again.codes == [0], again.said
    assert_same_outcome(run, whole)
    tell("a limit on the size of files", "one line, then the bits of the whole run")
