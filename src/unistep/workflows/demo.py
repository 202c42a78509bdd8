"""The embedded models in one picture: what a network evaluation is worth."""

import os
from dataclasses import dataclass
from pathlib import Path

from unistep.arguments import plain_arguments
from unistep.checks import MAX_SEED, check_file, check_range, user_path

COLUMNS = 10


@dataclass(frozen=True)
class DemoRow:
    """One model and number of evaluations.

    Args:
        images: kind of images, as MNIST digits.
        model: name of the model for people.
        evaluations: network evaluations an image.
        seconds: seconds an image.
    """

    images: str
    model: str
    evaluations: int
    seconds: float


@dataclass(frozen=True)
class Demo:
    """The picture, and what its panels cost.

    Args:
        path: the picture.
        rows: one row a panel, from top to bottom.
    """

    path: Path
    rows: tuple[DemoRow, ...]


@plain_arguments(empty=["output"])
def demo(*, output: str | os.PathLike[str] = "unistep-demo.png", rows: int = 5, seed: int = 0) -> Demo:
    """Makes images of the classes in one and in two network evaluations, and by the teacher's 35.

    All are made by the embedded models, each pair from the same noise, and timed; they are written as one picture.

    Args:
        output: picture to be written, a .png.
        rows: number of rows of ten images, each of the next class.
        seed: seed of the run; image i uses the random stream (seed, i).

    Returns:
        The path of the picture, and the seconds of every panel.

    Raises:
        UserError: the picture cannot be written.
    """
    check_range("rows", rows, 1, 100)
    check_range("seed", seed, 0, MAX_SEED)
    check_file("output", output, (".png",))
    from unistep.formats.embedded import EMBEDDED_MODELS
    from unistep.images.sheet import Panel, save_sheet
    from unistep.workflows.models import load
    from unistep.workflows.sample import sample

    panels, timed = [], []
    for row in EMBEDDED_MODELS.values():
        if not row.teacher:
            continue
        student, teacher = load(row.folder), load(EMBEDDED_MODELS[row.teacher].folder)
        classes = list(range(student.num_classes))
        columns = min(len(classes), COLUMNS)
        for name, model, steps in (
            ("consistency model", student, 1),
            ("consistency model", student, 2),
            ("its teacher", teacher, 18),
        ):
            sample(model, num_images=1, steps=steps, progress=False)  # the first call prepares buffers
            count = rows * columns
            images = sample(model, num_images=count, steps=steps, class_labels=classes, seed=seed, progress=False)
            seconds = images.seconds or 0.0
            evaluations = f"{images.evaluations} evaluation{'s' * (images.evaluations > 1)}"
            title = f"{name}, {evaluations}: {seconds * 1000:.1f} ms an image"
            panels.append(Panel(title, images.pixels, columns))
            timed.append(DemoRow(row.title, name, images.evaluations, seconds))
    return Demo(save_sheet(panels, user_path(output)), tuple(timed))
