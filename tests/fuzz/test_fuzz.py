"""Two thousand malformed inputs over all commands: each is one line and exit code 2, in seconds and bounded memory.

Nothing of an input is executed, and nothing half-written is left. A fiftieth of them runs with the fast tests. Every
input is drawn from its number, so that a failure can be had again: `FUZZ=KIND:NUMBER make test-fuzz`.
"""

import getpass
import json
import os
import random
import shutil
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fuzz_data
import fuzz_hub
import fuzz_models
import fuzz_published
import fuzz_texts
import fuzz_words
import numpy as np
import pytest
from fuzz_case import Case, Draw, Good
from PIL import Image

SECONDS = 10
MEMORY = 1500 << 20
# Inputs whose damage may leave something valid, as one changed number of a file may.
MOST_VALID = 0.05

# Generator, and number of inputs, of each kind.
KINDS: dict[str, tuple[Draw, int]] = {
    "pickles": (fuzz_models.pickles, 180),
    "torch.save": (fuzz_models.torch_files, 150),
    "safetensors": (fuzz_models.safetensors, 160),
    "settings of models": (fuzz_models.settings, 180),
    "npz": (fuzz_data.arrays, 170),
    "published data": (fuzz_published.published, 140),
    "statistics": (fuzz_data.statistics, 130),
    "images": (fuzz_data.images, 170),
    "zips": (fuzz_data.zips, 90),
    "dataset.json": (fuzz_data.label_files, 100),
    "onnx": (fuzz_data.networks, 60),
    "recipes": (fuzz_texts.recipes, 180),
    "runs": (fuzz_texts.runs, 90),
    "checkpoints": (fuzz_texts.checkpoints, 40),
    "places of results": (fuzz_texts.records, 50),
    "hub": (fuzz_hub.hub, 100),
    "command lines": (fuzz_words.command_lines, 190),
    "devices and pipes": (fuzz_words.places, 130),
    "names": (fuzz_words.names, 60),
}
EVERY = 50
_OF_TORCH = (f"torchinductor_{getpass.getuser()}", ".ses")


class Worker:
    """The process that runs the commands."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        script = Path(__file__).with_name("fuzz_worker.py")
        environment = os.environ | {
            "HOME": str(folder / "home"),
            "XDG_CACHE_HOME": str(folder / "cache"),
            "HF_HOME": str(folder / "hf"),
            "TMPDIR": str(folder / "tmp"),
            "MPLCONFIGDIR": str(folder / "cache"),
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "COLUMNS": "100",
        }
        environment.pop("HF_HUB_OFFLINE", None)
        for name in ("home", "cache", "hf", "tmp"):
            (folder / name).mkdir()
        self.process = subprocess.Popen(
            [sys.executable, str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=(folder / "worker.err").open("wb"),
            env=environment,
            text=True,
        )

    def strangers(self) -> list[str]:
        """Files that commands put elsewhere than in their own folder."""
        return [name for place in ("home", "tmp") for name in os.listdir(self.folder / place) if name not in _OF_TORCH]

    def __call__(self, case: Case, folder: Path) -> dict[str, Any]:
        assert self.process.stdin and self.process.stdout
        texts = {name: str(self.folder / name) + ".txt" for name in ("out", "err")}
        job = {"words": case.words, "folder": str(folder), "environment": dict(case.environment), **texts}
        print(json.dumps(job), file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        assert line, (self.folder / "worker.err").read_text()
        return json.loads(line)


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    started = Worker(tmp_path_factory.mktemp("worker"))
    yield started
    started.process.kill()
    started.process.wait()


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory, worker: Worker) -> Iterator[Good]:
    """Valid inputs; the commands themselves make them."""
    folder = tmp_path_factory.mktemp("good")

    def command(*words: object) -> None:
        outcome = worker(Case([str(w) for w in words]), folder)
        assert outcome["code"] == 0, outcome

    pixels = np.random.default_rng(0).integers(0, 256, (16, 28, 28), np.uint8)
    for i, image in enumerate(pixels):
        path = folder / "images" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    np.savez(folder / "images.npz", arr_0=pixels[..., None], arr_1=np.arange(16) % 2)
    small = ["--network.block-out-channels", "8,8", "--network.patch-size", "2", "--data", "images.npz"]
    small += [
        "--network.attention-head-dim",
        "8",
        "--network.norm-num-groups",
        "4",
        "--network.attn-norm-num-groups",
        "4",
    ]
    for stage in ("teacher", "student"):
        small += [f"--{stage}.{key}={n}" for key, n in (("steps", 2), ("batch-size", 4))]
        small += [f"--{stage}.checkpoint-every=1"]
    command("train", "mnist-quick", "--output", "run", *small)
    command("evaluate", "mnist-test", "--num-images", "600", "--reference", "mnist-test", "--metrics", "fd",
            "--save-reference", "stats.npz", "--output", "metrics.json")  # fmt: skip
    golden = Path(__file__).parents[1] / "golden" / "openai_unet_uncond_additive.pt"
    command("convert", golden, "plain")
    server, address = fuzz_hub.serve()
    (folder / "edm.pkl").write_bytes(fuzz_models.edm_file())
    yield Good(
        folder=folder,
        model=folder / "run/student/model",
        plain=folder / "plain",
        pt=golden,
        pkl=folder / "edm.pkl",
        run=folder / "run",
        images=folder / "images",
        npz=folder / "images.npz",
        statistics=folder / "stats.npz",
        hub=address,
    )
    server.shutdown()


def contents(folder: Path) -> dict[str, Any]:
    """All that is below a folder, with the bytes of plain files."""
    found: dict[str, Any] = {}
    for path in folder.rglob("*"):
        plain = not path.is_symlink() and path.is_file()
        found[str(path.relative_to(folder))] = zlib.crc32(path.read_bytes()) if plain else path.lstat().st_mode
    return found


def drawn(kind: str, number: int, good: Good) -> Case:
    return KINDS[kind][0](random.Random(f"{kind} {number}"), good)


def fault(outcome: dict[str, Any], before: dict[str, Any], after: dict[str, Any], worker: Worker) -> str:
    """The first thing that is wrong about an end; empty where nothing is."""
    code, error = outcome["code"], outcome["err"]
    if code is None:
        return "no end"
    if code not in (0, 2):
        return f"exit code {code}"
    if outcome["seconds"] > SECONDS:
        return f"{outcome['seconds']:.1f} s"
    if outcome["peak"] > MEMORY:
        return f"{outcome['peak'] / 1e6:.0f} MB"
    if any("canary" in name for name in set(after) - set(before)) or worker.strangers():
        return f"executed, or left elsewhere: {worker.strangers()}"
    lines = [line for line in error.split("\n") if line and not line.startswith(("note: ", "warning: "))]
    if any(not c.isprintable() for line in error.split("\n") for c in line):
        return "codes for the terminal"
    if code == 0:
        return f"lines beside notes: {lines[:2]}" if lines else ""
    if len(lines) != 1 or not lines[0].startswith("unistep: error: ") or len(lines[0]) > 3000:
        return f"{len(lines)} lines"
    changed = {name for name in {**before, **after} if before.get(name) != after.get(name)}
    if changed := {name for name in changed if not name.startswith("cache/") and name != "cache"}:
        return f"written: {sorted(changed)[:4]}"
    if unfinished := [name for name in after if name.endswith((".incomplete", ".tmp"))]:
        return f"half-written: {unfinished[:3]}"
    return ""


def check(kind: str, numbers: list[int], good: Good, worker: Worker, tmp_path: Path) -> dict[str, Any]:
    """Runs inputs of a kind; gives the row of the table."""
    row: dict[str, Any] = {
        "kind": kind,
        "inputs": 0,
        "refused": 0,
        "valid": 0,
        "seconds": 0.0,
        "megabytes": 0,
        "faults": [],
    }
    for number in numbers:
        case = drawn(kind, number, good)
        folder = tmp_path / f"{list(KINDS).index(kind)}-{number}"
        folder.mkdir()
        (folder / "good.png").write_bytes(fuzz_data.png())
        case.lay_out(folder)
        before = contents(folder)
        outcome = worker(case, folder)
        found = fault(outcome, before, contents(folder), worker)
        row["inputs"] += 1
        row["refused"] += outcome["code"] == 2 and not found
        row["valid"] += outcome["code"] == 0 and not found
        row["seconds"] = max(row["seconds"], outcome["seconds"])
        row["megabytes"] = max(row["megabytes"], outcome["peak"] // 1_000_000)
        if found:
            words = " ".join(word[:60] for word in case.words)
            tail = outcome["err"][-1500:] if outcome["code"] in (1, 70) else outcome["err"][:400]
            row["faults"].append(f"FUZZ={kind}:{number} ({case.note[:100]}): {found}: {words!r}\n{tail}")
        if os.environ.get("FUZZ_SHOW"):
            end = "FAULT" if found else "valid" if outcome["code"] == 0 else "refused"
            print(
                f"{end} {kind}:{number} ({case.note[:100]!r}) {case.words} {found} {outcome['err'][-1500:]!r}",
                flush=True,
            )
        shutil.rmtree(folder)
    return row


def numbers_of(kind: str, few: bool) -> list[int]:
    chosen, _, number = os.environ.get("FUZZ", "").partition(":")
    if chosen:
        return [] if chosen != kind else [int(number)] if number else list(range(KINDS[kind][1]))
    everything = range(KINDS[kind][1])
    return list(everything[::EVERY] if few else everything)


def test_a_fiftieth(good, worker, tmp_path, record_property):
    """In one test: each process that had a part would make the valid inputs again."""
    rows = [check(kind, numbers_of(kind, True), good, worker, tmp_path) for kind in KINDS]
    for row in rows:
        record_property("fuzz", row)
    faults = [fault for row in rows for fault in row["faults"]]
    assert not faults, "\n".join(faults)


@pytest.mark.fuzz
@pytest.mark.parametrize("kind", KINDS)
def test_all(kind, good, worker, tmp_path, record_property):
    row = check(kind, numbers_of(kind, False), good, worker, tmp_path)
    record_property("fuzz", row)
    assert not row["faults"], f"{len(row['faults'])} of {row['inputs']}:\n" + "\n".join(row["faults"])
    assert row["valid"] <= 1 + MOST_VALID * row["inputs"]


def test_there_are_two_thousand():
    assert sum(count for _, count in KINDS.values()) >= 2000
