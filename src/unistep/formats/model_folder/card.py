"""The model card of a model folder: what the model is, how it was trained, and how it is used."""

import datetime
import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from unistep.formats.model import ModelInfo, num_classes
from unistep.networks.table import NetworkConfig
from unistep.text import shown, version_of

PICTURE = "samples.png"
"""Name of the sample picture in a model folder."""

_COLOURS = {1: "grey", 3: "colour"}


@dataclass(frozen=True)
class Training:
    """Record of the training of a model, for its card.

    Args:
        data: training data, in words.
        compute: numbers of steps, images, seconds and parameters.
        config: resolved config as YAML.
        terms: works whose licences the model falls under, in words.
        quality: measured results as Markdown; empty for none.
    """

    data: str
    compute: Mapping[str, Any]
    config: str
    terms: Sequence[str] = ()
    quality: str = ""


def model_card(
    name: str, info: ModelInfo, network: NetworkConfig, training: Training, *, has_picture: bool = False
) -> str:
    """Returns the text of a trained model's README.md.

    Args:
        name: name of the run.
        info: noise range, kind and method.
        network: config of the network.
        training: record of the training.
        has_picture: whether the folder holds a sample picture.
    """
    compute = training.compute
    minutes = compute["seconds"] / 60
    terms = f"the terms of {' and of '.join(map(_text, training.terms))} apply" if training.terms else "none chosen"
    picture = f"![samples]({PICTURE})\n\n" if has_picture else ""
    return (
        _head(name, info, network)
        + f"""{_kind(info)}

{picture}{_facts(info, network)}
- Data: {_text(training.data)}
- Network: {type(network).__name__.removesuffix("Config")}, {compute["parameters"]:,} parameters
- Compute: {compute["steps"]:,} steps, {compute["images"]:,} images seen, {minutes:.1f} minutes
- Licence: {terms}
- Made with unistep {version_of()} on {_today()}
{training.quality}
{_usage(info, network)}

## Config

{_code(training.config, "yaml")}
"""
    )


def plain_card(name: str, info: ModelInfo, source: str = "", network: NetworkConfig | None = None) -> str:
    """The card of a model without facts about its training.

    Args:
        name: name of the model.
        info: noise range, kind and method.
        source: origin of the model, in words; empty for none.
        network: config of the network; None where it is not known.
    """
    origin = f"- Source: {_text(source)}\n" if source else ""
    return (
        _head(name, info, network)
        + f"""A {info.kind} model.

{origin}{_facts(info, network)}
- Written by unistep {version_of()} on {_today()}

{_usage(info, network)}
"""
    )


def _head(name: str, info: ModelInfo, network: NetworkConfig | None) -> str:
    """The metadata for the hub, and the title."""
    classes = "class-conditional" if network is not None and num_classes(network, info) else "unconditional"
    return f"""---
library_name: unistep
tags:
- {info.kind}-model
- {classes}-image-generation
---

# {_text(name)}

"""


def _text(value: str) -> str:
    """A text that others chose as a piece of one line: no HTML, no Markdown, no further line."""
    plain = html.escape(shown(" ".join(value.split())), quote=False)
    return re.sub(r"([\\`*\[\]|])", r"\\\1", plain)


def _code(text: str, language: str) -> str:
    """A block of code, fenced by more backticks than stand in it one after the other."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def _kind(info: ModelInfo) -> str:
    if info.kind == "consistency":
        return "A consistency model: maps noise to an image in one network evaluation; more evaluations refine it."
    if info.solver == "progressive":
        evaluations = "one network evaluation" if info.steps == 1 else f"{info.steps} network evaluations"
        return f"A progressively distilled diffusion model: maps noise to an image in {evaluations}."
    return "A diffusion model (EDM): denoises step by step; the teacher of consistency models."


def _facts(info: ModelInfo, network: NetworkConfig | None) -> str:
    lines = [f"- Method: {_text(info.method)}"] if info.method else []
    if network is not None:
        colours = _COLOURS.get(network.in_channels, f"{network.in_channels} channels")
        size = "any size" if network.sample_size is None else f"{network.sample_size} x {network.sample_size} pixels"
        classes = num_classes(network, info)
        lines.append(f"- Images: {size}, {colours}")
        lines.append(f"- Classes: {classes:,}" if classes else "- Classes: none, unconditional")
    lines.append(f"- Noise range: {info.sigma_min:g} to {info.sigma_max:g}, sigma_data {info.sigma_data:g}")
    return "\n".join(lines)


def _usage(info: ModelInfo, network: NetworkConfig | None) -> str:
    """Returns examples of sampling the model, in Python and on the command line."""
    steps = ", steps=2" if info.kind == "consistency" else ""
    labels = ", class_labels=[0, 1]" if network is not None and num_classes(network, info) > 1 else ""
    return f"""```python
import unistep

model = unistep.load("PATH-OF-THIS-FOLDER")
images = unistep.sample(model, num_images=16{steps}{labels})
images.save("samples.png")
```

```
unistep sample PATH-OF-THIS-FOLDER
```"""


def _today() -> str:
    return datetime.date.today().isoformat()
