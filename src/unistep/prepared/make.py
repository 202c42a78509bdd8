"""Preparing a network for a runtime: converted, compared with eager, timed."""

import datetime
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from unistep.core.denoiser import Denoiser
from unistep.core.parameterization import Preconditioned, expand
from unistep.prepared.network import PreparedNetwork, TrunkAlone, ends_of
from unistep.prepared.probe import Probe, make_probe, psnr_by_level, seconds
from unistep.prepared.store import ENDS, write_about
from unistep.prepared.table import BOUNDS, Runtime
from unistep.runtime.precision import set_precision

_DTYPES = {"fp32": "float32", "bf16": "bfloat16"}

Stage = Callable[[str], None]


def make_entry(
    folder: Path,
    key: str,
    row: Runtime,
    denoiser: Preconditioned,
    precision: str,
    *,
    shape: tuple[int, int, int],
    num_classes: int,
    sigmas: tuple[float, ...],
    tile: int,
    about: dict[str, Any],
    on_stage: Stage,
) -> None:
    """Prepares a network, and writes the files of an entry, or the reason why there is no trunk.

    Args:
        folder: empty folder.
        key: key of the entry.
        row: the runtime.
        denoiser: denoiser in fp32, on the CPU; it is not usable afterwards.
        precision: precision of the trunk.
        shape: channels, height, width of an image.
        num_classes: number of classes; 0 for an unconditional model.
        sigmas: noise levels of the comparison, the highest first.
        tile: number of images that are computed at once.
        about: facts for about.json, by name.
        on_stage: receives the name of each piece of work when it begins.
    """
    on_stage("evaluate eager")
    about = {**about, "made": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")}
    probe = make_probe(denoiser, shape, num_classes, sigmas, each=2)
    reference = probe.images(denoiser, batch=1)
    network: Any = denoiser.network
    ends = {name: tensor.contiguous().clone() for name, tensor in ends_of(network).items()}
    save_file(ends, folder / ENDS)
    try:
        on_stage(f"convert for {row.name}")
        convert(row, denoiser, probe, folder, precision)
        set_precision(network, getattr(torch, _DTYPES[precision]))
        full = tile_of(probe, tile)
        eager_seconds = seconds(lambda: full.images(denoiser))
        on_stage("compare with eager")
        trunk = row.opener()(folder, precision, tile)
        prepared = PreparedNetwork(network, ends, trunk, key, row.name, precision)
        about |= compared(Preconditioned(prepared, denoiser.scaling), probe, reference, precision)
        about |= {"tile": tile, "eager_seconds": eager_seconds}
        about |= {"seconds": seconds(lambda: full.images(Preconditioned(prepared, denoiser.scaling)))}
    except Exception as error:  # whatever a runtime raises, there is eager
        first = str(error).strip().partition("\n")[0][:300]
        about |= {"failure": f"it fails ({type(error).__name__}: {first})"}
    if "failure" in about:
        for file in folder.iterdir():
            file.unlink() if file.is_file() else shutil.rmtree(file)
    write_about(folder, about)


def convert(row: Runtime, denoiser: Preconditioned, probe: Probe, folder: Path, precision: str) -> None:
    """Writes the trunk of a denoiser in fp32, in the form of a runtime."""
    network: Any = denoiser.network
    sigma = probe.sigma[:2]
    labels = None if probe.class_labels is None else probe.class_labels[:2]
    with torch.no_grad():
        emb = network.embed(denoiser.scaling.c_noise(sigma), labels)
        x = probe.x_t[:2] * expand(denoiser.scaling.c_in(sigma), 4)
    row.maker()(TrunkAlone(network), (x, emb), folder, precision)


def compared(prepared: Denoiser, probe: Probe, reference: Tensor, precision: str) -> dict[str, Any]:
    """Compares a prepared denoiser with eager, in batches of different sizes.

    Returns:
        The ratios by noise level, and "failure" where one is below the bound of the precision.
    """
    worst: dict[str, float] = {}
    for batch in (1, len(probe.sigma) - 1):
        found = psnr_by_level(probe, reference, probe.images(prepared, batch))
        worst = {level: min(ratio, worst.get(level, ratio)) for level, ratio in found.items()}
    bad = {level: ratio for level, ratio in worst.items() if not ratio >= BOUNDS[precision]}
    if not bad:
        return {"psnr": worst}
    level, ratio = min(bad.items(), key=lambda item: item[1])
    return {
        "psnr": worst,
        "failure": f"it differs from eager: {ratio:.1f} dB at sigma {level}, {BOUNDS[precision]:g} asked",
    }


def tile_of(probe: Probe, count: int) -> Probe:
    """So many images of a probe's highest level."""
    labels = None if probe.class_labels is None else probe.class_labels[:1].expand(count)
    return Probe(probe.x_t[:1].expand(count, -1, -1, -1).contiguous(), probe.sigma[:1].expand(count), labels)
