"""Agreement of a classifier with the classes that samples were asked for.

Ravuri and Vinyals 2019, "Classification accuracy score for conditional generative models", train a classifier on the
samples; here, the other way round, one that was trained on real images judges the samples. A class-conditional model
that ignores its labels has 1 / classes, and real images have the accuracy of the classifier. It says nothing of
diversity: one good image of each class has 1.
"""

from jaxtyping import Float, Int64
from torch import Tensor

from unistep.errors import UserError
from unistep.metrics.estimate import Estimate, proportion
from unistep.metrics.measurement import Inputs, Measurement


def compute(inputs: Inputs) -> Measurement:
    """Returns the share of the samples whose most likely class is their own, and in the notes that of each class."""
    assert inputs.labels is not None  # the evaluation has looked
    probabilities = inputs.samples.all()
    estimate = agreement(probabilities, inputs.labels)
    correct = probabilities.argmax(dim=1) == inputs.labels.cpu()
    of_classes = {
        str(label): correct[inputs.labels.cpu() == label].double().mean().item()
        for label in inputs.labels.unique().tolist()
    }
    return Measurement(estimate, {"of_classes": of_classes})


def agreement(probabilities: Float[Tensor, "N K"], labels: Int64[Tensor, " M"]) -> Estimate:
    """Returns the share of samples whose most likely class is the one asked for.

    Args:
        probabilities: probabilities of the classes of each sample, or their logits.
        labels: class that each sample was asked for.

    Raises:
        UserError: there are no samples, or not as many labels.
    """
    if len(labels) != len(probabilities) or not len(labels):
        raise UserError(f"{len(probabilities)} samples have {len(labels)} labels; give one label a sample")
    return proportion(int((probabilities.argmax(dim=1).cpu() == labels.cpu()).sum()), len(labels))
