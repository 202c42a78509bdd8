"""Damaged checkpoints, models and logs: the run ends in the same numbers and names the damage, or is refused."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from unistep.formats.checkpoint import checkpoint_steps

pytestmark = pytest.mark.faults

NAME = "evaluation"


def flip(path: Path, draw: random.Random) -> None:
    content = bytearray(path.read_bytes())
    for _ in range(draw.choice((1, 1, 1, 4))):
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


def zero(path: Path, draw: random.Random) -> None:
    content = bytearray(path.read_bytes())
    start, length = draw.randrange(len(content)), draw.choice((64, 512, 4096))
    content[start : start + length] = bytes(len(content[start : start + length]))
    path.write_bytes(content)


def truncate(path: Path, draw: random.Random) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: draw.randrange(len(content))])


def become_a_folder(path: Path, draw: random.Random) -> None:
    path.unlink()
    path.mkdir()


DAMAGE: dict[str, Callable[[Path, random.Random], None]] = {
    "bits flipped": flip,
    "a block of zeros": zero,
    "truncated": truncate,
    "empty": lambda path, draw: path.write_bytes(b"") and None,
    "a folder instead": become_a_folder,
    "missing": lambda path, draw: path.unlink(),
}
CHECKPOINT, WEIGHTS = "the newest checkpoint", "weights of teacher/model"
FILES = {
    CHECKPOINT: lambda run: max((run / "student" / "checkpoints").glob("*.pt")),
    WEIGHTS: lambda run: run / "teacher/model/unet/diffusion_pytorch_model.safetensors",
    "JSON of teacher/model": lambda run: run / "teacher/model/scheduler/scheduler_config.json",
    "config.yaml": lambda run: run / "config.yaml",
    "data.json": lambda run: run / "data.json",
    "metrics.jsonl": lambda run: run / "student/metrics.jsonl",
    "outline": lambda run: run / "student/checkpoints/outline/unet/config.json",
    "the teacher's last checkpoint": lambda run: max((run / "teacher" / "checkpoints").glob("*.pt")),
}
CASES = (
    [(CHECKPOINT, kind, i) for kind, n in zip(DAMAGE, (12, 8, 6, 1, 1, 1), strict=True) for i in range(n)]
    + [(WEIGHTS, kind, i) for kind, n in zip(DAMAGE, (4, 3, 2, 1, 1, 1), strict=True) for i in range(n)]
    + [(name, kind, 0) for name in list(FILES)[2:] for kind in list(DAMAGE)[: 5 if name == "data.json" else 3]]
)


@pytest.fixture(scope="session")
def begun(recipe, runner, uninterrupted, tmp_path_factory) -> Path:
    """A run that was killed in its second stage, with two checkpoints there."""
    run = tmp_path_factory.mktemp("begun") / "run"
    at = 40
    while len(checkpoint_steps(run / "student" / "checkpoints")) < 2:
        shutil.rmtree(run, ignore_errors=True)
        at += 15
        ended = runner.run(str(recipe(NAME)), "--output", str(run), run=run, kill={0: at})
        assert ended.killed, "it ended before"
    return run


def test_there_are_sixty():
    assert len(CASES) >= 60


@pytest.mark.parametrize(("name", "kind", "number"), CASES)
def test_a_damaged_file(name, kind, number, begun, runner, uninterrupted, assert_same_outcome, tmp_path, tell):
    run = tmp_path / "run"
    shutil.copytree(begun, run)
    file = FILES[name](run)
    before = None if not file.is_file() else file.read_bytes()
    DAMAGE[kind](file, random.Random(f"{name} {kind} {number}"))
    ended = runner.run("--resume", str(run), run=run)
    assert "Traceback" not in ended.said, ended.said
    if ended.codes == [0]:
        # The checkpoints of a stage that has ended are not needed any more, and stay as they are.
        ended_before = name == "the teacher's last checkpoint"
        assert_same_outcome(run, uninterrupted(NAME), log=name != "metrics.jsonl", states=not ended_before)
        named = any(str(file) in line for line in ended.said.splitlines() if line.startswith("warning: "))
        assert named or name not in (CHECKPOINT, WEIGHTS) or kind == "missing", ended.said
        outcome = "named in a warning, the bits of the whole run" if named else "the bits of the whole run"
    else:
        assert ended.refused and str(file) in ended.errors[0], ended.said
        # What was done is there still: with the file back, the run goes on.
        assert before is not None
        file.rmdir() if file.is_dir() else None
        file.write_bytes(before)
        assert runner.run("--resume", str(run), run=run).codes == [0]
        assert_same_outcome(run, uninterrupted(NAME))
        outcome = "refused in one line, resumed with the file put back"
    assert name != CHECKPOINT or ended.codes == [0]
    tell(f"damaged: {name}", outcome)


def test_all_checkpoints_damaged(begun, runner, tmp_path, tell):
    run = tmp_path / "run"
    shutil.copytree(begun, run)
    for path in (run / "student" / "checkpoints").glob("*.pt"):
        flip(path, random.Random(path.name))
    ended = runner.run("--resume", str(run), run=run)
    assert ended.refused and "there is none" not in ended.errors[0] and "before it too" in ended.errors[0], ended.said
    tell("damaged: all checkpoints", "refused in one line")
