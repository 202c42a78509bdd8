"""A model with its network prepared for a runtime: out of the cache, or made by a process of its own.

A process of its own, because a converter may crash, and needs several times the memory that the prepared network does.
"""

import contextlib
import json
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unistep.errors import UserError
from unistep.prepared.store import ENDS, Entry, digest_of_files, key_of, read_entry
from unistep.prepared.table import RUNTIMES, Runtime, find_runtime

if TYPE_CHECKING:
    import torch

    from unistep.formats.model import LoadedModel

_log = logging.getLogger("unistep")

# Files of a model folder that its network depends on.
_SUFFIXES = (".json", ".safetensors", ".bin")
_STAGES = 4
# Below this gain over eager "auto" stays with eager.
_GAIN = 1.05


@dataclass(frozen=True)
class Request:
    """A model to be prepared.

    Args:
        name: name of the model, as `open_model` takes it.
        options: options of `open_model`.
        runtime: name of a row of `RUNTIMES`.
        precision: fp32 or bf16.
        threads: number of threads.
        root: folder of all entries.
        key: key of the entry.
    """

    name: str
    options: dict[str, Any]
    runtime: str
    precision: str
    threads: int
    root: str
    key: str


def prepared_folder() -> Path:
    """Returns the folder of prepared models: `$XDG_CACHE_HOME/unistep/prepared`, by default in `~/.cache`."""
    from unistep.formats.published.file import cache_folder

    return cache_folder("prepared")


def prepared_model(
    name: str | os.PathLike[str],
    options: dict[str, Any],
    open_model: "Callable[[str], LoadedModel]",
    runtime: str,
    precision: str,
    *,
    device: "torch.device | str" = "cpu",
    progress: bool = True,
) -> "tuple[LoadedModel | None, str]":
    """Opens a model with its network prepared for a runtime, and prepares it where it is not yet.

    Args:
        name: name of the model.
        options: options of `open_model` that say which model is meant.
        open_model: function that opens the model on a device by its name; on "meta" without the values of its weights.
        runtime: name of a row of `RUNTIMES`, or auto: the one that is installed and faster than eager.
        precision: precision of the network: fp32 or bf16.
        device: device of the model; on others than a CPU auto is eager.
        progress: show a progress bar on a terminal.

    Returns:
        The model, or None where eager is the choice; and a note on the choice.

    Raises:
        UserError: the model cannot be opened, the runtime is unknown, not installed or not for the device, or the cache
            not writable.
    """
    from unistep.prepared.network import has_parts

    if str(device).partition(":")[0] != "cpu":
        if runtime == "auto":
            return None, ""
        raise UserError(f"`runtime` {runtime} is for the CPU", f"take `runtime` eager or compiled on {device}")
    rows = [row for row in RUNTIMES.values() if row.choice] if runtime == "auto" else [find_runtime(runtime)]
    outline = open_model("meta")
    if runtime == "auto" and not has_parts(outline.denoiser.network):
        return None, "runtime auto: eager"
    for row in rows:
        if not row.installed or (runtime == "auto" and precision not in row.precisions):
            continue
        if precision not in row.precisions:
            raise UserError(f"`dtype` {precision}: `runtime` {row.name} computes in {' or '.join(row.precisions)}")
        entry = _entry(name, options, outline, row, precision, progress)
        if entry.failure:
            _log.warning("runtime %s: %s; eager is taken", row.name, entry.failure)
            continue
        ratio = entry.about["eager_seconds"] / max(entry.about["seconds"], 1e-9)
        if runtime == "auto" and ratio < _GAIN:
            continue
        return _opened(outline, entry, row, precision), f"runtime {row.name}: {ratio:.2f} times as fast as eager"
    return None, "runtime auto: eager" if runtime == "auto" else ""


def _entry(
    name: str | os.PathLike[str],
    options: dict[str, Any],
    outline: "LoadedModel",
    row: Runtime,
    precision: str,
    progress: bool,
) -> Entry:
    """The entry of a model in the cache, which is made where there is none."""
    import torch

    from unistep.prepared.network import has_parts

    if not has_parts(outline.denoiser.network):
        raise UserError(f"`runtime` {row.name}: not for networks like {name}", "take `runtime` eager")
    root = prepared_folder()
    asked = {option: value for option, value in options.items() if value is not None and option != "token"}
    key = key_of(
        {
            "weights": digest_of_files(root, _files(outline.path)),
            "options": {option: asked[option] for option in ("weights", "variant", "kind") if option in asked},
            "config": f"{type(outline.config).__name__} {outline.config}",
            "scaling": str(outline.denoiser.scaling),
            "runtime": row.name,
            "versions": row.versions(),
            "precision": precision,
            "processor": torch.backends.cpu.get_cpu_capability(),
            "flags": _processor_flags(),
        }
    )
    found = read_entry(root, key)
    if found is None:
        place = os.path.abspath(name) if os.path.exists(name) else os.fspath(name)
        made = Request(place, options, row.name, precision, torch.get_num_threads(), str(root), key)
        why = _make(made, progress)
        found = read_entry(root, key)
        if found is None:
            return Entry(root / key, {"failure": why})
    return found


def _make(request: Request, progress: bool) -> str:
    """Prepares a model in a process of its own; returns the reason where it ended without."""
    from unistep.runtime.child import child_environment
    from unistep.runtime.progress import work_bar

    command = [sys.executable, "-m", "unistep.generation.prepare_alone"]
    environment = child_environment({"PYTHONWARNINGS": "ignore"})
    with work_bar(progress) as bar, tempfile.TemporaryFile("w+", errors="replace") as errors:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment
        )
        try:
            assert process.stdin is not None and process.stdout is not None
            with contextlib.suppress(BrokenPipeError):  # its code says more
                process.stdin.write(json.dumps(request.__dict__, default=str))
                process.stdin.close()
            for done, line in enumerate(process.stdout):
                bar(line.strip(), done, _STAGES)
            code = process.wait()
        except BaseException:
            process.terminate()
            process.wait()
            raise
        errors.seek(0)
        said = errors.read()
    if code == 2:
        raise UserError(said.strip().splitlines()[-1] if said.strip() else "the model cannot be prepared")
    return f"the process that prepares it ended with {code}" if code else "its files are gone"


def _opened(outline: "LoadedModel", entry: Entry, row: Runtime, precision: str) -> "LoadedModel":
    """The model of an entry."""
    from safetensors.torch import load_file

    from unistep.core.parameterization import Preconditioned
    from unistep.prepared.network import PreparedNetwork
    from unistep.runtime.heap import keep_for_bytes

    keep_for_bytes(entry.num_bytes)
    trunk = row.opener()(entry.folder, precision, entry.about["tile"])
    network = PreparedNetwork(
        outline.denoiser.network, load_file(entry.folder / ENDS), trunk, entry.key, row.name, precision
    )
    denoiser = Preconditioned(network, outline.denoiser.scaling).eval().requires_grad_(False)
    return replace(outline, denoiser=denoiser)


def _files(path: Path) -> list[Path]:
    """The files that the network of an opened model depends on."""
    if path.is_file():
        return [path]
    return sorted(file for file in path.rglob("*") if file.suffix in _SUFFIXES and file.is_file())


def _processor_flags() -> str:
    """The instruction sets of this processor, in short; empty where the system does not tell."""
    import hashlib

    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            flags = next((line for line in file if line.startswith(("flags", "Features"))), "")
    except OSError:
        return ""
    return hashlib.sha256(" ".join(sorted(flags.partition(":")[2].split())).encode()).hexdigest()[:16]
