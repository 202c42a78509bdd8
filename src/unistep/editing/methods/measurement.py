"""Edits with any consistency model, in one call:

    edit(pipe, "digit.png", Inpainting(lower((28, 28))), candidates=4).images

A part of the image is known, which an operator says; the rest is made.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from jaxtyping import Float, Shaped, UInt8
from torch import Tensor

from unistep.core.denoiser import Denoiser
from unistep.core.noise import karras_sigma
from unistep.core.pixels import to_float, to_uint8
from unistep.editing.methods.protocol import Made
from unistep.editing.methods.settle import settle, settle_levels
from unistep.editing.methods.zero_shot import Edited, start, zero_shot
from unistep.editing.model import EditModel, edit_model
from unistep.editing.operators.operator import EXACT, ROUNDED, Operator, agree_in_range
from unistep.editing.run import EditResult, Seeds, make
from unistep.editing.tasks import task_of
from unistep.errors import UserError
from unistep.formats.model import LoadedModel, ModelInfo
from unistep.images.read import Fit, Source, read_picture
from unistep.pipelines.consistency_model import ConsistencyModelPipeline
from unistep.samplers.noise_source import NoiseSource, draw

Images = Shaped[Tensor, "..."] | Source | Sequence[Source]


def edit(
    pipe: ConsistencyModelPipeline | LoadedModel,
    image: Images | None,
    operator: Operator | Sequence[Operator],
    *,
    timesteps: Sequence[int] | None = None,
    sigmas: Sequence[float] | None = None,
    steps: int | None = None,
    settle: int | None = None,
    seeds: Seeds = 0,
    class_labels: int | Sequence[int] | None = None,
    candidates: int = 1,
    measurement: Shaped[Tensor, "N *M"] | None = None,
    fit: Fit = "crop",
    batch_size: int = 64,
    on_done: Callable[[int], None] | None = None,
) -> EditResult:
    """Keeps what an operator measures of images, and makes the rest: algorithm 4 of Song et al. 2023, generalised.

    Args:
        pipe: a consistency model.
        image: what is measured: uint8 [C, H, W] or [N, C, H, W], or a file or a Pillow image, or several. Those larger
            than the model's images are worked on in tiles.
        operator: what is known; one for all images, or one an image.
        timesteps: indices of the model's noise grid, rising; the first need not be 0.
        sigmas: noise levels, descending, instead of `timesteps`.
        steps: how many levels, instead of either; default: the task's own, see `unistep.editing.tasks`.
        settle: evaluations without noise after the levels, see `unistep.editing.methods.settle`; default: the task's
            own, and none after `timesteps` and `sigmas`.
        seeds: one for all, with which image i has noise number i; or one an image, wherever that stands.
        class_labels: one for all images, or one an image; default: guessed where there are few, else drawn.
        candidates: results an image, ranked by how well they fit what is known.
        measurement: what was measured of images that nobody has, instead of `image`: values in [-1, 1], or uint8,
            which is met as well as a rounded one can be.
        fit: how files and Pillow images are brought to the model's size, see `unistep.images.read`.
        batch_size: results at once on an accelerator.
        on_done: told how many results are done.

    Raises:
        UserError: arguments that contradict each other or the model; an image that cannot be read.
    """
    model = edit_model(pipe)
    given = edit_levels(model.info, timesteps, sigmas, steps)
    with torch.no_grad():
        operators, y = _measured(model, image, operator, measurement, fit)
        close = ROUNDED if measurement is not None and measurement.dtype == torch.uint8 else EXACT
        task = task_of(operators[0].name)
        levels = given or task.levels(steps, rho=model.info.rho)
        quiet = given_settle(settle, 0 if given else task.settle, model.info)
        return make(
            model,
            Known(operators, y, levels, model.info.sigma_min, close, quiet),
            seeds=seeds,
            class_labels=class_labels,
            candidates=candidates,
            batch_size=batch_size,
            on_done=on_done,
        )


def edit_levels(
    info: ModelInfo,
    timesteps: Sequence[int] | None = None,
    sigmas: Sequence[float] | None = None,
    steps: int | None = None,
) -> list[float] | None:
    """The noise levels that are given one way or another; None where they are left to the task.

    Raises:
        UserError: they are given twice, or are no levels.
    """
    if sum(given is not None for given in (timesteps, sigmas, steps)) > 1:
        raise UserError("timesteps, sigmas and steps exclude each other; give one")
    if timesteps is not None:
        count, listed = info.num_train_timesteps, ", ".join(map(str, timesteps))
        if not timesteps or any(a >= b for a, b in pairwise(timesteps)):
            raise UserError(f"timesteps [{listed}] must rise: they count from sigma_max down to sigma_min")
        if timesteps[0] < 0 or timesteps[-1] > count - 2:
            raise UserError(f"timesteps [{listed}] must lie between 0 and {count - 2}, the levels above sigma_min")
        indices = torch.tensor(list(timesteps), dtype=torch.float64)
        return karras_sigma(indices, count, info.sigma_min, info.sigma_max, info.rho).tolist()
    if sigmas is not None:
        listed = ", ".join(f"{s:g}" for s in sigmas)
        if not sigmas or any(not a > b for a, b in pairwise(sigmas)):
            raise UserError(f"noise levels [{listed}] must descend strictly, and there must be one")
        if not (sigmas[-1] > info.sigma_min and sigmas[0] <= info.sigma_max * (1 + 1e-4)):
            raise UserError(f"noise levels [{listed}] must lie above {info.sigma_min:g} and up to {info.sigma_max:g}")
        return [float(s) for s in sigmas]
    return None


def given_settle(count: int | None, usual: int, info: ModelInfo) -> list[float]:
    """The noise levels at which an edit settles.

    Args:
        count: how many; None is as many as usual.
        usual: how many these are.
        info: the model's noise range and grid.

    Raises:
        UserError: a negative number.
    """
    return settle_levels(usual if count is None else count, most=info.sigma_max, rho=info.rho)


def as_pixels(image: Images, shape: tuple[int, int, int], fit: Fit) -> UInt8[Tensor, "N C H W"]:
    """Images however they are given, for a model of images of `shape`.

    Raises:
        UserError: they cannot be read, are of several sizes, or not of uint8.
    """
    if isinstance(image, Tensor):
        if image.dtype != torch.uint8 or image.ndim not in (3, 4):
            raise UserError(f"the image is {image.dtype} {list(image.shape)}; give uint8 [C, H, W] or [N, C, H, W]")
        return image if image.ndim == 4 else image[None]
    listed = list(image) if isinstance(image, Sequence) and not isinstance(image, str) else [image]
    read = [read_picture(one, shape, fit).pixels for one in listed]
    if len({p.shape for p in read}) > 1:
        raise UserError("the images are of several sizes; edit each alone, or give fit='crop'")
    return torch.stack(read) if read else torch.empty((0, *shape), dtype=torch.uint8)


def _measured(
    model: EditModel,
    image: Images | None,
    operator: Operator | Sequence[Operator],
    measurement: Tensor | None,
    fit: Fit,
) -> tuple[list[Operator], list[Tensor]]:
    """The operator and the measurement [1, ...] of every image."""
    if (image is None) == (measurement is None):
        raise UserError("give an image to measure, or a measurement: one of them")
    given = measurement if image is None else as_pixels(image, model.shape, fit)
    assert given is not None
    if not len(given):
        raise UserError("there is no image to edit; give one")
    operators = [operator] * len(given) if isinstance(operator, Operator) else list(operator)
    if len(operators) != len(given):
        raise UserError(f"{len(operators)} operators are given for {len(given)} images; give one, or one an image")
    values = (to_float(given) if given.dtype == torch.uint8 else given).to(model.device, torch.float32)
    parts = zip(operators, values.split(1), strict=True)
    if image is not None:
        return operators, [op.A(part) for op, part in parts]
    # Of what no image measures as, the nearest that one does.
    return operators, [op.A(op.A_pinv(part)) for op, part in parts]


class Known:
    """Images of which an operator keeps a part: a `Method`.

    Args:
        operators: of every image; those with the same object are worked on together.
        y: the measurement [1, ...] of every image.
        levels: noise levels, descending.
        sigma_min: where the model's trajectories end.
        close: how far an image may be from a measurement, see `agree_in_range`.
        quiet: noise levels at which it settles, descending, see `unistep.editing.methods.settle`.
    """

    def __init__(
        self,
        operators: Sequence[Operator],
        y: Sequence[Tensor],
        levels: Sequence[float],
        sigma_min: float,
        close: float = EXACT,
        quiet: Sequence[float] = (),
    ) -> None:
        self.operators, self.y, self.levels, self.sigma_min = operators, y, levels, sigma_min
        self.close, self.quiet = close, quiet
        self.known = [op.A_pinv(one) for op, one in zip(operators, y, strict=True)]
        channels, height, width = self.known[0].shape[1:]
        self.size = (channels, height, width)
        self.evaluations = len(levels) + len(quiet)

    def __len__(self) -> int:
        return len(self.y)

    def group(self, index: int) -> int:
        return id(self.operators[index])

    def run(self, denoiser: Denoiser, rows: Sequence[int], labels: Tensor | None, random: NoiseSource) -> Made:
        edited = self._edited(denoiser, rows, labels, random, self.levels)
        if not self.quiet:
            return Made(edited.x, edited.disagreement)
        operator, y = self._what(rows)
        x = settle(denoiser, operator, y, edited.x, self.quiet, labels, close=self.close)
        return Made(x, edited.disagreement)

    def finish(self, row: int, x: Float[Tensor, "1 C H W"]) -> Float[Tensor, "1 C H W"]:
        return agree_in_range(self.operators[row], x, self.y[row], self.close)

    def misfit(
        self, denoiser: Denoiser, rows: Sequence[int], labels: Tensor, random: NoiseSource, sigmas: Sequence[float]
    ) -> Float[Tensor, "L B"]:
        # An edit, for one that ends in what fits badly was told the wrong class.
        return self._edited(denoiser, rows, labels, random, sigmas).disagreements

    def _edited(
        self,
        denoiser: Denoiser,
        rows: Sequence[int],
        labels: Tensor | None,
        random: NoiseSource,
        sigmas: Sequence[float],
    ) -> Edited:
        operator, y = self._what(rows)
        x_T = start(operator, y, draw(random, torch.cat([self.known[i] for i in rows])), sigmas[0])
        return zero_shot(denoiser, operator, y, x_T, sigmas, labels, random=random, sigma_min=self.sigma_min)

    def _what(self, rows: Sequence[int]) -> tuple[Operator, Tensor]:
        """What is measured of a group, and what the measurements are."""
        return self.operators[rows[0]], torch.cat([self.y[i] for i in rows])

    def measurement(self) -> UInt8[Tensor, "N C H W"]:
        return to_uint8(torch.cat(self.known)).cpu()
