"""The model card that every trained model carries."""

import datetime
import importlib.metadata
from typing import Any

from unistep.formats.model import ModelInfo


def model_card(name: str, info: ModelInfo, data: str, compute: dict[str, Any], config: str, quality: str = "") -> str:
    """The text of a model folder's README.md.

    Args:
        name: of the run.
        info: noise range and kind.
        data: what it was trained on.
        compute: steps, images, seconds, parameters.
        config: the resolved config as YAML.
        quality: measured results, Markdown; nothing is claimed where it is empty.
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
    """The card of a model whose training is not known here; `source` says where it comes from."""
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
    """What the hub reads, and the title."""
    return f"""---
library_name: unistep
tags:
- {info.kind}-model
- unconditional-image-generation
---

# {name}

"""
