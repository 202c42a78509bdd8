"""Running of methods: the noise of each result, the batches, and the class that a model is given.

Every result has its own noise, from its seed, its number among the inputs and its number among the candidates, and is
computed at its own place in a batch of one size (see `unistep.generation.generate`), so that it is the same alone and
in company.

A model of classes needs a class. Where none is given, and there are few, it is guessed: an edit of four steps is made
with each class, and the class whose estimates agree best with the input is taken (a diffusion model as a classifier, Li
et al. 2023, "Your diffusion model is secretly a zero-shot classifier", with the measurement in place of the image). The
worse half of the classes is left out, the others are tried again with other noise, and so on until one is left (Karnin,
Koren and Somekh 2013, "Almost optimal exploration in multi-armed bandits").
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch
from jaxtyping import Float32, Int64, UInt8
from torch import Tensor

from unistep.checks import check_range
from unistep.core.denoiser import Denoiser
from unistep.core.finite import Watched
from unistep.core.pixels import to_uint8
from unistep.core.random import GUESS, LABELS, ImageRandom, image_seed
from unistep.editing.methods.protocol import Method
from unistep.editing.model import EditModel
from unistep.editing.tiled import Tiled
from unistep.errors import UserError
from unistep.generation.generate import tile_size
from unistep.generation.labels import check_labels
from unistep.samplers.noise_source import NoiseSource

Seeds = int | Sequence[int]

MOST_GUESSED = 32
"""Number of classes above which none is guessed: trying them all would cost more than the edit."""

MOST_CANDIDATES = 1 << 12

_GUESS_LEVELS = (8.0, 4.0, 2.0, 1.0)
_MOST_INPUTS = 1 << 20
_CANDIDATE_SHIFT = 20


@dataclass(frozen=True)
class Candidates:
    """Results of a method for N inputs, K each, best first, on the CPU.

    Args:
        images: results.
        residual: distance between the model's estimate and the input, lower is better.
        measurement: measurement of each input as a picture.
        class_labels: classes, given, guessed or drawn; None for a model without classes.
        evaluations: network evaluations for all candidates of one input, without `guesses`.
        guesses: network evaluations that guessed the class of one input; 0 where it was given or drawn.
    """

    images: UInt8[Tensor, "N K C H W"]
    residual: Float32[Tensor, "N K"]
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
) -> Candidates:
    """Makes the results of a method, and ranks them.

    Args:
        model: consistency model.
        method: method, with its inputs.
        seeds: one seed for all, with which input i has noise number i; or one an input, wherever that stands.
        class_labels: one class for all inputs, or one an input; None guesses where there are few, and draws otherwise.
        candidates: results an input.
        batch_size: results at once on an accelerator.
        numbers: numbers of the inputs, where these are a part of a larger run; default: 0, 1, ...
        on_done: called with the number of results that are done.

    Raises:
        UserError: seeds, classes or candidates that do not fit.
        NotFiniteError: an output of the network is not finite.
    """
    count = len(method)
    check_range("candidates", candidates, 1, MOST_CANDIDATES)
    if count > _MOST_INPUTS:
        raise UserError(f"{count} images are more than the {_MOST_INPUTS} of one call", "give fewer")
    numbers = range(count) if numbers is None else numbers
    own = _seeds(seeds, numbers, candidates)
    run = _Run(model, method, batch_size, numbers)
    labels, guesses = run.labels(class_labels, own, candidates)
    images = torch.empty((count, candidates, *method.size), dtype=torch.uint8)
    residual = torch.empty(count, candidates)
    done = 0
    for pack in run.packs([(i, j) for j in range(candidates) for i in range(count)]):
        random = run.random([own[i][j] for i, j in pack.filled])
        chosen = None if labels is None else labels[[i for i, _ in pack.filled], [j for _, j in pack.filled]]
        made = method.run(run.denoiser, [i for i, _ in pack.filled], _to(chosen, model.device), random)
        run.watched.check()
        for place, (i, j) in pack.at_place.items():
            images[i, j] = to_uint8(method.finish(i, made.x[place : place + 1]))[0].cpu()
            residual[i, j] = made.residual[place]
        done += len(pack.at_place)
        if on_done:
            on_done(done)
    best = residual.argsort(dim=1, stable=True)
    rows = torch.arange(count)[:, None]
    return Candidates(
        images=images[rows, best],
        residual=residual[rows, best],
        measurement=method.measurement(),
        class_labels=None if labels is None else labels[rows, best],
        evaluations=candidates * method.evaluations,
        guesses=guesses,
    )


def guess_classes(model: EditModel, method: Method, *, seed: int = 0, batch_size: int = 64) -> Int64[Tensor, " N"]:
    """Returns the class of every input, guessed from its measurement."""
    numbers = range(len(method))
    return _Run(model, method, batch_size, numbers).guess([image_seed(seed, i) for i in numbers])


def check_classes(class_labels: int | Sequence[int], num_classes: int, count: int) -> list[int]:
    """Returns the class of every image from those that were given.

    Args:
        class_labels: one class for all images, or one an image.
        num_classes: classes of the model; 0 for an unconditional one.
        count: number of images.

    Raises:
        UserError: the model has no classes, or not these; or their number is not that of the images.
    """
    listed = check_labels(class_labels, num_classes)
    if len(listed) not in (1, count):
        given = ",".join(map(str, listed))
        raise UserError(f"{given}: {len(listed)} for {count} images", "give one, or one an image", field="class_labels")
    return listed * count if len(listed) == 1 else listed


Item = TypeVar("Item", bound=tuple[int, ...])


class _Pack(NamedTuple):
    """One batch: the items at their places, and those that fill it up."""

    at_place: dict[int, Any]
    filled: list[Any]


class _Run:
    """A model and a method in one call of `make`."""

    def __init__(self, model: EditModel, method: Method, batch_size: int, numbers: Sequence[int]) -> None:
        self.model, self.method, self.numbers = model, method, numbers
        self.tile = tile_size(model.shape, batch_size, model.device)
        info = model.info
        self.guess_levels = [s for s in _GUESS_LEVELS if info.sigma_min < s < info.sigma_max] or [info.sigma_max]
        self.watched = Watched(model.denoiser)
        self.denoiser: Denoiser = self.watched
        if method.size != model.shape:
            _check_size(method.size, model.shape)
            self.denoiser = Tiled(self.watched, model.shape[1], batch=self.tile)
            self.tile = 1

    def packs(self, items: Iterable[Item]) -> list[_Pack]:
        """Returns items, tuples that begin with the row of the input, in batches; their numbers give their places."""
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
        """Returns the source of the fresh noise of images with these seeds."""
        return ImageRandom(seeds, self.model.device)

    def labels(
        self, given: int | Sequence[int] | None, seeds: list[list[int]], candidates: int
    ) -> tuple[Int64[Tensor, "N K"] | None, int]:
        """Returns the classes: those that are given, else guessed if there are few, else drawn.

        Args:
            given: class of all inputs, or one an input; None if they are not given.
            seeds: seeds of the candidates of each input.
            candidates: number of candidates of an input.

        Returns:
            The class of every candidate, None for an unconditional model; and the number of network evaluations an
            input that the guess took.
        """
        classes, count = self.model.num_classes, len(self.method)
        if given is not None:
            listed = check_classes(given, classes, count)
            return torch.tensor(listed, dtype=torch.int64)[:, None].expand(-1, candidates), 0
        if not classes:
            return None, 0
        if classes <= MOST_GUESSED:
            guessed = self.guess([of_one[0] for of_one in seeds])
            return guessed[:, None].expand(-1, candidates), sum(_rounds(classes)) * len(self.guess_levels)
        drawn = [[image_seed(seed, 0, LABELS) % classes for seed in of_one] for of_one in seeds]
        return torch.tensor(drawn, dtype=torch.int64), 0

    def guess(self, seeds: Sequence[int]) -> Int64[Tensor, " N"]:
        """Returns the class of every input, whose seeds are given."""
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
                residuals = self.method.class_residuals(self.denoiser, rows, labels, random, self.guess_levels).double()
                self.watched.check()
                # The logarithm, for high levels have the larger errors.
                judged = residuals.clamp_min(1e-6).log().sum(dim=0).cpu()
                for place, (i, c, _) in pack.at_place.items():
                    total[i, c] += judged[place]
            total = total + dropped
        return total.argmin(dim=1)


def _rounds(classes: int) -> list[int]:
    """Returns the numbers of classes that are tried in the rounds of guessing."""
    rounds = []
    while classes > 1:
        rounds.append(classes)
        classes = (classes + 1) // 2
    return rounds


def _seeds(seeds: Seeds, numbers: Sequence[int], candidates: int) -> list[list[int]]:
    """Returns the generator seed of every candidate of every input; more candidates begin with the same."""
    shifts = [j << _CANDIDATE_SHIFT for j in range(candidates)]
    if isinstance(seeds, int):
        return [[image_seed(seeds, number + shift) for shift in shifts] for number in numbers]
    listed = [int(s) for s in seeds]
    if len(listed) != len(numbers):
        raise UserError(f"{len(listed)} `seeds` are given for {len(numbers)} images", "give one an image")
    return [[image_seed(s, shift) for shift in shifts] for s in listed]


def _check_size(size: tuple[int, int, int], shape: tuple[int, int, int]) -> None:
    (channels, height, width), (own, side, _) = size, shape
    if channels != own:
        raise UserError(f"the image has {channels} channels and the model {own}; give it one that has as many")
    if min(height, width) < side:
        raise UserError(f"the image is {width}x{height}, smaller than the model's {side}x{side}; enlarge it")


def _to(labels: Tensor | None, device: torch.device) -> Tensor | None:
    return None if labels is None else labels.to(device)
