"""The rates that bound every program on a device: of matrix products, of copies within it, and of copies to it.

    python benchmarks/rates.py                      the GPU if there is one, else the CPU
    python benchmarks/rates.py --size 8192 --json rates.json

Products are of square matrices of random numbers, 2 n^3 FLOPs each; a copy within the device counts the bytes read and
those written. Medians of several measurements; on a GPU timed between events of the device's own clock.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch


def default_device() -> torch.device:
    """The GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def name_of(device: torch.device) -> str:
    """The device as its maker calls it; of a CPU the number of threads that are used.

    Args:
        device: device.
    """
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"


def synchronize(device: torch.device) -> None:
    """Waits until all that the device was given is done.

    Args:
        device: device.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(work: Callable[[], object], device: torch.device, repeats: int, turns: int = 5) -> float:
    """Seconds of one call, the median over turns, after three to warm up.

    Args:
        work: function to be timed.
        device: device that it works on.
        repeats: number of calls of a turn.
        turns: number of turns.
    """
    for _ in range(3):
        work()
    times = []
    for _ in range(turns):
        synchronize(device)
        if device.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            for _ in range(repeats):
                work()
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end) / 1000 / repeats)
        else:
            began = time.perf_counter()
            for _ in range(repeats):
                work()
            times.append((time.perf_counter() - began) / repeats)
    return statistics.median(times)


def matrix_rate(device: torch.device, dtype: torch.dtype, size: int, repeats: int = 5, tf32: bool = False) -> float:
    """FLOP/s of products of square matrices.

    Args:
        device: device.
        dtype: type of the numbers.
        size: number of rows and columns.
        repeats: number of products of a turn.
        tf32: whether products of fp32 may round their factors to TF32.
    """
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = tf32
    try:
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        out = torch.empty_like(a)
        return 2 * size**3 / seconds_of(lambda: torch.mm(a, b, out=out), device, repeats)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def copy_rate(device: torch.device, count: int, repeats: int = 5) -> float:
    """Bytes a second that a copy within the device reads and writes.

    Args:
        device: device.
        count: number of bytes that are copied.
        repeats: number of copies of a turn.
    """
    source = torch.randint(256, (count,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * count / seconds_of(lambda: target.copy_(source), device, repeats)


def host_rate(device: torch.device, count: int, pinned: bool, repeats: int = 5) -> float:
    """Bytes a second that go from main memory to the device.

    Args:
        device: device.
        count: number of bytes that are copied.
        pinned: whether they lie in pinned memory.
        repeats: number of copies of a turn.
    """
    source = torch.zeros(count, dtype=torch.uint8, pin_memory=pinned and device.type == "cuda")
    target = torch.empty(count, dtype=torch.uint8, device=device)
    return count / seconds_of(lambda: target.copy_(source, non_blocking=True), device, repeats)


def rates(device: torch.device, size: int, copied: int, host: int) -> dict[str, float]:
    """All rates, in FLOP/s and bytes/s.

    Args:
        device: device.
        size: number of rows and columns of a matrix.
        copied: bytes of a copy within the device.
        host: bytes of a copy to the device.
    """
    found = {
        "bf16": matrix_rate(device, torch.bfloat16, size),
        "fp32": matrix_rate(device, torch.float32, size, 2),
    }
    if device.type == "cuda":
        found["fp16"] = matrix_rate(device, torch.float16, size)
        found["tf32"] = matrix_rate(device, torch.float32, size, tf32=True)
    found["copy"] = copy_rate(device, copied)
    if device.type == "cuda":
        found["host"], found["host_pinned"] = (host_rate(device, host, pinned, 2) for pinned in (False, True))
    return found


_LABELS = {
    "bf16": ("product in bf16", 1e12, "TFLOP/s"),
    "fp16": ("product in fp16", 1e12, "TFLOP/s"),
    "tf32": ("product in TF32", 1e12, "TFLOP/s"),
    "fp32": ("product in fp32", 1e12, "TFLOP/s"),
    "copy": ("copy within the device", 1e9, "GB/s, read and written"),
    "host": ("copy from main memory", 1e9, "GB/s"),
    "host_pinned": ("copy from pinned memory", 1e9, "GB/s"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, help="rows and columns of a matrix; default: 8192, 1024 on a CPU")
    parser.add_argument("--json", type=Path, help="file that the numbers are written to")
    options = parser.parse_args()
    device = default_device()
    gpu = device.type == "cuda"
    size = options.size or (8192 if gpu else 1024)
    found = rates(device, size, 2**32 if gpu else 2**26, 2**30 if gpu else 2**26)
    print(f"{name_of(device)}, torch {torch.__version__}, matrices of {size}x{size}")
    for key, value in found.items():
        label, unit, text = _LABELS[key]
        print(f"  {label:26}{value / unit:9.2f} {text}")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps({"device": name_of(device), "size": size, "rates": found}, indent=1))


if __name__ == "__main__":
    main()
