"""Exported denoisers of every network: difference from PyTorch by batch and noise level, size, and images a second.

    python benchmarks/export.py                                     all networks, formats and precisions: one table
    python benchmarks/export.py --networks mnist ddpmpp --formats onnx
    python benchmarks/export.py --json export.json --folder files   keeps files and rows; those that are there stay
    python benchmarks/export.py --json export.json --folder files --times    only measures images a second, anew
    python benchmarks/export.py --json export.json --write docs/export.md    puts the table there, between its markers
    python benchmarks/export.py --full                              ImageNet-64 and LSUN-256 in their size, in fp16

`mnist` is the embedded model, with trained weights; the others have random weights in the layouts of the published
networks, narrow and at 16 pixels. Images a second are of one evaluation at batch 16, the best of several; PyTorch
in fp32 stands in the first row of a network. The errors are the largest of all batches at low, middle and high noise,
PSNR is the least of all. With --json the table has the rows of earlier calls too, and a long measurement can be made a
network at a time; the errors by batch are in that file.

`--full` takes random weights in the layouts of 296 and 526 million parameters, each export in a process of its own,
whose peak of memory (of the export with its comparison) and seconds stand beside the rest.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from marked_page import marked_page
from sampling import UNETS, write_model

import unistep
from unistep.formats.model import LoadedModel, ModelInfo, precondition
from unistep.networks.adm_config import UNetConfig
from unistep.networks.patched_config import PatchedUNetConfig
from unistep.networks.song_config import SongUNetConfig
from unistep.networks.table import build_network

ENDINGS = {"onnx": ".onnx", "openvino": ".xml", "torch-export": ".pt2", "aoti": ".pt2"}
DTYPES = {"onnx": ("fp32", "fp16", "int8"), "openvino": ("fp32", "fp16", "int8")}
BATCHES, NOISES = (1, 2, 5, 16), ("low", "middle", "high")
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

TITLES = {
    "mnist": "the embedded model",
    "adm": "ADM, scale and shift",
    "adm-added": "ADM, added embedding",
    "ddpmpp": "DDPM++",
    "ncsnpp": "NCSN++",
    "patched": "patched",
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


Row = dict[str, Any]


def key_of(row: Row) -> tuple[str, str, str]:
    """Network, format and precision of a row.

    Args:
        row: row of `measure`.
    """
    return row["network"], row["format"], row["dtype"]


def export_one(model: LoadedModel, name: str, to: str, dtype: Any, path: Path) -> Row:
    """Exports a model, and returns its row without images a second.

    Args:
        model: model.
        name: name of the network.
        to: name of the format.
        dtype: precision.
        path: file to write.
    """
    row: Row = {"network": name, "format": to, "dtype": dtype}
    try:
        made = unistep.export(model, path, to=to, dtype=dtype, batches=BATCHES, progress=False)
    except unistep.UserError as error:
        return row | {"refused": str(error)}
    errors = {noise: max(one.error for one in made.comparisons if one.noise == noise) for noise in NOISES}
    row |= {"errors": errors, "psnr": min(one.psnr for one in made.comparisons), "megabytes": made.num_bytes / 1e6}
    return row | {"batches": [asdict(one) for one in made.comparisons]}


def measure(options: argparse.Namespace, rows: dict[tuple[str, str, str], Row], folder: Path) -> None:
    """Exports to every format and precision that is asked for, and fills in the rows that are missing.

    Args:
        options: options of the command line.
        rows: rows by network, format and precision.
        folder: folder for the files.
    """
    for name in options.networks:
        model = model_of(name)
        wanted = [("PyTorch", "fp32"), *((to, dtype) for to in options.formats for dtype in options.dtypes)]
        for to, dtype in wanted:
            if dtype not in DTYPES.get(to, ("fp32",)):
                continue
            key, path = (name, to, dtype), folder / f"{name}-{to}-{dtype}{ENDINGS.get(to, '')}"
            if to == "PyTorch":
                rows.setdefault(key, {"network": name, "format": to, "dtype": dtype})
            elif key not in rows:
                rows[key] = export_one(model, name, to, dtype, path)
            row = rows[key]
            if "refused" not in row and ("rate" not in row or options.times):
                trusted = path.suffix == ".pt2"
                opened = model if to == "PyTorch" else unistep.load(path, device="cpu", trust_code=trusted)
                row["rate"] = images_a_second(opened)
            keep(options, rows)
            print(line(row), flush=True)


def keep(options: argparse.Namespace, rows: dict[tuple[str, str, str], Row]) -> None:
    """Writes all rows to the file of --json."""
    if options.json:
        options.json.write_text(json.dumps([*rows.values()], indent=1) + "\n")


def page_table(rows: dict[tuple[str, str, str], Row]) -> str:
    """The rows as a table of a Markdown page.

    Args:
        rows: rows by network, format and precision.
    """
    lines = ["| network | format | precision | low | middle | high | PSNR | MB | images/s |", "|---" * 9 + "|"]
    for name in NETWORKS:
        for to in ("PyTorch", *ENDINGS):
            for dtype in ("fp32", "fp16", "int8"):
                row = rows.get((name, to, dtype))
                if row is None:
                    continue
                head = f"| {TITLES[name]} | {to} | {dtype} "
                if "refused" in row:
                    lines.append(f"{head}| refused: {reason(row['refused'])} | | | | | |")
                    continue
                errors = [f"{row['errors'][noise]:.1e}" if "errors" in row else "" for noise in NOISES]
                psnr = "" if "psnr" not in row else "120 dB or more" if row["psnr"] >= 120 else f"{row['psnr']:.1f} dB"
                size = f"{row['megabytes']:.1f}" if "megabytes" in row else ""
                rate = f"{row['rate']:,.0f}" if "rate" in row else ""
                lines.append(f"{head}| {' | '.join(errors)} | {psnr} | {size} | {rate} |")
    return "\n".join(lines)


def reason(text: str) -> str:
    """The reason in an error, without its remedy.

    Args:
        text: error of `unistep.export`.
    """
    return text.split(";")[0].replace("|", "/")[:200]


FULL_BATCHES = {"imagenet64": (1, 2), "lsun256": (1, 2)}


def peak_gib() -> float:
    """Peak of this process's memory. Not of getrusage, which counts the process that started this one."""
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 2**20


def export_full(folder: Path, to: str, dtype: Any, path: Path) -> None:
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
        subprocess.run([sys.executable, __file__, "--make", name, str(model)], check=True)

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


def line(row: Row) -> str:
    """A row as a line of the table.

    Args:
        row: row of `measure`.
    """
    head = f"{row['network']:<10} {row['format']:<13} {row['dtype']:<5}"
    if "refused" in row:
        return f"{head} refused: {row['refused']}"
    errors = " ".join(f"{row['errors'][noise]:>8.1e}" if "errors" in row else f"{'':>8}" for noise in NOISES)
    psnr = f"{row['psnr']:>6.1f} dB" if "psnr" in row else f"{'':>9}"
    size = f"{row['megabytes']:>6.2f} MB" if "megabytes" in row else f"{'':>9}"
    return f"{head} {errors} {psnr} {size} {row['rate']:>10.1f}"


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
    parser.add_argument("--json", type=Path, help="file of the rows, which is read first")
    parser.add_argument("--folder", type=Path, help="folder for the files, which stay; default: a temporary one")
    parser.add_argument("--times", action="store_true", help="measure images a second anew")
    parser.add_argument("--write", type=marked_page("export"), help="Markdown page whose table is replaced")
    parser.add_argument("--full", nargs="*", choices=list(UNETS), help="networks in their full size instead")
    for inner in ("--make", "--export", "--time"):  # of the processes that this one starts
        parser.add_argument(inner, nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.make:
        return write_model(options.make[0], Path(options.make[1]))
    if options.export:
        folder, to, dtype, path = options.export
        return export_full(Path(folder), to, dtype, Path(path))
    if options.time:
        return time_full(Path(options.time[0]))
    if options.full is not None:
        return main_full(options)
    options.formats, options.dtypes = options.formats or [*ENDINGS], options.dtypes or ["fp32", "fp16", "int8"]
    rows = (
        {key_of(row): row for row in json.loads(options.json.read_text())}
        if options.json and options.json.exists()
        else {}
    )
    titles = f"{'network':<10} {'format':<13} {'dtype':<5} {'low':>8} {'middle':>8} {'high':>8} {'PSNR':>9} {'size':>9}"
    print(f"{torch.get_num_threads()} threads\n{titles}   images/s")
    if options.folder:
        options.folder.mkdir(parents=True, exist_ok=True)
        measure(options, rows, options.folder)
    else:
        with tempfile.TemporaryDirectory() as folder:
            measure(options, rows, Path(folder))
    if options.write:
        options.write.write(page_table(rows))


if __name__ == "__main__":
    main()
