"""The folder of a page: a network as ONNX, onnxruntime-web, and the page of `unistep serve` that computes by itself.

    index.html               the page
    page/                    its modules: those of the server's page, of which `api.js` and `code.js` are others here
    model.json, model.onnx   the model: its description and its network (x_t, sigma, class_labels) -> x0
    runtime/                 onnxruntime-web
    sw.js, files.js          the service worker, and the files that it keeps

Every address is relative, so that the folder works below any address of a static host.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unistep.engines.engine import Engine
from unistep.engines.onnxruntime import OnnxRuntimeEngine
from unistep.errors import UserError
from unistep.exporting.onnx import write_onnx
from unistep.exporting.programs import Program
from unistep.exporting.web.runtime import FILES, VERSION, RuntimeFile, runtime_files
from unistep.formats.published.file import sha256_of

_HERE = Path(__file__).parent
OWN = _HERE / "page"
"""Modules that take the place of the server's, or are added."""
SERVED = Path(__file__).parents[2] / "serving" / "page"
"""Files of the server's page, which are data here."""

NETWORK = "model.onnx"
"""Name of the network's file in the folder."""
POLICY = (
    "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; worker-src 'self'; connect-src 'self'; "
    "style-src 'self'; img-src 'self' data: blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
)
_TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "json": "application/json",
    "svg": "image/svg+xml",
    "wasm": "application/wasm",
}
_LOADING = "Loading…"
_AS_FILE = "Loading… Where this stays, the page was opened as a file: it needs a web server, as python -m http.server."


def write_web(
    program: Program,
    path: Path,
    metadata: dict[str, Any],
    *,
    opset: int = 18,
    dtype: str = "fp32",
    runtime_folder: str | os.PathLike[str] | None = None,
) -> tuple[Path, ...]:
    """Writes a page into a new folder.

    Args:
        program: denoiser in eval mode.
        path: folder of the page.
        metadata: description of the program, as `unistep.exporting.metadata` makes it.
        opset: version of ONNX's operators.
        dtype: precision of the weights.
        runtime_folder: folder with the files of npm's onnxruntime-web; None has npm fetch them.

    Returns:
        The folder.

    Raises:
        UserError: the page cannot show the model's images, the network is too large, or the runtime is not to be had.
    """
    described = describe(metadata)
    runtime = runtime_files(runtime_folder)
    for inside in ("page", "runtime"):
        (path / inside).mkdir(parents=True)
    if len(write_onnx(program, path / NETWORK, metadata, opset=opset, dtype=dtype)) > 1:
        raise UserError(f"{metadata['source']} is too large for a browser", "give `dtype` fp16, or a smaller model")
    for source in (*SERVED.iterdir(), *OWN.iterdir()):
        if source.is_file() and source.name != "index.html":
            shutil.copyfile(source, path / "page" / source.name)
    index = (SERVED / "index.html").read_text(encoding="utf-8")
    (path / "index.html").write_text(index.replace(_LOADING, _AS_FILE), encoding="utf-8")
    for file, source in runtime.items():
        shutil.copyfile(source, path / "runtime" / file.name)
    shutil.copyfile(_HERE / "runtime.LICENSE", path / "runtime" / "LICENSE")
    described |= {"file": NETWORK, "sha256": sha256_of(path / NETWORK)}
    (path / "model.json").write_text(json.dumps(described), encoding="utf-8")
    shutil.copyfile(_HERE / "sw.js", path / "sw.js")
    _list_files(path)
    return (path,)


def open_network(path: Path) -> Engine:
    """Opens the network of a page."""
    return OnnxRuntimeEngine(path / NETWORK)


def describe(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the description of a model that its page reads.

    Args:
        metadata: description of its denoiser.

    Raises:
        UserError: it is a diffusion model, or its images are neither grey nor coloured.
    """
    info, image, name = metadata["model"], metadata["image"], str(metadata["source"])
    if info["kind"] != "consistency":
        raise UserError(f"{name} is a diffusion model; a page needs a consistency model: distill it")
    if image["channels"] not in (1, 3):
        raise UserError(f"{name} makes images of {image['channels']} channels; a page shows grey and colour")
    own = [] if info["timesteps"] is None else [info["timesteps"]]
    return {
        "id": re.sub(r"[^A-Za-z0-9._-]+", "-", Path(name).name).strip("-") or "model",
        "kind": info["kind"],
        "dtype": metadata["dtype"],
        **image,
        "classes": info["class_names"] or [str(number) for number in range(metadata["classes"])],
        "noise_levels": info["num_train_timesteps"],
        "schedules": [*own, *info["schedules"]],
        **{key: info[key] for key in ("sigma_min", "sigma_max", "rho", "clip", "flow_map", "gamma", "guidance_scale")},
    }


def _list_files(folder: Path) -> None:
    """Writes the list of files for the service worker, under a version that is theirs."""
    later: Mapping[str, RuntimeFile] = {f"runtime/{one.name}": one for one in FILES if one.gpu}
    kept = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in ("sw.js", "LICENSE")]
    names = {str(path.relative_to(folder).as_posix()): path for path in kept}
    digest = hashlib.sha256()
    for name, path in names.items():
        digest.update(f"{name} {sha256_of(path)}\n".encode())
    listed = {
        "version": digest.hexdigest()[:16],
        "runtime": VERSION,
        "first": [[name, path.stat().st_size] for name, path in names.items() if name not in later],
        "later": list(later),
        "types": _TYPES,
        "policy": POLICY,
    }
    (folder / "files.js").write_text(f"self.FILES = {json.dumps(listed, indent=1)};\n", encoding="utf-8")
