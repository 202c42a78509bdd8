"""What can be edited, and the noise levels at which it is done best where nobody says otherwise.

An edit of n steps is made at n levels spaced as on a Karras grid (Karras et al. 2022, eq. 5) from `sigma_first`, where
it begins, to `sigma_last`, after which nothing is left to be changed. A task that begins at the noise of its input has
no `sigma_first` of its own.
"""

from dataclasses import dataclass
from typing import Literal

import torch

from unistep.core.noise import karras_sigmas
from unistep.errors import UserError

Kind = Literal["known", "noised", "made"]


@dataclass(frozen=True)
class Task:
    """One kind of edit.

    Args:
        name: as the command line calls it.
        text: what it does, for people.
        kind: "known": a part of the image is known and kept, by an operator; "noised": noise is added to the image, and
            taken away again; "made": images from noise.
        operator: how the operator's name begins, of the tasks that have one.
        inputs: how many images it needs at least.
        sigma_first, sigma_last: the first and the last noise level.
        steps: levels, where nobody says how many.
        settle: evaluations without noise after these, see `unistep.editing.methods.settle`.
    """

    name: str
    text: str
    kind: Kind
    operator: str = ""
    inputs: int = 1
    sigma_first: float = 80.0
    sigma_last: float = 0.3
    steps: int = 1
    settle: int = 0

    def levels(self, steps: int | None = None, *, first: float | None = None, rho: float = 7.0) -> list[float]:
        """The noise levels of an edit of so many steps, descending.

        Args:
            steps: how many; None takes the task's own number.
            first: where to begin, instead of at the task's own level.
            rho: of the grid.

        Raises:
            UserError: fewer than one.
        """
        steps = self.steps if steps is None else steps
        if steps < 1:
            raise UserError(f"steps {steps} must be at least 1")
        first = self.sigma_first if first is None else first
        last = min(self.sigma_last, first / 2)  # an edit that begins low goes lower
        return karras_sigmas(steps, last, first, rho, dtype=torch.float64).tolist()


_TASKS = (
    Task("inpaint", "paint what a mask marks", "known", "inpainting", 1, 5.0, 0.2, steps=9, settle=3),
    Task("outpaint", "paint around the image", "known", "outpainting", 1, 5.0, 0.2, steps=9, settle=3),
    Task("colorize", "colour a grey image", "known", "colorization", 1, 20.0, 0.2, steps=9, settle=3),
    Task("upscale", "more pixels", "known", "super-resolution", 1, 2.0, 0.2, steps=9, settle=3),
    Task("deblur", "undo a Gaussian blur", "known", "deblurring", 1, 2.0, 0.05, steps=2, settle=4),
    Task("sense", "from few random numbers", "known", "compressed sensing", 1, 2.0, 0.05, steps=12, settle=12),
    Task("denoise", "take away Gaussian noise", "noised", steps=1),
    Task("jpeg", "take away the artefacts of JPEG", "noised", sigma_first=0.3, sigma_last=0.1, steps=1),
    Task("strokes", "a picture from coarse strokes", "noised", sigma_first=1.5, steps=3),
    Task("vary", "variations of an image", "noised", sigma_first=5.0, steps=2),
    Task("interpolate", "from one image or seed to another", "made", inputs=0, steps=1),
    Task("walk", "from seed to seed", "made", inputs=0, steps=1),
)

TASKS: dict[str, Task] = {task.name: task for task in _TASKS}


def task_of(operator: str) -> Task:
    """The task of an operator, by its name; one that belongs to none is treated as inpainting is."""
    known = [task for task in _TASKS if task.operator and operator.startswith(task.operator)]
    return known[0] if known else TASKS["inpaint"]
