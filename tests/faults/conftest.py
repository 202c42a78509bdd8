"""Runs that are to be killed and damaged, and the table of what became of them."""

import collections
import json
import multiprocessing
import runpy
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from unistep.data import open_dataset
from unistep.formats.checkpoint import load_checkpoint

SCRIPT = Path(__file__).with_name("train_in_process.py")
DEADLINE = 600.0
STAGES = ("teacher", "student")

NETWORK = """
network:
  name: patched-adm
  patch_size: 4
  block_out_channels: [8]
  down_block_types: [DownBlock2D]
  up_block_types: [UpBlock2D]
  layers_per_block: 1
  norm_num_groups: 4
  attn_norm_num_groups: 4
  attention_head_dim: 8
  dropout: 0.1
"""
STAGE = "{steps: 24, checkpoint_every: 3, log_every: 2, sample_every: 1000, "
RECIPES = {
    # Guidance, a target that is an average, flips, evaluations, and the best model by them.
    "evaluation": f"""
data: {{source: SOURCE, flip: true}}
stages:
  teacher: {STAGE}batch_size: 8, method: edm, objective: {{label_dropout: 0.1}}}}
  student: {STAGE}batch_size: 8, method: cd, init: teacher, objective: {{step: same-noise, guidance: 1.5}}}}
evaluate_every: 7
evaluation: {{num_images: 32, reference_images: 64}}
""",
    "averages and accumulation": f"""
data: {{source: SOURCE}}
stages:
  teacher: {STAGE}batch_size: 8, accumulation: 2, ema_decays: [0.9, 0.5, 0.999], ema_ramp: half-life, method: edm}}
  student: {STAGE}batch_size: 8, accumulation: 4, ema_decays: [0.99, 0.0], method: ect, init: teacher}}
""",
    "phases": f"""
data: {{source: SOURCE}}
stages:
  teacher: {STAGE}batch_size: 4, method: edm}}
  student: {STAGE}batch_size: 4, method: pd, init: teacher, objective: {{start_scales: 8}}}}
""",
    "two processes": f"""
data: {{source: SOURCE}}
stages:
  teacher: {STAGE}batch_size: 4, method: edm}}
  student: {STAGE}batch_size: 4, method: sct, init: teacher}}
""",
    "three processes": f"""
data: {{source: SOURCE}}
stages:
  teacher: {STAGE}batch_size: 6, method: edm}}
  student: {STAGE}batch_size: 6, method: cd, init: teacher}}
""",
    # With `bad`, so that the run goes back.
    "skipped steps": f"""
data: {{source: SOURCE}}
stages:
  teacher: {STAGE}batch_size: 4, max_skipped: 3, method: edm}}
  student: {STAGE}batch_size: 4, max_skipped: 3, method: ict}}
""",
}


@dataclass(frozen=True)
class Ended:
    """How processes ended.

    Args:
        codes: exit codes; a negative one is the number of a signal.
        said: what they printed.
    """

    codes: list[int]
    said: str

    @property
    def killed(self) -> bool:
        return any(code == -9 for code in self.codes)

    @property
    def errors(self) -> list[str]:
        return [line for line in self.said.splitlines() if line.startswith("unistep: error")]

    @property
    def refused(self) -> bool:
        """One line and exit code 2."""
        return self.codes == [2] and len(self.errors) == 1 and "Traceback" not in self.said


class Runner:
    """Starts `unistep train` in processes that are forked with everything imported."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["unistep.workflows.runs.loop", "unistep.cli.train"])
        self._count = 0

    def start(self, *arguments: str, run: Path, processes: int = 1, kill: dict[int, int] | None = None, bad: int = -1):
        """The processes, and the files of what they print."""
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = listener.getsockname()[1]
        started: list[tuple[BaseProcess, Path]] = []
        for rank in range(processes):
            self._count += 1
            said = self.place / f"said-{self._count}"
            names: dict[str, Any] = {"arguments": list(arguments), "said": str(said), "folder": str(run), "bad": bad}
            names |= {"rank": rank, "processes": processes, "port": port, "kill_at": (kill or {}).get(rank, 0)}
            given = {"init_globals": names, "run_name": "__main__"}
            process = self._context.Process(target=runpy.run_path, args=(str(SCRIPT),), kwargs=given, daemon=True)
            process.start()
            started.append((process, said))
        return started

    def end(self, started: list[tuple[BaseProcess, Path]]) -> Ended:
        """Waits for all of them."""
        end = time.monotonic() + DEADLINE
        for process, said in started:
            process.join(max(0.0, end - time.monotonic()))
            assert process.exitcode is not None, f"it goes on and on: {said.read_text()[-2000:]}"
        texts = [said.read_text() for _, said in started]
        return Ended([process.exitcode for process, _ in started], "\n".join(texts))  # pyright: ignore

    def run(self, *arguments: str, run: Path, **options: Any) -> Ended:
        """Starts and waits."""
        return self.end(self.start(*arguments, run=run, **options))


@pytest.fixture(scope="session")
def runner(tmp_path_factory) -> Runner:
    return Runner(tmp_path_factory.mktemp("said"))


@pytest.fixture(scope="session")
def recipe(tmp_path_factory) -> Callable[[str], Path]:
    """recipe(name): the file of one of `RECIPES`."""
    folder = tmp_path_factory.mktemp("recipes")
    digits = open_dataset("mnist-test")
    np.savez(folder / "digits.npz", digits.images[:96].numpy(), digits.labels[:96].numpy())

    def find(name: str) -> Path:
        path = folder / f"{name.replace(' ', '-')}.yaml"
        if not path.exists():
            path.write_text(RECIPES[name].replace("SOURCE", str(folder / "digits.npz")) + "precision: fp32\n" + NETWORK)
        return path

    return find


@pytest.fixture(scope="session")
def uninterrupted(recipe, runner, tmp_path_factory) -> Callable[..., Path]:
    """uninterrupted(name, processes=1, bad=-1, engine="ddp"): the run that others are compared with."""
    made: dict[tuple, Path] = {}

    def find(name: str, processes: int = 1, bad: int = -1, engine: str = "ddp") -> Path:
        key = name, processes, bad, engine
        if key not in made:
            run = tmp_path_factory.mktemp("whole") / "run"
            command = (str(recipe(name)), "--output", str(run), "--engine", engine)
            ended = runner.run(*command, run=run, processes=processes, bad=bad)
            assert set(ended.codes) == {0}, ended.said
            made[key] = run
        return made[key]

    return find


def weights(run: Path) -> dict[str, torch.Tensor]:
    """Of all models that a run leaves."""
    found: dict[str, torch.Tensor] = {}
    for file in sorted(run.glob("*/*/unet/diffusion_pytorch_model.safetensors")):
        found |= {f"{file.relative_to(run)} {name}": tensor for name, tensor in load_file(file).items()}
    return found


def newest(run: Path) -> dict[str, Any]:
    """The states of the newest checkpoints, without times."""
    found: dict[str, Any] = {}
    for stage in STAGES:
        found[stage] = load_checkpoint(run / stage / "checkpoints")
        del found[stage]["seconds"]
    return found


def same(a: Any, b: Any) -> bool:
    """To the bit."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def lines(run: Path) -> list[Any]:
    """The lines of the logs, without times."""
    found = []
    for stage in STAGES:
        for line in (run / stage / "metrics.jsonl").read_text().splitlines():
            values = json.loads(line)
            found.append({k: v for k, v in values.items() if "seconds" not in k and k != "images_per_second"})
    return found


def left_over(run: Path) -> list[str]:
    """What is half-written: nothing of it may stay in a run that has ended."""
    found = [p for p in run.rglob("*") if p.name.endswith((".tmp", ".old")) or p.name == ".lock"]
    found += [p for p in run.rglob("*.parts") if not p.with_suffix(".pt").exists()]
    return [str(p.relative_to(run)) for p in found]


@pytest.fixture(scope="session")
def assert_same_outcome() -> Callable[..., None]:
    """assert_same_outcome(run, other, log=True): models, last checkpoints and logs are those of the other."""

    def check(run: Path, other: Path, log: bool = True, states: bool = True) -> None:
        assert same(weights(run), weights(other))
        assert not states or same(newest(run), newest(other))
        assert not log or lines(run) == lines(other)
        assert left_over(run) == []
        for stage in STAGES:
            assert (run / stage / "samples" / "step-00000024.png").stat().st_size > 0

    return check


# ----------------------------------------------------------------------------------------------------------- the table


@pytest.fixture
def tell(record_property) -> Callable[..., None]:
    """tell(kind, outcome, count=1): a line of the table at the end."""

    def note(kind: str, outcome: str, count: int = 1) -> None:
        record_property("fault", [kind, outcome, count])

    return note


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Prints the table of all faults."""
    table: collections.Counter[tuple[str, str]] = collections.Counter()
    for reports in terminalreporter.stats.values():
        for report in reports:
            for name, value in getattr(report, "user_properties", ()):
                if name == "fault" and report.when == "call":
                    table[value[0], value[1]] += value[2]
    if table:
        terminalreporter.section("faults")
        for (kind, outcome), count in sorted(table.items()):
            terminalreporter.write_line(f"{kind:<46} {count:>4}  {outcome}")
