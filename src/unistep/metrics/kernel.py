"""Kernel distance between two sets of features: the squared maximum mean discrepancy with a cubic kernel, unbiased.

Binkowski et al. 2018, "Demystifying MMD GANs", section 4 (KID, on Inception's features): with

    k(x, y) = (x . y / D + 1)^3,

m samples x and n reference vectors y, the estimate is

    U = mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j) - 2 mean_{i, j} k(x_i, y_j),

whose expectation is 0 where both laws are the same; so it is as often negative as not where samples are perfect. Unlike
the Frechet distance it has no bias, whatever the number of images, and it is not misled by laws that are no Gaussians.

To bound the work, large sets are split at random into blocks, and the estimate is the mean of those of the blocks. If
one set is several times the other, each block of the smaller meets several of the larger; every vector is used.

The standard error follows from the Hoeffding decomposition of U (see Sutherland 2019, "Unbiased estimators for the
variance of MMD estimators"). U is its expectation, plus the means of the projections of both sets,

    2 a(x_i),  a(x) = E k(x, x') - E k(x, y)      and      2 c(y_j),  c(y) = E k(y, y') - E k(x, y),

plus means over pairs of the kernel's degenerate part, centred in both arguments, of variances v_xx, v_yy and v_xy. All
these terms are uncorrelated, so that

    Var U = 4 Var(a) / m + 4 Var(c) / n + W,    W = 2 v_xx / m(m - 1) + 2 v_yy / n(n - 1) + 4 v_xy / mn.

a(x_i) is estimated from the row of x_i in the kernel's matrices, and the spread of these estimates is that of a(x) plus
v_xx / (m - 2) + v_xy / n; c likewise. The v's are the residuals of fits of row and column effects to the matrices, so
the noise can be taken away; what is left is without bias, and 0 is put where it is negative.
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from unistep.errors import UserError
from unistep.metrics.estimate import Estimate
from unistep.metrics.measurement import Inputs, Measurement

_ROWS = 1024  # of a kernel matrix held at a time
_FEWEST = 4  # vectors from which the variance of pairs can be estimated


def compute(inputs: Inputs) -> Measurement:
    """Returns the distance of the samples to the reference."""
    return Measurement(kernel_distance(inputs.samples.all(), inputs.reference.all()))


def kernel_distance(samples: Float[Tensor, "N D"], reference: Float[Tensor, "M E"], *, block: int = 5000) -> Estimate:
    """Returns the kernel distance of samples to a reference, which may be negative, with the error of drawing both.

    Args:
        samples: features of the samples, of any float type and on any device; the arithmetic is float64 on the CPU.
        reference: features of the reference. Swapping the two changes nothing.
        block: largest number of vectors of a set that are paired with each other, at least 8. The time grows with it;
            the error falls with it, little unless the laws nearly agree. Memory: about 3 * block * D numbers.

    Raises:
        UserError: a set has fewer than four vectors, or some that are NaN or infinite; the sets differ in dimension;
            `block` is below 8.
    """
    if samples.shape[1] != reference.shape[1]:
        raise UserError(
            f"the two sets have {samples.shape[1]} and {reference.shape[1]} features; "
            "take both from the same feature network"
        )
    if block < 2 * _FEWEST:
        raise UserError(f"block = {block}: blocks need at least {2 * _FEWEST} vectors; 5000 is usual")
    for name, features in (("samples", samples), ("reference", reference)):
        if len(features) < _FEWEST:
            raise UserError(
                f"the kernel distance needs at least {_FEWEST} vectors of each set, the {name} are {len(features)}; "
                "give more images"
            )
        bad = sum(int((~part.isfinite().all(dim=1)).sum()) for part in features.split(_ROWS))
        if bad:
            raise UserError(
                f"{bad} of {len(features)} feature vectors of the {name} hold NaN or infinite values; "
                "check the images and the feature network"
            )
    small, large = sorted((samples, reference), key=len)
    count = -(-len(small) // block)
    each = -(-len(large) // (block * count))  # blocks of the larger set for one of the smaller
    small_blocks, large_blocks = _blocks(small, count), _blocks(large, count * each)
    value = linear = pairs = 0.0
    for number, index in enumerate(small_blocks):
        partners = (_take(large, i) for i in large_blocks[number * each : (number + 1) * each])
        found = _compare(_take(small, index), partners, each)
        value, linear, pairs = value + found.value, linear + found.linear, pairs + found.pairs
    return Estimate(value / count, (max(linear, 0.0) + pairs) ** 0.5 / count)


class _Comparison(NamedTuple):
    """Of one block: U, and the two parts of its variance, that of the projections and W."""

    value: float
    linear: float
    pairs: float


def _compare(x: Float64[Tensor, "N D"], partners: Iterable[Float64[Tensor, "M D"]], number: int) -> _Comparison:
    """x with the mean of `number` partners: each has a term of its own in U, and x one for all."""
    m = len(x)
    of_x = _within(x)
    value, effects, noise = of_x.mean, of_x.effects, of_x.residual / (m - 2)
    linear, pairs = 0.0, 2 * of_x.residual / (m * (m - 1))
    for y in partners:
        n = len(y)
        of_y, cross = _within(y), _across(x, y)
        value += (of_y.mean - 2 * cross.mean) / number
        effects = effects - cross.rows / number
        noise += cross.residual / n / number**2
        spread = (of_y.effects - cross.columns).var().item() - of_y.residual / (n - 2) - cross.residual / m
        linear += 4 * spread / n / number**2
        pairs += (2 * of_y.residual / (n * (n - 1)) + 4 * cross.residual / (m * n)) / number**2
    return _Comparison(value, linear + 4 * (effects.var().item() - noise) / m, pairs)


class _Within(NamedTuple):
    """The fit of mean + effects_i + effects_j to the kernel of a set with itself, and the variance of the residual."""

    mean: float
    effects: Float64[Tensor, "N"]
    residual: float


class _Across(NamedTuple):
    """The fit of mean + rows_i + columns_j to the kernel of two sets, and the variance of the residual."""

    mean: float
    rows: Float64[Tensor, "N"]
    columns: Float64[Tensor, "M"]
    residual: float


def _kernel(x: Float64[Tensor, "N D"], y: Float64[Tensor, "M D"]) -> Float64[Tensor, "N M"]:
    inner = (x @ y.T).div_(x.shape[1]).add_(1)
    return (inner * inner).mul_(inner)


def _squares(matrix: Float64[Tensor, "N M"]) -> float:
    flat = matrix.flatten()
    return torch.dot(flat, flat).item()


def _within(x: Float64[Tensor, "N D"]) -> _Within:
    m = len(x)
    sums, squares = x.new_zeros(m), 0.0  # off the diagonal
    for start in range(0, m, _ROWS):
        # From the diagonal on: what is before it is the mirror image of columns that were there already.
        rows = min(_ROWS, m - start)
        k = _kernel(x[start : start + rows], x[start:])
        square, beyond = k[:, :rows], k[:, rows:]
        square.fill_diagonal_(0)
        sums[start : start + rows] += k.sum(dim=1)
        sums[start + rows :] += beyond.sum(dim=0)
        squares += _squares(square) + 2 * _squares(beyond)
    mean = sums.mean().item() / (m - 1)
    centred = sums - (m - 1) * mean
    effects = centred / (m - 2)
    left = squares / 2 - m * (m - 1) / 2 * mean**2 - (centred @ effects).item()
    return _Within(mean, effects, max(left / (m * (m - 3) / 2), 0.0))


def _across(x: Float64[Tensor, "N D"], y: Float64[Tensor, "M D"]) -> _Across:
    m, n = len(x), len(y)
    rows, columns, squares = x.new_zeros(m), x.new_zeros(n), 0.0
    for start in range(0, m, _ROWS):
        k = _kernel(x[start : start + _ROWS], y)
        rows[start : start + _ROWS] = k.mean(dim=1)
        columns += k.sum(dim=0) / m
        squares += _squares(k)
    mean = rows.mean().item()
    rows, columns = rows - mean, columns - mean
    left = squares - m * n * mean**2 - n * rows.square().sum().item() - m * columns.square().sum().item()
    return _Across(mean, rows, columns, max(left / ((m - 1) * (n - 1)), 0.0))


def _blocks(features: Float[Tensor, "N D"], count: int) -> list[Int64[Tensor, "_"]]:
    """Indices of `count` blocks, drawn at random: in order, a block of a sorted data set would be a class."""
    order = torch.randperm(len(features), generator=torch.Generator().manual_seed(0))
    return [block.sort().values for block in order.tensor_split(count)]


def _take(features: Float[Tensor, "N D"], index: Int64[Tensor, "K"]) -> Float64[Tensor, "K D"]:
    return features[index.to(features.device)].to("cpu", torch.float64)
