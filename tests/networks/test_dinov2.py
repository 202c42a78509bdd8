"""DINOv2's transformer: against its formulas in plain arithmetic, and what it must not depend on."""

import math

import pytest
import torch
from torch import Tensor

from unistep.errors import UserError
from unistep.networks.dinov2 import VisionTransformer, VisionTransformerConfig

CONFIG = VisionTransformerConfig(width=128, depth=2, heads=2, patch_size=4, grid=3)


def make(config: VisionTransformerConfig = CONFIG) -> VisionTransformer:
    network = VisionTransformer(config).double().eval().requires_grad_(False)
    noise = torch.Generator().manual_seed(0)
    for p in network.parameters():
        p.copy_(torch.randn(p.shape, generator=noise, dtype=torch.float64) * 0.2)
    return network


def images(side: int, count: int = 2) -> Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight + bias


def reference(p: dict[str, Tensor], image: Tensor, config: VisionTransformerConfig) -> Tensor:
    """The class token of one image of the learned grid's size, head by head."""
    size, grid = config.patch_size, config.grid
    tokens = [p["cls_token"][0, 0]]
    for row in range(grid):
        for column in range(grid):
            patch = image[:, row * size : (row + 1) * size, column * size : (column + 1) * size]
            kernel = p["patch_embed.proj.weight"]
            tokens.append((kernel * patch).sum((1, 2, 3)) + p["patch_embed.proj.bias"])
    x = torch.stack(tokens) + p["pos_embed"][0]
    dim = config.width // config.heads
    for i in range(config.depth):
        b = {name.removeprefix(f"blocks.{i}."): value for name, value in p.items() if name.startswith(f"blocks.{i}.")}
        h = norm(x, b["norm1.weight"], b["norm1.bias"])
        q, k, v = (h @ w.T + c for w, c in zip(b["attn.qkv.weight"].chunk(3), b["attn.qkv.bias"].chunk(3), strict=True))
        heads = []
        for head in range(config.heads):
            part = slice(head * dim, (head + 1) * dim)
            scores = (q[:, part] @ k[:, part].T / math.sqrt(dim)).exp()
            heads.append(scores / scores.sum(1, keepdim=True) @ v[:, part])
        h = torch.cat(heads, 1) @ b["attn.proj.weight"].T + b["attn.proj.bias"]
        x = x + b["ls1.gamma"] * h
        h = norm(x, b["norm2.weight"], b["norm2.bias"]) @ b["mlp.fc1.weight"].T + b["mlp.fc1.bias"]
        h = h * (1 + torch.erf(h / math.sqrt(2))) / 2
        x = x + b["ls2.gamma"] * (h @ b["mlp.fc2.weight"].T + b["mlp.fc2.bias"])
    return norm(x[0], p["norm.weight"], p["norm.bias"])


def test_is_its_formula():
    network, batch = make(), images(12)
    expected = torch.stack([reference(network.state_dict(), image, CONFIG) for image in batch])
    torch.testing.assert_close(network(batch), expected, rtol=1e-10, atol=1e-10)


def cubic(t: float) -> float:
    """The bicubic kernel with a = -3/4."""
    t, a = abs(t), -0.75
    if t < 1:
        return (a + 2) * t**3 - (a + 3) * t**2 + 1
    return a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a if t < 2 else 0.0


@pytest.mark.parametrize(("grid", "height", "width"), [(37, 16, 16), (5, 3, 7)])
def test_positions_are_interpolated_as_in_the_original(grid: int, height: int, width: int):
    """With steps of grid / (n + 0.1), which is not what a resize to n would take."""
    network = VisionTransformer(VisionTransformerConfig(width=64, depth=1, heads=1, grid=grid))
    found = network._positions(height, width).unflatten(1, (height, width))[0, ..., :2].detach()
    plane = network.pos_embed[0, 1:].unflatten(0, (grid, grid))[..., :2].detach().double()

    def taps(index: int, count: int) -> list[tuple[int, float]]:
        centre = (index + 0.5) * grid / (count + 0.1) - 0.5
        first = math.floor(centre) - 1
        return [(min(max(j, 0), grid - 1), cubic(centre - j)) for j in range(first, first + 4)]

    for y, x in ((0, 0), (height - 1, width - 1), (height // 2, 1), (1, width // 2)):
        total = sum(wy * wx * plane[j, i] for j, wy in taps(y, height) for i, wx in taps(x, width))
        torch.testing.assert_close(found[y, x].double(), total, rtol=1e-5, atol=1e-6)


def test_images_do_not_know_of_each_other_and_positions_matter():
    network, batch = make(), images(20)
    both = network(batch)
    torch.testing.assert_close(both[1:], network(batch[1:]), rtol=1e-10, atol=1e-10)
    assert (network(batch.flip(-1)) - both).abs().max() > 1e-3


def test_has_the_size_of_the_published_network():
    with torch.device("meta"):
        network = VisionTransformer()
    state = network.state_dict()
    # 439 tensors of the Hub's file, of which one is the mask's, and 24 blocks have queries, keys and values in one.
    assert len(state) == 439 - 1 - 24 * 4
    assert sum(value.numel() for value in state.values()) == 304_367_616
    assert state["pos_embed"].shape == (1, 1370, 1024)


def test_refuses_what_does_not_fit():
    with pytest.raises(UserError, match="13x13 pixels are not made of patches of 4"):
        make()(images(13))
    with pytest.raises(UserError, match="width 100 is no multiple of 3 heads"):
        VisionTransformer(VisionTransformerConfig(width=100, heads=3))
