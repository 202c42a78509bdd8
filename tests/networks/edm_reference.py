"""EDM's networks written out a second time, as slowly and plainly as can be: what the fast ones are compared with.

Nothing of unistep is used. Weights are tensors by the names of EDM's files, arguments have the names given there.
Resampling is a product with a matrix, attention a softmax that is written out.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Weights = dict[str, Tensor]


def silu(x: Tensor) -> Tensor:
    return x / (1 + (-x).exp())


def norm(w: Weights, name: str, x: Tensor, eps: float) -> Tensor:
    b, c, *side = x.shape
    groups = x.reshape(b, min(32, c // 4), -1)
    mean = groups.mean(2, keepdim=True)
    variance = (groups - mean).square().mean(2, keepdim=True)
    x = ((groups - mean) / (variance + eps).sqrt()).reshape(b, c, *side)
    return x * w[f"{name}.weight"][:, None, None] + w[f"{name}.bias"][:, None, None]


def linear(w: Weights, name: str, x: Tensor) -> Tensor:
    y = x @ w[f"{name}.weight"].t()
    return y + w[f"{name}.bias"] if f"{name}.bias" in w else y


def conv(w: Weights, name: str, x: Tensor, padding: int | None = None) -> Tensor:
    weight = w[f"{name}.weight"]
    padding = weight.shape[-1] // 2 if padding is None else padding
    return F.conv2d(x, weight, padding=padding) + w[f"{name}.bias"][:, None, None]


def halving(n: int, taps: list[int], pad: int) -> Tensor:
    """The matrix that filters a line of n pixels with `pad` zeros at either end and takes every second one."""
    out = (n + 2 * pad - len(taps)) // 2 + 1
    matrix = torch.zeros(out, n)
    for i in range(out):
        for k, tap in enumerate(taps):
            if 0 <= 2 * i + k - pad < n:
                matrix[i, 2 * i + k - pad] += tap / sum(taps)
    return matrix


def doubling(n: int, taps: list[int]) -> Tensor:
    """The matrix that puts zeros between the pixels of a line and filters it; the mean stays."""
    pad = (len(taps) - 1) // 2
    matrix = torch.zeros(2 * n, n)
    for i in range(n):
        for k, tap in enumerate(taps):
            if 0 <= 2 * i + k - pad < 2 * n:
                matrix[2 * i + k - pad, i] += 2 * tap / sum(taps)
    return matrix


def along_both(matrix: Tensor, x: Tensor) -> Tensor:
    return torch.einsum("oh,bchw,pw->bcop", matrix, x, matrix)


def down(x: Tensor, taps: list[int]) -> Tensor:
    return along_both(halving(x.shape[-1], taps, (len(taps) - 1) // 2), x)


def up(x: Tensor, taps: list[int]) -> Tensor:
    return along_both(doubling(x.shape[-1], taps), x)


def attention(w: Weights, name: str, x: Tensor, eps: float, heads: int) -> Tensor:
    b, c, height, width = x.shape
    qkv = conv(w, f"{name}.qkv", norm(w, f"{name}.norm2", x, eps)).reshape(b, heads, c // heads, 3, height * width)
    q, k, v = qkv[:, :, :, 0], qkv[:, :, :, 1], qkv[:, :, :, 2]
    scores = torch.einsum("bhcq,bhck->bhqk", q, k / math.sqrt(c // heads)).softmax(3)
    return conv(w, f"{name}.proj", torch.einsum("bhqk,bhck->bhcq", scores, v).reshape(x.shape))


def song_block(w: Weights, name: str, x: Tensor, emb: Tensor, taps: list[int], eps: float = 1e-6) -> Tensor:
    def resampled(x: Tensor) -> Tensor:
        return down(x, taps) if name.endswith("_down") else up(x, taps) if name.endswith("_up") else x

    h = conv(w, f"{name}.conv0", resampled(silu(norm(w, f"{name}.norm0", x, eps))))
    h = silu(norm(w, f"{name}.norm1", h + linear(w, f"{name}.affine", emb)[:, :, None, None], eps))
    h = conv(w, f"{name}.conv1", h)
    skip = conv(w, f"{name}.skip", resampled(x)) if f"{name}.skip.weight" in w else x
    h = (h + skip) * math.sqrt(0.5)
    if f"{name}.qkv.weight" in w:
        h = (h + attention(w, name, h, eps, 1)) * math.sqrt(0.5)
    return h


def song(w: Weights, args: dict[str, Any], x: Tensor, c_noise: Tensor, one_hot: Tensor | None = None,
         augment: Tensor | None = None) -> Tensor:  # fmt: skip
    """SongUNet; every argument must be given."""
    taps, depth, size = args["resample_filter"], len(args["channel_mult"]), args["img_resolution"]
    half = args["model_channels"] * args["channel_mult_noise"] // 2
    if args["embedding_type"] == "positional":
        freqs = torch.tensor([10_000 ** (-i / (half - 1)) for i in range(half)])
    else:
        freqs = 2 * math.pi * w["map_noise.freqs"]
    angles = c_noise[:, None] * freqs
    emb = torch.cat([angles.sin(), angles.cos()], 1)
    if one_hot is not None:
        emb = emb + linear(w, "map_label", one_hot * math.sqrt(args["label_dim"]))
    if augment is not None:
        emb = emb + linear(w, "map_augment", augment)
    emb = silu(linear(w, "map_layer1", silu(linear(w, "map_layer0", emb))))

    names = [f"{size >> i}x{size >> i}" for i in range(depth)]
    h, aux = conv(w, f"enc.{names[0]}_conv", x), x
    skips = [h]
    for i, name in enumerate(names):
        if i:
            h = song_block(w, f"enc.{name}_down", h, emb, taps)
            if args["encoder_type"] == "skip":
                aux = down(aux, taps)
                h = h + conv(w, f"enc.{name}_aux_skip", aux)
            if args["encoder_type"] == "residual":
                wide = F.conv2d(aux, w[f"enc.{name}_aux_residual.weight"], padding=1 + (len(taps) - 1) // 2)
                wide = along_both(halving(wide.shape[-1], taps, 0), wide)
                h = aux = (h + wide + w[f"enc.{name}_aux_residual.bias"][:, None, None]) / math.sqrt(2)
            skips.append(h)
        for j in range(args["num_blocks"]):
            h = song_block(w, f"enc.{name}_block{j}", h, emb, taps)
            skips.append(h)

    out = torch.zeros(())
    for i, name in reversed(list(enumerate(names))):
        for step in ("in0", "in1") if i == depth - 1 else ("up",):
            h = song_block(w, f"dec.{name}_{step}", h, emb, taps)
        for j in range(args["num_blocks"] + 1):
            h = song_block(w, f"dec.{name}_block{j}", torch.cat([h, skips.pop()], 1), emb, taps)
        if args["decoder_type"] == "skip" and i < depth - 1:
            out = up(out, taps)
        if args["decoder_type"] == "skip" or i == 0:
            out = out + conv(w, f"dec.{name}_aux_conv", silu(norm(w, f"dec.{name}_aux_norm", h, 1e-6)))
    return out


def adm_block(w: Weights, name: str, x: Tensor, emb: Tensor, eps: float = 1e-5) -> Tensor:
    def resampled(x: Tensor) -> Tensor:
        return down(x, [1, 1]) if name.endswith("_down") else up(x, [1, 1]) if name.endswith("_up") else x

    h = conv(w, f"{name}.conv0", resampled(silu(norm(w, f"{name}.norm0", x, eps))))
    scale, shift = linear(w, f"{name}.affine", emb)[:, :, None, None].chunk(2, dim=1)
    h = conv(w, f"{name}.conv1", silu(norm(w, f"{name}.norm1", h, eps) * (1 + scale) + shift))
    h = h + (conv(w, f"{name}.skip", x) if f"{name}.skip.weight" in w else resampled(x))
    return h + attention(w, name, h, eps, h.shape[1] // 64) if f"{name}.qkv.weight" in w else h


def dhariwal(w: Weights, args: dict[str, Any], x: Tensor, c_noise: Tensor, one_hot: Tensor | None = None) -> Tensor:
    """DhariwalUNet; every argument must be given."""
    depth, size, half = len(args["channel_mult"]), args["img_resolution"], args["model_channels"] // 2
    angles = c_noise[:, None] * torch.tensor([10_000 ** (-i / half) for i in range(half)])
    emb = linear(w, "map_layer1", silu(linear(w, "map_layer0", torch.cat([angles.cos(), angles.sin()], 1))))
    if one_hot is not None:
        emb = emb + linear(w, "map_label", one_hot)
    emb = silu(emb)

    names = [f"{size >> i}x{size >> i}" for i in range(depth)]
    h = conv(w, f"enc.{names[0]}_conv", x)
    skips = [h]
    for i, name in enumerate(names):
        for step in ["down"] * (i > 0) + [f"block{j}" for j in range(args["num_blocks"])]:
            h = adm_block(w, f"enc.{name}_{step}", h, emb)
            skips.append(h)
    for i, name in reversed(list(enumerate(names))):
        for step in ("in0", "in1") if i == depth - 1 else ("up",):
            h = adm_block(w, f"dec.{name}_{step}", h, emb)
        for j in range(args["num_blocks"] + 1):
            h = adm_block(w, f"dec.{name}_block{j}", torch.cat([h, skips.pop()], 1), emb)
    return conv(w, "out_conv", silu(norm(w, "out_norm", h, 1e-5)))
