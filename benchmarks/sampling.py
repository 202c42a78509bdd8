"""This pipeline beside diffusers' on the published architectures: seconds, memory, quality, and the floor.

    python benchmarks/sampling.py                         both architectures
    python benchmarks/sampling.py --models imagenet64     one of them
    python benchmarks/sampling.py --json figures.json     and write the figures

Weights are random: speed does not depend on them. Each side runs in processes of its own, in its default configuration
(fp32) and in others (unistep: dtype="auto"; diffusers: fp32 and bf16, with channels_last and without). All processes
stay open and take turns of two or three evaluations, so that a busy moment of the machine meets all of them, and the
least time of each counts.
Ratios are diffusers / unistep: above 1 unistep is faster, or smaller. The floor is that of `floor.py`. The peak of
memory is that of the process after loading and one image; quality is the PSNR to the images in fp32.
"""

import argparse
import contextlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
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
BATCHES = {"imagenet64": (1, 8), "lsun256": (1,)}
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
    """Imports, loads, makes one image, prints how long that took; then obeys: a batch size a line, until the end."""
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
    answer(
        import_s=imported - started,
        load_s=loaded - imported,
        first_s=first,
        first_image_s=loaded + first - started,
        peak_mib=peak_memory(device),
    )
    floors: dict[int, Any] = {}
    for line in sys.stdin:
        word, _, rest = line.strip().partition(" ")
        if word == "images":
            labels = [0] if pipe.unet.config.num_class_embeds else None
            torch.save(pipe(class_labels=labels, seeds=[0], output_type="pt").images, rest)
            answer(saved=1.0)
        elif word == "floor":
            from floor import Floor, operations

            if int(rest) not in floors:
                floors[int(rest)] = Floor(operations(lambda batch=int(rest): run(batch)))
            answer(**floors[int(rest)].turn())
        else:
            answer(seconds=min(run(int(line)) for _ in range(3 if int(line) == 1 else 2)))


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

    def run(self, order: object) -> dict[str, float]:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{order}\n")
        self.process.stdin.flush()
        return self.listen()

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def measure(name: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Figures of an architecture, which are printed as they come."""
    device = options.device
    sides = [("unistep", s) for s in UNISTEP] + [("diffusers", s) for s in DIFFUSERS]
    print(f"\n{name}: {processor()}, device {device}\n")
    peers = {side: Peer(*side, folder, device) for side in sides}
    figures: dict[str, Any] = {}
    for figure, text in (("load_s", "load, s"), ("first_image_s", "start to first image, s"), ("peak_mib", "MiB")):
        values = {" ".join(side): peer.start[figure] for side, peer in peers.items()}
        figures[figure] = values
        print(f"{text:26}" + "; ".join(f"{side} {value:.2f}" for side, value in values.items()))
    figures["psnr"] = quality(peers, folder.parent)
    print(f"{'PSNR of auto to fp32':26}{figures['psnr']:.1f} dB")
    for batch in options.batches or BATCHES[name]:
        least = dict.fromkeys((" ".join(side) for side in sides), float("inf"))
        floor: dict[str, float] = {}
        for _ in range(options.turns):
            for side, peer in peers.items():
                least[" ".join(side)] = min(least[" ".join(side)], peer.run(batch)["seconds"])
            if device == "cpu":
                floor = peers["unistep", "auto"].run(f"floor {batch}")
        figures[f"batch {batch}"] = row(batch, least, floor)
    for peer in peers.values():
        peer.close()
    return figures


def quality(peers: Mapping[tuple[str, str], Peer], folder: Path) -> float:
    """PSNR in dB of an image in the precision "auto" to the same in fp32."""
    import torch

    images = []
    for setting in UNISTEP:
        path = folder / f"{setting}.pt"
        peers["unistep", setting].run(f"images {path}")
        images.append(torch.load(path, weights_only=True))
        path.unlink()
    return -10 * (images[0] - images[1]).square().mean().log10().item()


def row(batch: int, least: Mapping[str, float], floor: Mapping[str, float]) -> dict[str, Any]:
    """Prints the least seconds of a batch, and returns them with their ratios."""
    best = min((side for side in least if side.startswith("diffusers")), key=least.__getitem__)
    ratios = {
        "best": least[best] / min(least["unistep auto"], least["unistep default"]),
        "default of diffusers to auto": least["diffusers default"] / least["unistep auto"],
        "default": least["diffusers default"] / least["unistep default"],
    }
    print(f"batch {batch}, s: " + "; ".join(f"{side} {seconds:.3f}" for side, seconds in least.items()))
    print(f"  best of diffusers: {best}; ratios: " + "; ".join(f"{text} {r:.2f}" for text, r in ratios.items()))
    if floor:
        ratios["floor"] = floor["seconds"] / least["unistep auto"]
        parts = "; ".join(f"{kind} {seconds:.3f}" for kind, seconds in floor.items())
        print(f"  floor, s: {parts}; unistep auto takes {1 / ratios['floor']:.3f} times that", flush=True)
    return {"seconds": dict(least), "floor": dict(floor), "ratios": ratios}


def processor() -> str:
    """The processor by its name, family and model, and the number of cores that are used."""
    facts: dict[str, str] = {}
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            facts.setdefault(name.strip(), value.strip())
    name = facts.get("model name") or platform.processor() or platform.machine()
    return f"{name} (family {facts.get('cpu family', '?')}, model {facts.get('model', '?')}), {os.cpu_count()} cores"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(UNETS), default=list(UNETS))
    parser.add_argument("--batches", nargs="+", type=int, help="batch sizes; default: 1 and 8, for 256 pixels 1")
    parser.add_argument("--json", type=Path, help="file that the figures are written to")
    parser.add_argument("--turns", type=int, default=5, help="how often each side is measured")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--folder", type=Path, help="where the models are kept; default: a temporary folder")
    parser.add_argument("--worker", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker(*options.worker)
        return
    found: dict[str, Any] = {"processor": processor(), "models": {}}
    with tempfile.TemporaryDirectory() as temporary:
        for name in options.models:
            folder = (options.folder or Path(temporary)) / name
            if not folder.exists():
                write_model(name, folder)
            found["models"][name] = measure(name, folder, options)
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
