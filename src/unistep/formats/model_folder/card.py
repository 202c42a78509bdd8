"""The model card that every trained model carries."""

import datetime
import importlib.metadata
from typing import Any

from unistep.formats.model import ModelInfo


def model_card(name: str, info: ModelInfo, data: str, compute: dict[str, Any], config: str, quality: str = "") -> str:
    """The text of a model folder's README.md.

    Args:
        name: name of the run.
        info: noise range and kind.
        data: training data, in words.
        compute: numbers of steps, images, seconds and parameters.
        config: resolved config as YAML.
        quality: measured results as Markdown; empty for none.
    """
    if info.kind == "consistency":
        what = "A consistency model: maps noise to an image in one network evaluation; more evaluations refine it."
    elif info.solver == "progressive":
        evaluations = "one network evaluation" if info.steps == 1 else f"{info.steps} network evaluations"
        what = f"A progressively distilled diffusion model: maps noise to an image in {evaluations}."
    else:
        what = "A diffusion model (EDM): denoises step by step; the teacher of consistency models."
    version = importlib.metadata.version("unistep")
    minutes = compute["seconds"] / 60
    return (
        _head(name, info)
        + f"""{what}

- Data: {data}
- Network: {compute["parameters"]:,} parameters
- Compute: {compute["steps"]:,} steps, {compute["images"]:,} images seen, {minutes:.1f} minutes
- Noise range: {info.sigma_min:g} to {info.sigma_max:g}, sigma_data {info.sigma_data:g}
- Made with unistep {version} on {datetime.date.today().isoformat()}
{quality}
```
unistep sample PATH-OF-THIS-FOLDER
```

## Config

```yaml
{config}```
"""
    )


def plain_card(name: str, info: ModelInfo, source: str = "") -> str:
    """The card of a model without facts about its training.

    Args:
        name: name of the model.
        info: noise range and kind.
        source: origin of the model, in words; empty for none.
    """
    version = importlib.metadata.version("unistep")
    origin = f"- Source: {source}\n" if source else ""
    return (
        _head(name, info)
        + f"""A {info.kind} model.

{origin}- Noise range: {info.sigma_min:g} to {info.sigma_max:g}, sigma_data {info.sigma_data:g}
- Written by unistep {version} on {datetime.date.today().isoformat()}

```
unistep sample PATH-OF-THIS-FOLDER
```
"""
    )


def _head(name: str, info: ModelInfo) -> str:
    """The metadata for the hub, and the title."""
    return f"""---
library_name: unistep
tags:
- {info.kind}-model
- unconditional-image-generation
---

# {name}

"""
