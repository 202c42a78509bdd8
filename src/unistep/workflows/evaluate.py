"""From what a user names to what is measured: sources of images, references, feature networks."""

from dataclasses import dataclass
from pathlib import Path

from unistep.data import DataConfig, open_dataset
from unistep.data.open import BUNDLED
from unistep.errors import UserError
from unistep.metrics.reference import Reference
from unistep.metrics.sources import DataSource
from unistep.metrics.statistics import read_statistics
from unistep.workflows.models import is_model

_MEMORY = 512 << 20  # bytes of pixels held at once; more are memory-mapped from the cache


@dataclass(frozen=True)
class Preparation:
    """What is done to images before they are measured.

    Args:
        resolution: side in pixels to which they are cropped and resized; None keeps them.
        channels: 1 or 3; None is what they have.
        skip_bad: leave out what cannot be read.
    """

    resolution: int | None = None
    channels: int | None = None
    skip_bad: bool = False


def open_images(source: str, preparation: Preparation, count: int | None = None) -> DataSource:
    """The images of a dataset: the bundled ones, a folder, a .zip or an .npz.

    Raises:
        UserError: there are none, one cannot be read, or their sizes differ.
    """
    config = DataConfig(
        source=source,
        resolution=preparation.resolution,
        channels=preparation.channels,
        skip_bad=preparation.skip_bad,
        use_labels=False,
        memory_limit=_MEMORY,
    )
    try:
        dataset = open_dataset(config)
    except UserError as error:
        raise UserError(str(error).replace("--data.", "--")) from None
    return DataSource(dataset.images, source, count)


def open_reference(source: str, preparation: Preparation) -> Reference:
    """What samples are compared with: a dataset, statistics in an .npz, or an .npz with both.

    Raises:
        UserError: it is nothing of these, or damaged.
    """
    if not source.strip():
        raise UserError("--reference is empty; give mnist, a folder, a .zip or an .npz")
    path = Path(source).expanduser()
    if source not in BUNDLED and path.suffix.lower() == ".npz" and path.is_file():
        statistics = read_statistics(path)
        if statistics is not None:
            images = open_images(source, preparation) if statistics.has_images else None
            return Reference(source, images, statistics)
    if source not in BUNDLED and is_model(source):
        raise UserError(f"--reference {source} is a model; give a dataset, or make images with unistep sample first")
    return Reference(source, open_images(source, preparation))
