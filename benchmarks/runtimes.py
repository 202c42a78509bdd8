"""Other runtimes beside diffusers' best eager: seconds for one evaluation, memory, and agreement with fp32.

    python benchmarks/runtimes.py                                    ImageNet-64 and LSUN-256, batch 1
    python benchmarks/runtimes.py --models imagenet64 --batch 8
    python benchmarks/runtimes.py --int8                             and with every operation in int8
    python benchmarks/runtimes.py --models imagenet64 --quantized FOLDER    with what `unistep quantize` made of it
    python benchmarks/runtimes.py --int8 --prepare --folder FOLDER   prepares alone; the next call with FOLDER measures

Weights are random, for speed does not depend on them. Every row is a process of its own; all stay open and take turns,
and a row's time is the least of them. Ratios are to diffusers in bf16 with channels_last: above 1 a row is faster.
Preparing a model for a runtime comes before and is not timed. int8 of every operation, calibrated on two images, is for
the speed alone: `unistep quantize` keeps operations in bf16 where a trained model needs it.
"""

import argparse
import json
import multiprocessing
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from sampling import UNETS, write_model

ROWS = {
    "diffusers, bf16 channels_last": ("diffusers", "bf16"),
    "unistep, eager bf16": ("eager", "bf16"),
    "unistep, openvino bf16": ("openvino", "bf16"),
}


def worker(runtime: str, precision: str, folder: str) -> None:
    """Loads a model and obeys: a batch size a line, until the end."""
    import torch

    if runtime == "diffusers":
        from diffusers import UNet2DModel

        unet = UNet2DModel.from_pretrained(folder, subfolder="unet", torch_dtype=torch.bfloat16)
        unet.to(memory_format=torch.channels_last)
        side, classes = unet.config.sample_size, unet.config.num_class_embeds

        def run(x: torch.Tensor, labels: torch.Tensor | None) -> object:
            return unet(x.to(torch.bfloat16), torch.tensor(1000.0), labels)
    else:
        import unistep

        model = unistep.load(folder, runtime=runtime, dtype=precision)
        side, classes = model.image_shape[1], model.num_classes

        def run(x: torch.Tensor, labels: torch.Tensor | None) -> object:
            return model.denoiser(80 * x, torch.full((len(x),), 80.0), labels)

    for line in sys.stdin:
        batch = int(line)
        x = torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(0))
        labels = torch.zeros(batch, dtype=torch.long) if classes else None
        started = time.perf_counter()
        with torch.no_grad():
            run(x, labels)
        seconds = time.perf_counter() - started
        print(json.dumps([seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]), flush=True)


def write_int8(folder: Path, target: Path) -> None:
    """Writes a model with every operation in int8."""
    import torch
    from safetensors.torch import save_file

    from unistep.core.parameterization import expand
    from unistep.formats.model_folder.folder import write_outline
    from unistep.formats.quantized import FOLDER
    from unistep.prepared import int8
    from unistep.prepared.network import TrunkAlone, ends_of
    from unistep.prepared.openvino_trunk import FILE, convert
    from unistep.prepared.probe import make_probe
    from unistep.prepared.store import ENDS, key_of, write_about
    from unistep.workflows.models import open_any

    model = open_any(folder)
    network, scaling = model.denoiser.network, model.denoiser.scaling
    given = make_probe(model.denoiser, model.image_shape, model.num_classes, (80.0, 2.0), each=1)
    with torch.no_grad():
        emb = network.embed(scaling.c_noise(given.sigma), given.class_labels)
        x = given.x_t * expand(scaling.c_in(given.sigma), 4)
    ends = {name: tensor.contiguous().clone() for name, tensor in ends_of(network).items()}
    whole = int8.quantized(convert(TrunkAlone(network), (x, emb)), x, emb)
    import openvino

    write_outline(target, network, model.info)
    (target / FOLDER).mkdir()
    openvino.save_model(int8.compressed(whole), target / FOLDER / FILE, compress_to_fp16=True)
    save_file(ends, target / FOLDER / ENDS)
    about = {"runtime": "openvino", "precision": "int8", "tile": 1, "psnr": {}, "kept": []}
    write_about(target / FOLDER, about | {"key": key_of({"source": str(folder)})})


class Row:
    """A process that computes one row."""

    def __init__(self, runtime: str, precision: str, folder: Path) -> None:
        command = [sys.executable, __file__, "--worker", runtime, precision, str(folder)]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONWARNINGS": "ignore"},
        )
        self.seconds: list[float] = []
        self.mebibytes = 0.0

    def run(self, batch: int) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(f"{batch}\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.process.args} ended with {self.process.wait()}")
        seconds, memory = json.loads(line)
        self.seconds.append(seconds)
        self.mebibytes = self.mebibytes or memory  # of load and the first images

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def measure(name: str, folder: Path, batch: int, turns: int, quantized: Path | None) -> dict[str, dict[str, float]]:
    """Prints the table of one network, and returns the seconds, the ratio and the peak of memory of each row."""
    rows = {text: Row(*row, folder) for text, row in ROWS.items()}
    if quantized is not None:
        rows["unistep, openvino int8"] = Row("eager", "fp32", quantized)
    for row in rows.values():
        row.run(batch)  # loads, compiles
        row.seconds.clear()
    for _ in range(turns):
        for row in rows.values():
            row.run(batch)
    for row in rows.values():
        row.close()
    best = min(rows["diffusers, bf16 channels_last"].seconds)
    print(f"\n{name}, batch {batch}: {os.cpu_count()} cores, {processor()}\n")
    print(f"{'':32}{'s':>9}{'ratio':>8}{'peak MiB':>10}")
    for text, row in rows.items():
        print(f"{text:32}{min(row.seconds):9.3f}{best / min(row.seconds):8.2f}{row.mebibytes:10.0f}", flush=True)
    return {
        text: {"seconds": min(row.seconds), "ratio": best / min(row.seconds), "peak_mib": row.mebibytes}
        for text, row in rows.items()
    }


def processor() -> str:
    """Returns the name of the processor, with the bf16 units that it has."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    found = dict(line.partition(":")[::2] for line in reversed(lines))
    facts = {name.strip(): value.strip() for name, value in found.items()}
    units = [unit for unit in ("avx512_bf16", "avx512_vnni", "amx_bf16") if unit in facts.get("flags", "").split()]
    return " ".join([facts.get("model name", "unknown"), f"family {facts.get('cpu family', '?')}", *units])


def prepare(folder: Path) -> None:
    """Prepares a model for the runtimes."""
    import unistep

    for runtime, precision in ROWS.values():
        if runtime not in ("diffusers", "eager"):
            unistep.load(folder, runtime=runtime, dtype=precision)


def models(name: str, root: Path, int8: bool) -> tuple[Path, Path | None]:
    """The folders of an architecture and, where it is asked for, of its form in int8; written where there is none."""
    folder = root / name
    if not folder.exists():
        write_model(name, folder)
    quantized = folder.with_name(f"{name}-int8") if int8 else None
    if quantized is not None and not quantized.exists():
        apart(write_int8, folder, quantized)
    return folder, quantized


def apart(function: Callable[..., None], *arguments: Path) -> None:
    """Calls a function in a process of its own, whose memory is then free."""
    process = multiprocessing.get_context("spawn").Process(target=function, args=arguments)
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(f"{function.__name__} ended with {process.exitcode}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(UNETS), default=list(UNETS))
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--turns", type=int, default=5, help="how often each row is measured")
    parser.add_argument("--folder", type=Path, help="where the models are kept; default: a temporary folder")
    parser.add_argument("--quantized", type=Path, help="a quantized folder of the one model")
    parser.add_argument("--int8", action="store_true", help="with every operation in int8")
    parser.add_argument("--prepare", action="store_true", help="prepare, and measure nothing")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker(*options.worker)
        return
    with tempfile.TemporaryDirectory() as temporary:
        for name in options.models:
            folder, quantized = models(name, options.folder or Path(temporary), options.int8)
            quantized = options.quantized or quantized
            if options.prepare:
                apart(prepare, folder)
            else:
                measure(name, folder, options.batch, options.turns, quantized)


if __name__ == "__main__":
    main()
