"""Description of a metric: the row of `unistep.metrics.table`."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from unistep.metrics.features.info import FeatureInfo, Kind

Better = Literal["lower", "higher"]
Needs = Literal["nothing", "moments", "vectors"]


@dataclass(frozen=True)
class Metric:
    """One number of the features of images.

    The functions are named by their place below `unistep.metrics`, as "frechet.compute": they import torch, and the
    table is read where only names are needed.

    Args:
        name: key of the number in reports, and the name by which it is asked for.
        title: name of the number in tables; the network's label is appended where `labelled`, as in FD-MNIST.
        text: description of one line.
        error: method by which its standard error is found, for the documentation.
        better: direction of improvement.
        compute: place of the function that takes `Inputs` and returns a `Measurement`.
        value: place of the function that takes vectors of the samples and `Features` of the reference and returns the
            number alone, for the search; empty takes the number of `compute`.
        kind: kind of features that it takes.
        needs: part of the reference that it needs; statistics hold moments, images give both.
        labelled: whether the title holds the label of the feature network.
        inception: title with Inception's features, where the literature has another; its lower-case form asks for it.
        group: name that asks for several metrics at once; empty where there is none.
        default: whether it is computed where no metrics are named.
        searchable: whether a search can optimise it.
        classes: whether it needs the class of each sample, and a network that classifies such images.
        least, most: bounds of the number.
    """

    name: str
    title: str
    text: str
    error: str
    better: Better
    compute: str
    value: str = ""
    kind: Kind = "pool"
    needs: Needs = "vectors"
    labelled: bool = False
    inception: str = ""
    group: str = ""
    default: bool = True
    searchable: bool = True
    classes: bool = False
    least: float = float("-inf")
    most: float = float("inf")

    @property
    def alias(self) -> str:
        """The name that asks for it with Inception's features alone, as fid; empty where there is none."""
        return self.inception.lower()

    def title_with(self, info: FeatureInfo) -> str:
        """The title with a network's features: FID for Inception's alone, FD-MNIST, KD-DINOv2 for others.

        A resize that is not the network's usual one is part of it.
        """
        if not self.labelled:
            return self.title
        usual: tuple[str, ...] = ("clean", "none")
        title = f"{self.title}-{info.label}"
        if info.name == "inception":
            title, usual = self.inception or self.title, ("legacy-tensorflow",)
        return title if info.resize in usual else f"{title} ({info.resize} resize)"


def function_at(place: str) -> Callable[..., Any]:
    """The function at a place below `unistep.metrics`, as "frechet.compute"."""
    module, _, name = place.rpartition(".")
    return getattr(importlib.import_module(f"unistep.metrics.{module}"), name)
