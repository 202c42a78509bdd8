"""`unistep.quantize`: a model in int8, with what that costs measured and stored."""

import math
import os
import shutil
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unistep.arguments import plain_arguments
from unistep.checks import check_range
from unistep.errors import UserError
from unistep.files import write_error
from unistep.text import html_table
from unistep.workflows.models import ModelLike, name_of, opened

if TYPE_CHECKING:
    from unistep.formats.model import LoadedModel
    from unistep.prepared.probe import Probe

_LEVELS = 7
_LOWEST = 0.05  # below, the output is nearly the input
_MARGINS = (0.25, 1.0, 2.0, 4.0)  # dB more in choosing, tried in turn: other images lose more than those that chose
_TRIED = 2  # images a noise level by which operations are tried one by one
_DIGITS = 5000


@dataclass(frozen=True)
class Quantization:
    """A quantized model and its quality.

    Args:
        path: folder that was written.
        source: name of the model.
        psnr: peak signal-to-noise ratio in dB between its images and those of fp32, by noise level.
        operations: number of convolutions and matrix products.
        kept: number of those that stayed in bf16.
        num_bytes: size of the network's files.
        seconds, eager_seconds: time of an evaluation, and of one in fp32 by PyTorch; of `tile` images.
        tile: number of images of these.
        frechet_distance, eager_frechet_distance: Frechet distances of its digits and of those of fp32 to MNIST; None
            for models of other images.
    """

    path: Path
    source: str
    psnr: dict[str, float]
    operations: int
    kept: int
    num_bytes: int
    seconds: float
    eager_seconds: float
    tile: int
    frechet_distance: float | None = None
    eager_frechet_distance: float | None = None

    def rows(self) -> list[tuple[str, str]]:
        """Returns names and values as text, a fact a row."""
        levels = ", ".join(f"{ratio:.1f} dB at sigma {level}" for level, ratio in self.psnr.items())
        rows = [
            (str(self.path), f"{self.num_bytes / 2**20:,.1f} MiB"),
            ("in int8", f"{self.operations - self.kept} of {self.operations} operations; the others are in bf16"),
            ("against fp32", levels),
            ("time", f"{self.eager_seconds / max(self.seconds, 1e-9):.2f} times as fast as fp32"),
        ]
        if self.frechet_distance is not None and self.eager_frechet_distance is not None:
            growth = self.frechet_distance / self.eager_frechet_distance - 1
            text = f"{self.frechet_distance:.3f}, of fp32 {self.eager_frechet_distance:.3f} ({growth:+.1%})"
            rows.append((f"Frechet distance of {_DIGITS:,} digits", text))
        return rows

    def __repr__(self) -> str:
        return f"Quantization({self.path}: {min(self.psnr.values()):.1f} dB or more)"

    def _repr_html_(self) -> str:
        return html_table("quantized", self.rows())


@plain_arguments(empty=["output"])
def quantize(
    model: ModelLike,
    output: str | os.PathLike[str],
    *,
    calibration: int = 16,
    psnr: float = 42.0,
    progress: bool = True,
) -> Quantization:
    """Quantizes a model to int8, for CPUs.

    No data are needed: the network is calibrated on images of the model's own, of all classes in turn, with noise of
    every level. Operations that lose most stay in bf16, as many as `psnr` asks for. The loss is measured on images that
    neither calibrated nor chose, and stored in the folder. `unistep.load` opens it, by OpenVINO.

    Args:
        model: model folder, run directory, OpenAI .pt, EDM .pkl, name of an embedded model, or owner/name on the
            Hugging Face hub; in Python also a loaded model or a pipeline.
        output: folder for the quantized model; one of that name is replaced.
        calibration: number of images of the model that it is calibrated on, each at seven noise levels.
        psnr: least peak signal-to-noise ratio in dB between its images and those of fp32, at every noise level.
        progress: show a progress bar on a terminal.

    Returns:
        The quantized model's place and quality.

    Raises:
        UserError: the model cannot be opened or quantized, openvino or nncf is not installed, the ratio cannot be had,
            or the folder cannot be written.

    Example:
        >>> import unistep
        >>> unistep.quantize("mnist", "/tmp/digits-int8")  # doctest: +SKIP
        Quantization(/tmp/digits-int8: 42.1 dB or more)
    """
    check_range("calibration", calibration, 2, 10_000)
    check_range("psnr", psnr, 10.0, 100.0)
    from unistep.prepared.network import has_parts
    from unistep.runtime.progress import work_bar

    _check_packages()
    path = Path(os.fspath(output))
    _check_output(path)
    loaded = opened(model, "cpu")
    if not has_parts(loaded.denoiser.network):
        raise UserError(f"{name_of(model)} cannot be quantized: its network is no U-Net of this package")
    with work_bar(progress) as bar:
        return _quantize(loaded, name_of(model), path, calibration, psnr, bar)


def _quantize(model: "LoadedModel", name: str, path: Path, calibration: int, psnr: float, bar: Any) -> Quantization:
    import torch
    from safetensors.torch import save_file

    from unistep.core.parameterization import Preconditioned, expand
    from unistep.engines.openvino import runtime
    from unistep.formats.model_folder.card import plain_card
    from unistep.formats.model_folder.folder import write_outline
    from unistep.formats.quantized import FOLDER
    from unistep.generation.generate import tile_size
    from unistep.prepared import int8
    from unistep.prepared.make import tile_of
    from unistep.prepared.network import OtherTrunk, TrunkAlone, ends_of
    from unistep.prepared.openvino_trunk import FILE, convert
    from unistep.prepared.probe import psnr_by_level, seconds
    from unistep.prepared.sensitivity import fewest, most_sensitive
    from unistep.prepared.store import ENDS, key_of, write_about

    network: Any = model.denoiser.network
    scaling, tile = model.denoiser.scaling, tile_size(model.image_shape, 1, "cpu")
    low = max(model.info.sigma_min, _LOWEST)
    levels = torch.logspace(math.log10(model.info.sigma_max), math.log10(low), _LEVELS).tolist()
    bar("calibrate", 0, 4)
    # Images of other seeds calibrate, choose the number of operations, check it, measure, and order the operations.
    each = 32 if tile > 1 else 8
    given = _noisy(model, calibration, levels, 0)
    choosing, checking, held = (_noisy(model, each, levels, seed) for seed in (1, 3, 5))
    tried = _noisy(model, _TRIED, levels[:: _LEVELS // 2], 2)
    with torch.no_grad():
        emb = network.embed(scaling.c_noise(given.sigma), given.class_labels)
        x = given.x_t * expand(scaling.c_in(given.sigma), 4)
    references = [probe.images(model.denoiser, 1) for probe in (choosing, checking, held)]
    full = tile_of(held, tile)
    eager_seconds = seconds(lambda: full.images(model.denoiser))
    ends = {key: tensor.contiguous().clone() for key, tensor in ends_of(network).items()}
    bar("quantize", 1, 4)
    whole = int8.quantized(convert(TrunkAlone(network), (x[:2], emb[:2])), x, emb)

    def denoiser_of(quantized: Any) -> Preconditioned:
        return Preconditioned(OtherTrunk(network, int8.trunk_of(quantized, tile)), scaling)

    def images(probe: "Probe", kept: Sequence[str]) -> torch.Tensor:
        return probe.images(denoiser_of(int8.without_int8(whole, kept)))

    def agrees(kept: Sequence[str], least: float) -> bool:
        return min(psnr_by_level(choosing, references[0], images(choosing, kept)).values()) >= least

    names = int8.operations(whole)
    exact = images(tried, names)
    order = most_sensitive(
        names,
        lambda kept: float((images(tried, kept) - exact).square().mean()),
        lambda done, count: bar("try operations", done, count),
    )
    bar("keep the sensitive operations", 3, 4)
    for margin in _MARGINS:
        kept = fewest(order, partial(agrees, least=psnr + margin))
        chosen = int8.without_int8(whole, order[:kept])
        denoiser = denoiser_of(int8.compressed(chosen))  # which rounds once more
        checked = min(psnr_by_level(checking, references[1], checking.images(denoiser)).values())
        if checked >= psnr or kept == len(order):
            break
    if not checked >= psnr - 0.5:
        raise UserError(f"`psnr` {psnr:g} cannot be had: {checked:.1f} dB is the most", "ask for less")
    ratios = psnr_by_level(held, references[2], held.images(denoiser))
    facts = {
        "runtime": "openvino",
        "precision": "int8",
        "tile": tile,
        "psnr": ratios,
        "operations": len(order),
        "kept": order[:kept],
        "calibration": {"images": calibration, "sigmas": levels},
        "seconds": seconds(lambda: full.images(denoiser)),
        "eager_seconds": eager_seconds,
    }
    distances = _distances(model, denoiser, bar)
    facts |= {"frechet_distance": distances[0], "eager_frechet_distance": distances[1]} if distances else {}

    def write(folder: Path) -> None:
        write_outline(folder, network, model.info)
        (folder / FOLDER).mkdir()
        runtime().save_model(int8.compressed(chosen), folder / FOLDER / FILE, compress_to_fp16=True)
        save_file(ends, folder / FOLDER / ENDS)
        (folder / "README.md").write_text(plain_card(path.name, model.info, f"int8 of {name}", model.config))
        write_about(folder / FOLDER, facts | {"key": key_of(facts | {"source": name})})

    _write(path, write)
    size = sum(file.stat().st_size for file in (path / FOLDER).iterdir())
    found = distances or (None, None)
    return Quantization(
        path, name, ratios, len(order), kept, size, facts["seconds"], eager_seconds, tile, found[0], found[1]
    )


def _noisy(model: "LoadedModel", count: int, sigmas: Sequence[float], seed: int) -> "Probe":
    """Images of a model's own with noise of every level, `count` a level; other ones for another seed."""
    import torch

    from unistep.core.pixels import to_float
    from unistep.generation.collect import collect
    from unistep.generation.plan import make_plan
    from unistep.prepared.probe import Probe

    classes, shape = model.num_classes, model.image_shape
    labels = (torch.arange(count) + seed) * max(classes // count, 1) % classes if classes else None
    made = collect(model.denoiser, make_plan(model.info), shape, count, labels, seed=seed, batch_size=64)
    generator = torch.Generator().manual_seed(seed)
    x_t = [to_float(made) + sigma * torch.randn(made.shape, generator=generator) for sigma in sigmas]
    sigma = torch.tensor(list(sigmas)).repeat_interleave(count)
    return Probe(torch.cat(x_t), sigma, None if labels is None else labels.repeat(len(sigmas)))


def _distances(model: "LoadedModel", denoiser: Any, bar: Any) -> tuple[float, float] | None:
    """Frechet distances of digits of a denoiser and of the model; None for a model of other images."""
    import torch

    if model.image_shape != (1, 28, 28) or model.num_classes != 10 or model.info.kind != "consistency":
        return None
    from unistep.generation.collect import collect
    from unistep.generation.plan import make_plan
    from unistep.metrics.mnist import evaluate_digits, mnist_reference

    labels, plan, reference = torch.arange(_DIGITS) % 10, make_plan(model.info), mnist_reference()

    def distance(of: Any) -> float:
        def on_done(done: int) -> None:
            bar("evaluate", done, _DIGITS)

        images = collect(of, plan, model.image_shape, _DIGITS, labels, seed=4, batch_size=64, on_done=on_done)
        return evaluate_digits(images, labels, reference).frechet_distance

    return distance(denoiser), distance(model.denoiser)


def _check_packages() -> None:
    import importlib.util

    for name in ("openvino", "nncf"):
        if importlib.util.find_spec(name) is None:
            raise UserError(f"quantizing needs {name}", "pip install 'unistep[openvino]'")


def _check_output(path: Path) -> None:
    """Refuses what is no quantized model, before anything is made."""
    from unistep.formats.location import Location
    from unistep.formats.quantized import is_quantized

    if os.path.lexists(path) and not (
        path.is_dir() and (not any(path.iterdir()) or is_quantized(Location(str(path), path, True)))
    ):
        raise UserError(f"{path} exists and is no quantized model", "choose another folder")


def _write(path: Path, write: Any) -> None:
    """Writes a folder under a temporary name, which takes the place of an older one when it is complete."""
    target = path.resolve()
    temporary, old = (target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.{word}") for word in ("tmp", "old"))
    try:
        temporary.mkdir(parents=True)
        write(temporary)
        if target.exists():
            os.replace(target, old)
        os.replace(temporary, target)
    except OSError as error:
        raise write_error(path, error, "choose another folder") from None
    finally:
        for folder in (temporary, old):
            shutil.rmtree(folder, ignore_errors=True)
