"""Mean and covariance of features that arrive in batches, in one pass and in memory independent of their number.

Parts are merged in the way of Chan, Golub and LeVeque (1979), eqs. 2.1a-b, in float64: the centred sums of squares of
two parts A and B combine as

    M = M_A + M_B + delta delta^T n_A n_B / (n_A + n_B),    delta = mean_B - mean_A,

which never subtracts two large numbers, as E[x^2] - E[x]^2 does.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from unistep.core.random import image_seed
from unistep.errors import UserError

_GROUPS = 10
_STRIP = 512  # rows of the scatter held in one tensor, up to the diagonal: a symmetric matrix costs little over a half
_PENDING = 512  # vectors gathered before they are multiplied: fewer would pass over the whole scatter too often


@dataclass(frozen=True)
class Moments:
    """Mean and covariance of feature vectors.

    Args:
        mean: mean.
        covariance: unbiased covariance, with count - 1 as divisor.
        count: number of vectors; 0 where it is unknown.
    """

    mean: Float64[Tensor, "D"]
    covariance: Float64[Tensor, "D D"]
    count: int


def _checked(features: Float[Tensor, "N D"], dim: int) -> Float[Tensor, "N D"]:
    if features.shape[1] != dim:
        raise UserError(f"the feature vectors have {features.shape[1]} numbers, not {dim}; take one feature network")
    finite = features.isfinite()
    if not finite.all():
        bad = int((~finite.all(dim=1)).sum())
        raise UserError(
            f"{bad} of {len(features)} feature vectors hold NaN or infinite values; "
            "check the images and the feature network"
        )
    return features


class StreamingMoments:
    """Collects mean and covariance of features that arrive in batches; the order and the batch size do not matter.

    Parts gathered apart, as in other processes, join through `merge`. The memory is that of D^2 / 2 numbers and
    somewhat more.

    Args:
        dim: number of features D.
    """

    def __init__(self, dim: int) -> None:
        self.dim = dim
        self._count = 0
        self._mean = torch.zeros(dim, dtype=torch.float64)
        # The centred sum of squares, M above: rows a to b of its lower triangle, each up to column b.
        self._scatter = [torch.zeros(b - a, b, dtype=torch.float64) for a, b in self._strips()]
        self._rows: Float64[Tensor, "R D"] | None = None  # the first `_pending` of them are not yet in the above
        self._pending = 0

    @property
    def count(self) -> int:
        """Number of vectors that were added."""
        return self._count + self._pending

    def update(self, features: Float[Tensor, "N D"]) -> None:
        """Adds a batch of features, of any float type and on any device.

        Raises:
            UserError: they hold NaN or infinite values, or are of another dimension.
        """
        self._add(_checked(features, self.dim))

    def merge(self, other: "StreamingMoments") -> None:
        """Adds everything that `other` holds."""
        other._flush()
        self._flush()
        if other._count:
            delta, weight = self._shift(other._count, other._mean)
            for (a, b), mine, theirs in zip(self._strips(), self._scatter, other._scatter, strict=True):
                mine.add_(theirs).addr_(delta[a:b], delta[:b], alpha=weight)

    def result(self) -> Moments:
        """Returns the moments so far.

        Raises:
            UserError: there are fewer than two vectors, which have no covariance.
        """
        if self.count < 2:
            raise UserError(f"moments need at least 2 feature vectors, got {self.count}; give more images")
        covariance = self._full().div_(self.count - 1)
        return Moments(self._mean.clone(), covariance, self.count)

    def _strips(self) -> Iterator[tuple[int, int]]:
        for a in range(0, self.dim, _STRIP):
            yield a, min(a + _STRIP, self.dim)

    def _add(self, features: Float[Tensor, "N D"]) -> None:
        start = 0
        while start < len(features):
            if self._rows is None:
                self._rows = torch.empty(_PENDING + 1, self.dim, dtype=torch.float64)
            part = features[start : start + _PENDING - self._pending]
            self._rows[self._pending : self._pending + len(part)] = part
            self._pending += len(part)
            start += len(part)
            if self._pending == _PENDING:
                self._take_in(self._rows)

    def _take_in(self, rows: Float64[Tensor, "R D"]) -> None:
        n, self._pending = self._pending, 0
        mean = rows[:n].mean(dim=0)
        rows[:n] -= mean
        delta, weight = self._shift(n, mean)
        # The shift between the means is one more row of the product.
        rows[n] = delta * weight**0.5
        used = rows[: n + 1]
        for (a, b), strip in zip(self._strips(), self._scatter, strict=True):
            strip.addmm_(used[:, a:b].T, used[:, :b])

    def _shift(self, count: int, mean: Float64[Tensor, "D"]) -> tuple[Float64[Tensor, "D"], float]:
        """Takes count and mean in; returns delta and its factor in the scatter."""
        total = self._count + count
        delta = mean - self._mean
        weight = self._count * count / total
        self._mean = self._mean + delta * (count / total)
        self._count = total
        return delta, weight

    def _flush(self) -> None:
        if self._rows is not None and self._pending:
            self._take_in(self._rows)
        self._rows = None

    def _full(self) -> Float64[Tensor, "D D"]:
        self._flush()
        full = torch.empty(self.dim, self.dim, dtype=torch.float64)
        for (a, b), strip in zip(self._strips(), self._scatter, strict=True):
            beside, square = strip[:, :a], strip[:, a:]
            full[a:b, :a] = beside
            full[:a, a:b] = beside.T
            full[a:b, a:b] = square.tril() + square.tril(-1).T
        return full


class GroupedMoments:
    """Moments in 10 groups of images, from whose differences the error of a number of all images is estimated.

    The group of an image follows from its index alone, whatever the batches and processes. Of every ten images that
    follow each other one goes to each group, in turn from a place that is drawn for each ten: were it always the same
    place, a group would be one class where classes alternate.

    Args:
        dim: number of features.
    """

    def __init__(self, dim: int) -> None:
        self.dim = dim
        self._groups = [StreamingMoments(dim) for _ in range(_GROUPS)]

    @property
    def count(self) -> int:
        """Number of vectors that were added."""
        return sum(group.count for group in self._groups)

    def update(self, features: Float[Tensor, "N D"], start: int) -> None:
        """Adds features; each image once, in any order.

        Args:
            features: features of the images start, start + 1, ...
            start: number of the first image.

        Raises:
            UserError: they hold NaN or infinite values, or are of another dimension.
        """
        features = _checked(features.to("cpu"), self.dim)
        tens = range(start // _GROUPS, (start + len(features)) // _GROUPS + 1)
        turns = torch.tensor([image_seed(0, ten) % _GROUPS for ten in tens])
        index = torch.arange(start, start + len(features))
        place = (index + turns[index // _GROUPS - tens.start]) % _GROUPS
        for number, group in enumerate(self._groups):
            group._add(features[place == number])

    def merge(self, other: "GroupedMoments") -> None:
        """Adds everything that `other` holds, of other images."""
        for mine, theirs in zip(self._groups, other._groups, strict=True):
            mine.merge(theirs)

    def total(self) -> Moments:
        """Returns the moments of all images.

        Raises:
            UserError: there are fewer than two.
        """
        return self._joined(self._groups).result()

    def halves(self) -> tuple[Moments, Moments]:
        """Returns the moments of two halves of the images.

        Raises:
            UserError: there are fewer than two in a half.
        """
        first, second = (self._joined(self._groups[parity::2]) for parity in (0, 1))
        return first.result(), second.result()

    def state(self) -> dict[str, Tensor]:
        """Returns everything as tensors, to send to another process."""
        for group in self._groups:
            group._flush()
        return {
            "count": torch.tensor([group._count for group in self._groups]),
            "mean": torch.stack([group._mean for group in self._groups]),
            "scatter": torch.stack(
                [torch.cat([strip.flatten() for strip in group._scatter]) for group in self._groups]
            ),
        }

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> "GroupedMoments":
        """Makes the moments that `state` was taken of."""
        made = cls(state["mean"].shape[1])
        for number, group in enumerate(made._groups):
            group._count = int(state["count"][number])
            group._mean = state["mean"][number].clone()
            parts = state["scatter"][number].split([strip.numel() for strip in group._scatter])
            for strip, part in zip(group._scatter, parts, strict=True):
                strip.copy_(part.view_as(strip))
        return made

    def _joined(self, groups: Iterable[StreamingMoments]) -> StreamingMoments:
        joined = StreamingMoments(self.dim)
        for group in groups:
            joined.merge(group)
        return joined

    def group_sums(
        self, origin: Float64[Tensor, "D"], linear: Float64[Tensor, "D"], quadratic: Float64[Tensor, "D D"]
    ) -> tuple[Float64[Tensor, "G"], Float64[Tensor, "G"]]:
        """Returns the number of vectors of each group, and their sums of linear^T z + z^T quadratic z.

        Args:
            origin: point that is subtracted, z = x - origin.
            linear: coefficients of the linear part.
            quadratic: symmetric matrix of the quadratic part.
        """
        counts, values = [], []
        for group in self._groups:
            scatter = group._full()
            shift = group._mean - origin
            inner = torch.dot(scatter.flatten(), quadratic.flatten())
            values.append(inner + group._count * (linear @ shift + shift @ quadratic @ shift))
            counts.append(group._count)
        return torch.tensor(counts, dtype=torch.float64), torch.stack(values)


def moments(features: Float[Tensor, "N D"]) -> Moments:
    """Returns the moments of features in memory.

    Raises:
        UserError: there are fewer than two.
    """
    stream = StreamingMoments(features.shape[1])
    stream.update(features)
    return stream.result()
