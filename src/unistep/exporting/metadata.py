"""The description that an exported file holds: interface, model, noise levels and random numbers, as JSON."""

import dataclasses
import math
from typing import Any

from unistep.core.random import IMAGES, LABELS
from unistep.exporting.programs import EditProgram, Program, SamplerProgram
from unistep.formats.exported.description import FORMAT
from unistep.formats.exported.digest import NO_DIGEST
from unistep.formats.model import LoadedModel
from unistep.text import version_of

_MOST_CARD = 100_000
_WORDS = {"algorithm": "Philox4x32-10", "normals": "Box-Muller in float64", "keys": "SplitMix64, MurmurHash3"}


def metadata_of(model: LoadedModel, program: Program, dtype: str = "fp32", source: str = "") -> dict[str, Any]:
    """Returns the description of a program in JSON's types.

    Args:
        model: model that the program computes.
        program: program.
        dtype: precision of the weights: fp32, fp16 or int8.
        source: name of the model.
    """
    channels, height, width = program.shape
    return {
        "format": FORMAT,
        "unistep": version_of(),
        "digest": NO_DIGEST,
        "source": source,
        "program": program.name,
        "dtype": dtype,
        "inputs": [_port(port) for port in program.inputs],
        "output": _port(program.output),
        "image": {"channels": channels, "height": height, "width": width},
        "classes": program.num_classes,
        "parameters": sum(p.numel() for p in model.denoiser.parameters()),
        "model": _plain(dataclasses.asdict(model.info)),
        **_plan(program),
        "randomness": {**_WORDS, "streams": {"images": IMAGES, "labels": LABELS}},
        **({"card": card} if (card := _card(model)) else {}),
    }


def _port(port: Any) -> dict[str, Any]:
    return {"name": port.name, "dtype": port.dtype, "shape": list(port.shape), "text": port.text}


def _plan(program: Program) -> dict[str, Any]:
    if isinstance(program, SamplerProgram):
        plan = _plain(dataclasses.asdict(program.plan))
        return {"plan": plan, "draws": program.draws, "evaluations": program.plan.nfe}
    if isinstance(program, EditProgram):
        plan = {"sigmas": list(program.levels), "settle": list(program.settle), "sigma_min": program.sigma_min}
        return {"plan": plan, "draws": program.draws, "evaluations": len(program.levels) + len(program.settle)}
    return {}


def _plain(value: Any) -> Any:
    """A value in JSON's types, which has no infinity."""
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _card(model: LoadedModel) -> str:
    """The model card of a model folder; empty where there is none."""
    path = model.path / "README.md"
    if not path.is_file() or path.stat().st_size > _MOST_CARD:
        return ""
    return path.read_text(encoding="utf-8", errors="replace")
