"""EfficientNet-Lite0 against the peer that reads the same files."""

import pytest
import torch
from efficientnet_lite_pytorch import EfficientNet
from torch import Tensor, nn

from unistep.networks.efficientnet_lite import SIZE, EfficientNetLite0


@pytest.fixture(scope="module")
def peer() -> nn.Module:
    """Random weights, and statistics of the normalisations that matter."""
    network = EfficientNet.from_name("efficientnet-lite0").eval().requires_grad_(False)
    random = torch.Generator().manual_seed(0)
    for name, tensor in network.state_dict().items():
        if tensor.ndim > 1:  # about the gain that keeps the features' size
            tensor.copy_(torch.randn(tensor.shape, generator=random) * (2 / tensor[0].numel()) ** 0.5)
        elif name.endswith(("_var", "_bn0.weight", "_bn1.weight", "_bn2.weight")):
            tensor.copy_(0.5 + torch.rand(tensor.shape, generator=random))
        elif tensor.is_floating_point():
            tensor.copy_(torch.randn(tensor.shape, generator=random) * 0.2)
    return network


@pytest.fixture(scope="module")
def network(peer: nn.Module) -> EfficientNetLite0:
    network = EfficientNetLite0().eval().requires_grad_(False)
    network.load_state_dict(peer.state_dict())  # strict: every name and shape is the published one
    return network


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


def test_features_and_logits_are_the_peers(peer: nn.Module, network: EfficientNetLite0, images: Tensor):
    expected = peer.extract_features(images).mean((2, 3))
    features = network.features(images)
    assert 0.1 < expected.std() and expected.shape == (2, 1280)
    torch.testing.assert_close(features, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(network.logits(features), peer(images), rtol=1e-4, atol=1e-4)
    assert torch.equal(network(images), network.logits(features))


def test_folding_changes_nothing_but_the_number_of_layers(network: EfficientNetLite0, images: Tensor):
    folded = network.folded()
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert sum(isinstance(module, nn.BatchNorm2d) for module in network.modules()) == 49  # the original keeps them
    torch.testing.assert_close(folded.features(images), network.features(images), rtol=1e-4, atol=1e-4)
