"""Exported denoisers of every network: difference from PyTorch by batch and noise level, size, and images a second.

    python benchmarks/export.py                                     all networks, formats and precisions
    python benchmarks/export.py --networks mnist ddpmpp --formats onnx --json export.json
    python benchmarks/export.py --full                              ImageNet-64 and LSUN-256 in their size, in fp16

`mnist` is the embedded model, with trained weights; the others have random weights in the layouts of the published
networks, narrow and at 16 pixels. Images a second are of one evaluation at batch 16, minima of several; PyTorch's own,
in fp32, stand in the first row of a network. One line a file and a noise level; the errors are the largest of all
batches. `--full` takes random weights in the layouts of 296 and 526 million parameters, each export in a process of its
own, whose peak of memory (of the export with its comparison) and seconds stand beside the rest.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from sampling import UNETS, write_model

import unistep
from unistep.formats.model import LoadedModel, ModelInfo, precondition
from unistep.networks.adm_config import UNetConfig
from unistep.networks.patched_config import PatchedUNetConfig
from unistep.networks.song_config import SongUNetConfig
from unistep.networks.table import build_network

ENDINGS = {"onnx": ".onnx", "openvino": ".xml", "torch-export": ".pt2", "aoti": ".pt2"}
BATCHES = (1, 2, 5, 16)
_BATCH, _ROUNDS = 16, 8

_ADM = UNetConfig(sample_size=16, block_out_channels=(32, 32, 64), attention_head_dim=16, num_class_embeds=10)
_ADDED = {"resnet_time_scale_shift": "default", "attn_norm_num_groups": None}
_SONG = SongUNetConfig(
    sample_size=16, model_channels=32, channel_mult=(1, 2), num_blocks=2, attn_resolutions=(8,), num_class_embeds=10
)
_NCSN = {"embedding_type": "fourier", "encoder_type": "residual", "channel_mult_noise": 2}

NETWORKS: dict[str, Any] = {
    "mnist": None,
    "adm": _ADM,
    "adm-added": replace(_ADM, **_ADDED, downsample_type="conv", upsample_type="conv"),
    "ddpmpp": _SONG,
    "ncsnpp": replace(_SONG, **_NCSN, resample_filter=(1, 3, 3, 1)),
    "patched": PatchedUNetConfig(
        sample_size=16, patch_size=2, block_out_channels=(32, 32, 64), attention_head_dim=16, num_class_embeds=10
    ),
}


def model_of(name: str) -> LoadedModel:
    """The model of a row of `NETWORKS`; weights that are random are all other than zero.

    Args:
        name: name of the row.
    """
    config = NETWORKS[name]
    if config is None:
        return unistep.load(name, device="cpu")
    torch.manual_seed(0)
    network = build_network(config).eval()
    with torch.no_grad():
        for p in network.parameters():
            p.add_(torch.randn(p.shape), alpha=0.03)
    info = ModelInfo("consistency", noise_embedding="edm" if isinstance(config, SongUNetConfig) else "adm")
    return LoadedModel(precondition(network, info).eval(), info, config, Path(name))


def images_a_second(model: LoadedModel) -> float:
    """Images a second of one evaluation at batch 16.

    Args:
        model: model, of PyTorch or exported.
    """
    x = torch.randn(_BATCH, *model.image_shape)
    labels = torch.arange(_BATCH) % model.num_classes if model.num_classes else None
    seconds = []
    with torch.no_grad():
        for _ in range(_ROUNDS):
            started = time.perf_counter()
            model.denoiser(x, torch.ones(_BATCH), labels)
            seconds.append(time.perf_counter() - started)
    return _BATCH / min(seconds)


def measure(name: str, formats: Iterable[str], dtypes: Iterable[str], folder: Path) -> list[dict[str, Any]]:
    """Exports a model to every format and precision, and returns a row for each noise level.

    Args:
        name: name of the network.
        formats: names of formats.
        dtypes: precisions.
        folder: folder for the files.
    """
    model = model_of(name)
    rows: list[dict[str, Any]] = [{"network": name, "format": "PyTorch", "dtype": "fp32"}]
    rows[0]["rate"] = images_a_second(model)
    for to in formats:
        for dtype in dtypes:
            path = folder / f"{name}-{dtype}{ENDINGS[to]}"
            try:
                made = unistep.export(model, path, to=to, dtype=dtype, batches=BATCHES, progress=False)
            except unistep.UserError as error:
                rows.append({"network": name, "format": to, "dtype": dtype, "refused": str(error)})
                continue
            rate = images_a_second(unistep.load(path, device="cpu", trust_code=to in ("torch-export", "aoti")))
            for noise in ("low", "middle", "high"):
                found = [one for one in made.comparisons if one.noise == noise]
                rows.append(
                    {"network": name, "format": to, "dtype": dtype, "noise": noise, "megabytes": made.num_bytes / 1e6}
                    | {"error": max(one.error for one in found), "psnr": min(one.psnr for one in found), "rate": rate}
                    | {"batches": [asdict(one) for one in found]}
                )
    return rows


FULL_BATCHES = {"imagenet64": (1, 2), "lsun256": (1, 2)}


def peak_gib() -> float:
    """Peak of this process's memory. Not of getrusage, which counts the process that started this one."""
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 2**20


def export_full(folder: Path, to: str, dtype: str, path: Path) -> None:
    """Exports a model folder, and prints its row; called in a process of its own.

    Args:
        folder: model folder, whose name is that of the network.
        to: name of the format.
        dtype: precision.
        path: file to write.
    """
    row: dict[str, Any] = {"network": folder.name, "format": to, "dtype": dtype}
    started = time.perf_counter()
    try:
        made = unistep.export(folder, path, to=to, dtype=dtype, batches=FULL_BATCHES[folder.name], progress=False)
        row |= {"megabytes": made.num_bytes / 1e6, "files": made.files}
        row |= {"error": max(one.error for one in made.comparisons), "psnr": min(one.psnr for one in made.comparisons)}
        row["batches"] = [asdict(one) for one in made.comparisons]
    except unistep.UserError as error:
        row["refused"] = str(error)
    print(json.dumps(row | {"seconds": time.perf_counter() - started, "gib": peak_gib()}))


def time_full(path: Path) -> None:
    """Opens an exported file, and prints memory and seconds of one image; called in a process of its own.

    Args:
        path: exported file.
    """
    started = time.perf_counter()
    model = unistep.load(path, device="cpu", trust_code=path.suffix == ".pt2")
    opened = time.perf_counter()
    labels = torch.zeros(1, dtype=torch.int64) if model.num_classes else None
    x, seconds = 80 * torch.randn(1, *model.image_shape), []
    for _ in range(3):
        begun = time.perf_counter()
        with torch.no_grad():
            model.denoiser(x, torch.full((1,), 80.0), labels)
        seconds.append(time.perf_counter() - begun)
    print(json.dumps({"load": opened - started, "image": min(seconds), "open_gib": peak_gib()}))


def measure_full(name: str, to: str, dtype: str, folder: Path) -> dict[str, Any]:
    """Exports a network in its full size and opens it again.

    Args:
        name: name of the network in `benchmarks/sampling.py`.
        to: name of the format.
        dtype: precision.
        folder: folder for the files; they are deleted.
    """
    model, path = folder / name, folder / f"{name}-{dtype}{ENDINGS[to]}"
    if not model.exists():
        subprocess.run([sys.executable, __file__, "--write", name, str(model)], check=True)

    def child(*words: object) -> dict[str, Any]:
        done = subprocess.run([sys.executable, __file__, *map(str, words)], stdout=subprocess.PIPE, text=True)
        if done.returncode:
            return {"refused": f"the process ended with {done.returncode}"}
        return json.loads(done.stdout.splitlines()[-1])

    row = {"network": name, "format": to, "dtype": dtype} | child("--export", model, to, dtype, path)
    if "refused" not in row:
        row |= child("--time", path)
    for file in folder.glob(f"{path.stem}*"):
        if file.is_file():
            file.unlink()
    return row


def full_line(row: dict[str, Any]) -> str:
    """A row of `measure_full` as a line of its table.

    Args:
        row: row.
    """
    head = f"{row['network']:<10} {row['format']:<13} {row['dtype']:<5}"
    if "refused" in row:
        return f"{head} refused: {row['refused']}"
    return (
        f"{head} {row['error']:>8.1e} {row['psnr']:>6.1f} dB {row['megabytes']:>7.0f} MB in {len(row['files'])} files; "
        f"export {row['seconds']:.0f} s, {row['gib']:.1f} GiB; load {row['load']:.1f} s, "
        f"an image {row['image']:.2f} s, {row['open_gib']:.1f} GiB"
    )


def line(row: dict[str, Any]) -> str:
    """A row as a line of the table.

    Args:
        row: row of `measure`.
    """
    head = f"{row['network']:<10} {row['format']:<13} {row['dtype']:<5}"
    if "refused" in row:
        return f"{head} refused: {row['refused']}"
    if "noise" not in row:
        return f"{head} {'':<7} {'':>10} {'':>9} {'':>9} {row['rate']:>10.1f}"
    error, size = f"{row['error']:.1e}", f"{row['megabytes']:.2f}"
    return f"{head} {row['noise']:<7} {error:>10} {row['psnr']:>6.1f} dB {size:>6} MB {row['rate']:>10.1f}"


def main_full(options: argparse.Namespace) -> None:
    """Exports the networks in their full size, one after the other."""
    rows = []
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for name in options.full or UNETS:
            for to in options.formats or ("onnx", "openvino"):
                for dtype in options.dtypes or ("fp16",):
                    rows.append(measure_full(name, to, dtype, Path(folder)))
                    print(full_line(rows[-1]), flush=True)
                    if options.json:
                        options.json.write_text(json.dumps(rows, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--formats", nargs="+", choices=list(ENDINGS))
    parser.add_argument("--dtypes", nargs="+", choices=["fp32", "fp16", "int8"])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--full", nargs="*", choices=list(UNETS), help="networks in their full size instead")
    parser.add_argument("--folder", type=Path, help="folder for the files of --full; default: a temporary one")
    for inner in ("--write", "--export", "--time"):  # of the processes that this one starts
        parser.add_argument(inner, nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.write:
        return write_model(options.write[0], Path(options.write[1]))
    if options.export:
        folder, to, dtype, path = options.export
        return export_full(Path(folder), to, dtype, Path(path))
    if options.time:
        return time_full(Path(options.time[0]))
    if options.full is not None:
        return main_full(options)
    header = f"{'network':<10} {'format':<13} {'dtype':<5} {'noise':<7} {'error':>10} {'PSNR':>9} {'size':>9}"
    print(f"{torch.get_num_threads()} threads\n{header} {'images/s':>10}")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in options.networks:
            found = measure(name, options.formats or ENDINGS, options.dtypes or ("fp32", "fp16", "int8"), Path(folder))
            print("\n".join(map(line, found)), flush=True)
            rows += found
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
