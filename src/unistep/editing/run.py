"""Making edits: which noise each result has, what is computed together, and which class a model is told.

Every result has its own noise, from its seed, its number among the inputs and its number among the candidates, and is
computed at its own place in a batch of one size (see `unistep.generation.generate`): it is the same alone and in
company.

A model of classes is told the class. Where nobody says it, and there are few, it is guessed from what is known: an edit
of four steps is made with each, and the class whose estimates on the way agree best with what is known is taken (a
diffusion model as a classifier, Li et al. 2023, "Your diffusion model is secretly a zero-shot classifier", with what is
known in place of the image). The worse half of the classes is left out, the others are tried again with other noise,
and so on until one is left (Karnin, Koren and Somekh 2013, "Almost optimal exploration in multi-armed bandits").
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch
from jaxtyping import Float32, Int64, UInt8
from torch import Tensor

from unistep.core.pixels import to_uint8
from unistep.core.random import GUESS, LABELS, ImageRandom, image_seed
from unistep.editing.methods.protocol import Method
from unistep.editing.model import EditModel
from unistep.editing.tiled import Tiled
from unistep.errors import UserError
from unistep.generation.generate import tile_size
from unistep.samplers.noise_source import NoiseSource

Seeds = int | Sequence[int]

MOST_GUESSED = 32
"""Classes above which none is guessed: trying them all would cost more than the edit."""

_GUESS_LEVELS = (8.0, 4.0, 2.0, 1.0)
_MOST_INPUTS, _MOST_CANDIDATES = 1 << 20, 1 << 12
_CANDIDATE_SHIFT = 20


@dataclass(frozen=True)
class EditResult:
    """What an edit gives, on the CPU. N inputs, K candidates each.

    Args:
        images: the best of every input.
        candidates: all of every input, best first.
        disagreement: of the candidates: how badly what the model made fits what is known, lower is better.
        measurement: what is known, as a picture.
        class_labels: of the candidates, given, guessed or drawn; None for a model without classes.
        evaluations: of the network, for all candidates of one input, without `guesses`.
        guesses: evaluations that it took to guess the class of one input; 0 where it was given or drawn.
    """

    images: UInt8[Tensor, "N C H W"]
    candidates: UInt8[Tensor, "N K C H W"]
    disagreement: Float32[Tensor, "N K"]
    measurement: UInt8[Tensor, "N C H W"]
    class_labels: Int64[Tensor, "N K"] | None
    evaluations: int
    guesses: int = 0


def make(
    model: EditModel,
    method: Method,
    *,
    seeds: Seeds = 0,
    class_labels: int | Sequence[int] | None = None,
    candidates: int = 1,
    batch_size: int = 64,
    numbers: Sequence[int] | None = None,
    on_done: Callable[[int], None] | None = None,
) -> EditResult:
    """The results of a method.

    Args:
        model: see `edit_model`.
        method: what is made.
        seeds: one for all, with which input i has noise number i; or one an input, wherever that stands.
        class_labels: one for all inputs, or one an input; default: guessed where there are few, else drawn.
        candidates: results an input.
        batch_size: results at once on an accelerator.
        numbers: of the inputs, where these are a part of a larger run; default: 0, 1, ...
        on_done: told how many results are done.

    Raises:
        UserError: seeds, classes or candidates that do not fit.
    """
    count = len(method)
    if not 1 <= candidates <= _MOST_CANDIDATES:
        raise UserError(f"candidates {candidates} must lie between 1 and {_MOST_CANDIDATES}")
    if count > _MOST_INPUTS:
        raise UserError(f"{count} images are more than the {_MOST_INPUTS} of one call; give fewer")
    numbers = range(count) if numbers is None else numbers
    own = _seeds(seeds, numbers, candidates)
    run = _Run(model, method, batch_size, numbers)
    labels, guesses = run.labels(class_labels, own, candidates)
    images = torch.empty((count, candidates, *method.size), dtype=torch.uint8)
    apart = torch.empty(count, candidates)
    done = 0
    for pack in run.packs([(i, j) for j in range(candidates) for i in range(count)]):
        random = run.random([own[i][j] for i, j in pack.filled])
        chosen = None if labels is None else labels[[i for i, _ in pack.filled], [j for _, j in pack.filled]]
        made = method.run(run.denoiser, [i for i, _ in pack.filled], _to(chosen, model.device), random)
        for place, (i, j) in pack.at_place.items():
            images[i, j] = to_uint8(method.finish(i, made.x[place : place + 1]))[0].cpu()
            apart[i, j] = made.disagreement[place]
        done += len(pack.at_place)
        if on_done:
            on_done(done)
    best = apart.argsort(dim=1, stable=True)
    rows = torch.arange(count)[:, None]
    images = images[rows, best]
    return EditResult(
        images=images[:, 0],
        candidates=images,
        disagreement=apart[rows, best],
        measurement=method.measurement(),
        class_labels=None if labels is None else labels[rows, best],
        evaluations=candidates * method.evaluations,
        guesses=guesses,
    )


def guess_classes(model: EditModel, method: Method, *, seed: int = 0, batch_size: int = 64) -> Int64[Tensor, " N"]:
    """The class of every input, guessed from what is known of it."""
    numbers = range(len(method))
    return _Run(model, method, batch_size, numbers).guess([image_seed(seed, i) for i in numbers])


Item = TypeVar("Item", bound=tuple[int, ...])


class _Pack(NamedTuple):
    """What is computed at once: the items at their places, and those that fill the batch up."""

    at_place: dict[int, Any]
    filled: list[Any]


class _Run:
    """The model as it is used in one call."""

    def __init__(self, model: EditModel, method: Method, batch_size: int, numbers: Sequence[int]) -> None:
        self.model, self.method, self.numbers = model, method, numbers
        self.tile = tile_size(model.shape, batch_size, model.device)
        info = model.info
        self.guess_levels = [s for s in _GUESS_LEVELS if info.sigma_min < s < info.sigma_max] or [info.sigma_max]
        self.denoiser = model.denoiser
        if method.size != model.shape:
            _check_size(method.size, model.shape)
            self.denoiser = Tiled(model.denoiser, model.shape[1], batch=self.tile)
            self.tile = 1

    def packs(self, items: Iterable[Item]) -> list[_Pack]:
        """Items, tuples that begin with the row of the input, in batches; what numbers them gives the place of each."""
        open_, packs = {}, []
        for item in items:
            place, group = sum(item, self.numbers[item[0]] - item[0]) % self.tile, self.method.group(item[0])
            free = next((p for p in open_.setdefault(group, []) if place not in p), None)
            if free is None:
                free = {}
                open_[group].append(free)
                packs.append(free)
            free[place] = item
            if len(free) == self.tile:
                open_[group].remove(free)
        return [_Pack(at, [at.get(place, next(iter(at.values()))) for place in range(self.tile)]) for at in packs]

    def random(self, seeds: Sequence[int]) -> NoiseSource:
        """Draws on the CPU, so that every device makes the same image."""
        own = ImageRandom(seeds)
        return lambda x: own.randn(*x.shape[1:]).to(x)

    def labels(
        self, given: int | Sequence[int] | None, seeds: list[list[int]], candidates: int
    ) -> tuple[Int64[Tensor, "N K"] | None, int]:
        """The class of every candidate, and how many evaluations an input it took to know it."""
        classes, count = self.model.num_classes, len(self.method)
        if not classes:
            if given is not None:
                raise UserError(f"class_labels {given}: this model has no classes; leave it out")
            return None, 0
        if given is None and classes <= MOST_GUESSED:
            guessed = self.guess([of_one[0] for of_one in seeds])
            return guessed[:, None].expand(-1, candidates), sum(_rounds(classes)) * len(self.guess_levels)
        if given is None:
            drawn = [[image_seed(seed, 0, LABELS) % classes for seed in of_one] for of_one in seeds]
            return torch.tensor(drawn, dtype=torch.int64), 0
        listed = [given] * count if isinstance(given, int) else [int(c) for c in given]
        if len(listed) != count:
            raise UserError(f"{len(listed)} class_labels are given for {count} images; give one, or one an image")
        for c in listed:
            if not 0 <= c < classes:
                raise UserError(f"class_labels {c}: this model has the classes 0 to {classes - 1}")
        return torch.tensor(listed, dtype=torch.int64)[:, None].expand(-1, candidates), 0

    def guess(self, seeds: Sequence[int]) -> Int64[Tensor, " N"]:
        """The class of every input, whose seeds are given."""
        count, classes = len(self.method), self.model.num_classes
        total = torch.zeros(count, classes, dtype=torch.float64)
        for number, kept in enumerate(_rounds(classes)):
            left = total.argsort(dim=1, stable=True)[:, :kept]
            dropped = torch.full_like(total, torch.inf).scatter(1, left, 0)
            for pack in self.packs([(i, c, number) for i in range(count) for c in left[i].tolist()]):
                # All classes of an image are judged by the same noise.
                random = self.random([image_seed(seeds[i], number, GUESS) for i, _, _ in pack.filled])
                labels = torch.tensor([c for _, c, _ in pack.filled], device=self.model.device)
                rows = [i for i, _, _ in pack.filled]
                misfits = self.method.misfit(self.denoiser, rows, labels, random, self.guess_levels).double()
                # The logarithm, for high levels have the larger errors.
                judged = misfits.clamp_min(1e-6).log().sum(dim=0).cpu()
                for place, (i, c, _) in pack.at_place.items():
                    total[i, c] += judged[place]
            total = total + dropped
        return total.argmin(dim=1)


def _rounds(classes: int) -> list[int]:
    """How many classes are tried in each round of guessing."""
    rounds = []
    while classes > 1:
        rounds.append(classes)
        classes = (classes + 1) // 2
    return rounds


def _seeds(seeds: Seeds, numbers: Sequence[int], candidates: int) -> list[list[int]]:
    """The generator seed of every candidate of every input; those of other numbers of candidates begin the same."""
    shifts = [j << _CANDIDATE_SHIFT for j in range(candidates)]
    if isinstance(seeds, int):
        return [[image_seed(seeds, number + shift) for shift in shifts] for number in numbers]
    listed = [int(s) for s in seeds]
    if len(listed) != len(numbers):
        raise UserError(f"{len(listed)} seeds are given for {len(numbers)} images; give one, or one an image")
    return [[image_seed(s, shift) for shift in shifts] for s in listed]


def _check_size(size: tuple[int, int, int], shape: tuple[int, int, int]) -> None:
    (channels, height, width), (own, side, _) = size, shape
    if channels != own:
        raise UserError(f"the image has {channels} channels and the model {own}; give it one that has as many")
    if min(height, width) < side:
        raise UserError(f"the image is {width}x{height}, smaller than the model's {side}x{side}; enlarge it")


def _to(labels: Tensor | None, device: torch.device) -> Tensor | None:
    return None if labels is None else labels.to(device)
