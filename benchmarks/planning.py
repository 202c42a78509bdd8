"""Plans for processes of this machine against runs: images a second and memory of a process.

    python benchmarks/planning.py
    python benchmarks/planning.py --processes 1 --json one.json

Each number of processes is planned by `unistep plan --gpu cpu`, which measures a step of one process and the exchange,
and then trained for some steps by torchrun. Both are printed with their relative difference. The machine should be idle
otherwise.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
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


def recipe(folder: Path, steps: int) -> Path:
    """Writes random images and the recipe of a run on them."""
    rng = np.random.default_rng(0)
    np.savez(folder / "images.npz", rng.integers(0, 256, (512, 32, 32, 3), dtype=np.uint8))
    RECIPE["data"]["source"] = str(folder / "images.npz")
    RECIPE["stages"]["teacher"]["steps"] = steps
    path = folder / "planned.yaml"
    path.write_text(yaml.safe_dump(RECIPE))
    return path


def planned(path: Path, processes: int) -> dict[str, Any]:
    """The numbers of the plan."""
    command = [sys.executable, "-m", "unistep", "plan", str(path), "--gpu", "cpu", "--gpus-per-node", str(processes)]
    found = json.loads(subprocess.run([*command, "--json"], capture_output=True, check=True).stdout)["stages"][0]
    return {"images_per_second": found["images_per_second"], "memory": found["total"], "parts": found["memory"]}


def trained(path: Path, processes: int, output: Path) -> dict[str, Any]:
    """Pace of the steps after the first few, and the largest memory of a process; the program ends if the run fails."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    command += ["-m", "unistep", "train", str(path), "--output", str(output)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    most, curve = [0], output / "teacher" / "metrics.jsonl"
    times: dict[int, float] = {}

    def watch() -> None:
        while process.poll() is None:
            for one in psutil.Process(process.pid).children():
                try:
                    most[0] = max(most[0], one.memory_info().rss)
                except psutil.Error:
                    continue
            if curve.exists():
                times.setdefault(len(curve.read_bytes().splitlines()), time.perf_counter())
            time.sleep(0.02)

    watcher = threading.Thread(target=watch)
    watcher.start()
    watcher.join()
    if process.returncode:
        raise SystemExit(f"the run of {processes} processes failed")
    steps = sorted(times)[3:-1]
    pairs = [(times[b] - times[a]) / (b - a) for a, b in zip(steps, steps[1:], strict=False)]
    batch = RECIPE["stages"]["teacher"]["batch_size"]
    return {"images_per_second": batch / statistics.median(pairs), "memory": most[0]}


def main() -> None:
    """Runs the comparison and prints it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--steps", type=int, default=20, help="steps of each run")
    parser.add_argument("--json", type=Path, help="file for the figures")
    given = parser.parse_args()
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        path = recipe(Path(folder), given.steps)
        for processes in given.processes:
            plan, run = planned(path, processes), trained(path, processes, Path(folder) / f"run{processes}")
            errors = {name: plan[name] / run[name] - 1 for name in run}
            found[processes] = {"plan": plan, "run": run, "error": errors}
            print(processes, json.dumps(found[processes]), flush=True)
    if given.json:
        given.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
