"""Nearest training images of every sample, and the share of samples that are copies.

Yoon et al. 2023, "Diffusion probabilistic models generalize when they fail to memorize", count a sample as memorised
where its nearest training image is more than three times as near as the second nearest, d1 / d2 < 1/3. The ratio needs
no threshold in units of the features. They and Gu et al. 2023, "On memorization in diffusion models", measure d between
pixels; any vectors will do here, and features also find a copy that is shifted or recoloured.

Some training sets hold near-copies of their own. The share of training images that would count as memorised, each
compared with the others, is the one to compare the model's share with.

The ratio overlooks a copy of an image that has a near-copy in the set. A second share has a threshold that the set
gives: a sample is near where its nearest training image is nearer than 95% of the training images have theirs, each
compared with the others. Of images drawn as the set was, that copy nothing, 5% are near.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Float64, Int64, UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from unistep.errors import UserError
from unistep.images.grid import save_png, to_pil
from unistep.metrics.distances import check_finite, squared_distances
from unistep.metrics.estimate import Estimate, proportion
from unistep.metrics.measurement import Inputs, Measurement, More, spread
from unistep.metrics.sources import ImageSource

MEMORISED_RATIO = 1 / 3
NEAR_SHARE = 0.05
_SHOWN = 12  # samples in the picture
_NEAREST = 6  # reference images beside each of them


def compute(inputs: Inputs) -> Measurement:
    """Returns the share of the samples that copy an image of the reference, the reference's own, and the share near it.

    The reference's own share and the distance of what is near are of no more of its images than there are samples. A
    picture shows the samples nearest to the reference.
    """
    reference = inputs.reference
    found = nearest_neighbours(inputs.samples.all(), reference.blocks(), _NEAREST)
    chosen = spread(len(reference), len(inputs.samples))
    own = nearest_neighbours(reference.all()[chosen], reference.blocks(), 2, own=chosen)
    threshold = near_distance(own)
    more = [
        More("in_reference", "copies in the reference", memorised(own)),
        More("near", f"samples nearer than {1 - NEAR_SHARE:.0%} of the reference", near(found, threshold)),
    ]
    notes = {
        "near_distance": threshold,
        "median_distance": found.distance[:, 0].median().item(),
        "median_distance_in_reference": own.distance[:, 0].median().item(),
    }

    def draw(path: Path, samples: ImageSource, images: ImageSource) -> Path:
        shown = found.closest(_SHOWN)
        near = torch.stack([torch.stack([_image(images, int(j)) for j in found.index[i]]) for i in shown])
        drawn = torch.stack([_image(samples, int(i)) for i in shown])
        return save_neighbours(path, drawn, near, found.distance[shown], rows=_SHOWN)

    return Measurement(memorised(found), notes=notes, more=more, pictures={"neighbours": draw})


def _image(source: ImageSource, number: int) -> UInt8[Tensor, "C H W"]:
    return source.images(range(number, number + 1))[0]


@dataclass(frozen=True)
class Neighbours:
    """The k nearest training images of N samples, nearest first.

    Args:
        distance: Euclidean distances in units of the features.
        index: numbers of the training images, counted over all blocks.
    """

    distance: Float64[Tensor, "N K"]
    index: Int64[Tensor, "N K"]

    @property
    def ratio(self) -> Float64[Tensor, "N"]:
        """d1 / d2 in [0, 1], 0 for an exact copy (of a training image that exists twice, too); needs k >= 2."""
        return _ratio(self.distance)

    def closest(self, count: int) -> Int64[Tensor, "_"]:
        """Returns the numbers of the `count` samples nearest to their training image, nearest first."""
        return self.distance[:, 0].argsort(stable=True)[:count]


def _ratio(distance: Float[Tensor, "N K"]) -> Float[Tensor, "N"]:
    first, second = distance[:, 0], distance[:, 1]
    return torch.where(first == 0, 0, first / second)


def nearest_neighbours(
    samples: Float[Tensor, "N D"],
    blocks: Iterable[Float[Tensor, "_ E"]],
    k: int = 3,
    *,
    own: Int64[Tensor, "N"] | None = None,
    rows: int = 500,
) -> Neighbours:
    """Returns the k nearest training vectors of every sample.

    One block, `rows` x its distances and `rows` x k vectors are held at a time.

    Args:
        samples: features of the samples.
        blocks: features of the training images in blocks of any sizes.
        k: number of neighbours.
        own: number of the training vector that each sample itself is, which is then not its neighbour.
        rows: number of samples compared with a block at once.

    Raises:
        UserError: there are fewer than k others, the vectors differ in dimension, or one is not finite.
    """
    if k < 1:
        raise UserError(f"the number of nearest neighbours must be at least 1, got {k}")
    check_finite(samples, "samples")
    distance = torch.full((len(samples), k), float("inf"), dtype=torch.float64)
    index = torch.full((len(samples), k), -1, dtype=torch.int64)
    seen = 0
    for block in blocks:
        if block.shape[1] != samples.shape[1]:
            raise UserError(
                f"the training images and the samples have {block.shape[1]} and {samples.shape[1]} features; "
                "take both from the same feature network"
            )
        if len(block) == 0:
            continue
        check_finite(block, "training images")
        vectors = block.to("cpu", torch.float64)
        for start in range(0, len(samples), rows):
            part = slice(start, min(start + rows, len(samples)))
            skipped = None if own is None else own[part] - seen
            found = _nearest_in_block(samples[part].to("cpu", torch.float64), vectors, k, skipped)
            everything = torch.cat([distance[part], found.distance], dim=1)
            indices = torch.cat([index[part], found.index + seen], dim=1)
            # Stable: of equal distances the training image that came first.
            distance[part], order = (t[:, :k] for t in everything.sort(dim=1, stable=True))
            index[part] = indices.gather(1, order)
        seen += len(block)
    others = seen - (own is not None)
    if others < k:
        raise UserError(f"{k} nearest neighbours were asked for, but there are {others} training images; give more")
    return Neighbours(distance, index)


def _nearest_in_block(
    samples: Float64[Tensor, "N D"], block: Float64[Tensor, "M D"], k: int, skipped: Int64[Tensor, "N"] | None
) -> Neighbours:
    """Up to k of one block, in its order; `skipped` are the rows that are the samples themselves, where in range."""
    centre = block.mean(dim=0)
    squared = squared_distances(samples - centre, block - centre)
    if skipped is not None:
        (here,) = ((skipped >= 0) & (skipped < len(block))).nonzero(as_tuple=True)
        squared[here, skipped[here]] = float("inf")
    index = squared.topk(min(k, len(block)), dim=1, largest=False).indices.sort(dim=1).values
    # These few again by their difference: a copy is then at 0, and not at the round-off of the norms.
    exact = (samples[:, None] - block[index]).square().sum(dim=2).sqrt()
    return Neighbours(exact.masked_fill(squared.gather(1, index).isinf(), float("inf")), index)


def memorised(neighbours: Neighbours, ratio: float = MEMORISED_RATIO) -> Estimate:
    """Returns the share of samples that copy a training image, with its standard error.

    Args:
        neighbours: neighbours of the samples, at least 2 each.
        ratio: bound of d1 / d2, below which a sample is a copy.

    Raises:
        UserError: there is one neighbour each.
    """
    if neighbours.distance.shape[1] < 2:
        raise UserError("whether a sample is a copy needs its 2 nearest training images; ask for at least 2")
    return proportion(int((neighbours.ratio < ratio).sum()), len(neighbours.distance))


def near_distance(own: Neighbours, share: float = NEAR_SHARE) -> float:
    """Returns the distance below which the nearest neighbours of a share of training images lie.

    Args:
        own: neighbours of training images among the other ones.
        share: quantile of their nearest distances, in [0, 1].

    Raises:
        UserError: there are no training images.
    """
    if len(own.distance) == 0:
        raise UserError("which samples are near needs at least one training image; give more")
    return own.distance[:, 0].quantile(share).item()


def near(neighbours: Neighbours, distance: float) -> Estimate:
    """Returns the share of samples nearer to a training image than `distance`, with its standard error.

    Args:
        neighbours: neighbours of the samples.
        distance: threshold in units of the features, as `near_distance` finds it.
    """
    return proportion(int((neighbours.distance[:, 0] < distance).sum()), len(neighbours.distance))


_TEXT, _GAP, _SIDE, _HEADING = 15, 4, 96, 236
_GREY, _RED = (90, 90, 90), (190, 0, 0)


def save_neighbours(
    path: Path,
    samples: UInt8[Tensor, "N C H W"],
    images: UInt8[Tensor, "N K C H W"],
    distance: Float[Tensor, "N K"],
    *,
    rows: int = 12,
) -> Path:
    """Writes a PNG of the samples nearest to their training image, the nearest first; the file appears whole.

    A row is a sample, with d1 / d2 under it, and right of a line its nearest training images, each with its distance.
    The ratio of a sample that counts as memorised is red. Small images are enlarged by a whole factor.

    Args:
        path: place of the PNG.
        samples: images of the samples.
        images: images of their neighbours.
        distance: distances of the neighbours.
        rows: largest number of samples shown.

    Raises:
        UserError: there are no samples.
    """
    if len(samples) == 0:
        raise UserError(f"{path}: there are no samples to show beside their neighbours; give at least one")
    order = distance[:, 0].argsort(stable=True)[:rows].tolist()
    ratios = _ratio(distance).tolist() if distance.shape[1] > 1 else None
    count, width, height = images.shape[1], samples.shape[3], samples.shape[2]
    factor = max(1, round(_SIDE / max(width, height)))
    width, height = max(width * factor, 56), height * factor  # a number takes up to 56
    step, left = height + _TEXT + _GAP + 2, width + 6 * _GAP
    size = (left + max(count * (width + _GAP), _HEADING), _TEXT + 2 * _GAP + len(order) * step)
    sheet = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=11)

    def put(image: UInt8[Tensor, "C H W"], x: int, y: int, text: str, colour: tuple[int, int, int]) -> None:
        picture = to_pil(image).convert("RGB")
        shape = (picture.width * factor, picture.height * factor)
        sheet.paste(picture.resize(shape, Image.Resampling.NEAREST), (x + (width - shape[0]) // 2, y))
        draw.text((x + width // 2, y + height + 1), text, fill=colour, font=font, anchor="ma")

    draw.text((_GAP, _GAP), "sample", fill="black", font=font)
    draw.text((left, _GAP), "nearest training images and their distances", fill="black", font=font)
    draw.line([(left - 3 * _GAP, _GAP), (left - 3 * _GAP, size[1] - _GAP)], fill=(170, 170, 170))
    for row, i in enumerate(order):
        top = _TEXT + 2 * _GAP + row * step
        text = f"ratio {ratios[i]:.2f}" if ratios else ""
        put(samples[i], _GAP, top, text, _RED if ratios and ratios[i] < MEMORISED_RATIO else _GREY)
        for column in range(count):
            put(images[i, column], left + column * (width + _GAP), top, f"{distance[i, column].item():.3g}", _GREY)
    return save_png(sheet, path)
