"""Inputs and outcome of a metric's computation."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from unistep.errors import UserError
from unistep.metrics.estimate import Estimate
from unistep.metrics.features.store import StoredFeatures
from unistep.metrics.moments import GroupedMoments, Moments, StreamingMoments
from unistep.metrics.sources import ImageSource

T = TypeVar("T")


@runtime_checkable
class Draw(Protocol):
    """Writes a picture as PNG to a path, given the samples and the reference's images."""

    def __call__(self, path: Path, samples: ImageSource, images: ImageSource) -> object: ...


class Features:
    """Features of one kind of a set of images: vectors, moments, or both.

    Args:
        vectors: features [N, D], in memory or on the disk; None where only moments are there.
        moments: their moments, where they are computed already.
        grouped: their moments in groups, where they are computed already.
    """

    def __init__(
        self,
        vectors: Float[Tensor, "N D"] | StoredFeatures | None = None,
        *,
        moments: Moments | None = None,
        grouped: GroupedMoments | None = None,
    ) -> None:
        self._vectors, self._moments, self._grouped = vectors, moments, grouped

    def __len__(self) -> int:
        """Number of images; 0 where statistics do not hold it."""
        if self._vectors is not None:
            return self._vectors.count if isinstance(self._vectors, StoredFeatures) else len(self._vectors)
        return 0 if self._moments is None else self._moments.count

    def blocks(self) -> Iterator[Float[Tensor, "B D"]]:
        """Returns the vectors in order, some at a time.

        Raises:
            UserError: there are moments alone.
        """
        if self._vectors is None:
            raise UserError("the reference holds statistics alone; give its images")
        return self._vectors.blocks() if isinstance(self._vectors, StoredFeatures) else iter((self._vectors,))

    def all(self) -> Float[Tensor, "N D"]:
        """Returns all vectors in memory.

        Raises:
            UserError: there are moments alone.
        """
        return self._vectors if isinstance(self._vectors, Tensor) else torch.cat(list(self.blocks()))

    def moments(self) -> Moments:
        """Returns mean and covariance.

        Raises:
            UserError: there are fewer than two vectors.
        """
        if self._moments is None:
            stream: StreamingMoments | None = None
            for block in self.blocks():
                stream = stream or StreamingMoments(block.shape[1])
                stream.update(block)
            if stream is None:
                raise UserError("moments need at least 2 feature vectors, got 0; give more images")
            self._moments = stream.result()
        return self._moments

    def grouped(self) -> GroupedMoments:
        """Returns the moments in groups of images.

        Raises:
            UserError: there are moments alone.
        """
        if self._grouped is None:
            start = 0
            for block in self.blocks():
                self._grouped = self._grouped or GroupedMoments(block.shape[1])
                self._grouped.update(block, start)
                start += len(block)
            if self._grouped is None:
                raise UserError("moments need at least 2 feature vectors, got 0; give more images")
        return self._grouped


def spread(count: int, most: int) -> Int64[Tensor, "_"]:
    """Returns at most `most` of the indices 0 to `count` - 1, evenly spread."""
    return torch.arange(min(count, most)) * count // min(count, most)


def _silent(what: str, done: int, total: int) -> None:
    return None


@dataclass(frozen=True)
class Inputs:
    """Everything that a metric is computed from.

    Args:
        title: title of the number, for warnings.
        samples: features of the images to evaluate.
        reference: features of the reference; empty where the metric needs none.
        names: names of all metrics of the evaluation, for those that are computed together.
        progress: called with a description, the work done and the whole.
        cache: results of `once`, shared by the metrics that take the same features.
        labels: class of each sample; None where there are none.
    """

    title: str
    samples: Features
    reference: Features = field(default_factory=Features)
    names: Sequence[str] = ()
    progress: Callable[[str, int, int], None] = _silent
    cache: dict[Any, Any] = field(default_factory=dict)
    labels: Int64[Tensor, " N"] | None = None

    def once(self, compute: "Callable[[Inputs], T]") -> T:
        """Returns `compute(self)`, computed once for all metrics of the evaluation that ask for it."""
        if compute not in self.cache:
            self.cache[compute] = compute(self)
        return self.cache[compute]


@dataclass(frozen=True)
class More:
    """A further number that comes with a metric.

    Args:
        suffix: ending of its key in reports, as in fd_extrapolated.
        title: its title in tables.
        estimate: number with its error.
    """

    suffix: str
    title: str
    estimate: Estimate


@dataclass(frozen=True)
class Measurement:
    """Outcome of a metric.

    Args:
        estimate: number with its error.
        notes: values for the report that belong to the number, by name; JSON.
        more: further numbers with the same direction of improvement.
        warnings: lines on what limits the number.
        pictures: functions that draw what belongs to it, by the ending of the file's name.
    """

    estimate: Estimate
    notes: Mapping[str, Any] = field(default_factory=dict)
    more: Sequence[More] = ()
    warnings: Sequence[str] = ()
    pictures: Mapping[str, Draw] = field(default_factory=dict)
