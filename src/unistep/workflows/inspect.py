"""`unistep.inspect`: a report on a model of any format; and a report on a dataset."""

import os
from typing import TYPE_CHECKING

from unistep.arguments import plain_arguments
from unistep.workflows.models import ModelLike, opened

if TYPE_CHECKING:
    from unistep.data.inspect import DatasetReport
    from unistep.formats.describe import ModelReport


@plain_arguments()
def inspect(model: ModelLike = None) -> "ModelReport":
    """Describes a model: format, kind, images, classes, network, noise range and schedules.

    The values of the weights are not used: a large model costs no more than a small one.

    Args:
        model: model folder, run directory, OpenAI .pt, EDM .pkl, name of an embedded model, or owner/name on the
            Hugging Face hub; in Python also a loaded model or a pipeline; default: mnist, the embedded model of digits.

    Returns:
        The report, which a notebook shows as a table.

    Raises:
        UserError: there is no such model, or it is damaged or of an unknown kind.

    Example:
        >>> import unistep
        >>> report = unistep.inspect()
        >>> report.kind, report.image_shape, report.parameters, report.timesteps
        ('consistency', (1, 28, 28), 2814212, (0, 23))
    """
    from unistep.formats.describe import describe

    return describe(opened(model, "meta"))


@plain_arguments(empty=["path"])
def inspect_dataset(path: str | os.PathLike[str]) -> "DatasetReport":
    """Reads every image of a dataset at its own size and counts images, sizes, modes and classes.

    Unlike `unistep.open_dataset` it takes images of different sizes, and lists files that cannot be read and labels
    that cannot be used instead of stopping.

    Args:
        path: folder, .zip or .npz of images, or mnist, mnist-test or emoji (bundled).

    Returns:
        The report, with mean and standard deviation of each channel.

    Raises:
        UserError: the dataset is not there, is of no known kind, or has no images.
    """
    from unistep.data.inspect import inspect_source

    return inspect_source(os.fspath(path))
