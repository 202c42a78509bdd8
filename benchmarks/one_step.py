"""One-step images a second of the published ImageNet-64 and LSUN-256 networks on a GPU, here and in diffusers.

    python benchmarks/one_step.py                              both networks
    python benchmarks/one_step.py --models imagenet64 --batch 64
    python benchmarks/one_step.py --compiled                   this pipeline's network compiled

Weights are random and the same on both sides: speed does not depend on them. One process holds all, one pipeline after
the other; `benchmarks/sampling.py` compares processes, with their starts and their memory, as a CPU shows them.
Pipelines are called as their users call them, to images on the device. diffusers' runs in fp16, with its default memory
layout and with channels last; this one in bf16, its choice for GPUs. Both also run once in fp32 without TF32, from the
same noise: their images must be the same to rounding. Columns: images a second (median), the ratio to diffusers' better
one, milliseconds of a call, and the largest difference of an image's number, in [-1, 1], from that of fp32.
"""

import argparse
import gc
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from rates import default_device, name_of, synchronize
from sampling import SHARED, UNETS

from unistep import ConsistencyModelPipeline
from unistep.networks.adm import UNet, UNetConfig

BATCHES = {"imagenet64": (64, 1), "lsun256": (16, 1)}
TINY = {"block_out_channels": (32, 64), "layers_per_block": 1, "sample_size": 16}
_HALF = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def fields_of(name: str, tiny: bool) -> dict[str, Any]:
    """Fields of a network's config.

    Args:
        name: name of the network.
        tiny: whether it is a tiny one, to try the script.
    """
    fields = SHARED | UNETS[name]
    if tiny:
        down, up = (fields["down_block_types"], fields["up_block_types"])
        fields |= TINY | {"down_block_types": (down[0], down[-1]), "up_block_types": (up[0], up[-1])}
        fields |= {"attention_head_dim": 8}
    return fields


def random_weights(fields: dict[str, Any], device: torch.device) -> dict[str, torch.Tensor]:
    """Weights of a network by name, on the device.

    Args:
        fields: fields of its config.
        device: device.
    """
    network = empty(fields, device)
    generator = torch.Generator(device).manual_seed(0)
    for p in network.parameters():
        scale = p[0].numel() ** -0.5 if p.ndim > 1 else 0.1
        p.data.normal_(generator=generator).mul_(scale).add_(float(p.ndim == 1))
    return dict(network.state_dict())


def empty(fields: dict[str, Any], device: torch.device) -> Any:
    """This package's network, its weights not yet set.

    Args:
        fields: fields of its config.
        device: device.
    """
    with torch.device("meta"):
        network = UNet(UNetConfig(**fields))
    return network.to_empty(device=device).eval().requires_grad_(False)


def pipeline(
    side: str, setting: str, fields: dict[str, Any], weights: dict[str, torch.Tensor], device: torch.device
) -> Any:
    """A pipeline of one side.

    Args:
        side: "unistep" or "diffusers".
        setting: precision, and what else is done to the network: "fp16 channels_last", "bf16 compiled".
        fields: fields of the network's config.
        weights: its weights.
        device: device.
    """
    dtype = _HALF[setting.split()[0]]
    if side == "unistep":
        from unistep import CMStochasticIterativeScheduler

        network = empty(fields, device)
        network.load_state_dict(weights)
        pipe = ConsistencyModelPipeline(network, CMStochasticIterativeScheduler())
        pipe.to(device, dtype)
        if "compiled" in setting:
            mode = "reduce-overhead" if device.type == "cuda" else None
            pipe.unet = torch.compile(pipe.unet, mode=mode, dynamic=False)
    else:
        from diffusers import CMStochasticIterativeScheduler, UNet2DModel
        from diffusers import ConsistencyModelPipeline as Theirs

        with torch.device("meta"):
            network = UNet2DModel(**fields)  # its other defaults are those of the published models
        network.to_empty(device=device).eval().requires_grad_(False)
        network.load_state_dict(weights)
        pipe = Theirs(unet=network.to(dtype), scheduler=CMStochasticIterativeScheduler())
        pipe.to(device)
        if "channels_last" in setting:
            pipe.unet.to(memory_format=torch.channels_last)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def call(pipe: Any, batch: int, latents: torch.Tensor | None = None) -> torch.Tensor:
    """Images of one step, on the device, in [0, 1].

    Args:
        pipe: pipeline.
        batch: number of images.
        latents: noise; None draws it.
    """
    config = pipe.unet.config
    labels = [i % 10 for i in range(batch)] if config.num_class_embeds else None
    generator = torch.Generator(pipe.device).manual_seed(0)
    made = pipe(
        batch_size=batch,
        class_labels=labels,
        num_inference_steps=1,
        latents=latents,
        generator=generator,
        output_type="pt",
    )
    return made.images


def measure(pipe: Any, batch: int, device: torch.device, seconds: float) -> tuple[float, float]:
    """Seconds of a call, the median, and those of the first call."""
    began = time.perf_counter()
    call(pipe, batch)
    synchronize(device)
    first = time.perf_counter() - began
    for _ in range(2):
        call(pipe, batch)
    synchronize(device)
    times: list[float] = []
    began = time.perf_counter()
    while len(times) < 3 or (time.perf_counter() - began < seconds and len(times) < 50):
        start = time.perf_counter()
        call(pipe, batch)
        synchronize(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times), first


def compare(name: str, options: argparse.Namespace, device: torch.device) -> list[dict[str, Any]]:
    """Measures both sides on one network.

    Args:
        name: name of the network.
        options: batches and time.
        device: device.
    """
    fields = fields_of(name, options.tiny)
    weights = random_weights(fields, device)
    size = fields["sample_size"]
    noise = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1)).to(device)
    batches = options.batch or BATCHES[name]
    settings = [("diffusers", "fp32"), ("unistep", "fp32"), ("diffusers", "fp16"), ("diffusers", "fp16 channels_last")]
    settings += [("unistep", "bf16")]
    if options.compiled:  # alone: it takes minutes, and what it is compared with has been measured
        settings = [("unistep", "bf16 compiled")]
    if device.type == "cpu":  # which has no fast fp16
        settings = [(side, setting.replace("fp16", "bf16")) for side, setting in settings]
    rows: list[dict[str, Any]] = []
    reference: torch.Tensor | None = None
    for side, setting in settings:
        row: dict[str, Any] = {"network": name, "side": side, "setting": setting}
        try:
            pipe = pipeline(side, setting, fields, weights, device)
            if "compiled" not in setting:  # which would be compiled once more for it
                images = call(pipe, 2, noise).float()
                reference = images if reference is None else reference
                row["difference"] = 2 * (images - reference).abs().max().item()
                row["mean_difference"] = 2 * (images - reference).abs().mean().item()
            for batch in batches if setting != "fp32" else ():
                seconds, first = measure(pipe, batch, device, options.seconds)
                rows.append(row | {"batch": batch, "seconds": seconds, "first_s": first, "per_second": batch / seconds})
            if setting == "fp32":
                rows.append(row)
        except Exception as error:
            rows.append(row | {"failed": f"{type(error).__name__}: {error}".splitlines()[0][:200]})
        pipe = None
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    for row in rows:
        theirs = [
            r["per_second"] for r in rows if r["side"] == "diffusers" and r.get("batch") == row.get("batch", 0) != 0
        ]
        if "per_second" in row and theirs:
            row["ratio"] = row["per_second"] / max(theirs)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as text.

    Args:
        rows: measurements.
    """
    lines = [
        f"{'network':12}{'batch':>6}  {'':30}{'images/s':>10}{'ratio':>7}{'ms':>10}{'difference':>12}{'first s':>9}"
    ]
    for r in rows:
        start = f"{r['network']:12}{r.get('batch', ''):>6}  {r['side'] + ', ' + r['setting']:30}"
        if "failed" in r:
            lines.append(f"{start}  failed: {r['failed'][:70]}")
        elif "per_second" not in r:
            lines.append(f"{start}{'':27}{r['difference']:12.2g}")
        else:
            ratio = f"{r['ratio']:7.2f}" if "ratio" in r else f"{'':7}"
            cells = f"{r['per_second']:10.1f}{ratio}{1000 * r['seconds']:10.2f}"
            difference = f"{r['difference']:12.2g}" if "difference" in r else f"{'':12}"
            lines.append(f"{start}{cells}{difference}{r['first_s']:9.1f}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(UNETS), default=list(UNETS))
    parser.add_argument("--batch", type=int, nargs="+", help="images of a call; default: 64 and 1, 16 and 1")
    parser.add_argument(
        "--compiled", action="store_true", help="measure this pipeline's network compiled, and no other"
    )
    parser.add_argument("--seconds", type=float, default=1.0, help="time of a measurement, about")
    parser.add_argument("--tiny", action="store_true", help="tiny networks, to try the script")
    parser.add_argument("--json", type=Path, help="file that the numbers are written to")
    options = parser.parse_args()
    device = default_device()
    torch.backends.cudnn.allow_tf32 = False  # of the comparison in fp32; half precision knows no TF32
    try:
        from diffusers.utils import logging

        logging.set_verbosity_error()
        logging.disable_progress_bar()
    except ImportError as error:
        print(f"diffusers is not here, and is left out: {error}", file=sys.stderr)
    print(f"{name_of(device)}, torch {torch.__version__}", flush=True)
    rows: list[dict[str, Any]] = []
    for name in options.models:
        rows += compare(name, options, device)
        if options.json:
            options.json.parent.mkdir(parents=True, exist_ok=True)
            options.json.write_text(json.dumps({"device": name_of(device), "rows": rows}, indent=1))
    print(table(rows))


if __name__ == "__main__":
    main()
