"""Values that are not finite: NaN and infinity, of which no image may be made.

Half precision overflows beyond 65504, damaged weights and a diverged training give NaN; clamping to [-1, 1] turns an
infinite value into black or white, and the conversion to pixels NaN into black. So every output of a network is watched
on its way, and the values of pixels are checked (`unistep.core.pixels`).
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from unistep.core.denoiser import Denoiser, round_sigma
from unistep.errors import UserError

_NAMES = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32", torch.float64: "fp64"}
_HIGHER = 'give `dtype="fp32"`, or `dtype="bf16"`'
_DAMAGED = "its weights are damaged, or their training diverged: take another copy, or an earlier checkpoint"


class NotFiniteError(UserError):
    """Values that are not finite in the place of an image; made by `not_finite`."""


def not_finite(dtype: torch.dtype | None = None, source: str = "the network") -> NotFiniteError:
    """Returns the error of values that are not finite, with the remedy for a precision.

    Args:
        dtype: precision that the network computed in; None where it is not known.
        source: origin of the values, in words.
    """
    precision = "" if dtype is None else f" in {_NAMES.get(dtype, dtype)}"
    remedy = {torch.float16: _HIGHER, None: f"in fp16 {_HIGHER}; else {_DAMAGED}"}.get(dtype, _DAMAGED)
    return NotFiniteError(
        f"{source} gave values that are not finite (NaN or inf){precision}, which are no image", remedy
    )


def check_finite(x: Float[Tensor, "..."], source: str = "the network") -> None:
    """Passes where all values are finite.

    Args:
        x: values.
        source: origin of the values, in words.

    Raises:
        NotFiniteError: one of them is not.
    """
    if not bool(x.isfinite().all()):
        raise not_finite(source=source)


class FiniteWatch:
    """A record of whether all tensors so far were finite. Noting one does not wait for its device; asking does."""

    def __init__(self) -> None:
        self._finite: Bool[Tensor, ""] | None = None

    def note(self, x: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Returns a tensor as it is, and takes note of its values."""
        finite = x.detach().isfinite().all()
        self._finite = finite if self._finite is None else self._finite & finite
        return x

    def finite(self) -> bool:
        """Returns whether all values noted since the last call were finite."""
        finite, self._finite = self._finite, None
        return finite is None or bool(finite)


class Watched:
    """A denoiser whose outputs are noted by a `FiniteWatch`.

    Args:
        denoiser: denoiser or consistency function.
        source: origin of its outputs in messages.
    """

    def __init__(self, denoiser: Denoiser, source: str = "the network") -> None:
        self.denoiser, self.source = denoiser, source
        self._watch = FiniteWatch()

    def __call__(
        self,
        x_t: Float[Tensor, "B C H W"],
        sigma: Float[Tensor, " B"],
        class_labels: Int[Tensor, " B"] | None = None,
        /,
        *further: Float[Tensor, " B"],
        **inputs: Float[Tensor, " B"],
    ) -> Float[Tensor, "B C H W"]:
        return self._watch.note(self.denoiser(x_t, sigma, class_labels, *further, **inputs))

    def round_sigma(self, sigma: float) -> float:
        """Returns the level nearest to `sigma` that the denoiser has."""
        return round_sigma(self.denoiser, sigma)

    def check(self) -> None:
        """Passes where all outputs since the last check were finite.

        Raises:
            NotFiniteError: one of them was not.
        """
        if not self._watch.finite():
            raise not_finite(precision_of(self.denoiser), self.source)


def precision_of(denoiser: object) -> torch.dtype | None:
    """Returns the lowest precision that a denoiser computes in; None where it has no weights that can be seen."""
    while not isinstance(denoiser, nn.Module):
        denoiser = getattr(denoiser, "denoiser", None)
        if denoiser is None:
            return None
    parameters = [p for p in denoiser.parameters() if p.is_floating_point()]
    if not parameters:
        return None
    kind = parameters[0].device.type
    if torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return min((p.dtype for p in parameters), key=lambda dtype: torch.finfo(dtype).bits)
