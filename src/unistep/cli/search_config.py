"""What `unistep search` is told, and what of it contradicts itself."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from unistep.cli.arguments import MAX_SEED, check_range
from unistep.cli.measuring import MeasuringConfig
from unistep.cli.output import check_place
from unistep.editing.tasks import MEASUREMENT_TASKS, check_options
from unistep.errors import UserError

_MOST_STEPS = 64
_MOST_SETTLED = 10_000
MEASURED_BY = ("mask", "margin", "factor", "blur", "share")
"""Options of tasks that decide what is measured."""
_EDITED = ("psnr", "lpips", "class")


if TYPE_CHECKING:
    TaskName = str
else:
    TaskName = Literal[MEASUREMENT_TASKS]


@dataclass(frozen=True)
class SearchConfig(MeasuringConfig):
    """What to search for.

    Args:
        task: task of editing whose noise levels are searched.
        images: with --task: whole images, as --reference takes them, brought to the model's size; some, spread over all
            of them, are searched with, and as many others judge.
        mask, margin, factor, blur, share: with --task: as in unistep edit; a mask is one for all images.
        settle: with --task: as in unistep edit: evaluations that come after the --steps; default: the task's own.
        steps: numbers of network evaluations, with --task of noise levels: 2, or 2,4, or 2..8.
        metric: what is made best, on fd (Frechet distance), sfd (its spatial form), kd (kernel distance), is (inception
            score), precision or recall; with --task psnr, lpips or class (results that --features take for the same
            class as the image). Default: fd, with --task psnr.
        num_images: images a candidate; as many fresh ones judge what was found; default: 2000, with --task 200.
        seed: of the images, the same for all candidates.
        batch_size: images at once on an accelerator; a CPU takes few at once whatever is given.
        output: a folder for search.json and curve.png.
        lpips_vgg, lpips_heads: files of LPIPS' weights, where they are not to be downloaded.
        dtype: what the network computes in; auto is what is fastest on the device.
        device: cpu, cuda, cuda:1 or mps; default: cuda where there is one.
    """

    task: TaskName | None = None
    images: str | None = None
    mask: str | None = None
    margin: str | None = None
    factor: str | None = None
    blur: float | None = None
    share: float | None = None
    settle: int | None = None
    steps: str = "2"
    metric: Literal["fd", "sfd", "kd", "is", "precision", "recall", "psnr", "lpips", "class"] | None = None
    num_images: int | None = None
    seed: int = 0
    batch_size: int = 64
    output: str = "search"
    lpips_vgg: str | None = None
    lpips_heads: str | None = None
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = "fp32"
    device: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("--num_images", self.num_images, 20, 1_000_000)
        check_range("--settle", self.settle, 0, _MOST_SETTLED)
        check_range("--batch_size", self.batch_size, 1, 100_000)
        check_range("--seed", self.seed, 0, MAX_SEED)
        path = Path(self.output)
        if not self.output.strip():
            raise UserError("--output is empty; give a folder")
        if path.exists() and not path.is_dir():
            raise UserError(f"--output {self.output} is a file; give a folder")
        check_place(path)
        if self.task is None:
            self._check_sampling()
        else:
            self._check_task()

    def _check_sampling(self) -> None:
        steps_of(self.steps)
        if self.metric in _EDITED:
            raise UserError(f"--metric {self.metric} compares edits with images: give --task and --images")
        for flag in ("images", "settle", *MEASURED_BY):
            if getattr(self, flag) is not None:
                raise UserError(f"--{flag} is for the search for an edit's levels: give --task, or leave it out")
        if self.reference is None and self.metric != "is":
            raise UserError(
                "--reference is missing: give a dataset or statistics to compare with, as --reference mnist"
            )

    def _check_task(self) -> None:
        steps_of(self.steps, least=1)
        if self.metric is not None and self.metric not in _EDITED:
            raise UserError(f"--metric {self.metric} does not tell whose edit it is: give {', '.join(_EDITED)}")
        check_options(self.task or "", [flag for flag in MEASURED_BY if getattr(self, flag) is not None])
        if self.reference is not None:
            raise UserError(
                "--reference is not for --task, whose results are compared with their images: give --images"
            )
        for flag in ("resolution", "channels"):
            if getattr(self, flag) is not None:
                raise UserError(f"--{flag} is not for --task: images are brought to the model's size; leave it out")
        if self.task == "inpaint" and self.mask is None:
            raise UserError("--mask is missing: say what is to be painted, as --mask lower")
        if self.images is None:
            raise UserError("--images is missing: give whole images to edit and compare with, as --images mnist-test")


def steps_of(text: str, least: int = 2) -> list[int]:
    """The numbers that `2..8`, `2,4` or `2` mean, rising and not below `least`.

    Raises:
        UserError: it is none of these, or a number is out of range.
    """
    found: set[int] = set()
    for part in text.strip("[] ").split(","):
        match = re.fullmatch(r"\s*(\d{1,9})(?:\s*\.\.\s*(\d{1,9}))?\s*", part)
        if match is None:
            raise UserError(f"--steps {text or repr('')}: give numbers of steps, as 2 or 2,4 or 2..8")
        first, last = int(match[1]), int(match[2] or match[1])
        for number in (first, last):
            if not least <= number <= _MOST_STEPS:
                reason = "one step begins at sigma_max and has nothing to choose; " if number == 1 else ""
                raise UserError(f"--steps {text}: {reason}numbers of steps lie between {least} and {_MOST_STEPS}")
        if first > last:
            raise UserError(f"--steps {text}: the range {first}..{last} is empty; give {last}..{first}")
        found |= set(range(first, last + 1))
    return sorted(found)
