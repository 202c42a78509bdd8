"""The mean of the images of a batch that a noisy image may have come from."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def posterior_mean(
    x_t: Float[Tensor, "B C H W"],
    t: Float[Tensor, " B"],
    x: Float[Tensor, "B C H W"],
    class_labels: Int[Tensor, " B"] | None = None,
    pool: tuple[Float[Tensor, "N C H W"], Int[Tensor, " N"] | None] | None = None,
) -> Float[Tensor, "B C H W"]:
    """E[x | x_t] of each noisy image, if the images of its class in the pool were all there are; fp32.

    A network's gradient does not pass. At small t it is the image itself, for no other comes near x_t.

    Args:
        x_t: noisy images.
        t: their noise levels.
        x: clean images that they were made of.
        class_labels: their classes; None where there are none.
        pool: clean images, those of `x` among them, and their classes; None is `x`.
    """
    images, labels = (x, class_labels) if pool is None else pool
    # In float64 and by |a - b|^2 = |a|^2 - 2 a b + |b|^2: differences of large numbers, divided by t^2.
    a, b = x_t.double().flatten(1), images.double().flatten(1)
    squared = a.square().sum(1, keepdim=True) - 2 * a @ b.T + b.square().sum(1)
    logits = -squared / (2 * t.double()[:, None] ** 2)
    if class_labels is not None and labels is not None:
        logits = logits.masked_fill(class_labels[:, None] != labels[None, :], -torch.inf)
    return (logits.softmax(1) @ b).to(x.dtype).view_as(x)
