"""The vision transformer of DINOv2: an image in, one vector out.

Oquab et al. 2023, "DINOv2: Learning Robust Visual Features without Supervision" (arXiv 2304.07193), on the network of
Dosovitskiy et al. 2020 (arXiv 2010.11929). Patches of 14 pixels become tokens, a class token stands before them, and
each of `depth` blocks adds to all of them

    x <- x + gamma_1 * attention(norm(x)),    x <- x + gamma_2 * mlp(norm(x)),

gamma one weight a channel. The vector is the class token after the last norm. The published networks have no dropout
outside of training and, here, no registers.

The positions of the patches were learned on a grid of 37x37 (518 pixels). For h x w patches they are interpolated
bicubically (a = -3/4, no filter), with the steps 37 / (h + 0.1) and 37 / (w + 0.1): the original code adds the 0.1 so
that rounding loses no row, and the published networks, and all FD-DINOv2, are measured with it.

The parameters have the names of the original files.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from unistep.errors import UserError

_EPS = 1e-6
_MLP_RATIO = 4
_OFFSET = 0.1


@dataclass(frozen=True)
class VisionTransformerConfig:
    """The size of the network; the defaults are ViT-L/14.

    Args:
        width: length of a token, a multiple of the number of heads.
        depth: number of blocks.
        heads: number of attention heads; 64 numbers each in all published networks.
        patch_size: side of a patch in pixels.
        grid: patches along a side of the training images.
    """

    width: int = 1024
    depth: int = 24
    heads: int = 16
    patch_size: int = 14
    grid: int = 37


class VisionTransformer(nn.Module):
    """The vision transformer of a `VisionTransformerConfig`; None is ViT-L/14.

    Raises:
        UserError: the width is no multiple of the number of heads.
    """

    def __init__(self, config: VisionTransformerConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or VisionTransformerConfig()
        if config.width % config.heads:
            raise UserError(f"width {config.width} is no multiple of {config.heads} heads")
        self.cls_token = nn.Parameter(torch.empty(1, 1, config.width).normal_(std=0.02))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + config.grid**2, config.width).normal_(std=0.02))
        self.patch_embed = _Patches(config.width, config.patch_size)
        self.blocks = nn.Sequential(*(_Block(config.width, config.heads) for _ in range(config.depth)))
        self.norm = nn.LayerNorm(config.width, _EPS)

    def forward(self, x: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B D"]:
        """The class token [B, width] of images normalised by the mean and deviation of ImageNet's colours.

        Raises:
            UserError: a side is no multiple of the patch size.
        """
        size = self.config.patch_size
        if x.shape[2] % size or x.shape[3] % size:
            raise UserError(f"images of {x.shape[2]}x{x.shape[3]} pixels are not made of patches of {size} pixels")
        patches = self.patch_embed(x)
        tokens = patches.flatten(2).transpose(1, 2) + self._positions(*patches.shape[2:])
        first = (self.cls_token + self.pos_embed[:, :1]).expand(len(x), -1, -1)
        tokens = self.blocks(torch.cat([first, tokens], dim=1))
        return self.norm(tokens[:, 0])

    def _positions(self, height: int, width: int) -> Float[Tensor, "1 N D"]:
        """The position vectors of h x w patches, row by row."""
        grid = self.config.grid
        learned = self.pos_embed[:, 1:]
        if height == width == grid:
            return learned
        plane = learned.float().transpose(1, 2).unflatten(2, (grid, grid))
        # The factors, not the size, are given: they set the steps from one sample to the next.
        factors = (height + _OFFSET) / grid, (width + _OFFSET) / grid
        plane = F.interpolate(plane, scale_factor=factors, mode="bicubic", align_corners=False)
        return plane.flatten(2).transpose(1, 2).to(learned.dtype)


class _Patches(nn.Module):
    def __init__(self, width: int, size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, size, stride=size)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x)


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, _EPS)
        self.attn = _Attention(width, heads)
        self.ls1 = _Scale(width)
        self.norm2 = nn.LayerNorm(width, _EPS)
        self.mlp = _MLP(width)
        self.ls2 = _Scale(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)  # (three, heads, numbers)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class _MLP(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, _MLP_RATIO * width)
        self.fc2 = nn.Linear(_MLP_RATIO * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class _Scale(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma
