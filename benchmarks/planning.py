"""Plans for processes of this machine against runs: images a second and memory of a process.

    python benchmarks/planning.py
    python benchmarks/planning.py --processes 1 --channels 64,64,128 --batch 16 --json one.json

Each number of processes is planned by `unistep plan --gpu cpu`, which measures steps of processes at once, and then
trained for some steps, several by torchrun, with checkpoints. Both are printed with their relative difference. The
machine should be idle otherwise.
"""

import argparse
import contextlib
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import yaml

RECIPE = {
    "data": {"source": "", "resolution": 32},
    "network": {"name": "adm", "block_out_channels": [32, 64, 64], "attention_head_dim": 32},
    "precision": "fp32",
    "stages": {"teacher": {"method": "edm", "steps": 0, "batch_size": 32, "log_every": 1, "sample_every": 0}},
}
CHECKPOINTS = 2  # of a run
FIRST_STEPS = 2  # that load libraries
LOOK_SECONDS = 0.3  # more often would take processors from the run


def recipe(folder: Path, steps: int, channels: list[int], batch: int) -> Path:
    """Writes random images and the recipe of a run on them."""
    rng = np.random.default_rng(0)
    np.savez(folder / "images.npz", rng.integers(0, 256, (512, 32, 32, 3), dtype=np.uint8))
    RECIPE["data"]["source"] = str(folder / "images.npz")
    RECIPE["network"]["block_out_channels"] = channels
    RECIPE["stages"]["teacher"] |= {"steps": steps, "batch_size": batch, "checkpoint_every": -(-steps // CHECKPOINTS)}
    path = folder / "planned.yaml"
    path.write_text(yaml.safe_dump(RECIPE))
    return path


def planned(path: Path, processes: int) -> dict[str, Any]:
    """The numbers of the plan."""
    command = [sys.executable, "-m", "unistep", "plan", str(path), "--gpu", "cpu", "--gpus-per-node", str(processes)]
    found = json.loads(subprocess.run([*command, "--json"], capture_output=True, check=True).stdout)["stages"][0]
    return {"images_per_second": found["images_per_second"], "memory": found["total"], "parts": found["memory"]}


def trained(path: Path, processes: int, output: Path) -> dict[str, Any]:
    """Pace of the steps after the first few, and the most memory of a process; the program ends if the run fails."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    command = [sys.executable, *(launcher if processes > 1 else []), "-m", "unistep", "train", str(path)]
    command += ["--output", str(output)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    most, workers = 0, list[psutil.Process]()
    while process.poll() is None:
        if len(workers) < processes:
            started = psutil.Process(process.pid)
            workers = [one for one in started.children() if "train" in one.cmdline()] if processes > 1 else [started]
        for one in workers:
            with contextlib.suppress(psutil.Error, OSError):
                most = max(most, most_memory(one))
        time.sleep(LOOK_SECONDS)
    if process.returncode:
        raise SystemExit(f"the run of {processes} processes failed")
    lines = (output / "teacher" / "metrics.jsonl").read_text().splitlines()
    times = [json.loads(line)["seconds"] for line in lines if '"images_per_second"' in line][FIRST_STEPS:]
    batch = RECIPE["stages"]["teacher"]["batch_size"]
    pairs = [b - a for a, b in itertools.pairwise(times)]
    return {"images_per_second": batch / statistics.median(pairs), "memory": most}


def most_memory(process: psutil.Process) -> int:
    """Bytes of main memory that a process has had at most so far, as far as the system counts them."""
    status = Path(f"/proc/{process.pid}/status")
    if not status.exists():
        return process.memory_info().rss
    lines = [line.split() for line in status.read_text().splitlines()]
    return max([int(line[1]) << 10 for line in lines if line[0] == "VmHWM:"], default=0)


def main() -> None:
    """Runs the comparison and prints it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--steps", type=int, default=20, help="steps of each run")
    parser.add_argument("--channels", default="32,64,64", help="channels of the blocks of the network")
    parser.add_argument("--batch", type=int, default=32, help="images of a step")
    parser.add_argument("--json", type=Path, help="file for the figures")
    given = parser.parse_args()
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        path = recipe(Path(folder), given.steps, [int(n) for n in given.channels.split(",")], given.batch)
        for processes in given.processes:
            plan, run = planned(path, processes), trained(path, processes, Path(folder) / f"run{processes}")
            errors = {name: plan[name] / run[name] - 1 for name in run}
            found[processes] = {"plan": plan, "run": run, "error": errors}
            print(processes, json.dumps(found[processes]), flush=True)
    if given.json:
        given.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
