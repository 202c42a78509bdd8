"""This pipeline beside diffusers' on the published architectures: time to the first image, memory, seconds per image.

    python benchmarks/sampling.py                         both architectures
    python benchmarks/sampling.py --models imagenet64     one of them

Weights are random: speed does not depend on them. Each side runs in processes of its own, in its default configuration
(fp32) and in its best (unistep: dtype="auto"; diffusers: the faster of fp32 and bf16, with channels_last and without).
All processes stay open and take turns, so that a busy moment of the machine meets all of them. Ratios are medians of
diffusers / unistep over the turns: above 1 unistep is faster, or smaller.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

UNETS: dict[str, dict[str, Any]] = {
    "imagenet64": {
        "sample_size": 64,
        "layers_per_block": 3,
        "num_class_embeds": 1000,
        "block_out_channels": (192, 384, 576, 768),
        "down_block_types": ("ResnetDownsampleBlock2D", *("AttnDownBlock2D",) * 3),
        "up_block_types": (*("AttnUpBlock2D",) * 3, "ResnetUpsampleBlock2D"),
        "resnet_time_scale_shift": "scale_shift",
    },
    "lsun256": {
        "sample_size": 256,
        "layers_per_block": 2,
        "num_class_embeds": None,
        "block_out_channels": (256, 256, 512, 512, 1024, 1024),
        "down_block_types": (*("ResnetDownsampleBlock2D",) * 3, *("AttnDownBlock2D",) * 3),
        "up_block_types": (*("AttnUpBlock2D",) * 3, *("ResnetUpsampleBlock2D",) * 3),
        "resnet_time_scale_shift": "default",
    },
}
SHARED = {
    "in_channels": 3,
    "out_channels": 3,
    "attention_head_dim": 64,
    "attn_norm_num_groups": 32,
    "norm_num_groups": 32,
    "norm_eps": 1e-5,
    "downsample_type": "resnet",
    "upsample_type": "resnet",
}
BATCHES = {"imagenet64": (1, 8), "lsun256": (1, 4)}
UNISTEP = ("default", "auto")
DIFFUSERS = ("default", "channels_last", "bf16", "bf16 channels_last")


def write_model(name: str, folder: Path) -> None:
    """A model folder with random weights, which both sides read."""
    import torch

    from unistep.formats.model import ModelInfo
    from unistep.formats.model_folder.folder import save_model
    from unistep.networks.adm import UNet, UNetConfig

    with torch.device("meta"):
        network = UNet(UNetConfig(**SHARED, **UNETS[name]))
    network.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    for tensor in network.parameters():
        scale = tensor[0].numel() ** -0.5 if tensor.ndim > 1 else 0.1
        tensor.data.normal_(generator=generator).mul_(scale).add_(float(tensor.ndim == 1))
    save_model(folder, network, ModelInfo(), card="Random weights.\n")


def worker(side: str, setting: str, folder: str, device: str) -> None:
    """Imports, loads, makes one image, says how long that took; then obeys: a batch size a line, until the end."""
    started = time.perf_counter()
    if side == "unistep":
        from unistep import ConsistencyModelPipeline
    else:
        from diffusers import ConsistencyModelPipeline
        from diffusers.utils import logging

        logging.set_verbosity_error()
        logging.disable_progress_bar()
    import torch

    imported = time.perf_counter()
    if side == "unistep":
        pipe = ConsistencyModelPipeline.from_pretrained(folder, dtype="auto" if setting == "auto" else None)
    else:
        half = torch.bfloat16 if "bf16" in setting else torch.float32
        pipe = ConsistencyModelPipeline.from_pretrained(folder, torch_dtype=half)
        if "channels_last" in setting:
            pipe.unet.to(memory_format=torch.channels_last)
    pipe.to(device)
    pipe.set_progress_bar_config(disable=True)
    loaded = time.perf_counter()

    def run(batch: int) -> float:
        begin = time.perf_counter()
        labels = [0] * batch if pipe.unet.config.num_class_embeds else None
        pipe(batch_size=batch, class_labels=labels, num_inference_steps=1, output_type="pt")
        if device != "cpu":
            torch.cuda.synchronize()
        return time.perf_counter() - begin

    first = run(1)
    answer(import_s=imported - started, load_s=loaded - imported, first_s=first, first_image_s=loaded + first - started)
    for line in sys.stdin:
        seconds = run(int(line))
        answer(seconds=seconds, peak_mib=peak_memory(device))


def answer(**values: float) -> None:
    print(json.dumps(values), flush=True)


def peak_memory(device: str) -> float:
    """MiB: of the process, or of the GPU."""
    if device != "cpu":
        import torch

        return torch.cuda.max_memory_allocated() / 2**20
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


class Peer:
    """A worker process."""

    def __init__(self, side: str, setting: str, folder: Path, device: str) -> None:
        command = [sys.executable, __file__, "--worker", side, setting, str(folder), device]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONWARNINGS": "ignore"},
        )
        self.start = self.listen()

    def listen(self) -> dict[str, float]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.process.args} ended with {self.process.wait()}")
        return json.loads(line)

    def run(self, batch: int) -> dict[str, float]:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{batch}\n")
        self.process.stdin.flush()
        return self.listen()

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def measure(name: str, folder: Path, turns: int, device: str) -> None:
    sides = [("unistep", s) for s in UNISTEP] + [("diffusers", s) for s in DIFFUSERS]
    starts: dict[tuple[str, str], list[dict[str, float]]] = {side: [] for side in sides}
    for _ in range(turns):
        for side in (("unistep", "default"), ("diffusers", "default")):
            peer = Peer(*side, folder, device)
            starts[side].append(peer.start)
            peer.close()
    print(f"\n{name}: {os.cpu_count()} cores, device {device}\n")
    print(f"{'':34}{'unistep':>10}{'diffusers':>11}{'ratio':>8}")
    for figure, text in (
        ("import_s", "import, s"),
        ("load_s", "load, s"),
        ("first_image_s", "start to first image, s"),
    ):
        ours, theirs = ([s[figure] for s in starts[side, "default"]] for side in ("unistep", "diffusers"))
        row(text, ours, theirs)

    for batch in BATCHES[name]:
        peers = {side: Peer(*side, folder, device) for side in sides}
        results: dict[tuple[str, str], list[dict[str, float]]] = {side: [] for side in sides}
        for _ in range(turns):
            for side, peer in peers.items():
                results[side].append(peer.run(batch))
        for peer in peers.values():
            peer.close()
        seconds = {side: [r["seconds"] / batch for r in rows] for side, rows in results.items()}
        memory = {side: [rows[-1]["peak_mib"]] for side, rows in results.items()}
        best = {
            who: min((side for side in sides if side[0] == who), key=lambda s: statistics.median(seconds[s]))
            for who in ("unistep", "diffusers")
        }
        default = {who: (who, "default") for who in best}
        for label, chosen in (("default", default), ("best", best)):
            ours, theirs = chosen["unistep"], chosen["diffusers"]
            row(f"batch {batch}, {label}: s per image", seconds[ours], seconds[theirs])
            row(f"batch {batch}, {label}: peak MiB", memory[ours], memory[theirs])
        print(f"  best at batch {batch}: unistep {best['unistep'][1]}, diffusers {best['diffusers'][1]}")


def row(text: str, ours: list[float], theirs: list[float]) -> None:
    ratio = statistics.median(b / a for a, b in zip(ours, theirs, strict=True))
    print(f"{text:34}{statistics.median(ours):10.3f}{statistics.median(theirs):11.3f}{ratio:8.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(UNETS), default=list(UNETS))
    parser.add_argument("--turns", type=int, default=3, help="how often each side is measured")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--folder", type=Path, help="where the models are kept; default: a temporary folder")
    parser.add_argument("--worker", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker(*options.worker)
        return
    with tempfile.TemporaryDirectory() as temporary:
        for name in options.models:
            folder = (options.folder or Path(temporary)) / name
            if not folder.exists():
                write_model(name, folder)
            measure(name, folder, options.turns, options.device)


if __name__ == "__main__":
    main()
