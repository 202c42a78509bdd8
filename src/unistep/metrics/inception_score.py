"""Inception score: high where each sample is clearly of one class, and all classes are drawn alike.

Salimans et al. 2016, "Improved techniques for training GANs", section 4: exp(E_x KL(p(y|x) || p(y))), with p(y) the
mean of p(y|x) over the samples. It is 1 for a classifier that gives every image the same probabilities, and at most the
number of classes. The published figures are means over parts of the samples.

The standard error is by the delta method. The logarithm L = E_x[sum_y p log p] - sum_y m log m, with m = E_x[p], has
the influence function KL(p(y|x) || m) - L, for the derivative of -m log m is -(log m + 1) and both p and m sum to 1. So
a part of n samples has the standard error exp(L) std(KL) / sqrt(n), and the mean over independent parts the root of the
sum of their squares, divided by the number of parts. Unlike the scatter of the parts it serves for a single part too.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from unistep.errors import UserError
from unistep.metrics.estimate import Estimate
from unistep.metrics.measurement import Inputs, Measurement


def compute(inputs: Inputs) -> Measurement:
    """Returns the score of the samples."""
    score = inception_score(inputs.samples.all())
    return Measurement(score.estimate, {"std_of_parts": score.std})


@dataclass(frozen=True)
class InceptionScore:
    """The score of samples in parts.

    Args:
        mean: mean over the parts.
        std: standard deviation over the parts, with their number as divisor.
        standard_error: standard error of the mean, over draws of the samples.
    """

    mean: float
    std: float
    standard_error: float

    @property
    def estimate(self) -> Estimate:
        """The mean with its standard error."""
        return Estimate(self.mean, self.standard_error)


def inception_score(probabilities: Float[Tensor, "N K"], split_size: int = 5000) -> InceptionScore:
    """Returns the score of class probabilities in consecutive parts.

    A last part that is smaller counts as much as the others, as in the ADM evaluator.

    Args:
        probabilities: probabilities of the classes of each sample; rows sum to 1.
        split_size: number of samples a part.

    Raises:
        UserError: there are no samples, or the rows are not probabilities.
    """
    if len(probabilities) == 0 or split_size < 1:
        raise UserError(
            f"the inception score needs samples and a positive split size, got {len(probabilities)} and {split_size}"
        )
    p = probabilities.to("cpu", torch.float64)
    if not ((p >= 0).all() and torch.allclose(p.sum(dim=1), torch.ones(len(p), dtype=p.dtype), atol=1e-3)):
        raise UserError("the inception score needs rows of probabilities that sum to 1; apply a softmax to the logits")
    scores, errors = [], []
    for part in p.split(split_size):
        marginal = part.mean(dim=0)
        # xlogy is 0 at p = 0, the limit; a class of marginal 0 has p = 0 throughout.
        divergence = (torch.xlogy(part, part) - torch.xlogy(part, marginal)).sum(dim=1)
        scores.append(divergence.mean().exp())
        errors.append(scores[-1] * divergence.std(correction=0) / len(part) ** 0.5)
    values = torch.stack(scores)
    error = torch.stack(errors).square().sum().sqrt() / len(errors)
    return InceptionScore(values.mean().item(), values.std(correction=0).item(), error.item())
