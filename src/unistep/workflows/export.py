"""`unistep.export`: a model as a program for other runtimes, compared with PyTorch before it is handed over."""

import json
import logging
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING, Any, Literal

from unistep.arguments import plain_arguments
from unistep.checks import check_place, check_range, user_path
from unistep.errors import UserError
from unistep.exporting.table import TARGETS, Target, TargetName
from unistep.samplers.table import SolverName
from unistep.text import html_table
from unistep.workflows.models import ModelLike, name_of, opened

if TYPE_CHECKING:
    from unistep.exporting.compare import Comparison
    from unistep.exporting.programs import Program
    from unistep.formats.model import LoadedModel, ModelInfo

_log = logging.getLogger("unistep")
_LEAST_OPSET, _MOST_OPSET = 18, 23
_MOST_EVALUATIONS = 100
_MOST_GROWTH = 1.05  # of the Frechet distance, in int8
NUM_DIGITS = 5000
"""Digits of which the Frechet distance of a program in int8 is measured."""


@dataclass(frozen=True, repr=False)
class Exported:
    """A model that was exported.

    Args:
        path: file or folder that was written.
        files: names of all files that were written.
        num_bytes: bytes of all files.
        to: name of the format.
        program: denoiser, sampler or edit.
        dtype: precision of the weights: fp32, fp16 or int8.
        source: name of the model that was read.
        inputs: name, type and shape of each input, in order.
        output: name, type and shape of the output.
        runtime: runtime in which it was compared with PyTorch, with its version; empty where it was not.
        comparisons: differences from the model in fp32, a row for each batch and noise level.
        frechet_distance, eager_frechet_distance: Frechet distances to MNIST of its digits and of those of fp32; None
            where they are not measured: of other images, and of precisions other than int8.
    """

    path: Path
    files: tuple[str, ...]
    num_bytes: int
    to: str
    program: str
    dtype: str
    source: str
    inputs: tuple[str, ...]
    output: str
    runtime: str
    comparisons: "tuple[Comparison, ...]"
    frechet_distance: float | None = None
    eager_frechet_distance: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Returns all of it in JSON's types."""
        rows = [asdict(row) for row in self.comparisons]
        listed = {"files": list(self.files), "inputs": list(self.inputs), "comparisons": rows}
        return {name: value for name, value in vars(self).items()} | {"path": str(self.path)} | listed

    def rows(self) -> list[tuple[str, str]]:
        """Returns name and facts of the file, of its interface and of the comparison."""
        files = f"{len(self.files)} files, " if len(self.files) > 1 else ""
        rows = [(str(self.path), f"{self.to}, {self.program}, {self.dtype}, {files}{self.num_bytes / 1e6:,.1f} MB")]
        rows.append((f"from {self.source}", f"{', '.join(self.inputs)} -> {self.output}"))
        if self.frechet_distance is not None and self.eager_frechet_distance is not None:
            growth = self.frechet_distance / self.eager_frechet_distance - 1
            text = f"{self.frechet_distance:.3f}, of fp32 {self.eager_frechet_distance:.3f} ({growth:+.1%})"
            rows.append((f"Frechet distance of {NUM_DIGITS:,} digits", text))
        return rows

    def table(self) -> list[str]:
        """Returns the lines of the table of differences from PyTorch."""
        if not self.comparisons:
            return []
        lines = [f"{'batch':>5}  {'noise':<6}  {'sigma':>7}  {'largest error':>13}  {'PSNR':>8}  differing pixels"]
        for row in self.comparisons:
            sigma = "" if row.sigma is None else f"{row.sigma:.4g}"
            share = "" if row.differing is None else f"{row.differing:.4%}"
            lines.append(
                f"{row.batch:>5}  {row.noise:<6}  {sigma:>7}  {row.error:>13.2e}  {row.psnr:>5.1f} dB  {share}".rstrip()
            )
        return lines

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the description as JSON.

        Args:
            path: file that ends in .json.
        """
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")

    def __repr__(self) -> str:
        return f"Exported({self.path}: {self.to}, {self.program}, {self.dtype})"

    def _repr_html_(self) -> str:
        compared = [("compared with PyTorch", "\n".join(self.table()))] if self.comparisons else []
        return html_table("exported", [*self.rows(), *compared])


@plain_arguments(empty=["out"])
def export(
    model: ModelLike,
    out: str | os.PathLike[str],
    *,
    to: TargetName = "onnx",
    program: Literal["denoiser", "sampler", "edit"] | None = None,
    steps: int | None = None,
    timesteps: Sequence[int] | None = None,
    sigmas: Sequence[float] | None = None,
    solver: SolverName | None = None,
    clip: bool | None = None,
    gamma: float | None = None,
    guidance: float | None = None,
    dtype: Literal["fp32", "fp16", "int8"] = "fp32",
    opset: int | None = None,
    batches: Sequence[int] = (1, 2, 5, 16),
    runtime_folder: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Exported:
    """Writes a model as a program for other runtimes, and compares it with PyTorch before it is handed over.

    A denoiser is the model itself, and opens here as any other model. A sampler maps noise to pixels, with the noise
    levels, scalings and rounding inside, so that its user needs no mathematics; an edit paints what a mask marks. The
    file describes its interface and the model. A program that differs from the model beyond the bound of its precision
    is not left behind; nor one in int8 whose digits have a Frechet distance to MNIST that is larger by more than 5%.

    Args:
        model: model folder, run directory, OpenAI .pt, EDM .pkl, name of an embedded model, or owner/name on the
            Hugging Face hub; in Python also a loaded model or a pipeline.
        out: file to write, with the ending of the format; one of that name is replaced. For a web page a new folder.
        to: format of the file.
        program: denoiser, sampler or edit; default: sampler where `steps`, `timesteps`, `sigmas`, `solver` or another
            option of sampling is given, else denoiser.
        steps: network evaluations of a consistency model's sampler (default 1), solver steps of a diffusion model;
            noise levels of an edit.
        timesteps: indices of a consistency model's noise grid, from 0 (sigma_max) up, as 0,22; instead of `steps`.
        sigmas: noise levels of a consistency model, from sigma_max down, as 80,0.8; instead of `steps`.
        solver: ODE solver of a diffusion model; default: the model's own, else heun.
        clip: clamp the outputs of the model to [-1, 1] in every step of a sampler; default: the model's own way.
        gamma: share of fresh noise between the jumps of a flow map's sampler, from 0 (none) to 1 (all, as of a
            consistency model); default: the model's own.
        guidance: scale of guidance from 1 (none) up, of the sampler of a flow map that has an input for it, or of a
            diffusion model that has a null class; default: the model's own, or 1.
        dtype: precision of the weights.
        opset: version of ONNX's operators; default: 18.
        batches: sizes of the batches that are compared.
        runtime_folder: folder with the files of npm's onnxruntime-web, for a web page; default: npm fetches them once.
        progress: show a progress bar on a terminal.

    Returns:
        The file, its interface and the comparison.

    Raises:
        UserError: the model cannot be opened, the program does not fit it, a package is not installed, the file cannot
            be written, or the program differs from the model.

    Example:
        >>> import tempfile, unistep
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     exported = unistep.export("mnist", f"{folder}/digits.onnx", steps=1, batches=[1, 2])
        >>> exported.program, exported.inputs, exported.output
        ('sampler', ('noise float32 [B, 1, 1, 28, 28]', 'class_labels int32 [B]'), 'images uint8 [B, 28, 28, 1]')
    """
    row = TARGETS[to]
    path = _checked(out, row, dtype, opset, batches)
    chosen = program or _usual_program(steps, timesteps, sigmas, solver, clip, gamma, guidance)
    if chosen not in row.programs:
        raise UserError(
            f"{row.title} holds no {chosen}, but a {row.programs[0]}", "leave out `program`, `steps` and such"
        )
    more = {name: value for name, value in {"runtime_folder": runtime_folder}.items() if value is not None}
    for name in more.keys() - set(row.options):
        raise UserError(f"`{name}` is not for {row.title}", "leave it out")

    from unistep.exporting.make import make_program
    from unistep.exporting.metadata import metadata_of
    from unistep.formats.exported.model import check_weights

    loaded = opened(model, "cpu")
    check_weights(loaded)
    options: dict[str, Any] = {"steps": steps, "timesteps": timesteps, "sigmas": sigmas, "solver": solver, "clip": clip}
    options |= {"gamma": gamma, "guidance": guidance}
    reference = make_program(loaded, chosen, **options)
    _check_evaluations(reference)
    written = make_program(loaded, chosen, dtype=dtype if row.halves else "fp32", **options)
    source = name_of(model)
    metadata = metadata_of(loaded, written, dtype, source)
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        place, version = folder / path.name, opset or _LEAST_OPSET
        if dtype == "int8":
            files = _quantize(row, written, place, metadata, version, loaded.info, progress)
        else:
            files = row.writer()(written, place, metadata, opset=version, dtype=dtype, **more)
        del written
        runtime, found = _compare(row, reference, place, loaded, dtype, batches, progress)
        distances = _digits(row, reference, place, loaded, progress) if dtype == "int8" else (None, None)
        made = Exported(
            path=path,
            files=tuple(file.name for file in files),
            num_bytes=sum(_bytes(file) for file in files),
            to=to,
            program=chosen,
            dtype=dtype,
            source=source,
            inputs=tuple(_port(port) for port in reference.inputs),
            output=_port(reference.output),
            runtime=runtime,
            comparisons=found,
            frechet_distance=distances[0],
            eager_frechet_distance=distances[1],
        )
        made.save(folder / _record(path))
        for file in (*files, folder / _record(path)):
            os.replace(file, path.parent / file.name)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return made


def _record(path: Path) -> str:
    """The name of the description beside an exported file."""
    return f"{path.name}.export.json"


def _bytes(file: Path) -> int:
    return sum(one.stat().st_size for one in (file.rglob("*") if file.is_dir() else (file,)) if one.is_file())


def _port(port: Any) -> str:
    return f"{port.name} {port.dtype} [{', '.join(map(str, ('B', *port.shape)))}]"


def _checked(out: str | os.PathLike[str], row: Target, dtype: str, opset: int | None, batches: Sequence[int]) -> Path:
    """The path to write, once all arguments that need no model are checked."""
    if not os.fspath(out).strip():
        raise UserError("is empty", f"give a file that ends in {row.ending}", field="out")
    path = user_path(out)
    if not row.ending and (path.is_file() or (path.is_dir() and any(path.iterdir()))):
        raise UserError(f"{path} holds something already", "give a new folder", field="out")
    if row.ending and path.suffix.lower() != row.ending:
        raise UserError(f"{path}: a file of {row.title} ends in {row.ending}", f"call it {path.stem}{row.ending}")
    if row.ending and path.is_dir():
        raise UserError(f"{path} is a folder", "choose another name")
    check_place("out", path)
    if dtype not in row.dtypes:
        raise UserError(f"{dtype} is not written as {row.title}", f"give {' or '.join(row.dtypes)}", field="dtype")
    if dtype == "int8" and find_spec(row.int8_needs) is None:
        raise UserError(f"{row.title} in int8 needs {row.int8_needs}", "pip install 'unistep[onnx,openvino]'")
    check_range("opset", opset, _LEAST_OPSET, _MOST_OPSET)
    if opset is not None and row.name not in ("onnx", "web"):
        raise UserError(f"`opset` {opset} is for ONNX, not for {row.title}", "leave it out")
    if not batches:
        raise UserError("is empty", "give sizes of batches, as 1,2", field="batches")
    for batch in batches:
        check_range("batches", batch, 1, 1024)
    return path


def _usual_program(*given: object) -> str:
    return "denoiser" if all(one is None for one in given) else "sampler"


def _quantize(
    row: Target, program: "Program", path: Path, metadata: Any, opset: int, info: "ModelInfo", progress: bool
) -> tuple[Path, ...]:
    """Writes a program in int8."""
    from unistep.exporting.int8 import Calibration
    from unistep.runtime.progress import work_bar

    with work_bar(progress) as bar:

        def on_done(done: int, count: int) -> None:
            bar("try operations", done, count)

        calibration = Calibration(program, info, on_done)
        return row.quantizer()(program, path, metadata, opset=opset, calibration=calibration)


def _digits(
    row: Target, reference: "Program", path: Path, model: "LoadedModel", progress: bool
) -> tuple[float | None, float | None]:
    """Distances of the digits of a program in int8 and of fp32; refuses a program whose digits are worse."""
    from unistep.runtime.progress import work_bar
    from unistep.workflows.export_digits import draws_digits, measure_digits

    if not draws_digits(reference, model.info):
        return None, None
    with work_bar(progress) as bar:
        found, eager = measure_digits(reference, row.opener()(path), model.info, NUM_DIGITS, bar)
    if found > _MOST_GROWTH * eager:
        raise UserError(
            f"in int8 the Frechet distance of {NUM_DIGITS:,} digits grows from {eager:.3f} to {found:.3f}, by more "
            f"than {_MOST_GROWTH - 1:.0%}; nothing was written",
            "give `dtype` fp16 or fp32",
        )
    return found, eager


def _check_evaluations(program: "Program") -> None:
    from unistep.exporting.programs import evaluations

    count = evaluations(program)
    if count > _MOST_EVALUATIONS:
        raise UserError(
            f"a program of {count} network evaluations would hold the network as often; at most {_MOST_EVALUATIONS} do",
            "give fewer `steps`, or export the denoiser",
        )


def _compare(
    row: Target,
    reference: "Program",
    path: Path,
    model: "LoadedModel",
    dtype: str,
    batches: Sequence[int],
    progress: bool,
) -> "tuple[str, tuple[Comparison, ...]]":
    """The runtime and the differences; refuses a program beyond the bound."""
    from unistep.exporting.compare import BOUNDS, compare, count_cases
    from unistep.runtime.progress import progress_bar

    if find_spec(row.runtime) is None:
        _log.warning("not compared with PyTorch: %s is not installed", row.runtime)
        return "", ()
    engine = row.opener()(path)
    with progress_bar(count_cases(reference, batches), active=progress) as on_done:
        found = compare(reference, engine, model.info, dtype=dtype, batches=batches, on_done=on_done)
    if beyond := [one for one in found if not one.within]:
        worst = min(beyond, key=lambda one: one.psnr)
        bound = BOUNDS[dtype]
        limit = f"{bound.psnr:g} dB" + ("" if bound.error is None else f" and errors up to {bound.error:g}")
        at = f" at {worst.noise} noise" if worst.noise else ""
        raise UserError(
            f"the program differs from the model in {engine.name}: an error of {worst.error:.2g} and {worst.psnr:.1f} "
            f"dB in a batch of {worst.batch}{at}, and {dtype} is to keep {limit}; nothing was written",
            "give `dtype` fp32, or another format",
        )
    return engine.name, found
