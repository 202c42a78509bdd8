"""`unistep sample`: images with any model."""

import os
from typing import TYPE_CHECKING

from unistep.cli.command import run_command
from unistep.text import shown
from unistep.workflows.sample import sample

if TYPE_CHECKING:
    from unistep.generation.images import Images


def run(arguments: list[str]) -> None:
    """Parses, samples, and prints where the images are."""
    run_command(
        arguments,
        sample,
        _show,
        usage="unistep sample [MODEL] [options]",
        positionals=("model",),
        opens="model",
        defaults={"output": "samples.png"},
    )


def _show(images: "Images") -> None:
    if os.environ.get("RANK", "0") != "0":
        return
    each = f"{images.evaluations} evaluation{'s' * (images.evaluations > 1)} each"
    pace = "" if images.seconds is None else f", {images.seconds:.4f} s per image"
    print(f"{len(images)} image{'s' * (len(images) > 1)}, {each}{pace}: {shown(images.path)}")
