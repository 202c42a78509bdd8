"""The class of every image of a run."""

from collections.abc import Sequence

import torch
from jaxtyping import Int64
from torch import Tensor

from unistep.core.random import LABELS, image_seed
from unistep.errors import UserError


def random_labels(seed: int, indices: Sequence[int], num_classes: int) -> Int64[Tensor, " B"]:
    """A class for each image of a run, drawn from the run's seed and the image's index."""
    return torch.tensor([random_label(seed, i, num_classes) for i in indices], dtype=torch.int64)


def random_label(seed: int, index: int, num_classes: int) -> int:
    """A class for one image of a run, drawn from the run's seed and the image's index."""
    return image_seed(seed, index, LABELS) % num_classes


def make_labels(
    num_classes: int, num_images: int, class_labels: int | Sequence[int] | None = None, seed: int = 0
) -> Int64[Tensor, " N"] | None:
    """Returns the class of every image, or None for an unconditional model.

    Args:
        num_classes: classes of the model; 0 for an unconditional one.
        num_images: number of images.
        class_labels: one class for all images, or a list that is repeated; None draws them from the seed.
        seed: seed of the run; the class of image i depends on (seed, i).

    Raises:
        UserError: a class that the model does not have.
    """
    if class_labels is None:
        return random_labels(seed, range(num_images), num_classes) if num_classes else None
    labels = check_labels(class_labels, num_classes)
    return torch.tensor(labels).repeat(-(-num_images // len(labels)))[:num_images]


def check_labels(class_labels: int | Sequence[int], num_classes: int) -> list[int]:
    """Returns the given classes as a list.

    Args:
        class_labels: one class or several.
        num_classes: classes of the model; 0 for an unconditional one.

    Raises:
        UserError: the model has no classes, or not these; the list is empty.
    """
    labels = [class_labels] if isinstance(class_labels, int) else [int(c) for c in class_labels]
    shown = ",".join(map(str, labels))
    if not num_classes:
        raise UserError(f"`class_labels` {shown}: this model has no classes", "leave it out")
    if not labels:
        raise UserError("is empty", "give a class, or leave it out", field="class_labels")
    for label in labels:
        if not 0 <= label < num_classes:
            raise UserError(f"`class_labels` {label}: this model has the classes 0 to {num_classes - 1}")
    return labels
