"""Operations of the networks that are faster in another form than in PyTorch's, where images are made in bf16 on a CPU.

Each has a plain form, which is taken everywhere else: in fp32, whose images stay the same to the bit, with gradients,
under autocast, where student and target of a training must round alike, on accelerators, and in graphs that compilers
and exporters see. What is faster was measured on processors with AVX-512 bf16: `python benchmarks/sampling.py` times
the forms beside each other.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Shaped
from torch import Tensor, nn

# Logits of so many pairs of pixels are made at once: 16 MB, which stay in the cache.
_MOST_PAIRS = 1 << 23
# Rows of a matrix product up to which it is faster than a convolution, whose weights are reordered in every call.
_FEW_PIXELS = 64


def is_swift(x: Tensor) -> bool:
    """Returns whether `x` takes the other forms.

    Args:
        x: input of an operation.
    """
    return (
        x.dtype is torch.bfloat16
        and x.device.type == "cpu"
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]
    )


def attention(
    q: Shaped[Tensor, "B H N D"], k: Shaped[Tensor, "B H N D"], v: Shaped[Tensor, "B H N D"]
) -> Shaped[Tensor, "B N H*D"]:
    """Scaled dot-product attention.

    Args:
        q, k, v: queries, keys and values of each head.
    """
    b, heads, n, dim = q.shape
    if not is_swift(q):
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, heads * dim)
    # PyTorch's kernel takes as long in bf16 as in fp32; two products take half of that, or less.
    out = q.new_empty(b, n, heads, dim).transpose(1, 2)
    images = max(1, _MOST_PAIRS // (heads * n * n))
    scale = dim**-0.5
    for start in range(0, b, images):
        part = slice(start, start + images)
        if images == 1:
            logits = torch.baddbmm(q.new_zeros(1, 1, 1), q[start], k[start].transpose(1, 2), beta=0, alpha=scale)
            torch.bmm(logits.softmax(-1), v[start], out=out[start])
        else:
            logits = torch.matmul(q[part] * scale, k[part].transpose(2, 3))
            out[part] = torch.matmul(logits.softmax(-1), v[part])
    return out.transpose(1, 2).reshape(b, n, heads * dim)


def as_image(h: Shaped[Tensor, "B N C"], x: Shaped[Tensor, "B C H W"]) -> Shaped[Tensor, "B C H W"]:
    """Rows of pixels as images, whose memory is channels last.

    Args:
        h: rows.
        x: images of the shape.
    """
    b, c, height, width = x.shape
    if not is_swift(h):
        return h.transpose(1, 2).reshape(b, c, height, width)
    # A single image has the stride of a batch, too: PyTorch reads the memory format off the strides, and where it finds
    # none, every operation that follows makes a copy.
    return h.contiguous().as_strided(x.shape, (height * width * c, 1, width * c, c))


def convolution(
    layer: nn.Conv2d, x: Shaped[Tensor, "B C H W"], shift: Shaped[Tensor, "B D"] | None = None
) -> Shaped[Tensor, "B D H W"]:
    """A convolution that keeps the size, and a shift of every channel.

    Args:
        layer: convolution.
        x: its input.
        shift: number that is added to each channel; None for none.
    """
    if not is_swift(x):
        h = layer(x)
        return h if shift is None else h + shift.to(h.dtype)[:, :, None, None]
    bias = layer.bias
    if shift is not None:
        shift = shift.to(x.dtype)
    if shift is not None and len(x) == 1:
        bias, shift = shift[0] if bias is None else bias + shift[0], None
    pixels = x.shape[0] * x.shape[2] * x.shape[3]
    weight = layer.weight.permute(0, 2, 3, 1)
    if layer.kernel_size == (3, 3) and pixels <= _FEW_PIXELS and weight.is_contiguous():
        h = _as_product(x, weight, bias)
    else:
        h = F.conv2d(x, layer.weight, bias, padding=layer.padding)
    return h if shift is None else h.add_(shift[:, :, None, None])


def _as_product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A 3x3 convolution with padding 1 as a product of the patches of the image with the weights [D, 3, 3, C]."""
    b, c, height, width = x.shape
    rows = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))
    image, down, right, _ = rows.stride()
    patches = rows.as_strided((b, height, width, 3, 3, c), (image, down, right, down, right, 1))
    product = F.linear(patches.reshape(b * height * width, 9 * c), weight.reshape(-1, 9 * c), bias)
    return product.view(b, height, width, -1).permute(0, 3, 1, 2)


def modulated(
    norm: nn.GroupNorm, x: Shaped[Tensor, "B C H W"], scale: Shaped[Tensor, "B C"], shift: Shaped[Tensor, "B C"]
) -> Shaped[Tensor, "B C H W"]:
    """Computes `norm(x) (1 + scale) + shift`.

    Args:
        norm: normalization.
        x: its input.
        scale, shift: numbers of each channel.
    """
    if is_swift(x):
        # Of one image both are weights of the normalization, which it takes in fp32 beside an input in bf16: there is
        # one rounding instead of four, and less time for it than for the two operations.
        factor = 1 + scale.float()
        weight, bias = norm.weight.float() * factor, norm.bias.float() * factor + shift.float()
        each = [F.group_norm(x[i : i + 1], norm.num_groups, weight[i], bias[i], norm.eps) for i in range(len(x))]
        return each[0] if len(x) == 1 else torch.cat(each)
    scale, shift = (e.to(x.dtype)[:, :, None, None] for e in (scale, shift))
    return torch.addcmul(shift, norm(x), 1 + scale)


def add(h: Shaped[Tensor, "..."], x: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
    """The sum of two tensors of one shape, of which `h` is not used elsewhere: in place if no gradients are recorded.

    Args:
        h, x: the tensors.
    """
    return h + x if torch.is_grad_enabled() or h.dtype != x.dtype else h.add_(x)
