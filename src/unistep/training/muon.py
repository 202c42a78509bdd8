"""Muon: weights of layers are moved by matrices whose singular values are nearly alike (Jordan et al. 2024).

A gradient's average has few large singular values and many small ones, so that most directions of a layer hardly move.
Muon moves along the semi-orthogonal matrix nearest to it, for each weight W of m rows and n columns:

    M <- M + (1 - beta_1) (G - M)                       average of the gradient G
    U  = G + beta_1 (M - G)                             Nesterov's look ahead
    W <- (1 - lr weight_decay) W - 0.2 lr sqrt(max(m, n)) orthogonal(U)

The factor gives a step the root mean square that AdamW's have (Liu et al. 2025, arXiv 2502.16982, eq. 4), so that both
take the same learning rates. A kernel of a convolution is a matrix with a row for each channel of its output.

Gains, biases, and matrices of fewer than 32 rows or columns, as those to and from the channels of an image and of few
classes, are moved by AdamW.
"""

import math
from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from unistep.training.precision import pick_precision

SMALLEST_SIDE = 32
"""Rows and columns that a matrix has at least to be moved by Muon."""

# Jordan's coefficients of the Newton-Schulz iteration: singular values in (0, 1] come to between 0.7 and 1.2 in 5.
_A, _B, _C = 3.4445, -4.7750, 2.0315
_ITERATIONS = 5


def orthogonal(matrices: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """The nearest semi-orthogonal matrices, approximately: singular values of 0.7 to 1.2.

    Args:
        matrices: matrices, shape (number, rows, columns).
        dtype: precision of the products; bf16 is enough, and a third of the time where the machine multiplies it fast.

    Returns:
        Matrices of that shape and precision.
    """
    x = matrices.to(dtype)
    upright = x.shape[-2] > x.shape[-1]
    x = x.mT if upright else x
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=_B, alpha=_C), x, beta=_A)
    return x.mT if upright else x


class Muon(torch.optim.Optimizer):
    """Muon for matrices, AdamW for the rest; weights may be parted among processes (DTensors).

    Args:
        parameters: parameters, or groups of them.
        lr: learning rate.
        betas: decay rates of the averages of the gradient and, of what AdamW moves, of its square.
        eps: number added to the root of the average square.
        weight_decay: decoupled weight decay.

    Source: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
    ) -> None:
        super().__init__(parameters, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """Moves the parameters that have a gradient.

        Args:
            closure: None; the trainer has the gradients already.
        """
        for group in self.param_groups:
            moved = [p for p in group["params"] if p.grad is not None]
            by_shape: dict[tuple[int, int], list[Tensor]] = {}
            for p in moved:
                if is_matrix(p):
                    by_shape.setdefault(_sides(p), []).append(p)
            for shape, matrices in by_shape.items():
                self._move_matrices(matrices, shape, group)
            self._move_rest([p for p in moved if not is_matrix(p)], group)

    def _move_matrices(self, matrices: list[Tensor], shape: tuple[int, int], group: dict[str, Any]) -> None:
        """Moves matrices of one shape, whose iterations are batched products."""
        beta, lr = group["betas"][0], group["lr"]
        ahead = []
        for p in matrices:
            if not self.state[p]:
                self.state[p]["exp_avg"] = torch.zeros_like(p)
            average = self.state[p]["exp_avg"]
            average.lerp_(p.grad, 1 - beta)
            ahead.append(torch.lerp(cast(Tensor, p.grad), average, beta))
        fast = pick_precision("auto", ahead[0].device) == "bf16"
        whole = torch.stack([_whole(u).reshape(shape) for u in ahead])
        directions = orthogonal(whole, torch.bfloat16 if fast else torch.float32)
        size = -0.2 * lr * math.sqrt(max(shape))
        for p, direction in zip(matrices, directions, strict=True):
            p.mul_(1 - lr * group["weight_decay"]).add_(_part(direction.to(p.dtype).reshape(p.shape), p), alpha=size)

    def _move_rest(self, rest: list[Tensor], group: dict[str, Any]) -> None:
        """Moves what is no matrix as AdamW does."""
        if not rest:
            return
        for p in rest:
            if not self.state[p]:
                self.state[p] |= {"step": torch.zeros(()), "exp_avg": torch.zeros_like(p)}
                self.state[p]["exp_avg_sq"] = torch.zeros_like(p)
        of = {name: [self.state[p][name] for p in rest] for name in ("exp_avg", "exp_avg_sq", "step")}
        (beta1, beta2), given = group["betas"], {name: group[name] for name in ("lr", "eps", "weight_decay")}
        adamw(
            rest,
            [p.grad for p in rest if p.grad is not None],
            of["exp_avg"],
            of["exp_avg_sq"],
            [],
            of["step"],
            foreach=True,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            maximize=False,
            **given,
        )


def is_matrix(parameter: Tensor) -> bool:
    """Whether Muon moves a parameter: one of at least two axes and `SMALLEST_SIDE` rows and columns."""
    return parameter.ndim >= 2 and min(_sides(parameter)) >= SMALLEST_SIDE


def flops_of(parameter: Tensor) -> int:
    """FLOPs of the iterations for a matrix: of r <= c rows and columns 10 r^2 (2 c + r)."""
    few, many = sorted(_sides(parameter))
    return 2 * _ITERATIONS * few**2 * (2 * many + few)


def _sides(parameter: Tensor) -> tuple[int, int]:
    """Rows and columns of a parameter as a matrix."""
    return parameter.shape[0], math.prod(parameter.shape[1:])


def _whole(value: Tensor) -> Tensor:
    """A tensor put together of the parts that the processes have."""
    full: Any = getattr(value, "full_tensor", None)
    return value if full is None else full()


def _part(value: Tensor, like: Tensor) -> Tensor:
    """The part of a whole tensor that this process holds of `like`."""
    if not hasattr(like, "full_tensor"):
        return value
    from torch.distributed.tensor import distribute_tensor  # takes a second to import, for those who share networks

    # Every process has the whole tensor, and takes its part: none sends anything.
    parted: Any = like
    return distribute_tensor(value, parted.device_mesh, parted.placements, src_data_rank=None)
