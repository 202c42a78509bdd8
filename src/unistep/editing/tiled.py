"""Images larger than the model: its network on overlapping tiles, blended at every evaluation.

A denoiser of square images becomes one of larger images: the image is covered with tiles that overlap by half, each is
denoised, and the estimates x0 are averaged with weights w that fall towards the tiles' edges,

    x0(p) = sum_i w_i(p) D(tile_i)(p) / sum_i w_i(p)

(Bar-Tal et al. 2023, "MultiDiffusion", eq. 5, for clean estimates). Neighbouring tiles have the same noise where they
overlap, and every step begins from the blend, so that they agree without seams; parts that lie farther apart than a
tile are made independently. Editors need nothing more: they measure the whole image.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from unistep.core.denoiser import Denoiser
from unistep.errors import UserError


class Tiled:
    """A `Denoiser` of images of any size from `side` up.

    Args:
        denoiser: denoiser of images of `side` x `side` pixels.
        side: side of the denoiser's images in pixels.
        batch: tiles in a batch; the last batch is filled up, so that all have this size.
        overlap: least share of a tile's side that it has in common with the next, in [0, 1).

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(self, denoiser: Denoiser, side: int, *, batch: int = 16, overlap: float = 0.5) -> None:
        if not 0 <= overlap < 1 or side < 1 or batch < 1:
            raise ValueError(f"overlap {overlap} must lie in [0, 1), side {side} and batch {batch} be positive")
        self.denoiser = denoiser
        self.side = side
        self.batch = batch
        self.overlap = overlap

    def __call__(
        self,
        x_t: Float[Tensor, "B C H W"],
        sigma: Float[Tensor, " B"],
        class_labels: Int[Tensor, " B"] | None = None,
        /,
    ) -> Float[Tensor, "B C H W"]:
        places = self.places(*x_t.shape[2:])
        window = self._window(x_t)
        total, weight = torch.zeros_like(x_t), torch.zeros_like(x_t[:1, :1])
        for top, left in places:
            weight[..., top : top + self.side, left : left + self.side] += window
        numbered = [(b, top, left) for b in range(len(x_t)) for top, left in places]
        for start in range(0, len(numbered), self.batch):
            part = numbered[start : start + self.batch]
            filled = part + [part[-1]] * (self.batch - len(part))
            rows = torch.tensor([b for b, _, _ in filled], device=x_t.device)
            tiles = torch.stack([x_t[b, :, y : y + self.side, x : x + self.side] for b, y, x in filled])
            labels = None if class_labels is None else class_labels[rows]
            estimates = self.denoiser(tiles, sigma[rows], labels) * window
            for (b, top, left), estimate in zip(part, estimates, strict=False):
                total[b, :, top : top + self.side, left : left + self.side] += estimate
        return total / weight

    def places(self, height: int, width: int) -> list[tuple[int, int]]:
        """Returns top and left of every tile of an image.

        Raises:
            UserError: the image is smaller than a tile.
        """
        if min(height, width) < self.side:
            raise UserError(
                f"an image of {width}x{height} is smaller than a tile of {self.side}x{self.side}; enlarge it"
            )
        return [(top, left) for top in self._starts(height) for left in self._starts(width)]

    def _starts(self, length: int) -> list[int]:
        stride = max(1, int(self.side * (1 - self.overlap)))
        steps = -(-(length - self.side) // stride)
        return [round(i * (length - self.side) / steps) for i in range(steps + 1)] if steps else [0]

    def _window(self, like: Tensor) -> Tensor:
        """Returns the weights of a tile, a pyramid: 1 in the middle, positive at the edges."""
        ramp = torch.arange(self.side, device=like.device, dtype=like.dtype)
        ramp = torch.minimum(ramp + 1, self.side - ramp) / ((self.side + 1) / 2)
        return ramp[:, None] * ramp[None, :]
