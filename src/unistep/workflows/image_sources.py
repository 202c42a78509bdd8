"""Sources of images, references and feature networks from what a user gives."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unistep.checks import check_path, check_range, user_path
from unistep.data import DataConfig, ImageDataset
from unistep.data.bundled import BUNDLED
from unistep.data.open import read_dataset
from unistep.data.streaming import StreamedImages
from unistep.errors import UserError
from unistep.formats.model import LoadedModel
from unistep.generation.classes import ClassLabels, class_numbers
from unistep.generation.images import Images
from unistep.generation.labels import make_labels
from unistep.generation.plan import make_plan
from unistep.metrics.reference import Reference
from unistep.metrics.sources import DataSource, ImageSource
from unistep.metrics.sources import ModelSource as ModelImages
from unistep.metrics.statistics import read_statistics
from unistep.pipelines.consistency_model import ConsistencyModelPipeline
from unistep.prepared.table import RuntimeName
from unistep.runtime.device import pick_device
from unistep.runtime.processes import Processes
from unistep.workflows.models import Dtype, ImagesLike, ModelLike, ModelSource, as_model, is_model

_MEMORY = 512 << 20  # bytes of pixels held at once; more are memory-mapped from the cache


@dataclass(frozen=True)
class Preparation:
    """Changes to the images of files before they are used.

    Args:
        resolution: side in pixels to which they are cropped and resized; None keeps them.
        channels: 1 or 3; None keeps theirs.
        skip_bad: whether files that cannot be read are left out.

    Raises:
        UserError: a number is out of range.
    """

    resolution: int | None = None
    channels: int | None = None
    skip_bad: bool = False

    def __post_init__(self) -> None:
        check_range("resolution", self.resolution, 1, 16384)
        if self.channels not in (None, 1, 3):
            raise UserError(f"{self.channels} must be 1 (grey) or 3 (colour)", field="channels")


@dataclass(frozen=True)
class Sampling:
    """Options of a model's images, as `unistep.sample` takes them.

    Args:
        num_images: number of images.
        steps, timesteps, sigmas, solver, clip, rho, s_churn, s_min, s_max, s_noise, gamma, guidance: choice of
            the sampler.
        class_labels: class of all images, or a list that is repeated; None draws them from the seed.
        seed: seed of the images; image i uses the stream (seed, i); None is 0.
        batch_size: number of images computed at once on an accelerator.
        dtype: precision of a model given by name; None is auto.
        runtime: runtime of a model given by name; None is eager.
        device: device of a model given by name; None is cuda where there is one.
    """

    num_images: int
    steps: int | None = None
    timesteps: Sequence[int] | None = None
    sigmas: Sequence[float] | None = None
    solver: str | None = None
    clip: bool | None = None
    rho: float | None = None
    s_churn: float | None = None
    s_min: float | None = None
    s_max: float | None = None
    s_noise: float | None = None
    gamma: float | None = None
    guidance: float | None = None
    class_labels: ClassLabels = None
    seed: int | None = None
    batch_size: int = 64
    dtype: Dtype | None = None
    runtime: RuntimeName | None = None
    device: str | None = None


_OF_PLAN = (
    *("steps", "timesteps", "sigmas", "solver", "clip", "rho"),
    *("s_churn", "s_min", "s_max", "s_noise", "gamma", "guidance"),
)
_MODELS_ALONE = (*_OF_PLAN, "class_labels", "seed", "dtype", "runtime")


def open_samples(
    samples: ImagesLike | ModelLike,
    preparation: Preparation,
    count: int | None,
    sampling: Sampling,
    processes: Processes,
    *,
    use_labels: bool = False,
) -> tuple[ImageSource, torch.device]:
    """Opens the images to evaluate.

    Args:
        samples: images, or a model that makes them.
        preparation: changes to images of files.
        count: number of images to take, from the first on; None takes all. Of a model `sampling` has the number.
        sampling: options of a model's images.
        processes: processes of this run.
        use_labels: whether the class labels of images of files are read.

    Returns:
        The source of the images, and the device for the features.

    Raises:
        UserError: there are no such images and no such model, or options are given that are not for them.
    """
    name = samples.name if isinstance(samples, ModelSource) else samples
    if isinstance(name, str | os.PathLike):
        check_path("samples", name)
    if isinstance(samples, ImageDataset | Images | Tensor):
        images = _in_memory(samples, "samples", count)
    elif isinstance(name, str | os.PathLike) and ((path := os.fspath(name)) in BUNDLED or not is_model(path)):
        images = open_images(path, preparation, count, use_labels=use_labels)
    else:
        return _model_images(samples, sampling, processes)
    given = [option for option in _MODELS_ALONE if getattr(sampling, option) is not None]
    given += list(samples.options) if isinstance(samples, ModelSource) else []
    if given:
        raise UserError(f"`{given[0]}` is for models, and {images.name} holds images; leave it out")
    return images, pick_device(sampling.device, processes.local_rank)


def check_used(preparation: Preparation, *opened: tuple[object, ImageSource | None]) -> None:
    """Refuses changes to the images of files where no file is read.

    Args:
        preparation: changes to the images.
        opened: samples and reference as they were given, each with the images that were opened.

    Raises:
        UserError: a change is given and would be ignored.
    """
    for given, images in opened:
        name = given.name if isinstance(given, ModelSource) else given
        if isinstance(name, str | os.PathLike) and isinstance(images, DataSource):
            return
    for field in ("resolution", "channels", "skip_bad"):
        if getattr(preparation, field):
            raise UserError("is for images of files, and none are read", "leave it out", field=field)


def _model_images(model: ModelLike, sampling: Sampling, processes: Processes) -> tuple[ModelImages, torch.device]:
    if model is not None and not isinstance(
        model, str | os.PathLike | ModelSource | LoadedModel | ConsistencyModelPipeline
    ):
        raise UserError(
            f"`samples` is a {type(model).__name__}; give a path, a model, or uint8 images as a tensor [N, C, H, W]"
        )
    ready = as_model(
        model,
        device=sampling.device,
        dtype=sampling.dtype,
        runtime=sampling.runtime,
        local_rank=processes.local_rank,
    )
    if processes.first:
        ready.log_notes()
    s, loaded, seed = sampling, ready.model, sampling.seed or 0
    plan = make_plan(loaded.info, **{name: getattr(s, name) for name in _OF_PLAN})
    given = class_numbers(s.class_labels, loaded.info.class_names)
    labels = make_labels(loaded.num_classes, s.num_images, given, seed)
    labelling = "none"
    if labels is not None:
        chosen = [given] if isinstance(given, int) else given
        labelling = "drawn from the seed" if chosen is None else ",".join(map(str, chosen))
    source = ModelImages(loaded, plan, s.num_images, seed, labels, s.batch_size, ready.device, ready.dtype, labelling)
    _ = source.digest  # of the weights as they are in the file
    ready.cast()
    return source, ready.device


def _in_memory(images: ImageDataset | Images | Tensor, name: str, count: int | None = None) -> DataSource:
    place = images.path if isinstance(images, Images) else None
    labels = None if isinstance(images, Tensor) or images.labels is None else images.labels.cpu()
    held = images.images if isinstance(images, ImageDataset) else None
    pixels = held if isinstance(held, StreamedImages) else pixels_of(images)
    return DataSource(pixels, name if place is None else str(place), count, labels)


def pixels_of(images: ImageDataset | Images | Tensor) -> Tensor:
    """Returns the pixels [N, C, H, W] of images in memory, on the CPU."""
    pixels = images if isinstance(images, Tensor) else images.pixels if isinstance(images, Images) else images.images
    return pixels[:] if isinstance(pixels, StreamedImages) else pixels.cpu()


def open_images(
    source: str, preparation: Preparation, count: int | None = None, *, use_labels: bool = False
) -> DataSource:
    """Opens the images of a dataset: the bundled ones, a folder, a .zip or an .npz.

    Args:
        source: name of the dataset.
        preparation: changes to the images.
        count: number of images to take, from the first on; None takes all.
        use_labels: whether class labels are read.

    Raises:
        UserError: there are none, one cannot be read, or their sizes differ.
    """
    config = DataConfig(
        source=source,
        resolution=preparation.resolution,
        channels=preparation.channels,
        skip_bad=preparation.skip_bad,
        use_labels=use_labels,
        memory_limit=_MEMORY,
    )
    dataset = read_dataset(config)
    return DataSource(dataset.images, source, count, dataset.labels)


def open_reference(source: ImagesLike, preparation: Preparation) -> Reference:
    """Opens a reference: images, statistics in an .npz, or an .npz with both.

    Args:
        source: images, or the name of a file of statistics.
        preparation: changes to images of files.

    Raises:
        UserError: it is nothing of these, or damaged.
    """
    if isinstance(source, ImageDataset | Images | Tensor):
        images = _in_memory(source, "reference")
        return Reference(images.name, images)
    check_path("reference", source, "give mnist, a folder, a .zip, an .npz, or uint8 images as a tensor [N, C, H, W]")
    name = os.fspath(source)
    if not name.strip():
        raise UserError("`reference` is empty; give mnist, a folder, a .zip or an .npz")
    path = user_path(name)
    if name not in BUNDLED and path.suffix.lower() == ".npz" and path.is_file():
        statistics = read_statistics(path)
        if statistics is not None:
            return Reference(name, open_images(name, preparation) if statistics.has_images else None, statistics)
    if name not in BUNDLED and is_model(name):
        raise UserError(f"`reference` {name} is a model; give a dataset, or make images with unistep sample first")
    return Reference(name, open_images(name, preparation))
