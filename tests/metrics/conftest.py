"""A feature network that can be known by heart, and counts what it is asked."""

from collections.abc import Collection

import pytest
import torch
from torch import Tensor

from unistep.metrics.features.info import FeatureInfo, Kind


class Linear:
    """Random projections of the pixels: every kind of features, in float32; the batches it saw are in `seen`."""

    def __init__(self, pixels: int, dims: dict[Kind, int] | None = None, digest: str = "linear") -> None:
        dims = dims or {"pool": 6, "spatial": 5, "probabilities": 4}
        random = torch.Generator().manual_seed(5)
        self.weights = {kind: torch.randn(pixels, dim, generator=random) for kind, dim in dims.items()}
        self.info = FeatureInfo("linear", "Linear", digest, "none", dims)
        self.seen: list[int] = []

    def __call__(self, images: Tensor, kinds: Collection[Kind]) -> dict[Kind, Tensor]:
        self.seen.append(len(images))
        x = images.flatten(1).float() / 255
        found = {kind: x @ self.weights[kind] / x.shape[1] ** 0.5 for kind in kinds}
        if "probabilities" in found:
            found["probabilities"] = found["probabilities"].softmax(dim=1)
        return found


@pytest.fixture
def linear() -> Linear:
    """Of 1x8x8 images."""
    return Linear(64)


@pytest.fixture(scope="session")
def pictures():
    """pictures(n, seed, dark): n uint8 images [n, 1, 8, 8]."""

    def make(count: int, seed: int = 0, dark: float = 1.0) -> Tensor:
        random = torch.Generator().manual_seed(seed)
        return (torch.rand(count, 1, 8, 8, generator=random) * 256 * dark).to(torch.uint8)

    return make
