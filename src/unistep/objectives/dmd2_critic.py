"""The critic of distribution matching: a denoiser of the student's samples, with a discriminator on its features."""

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from unistep.core.denoiser import Denoiser
from unistep.core.parameterization import Preconditioned
from unistep.samplers.guidance import Guided


class FakeScore(nn.Module):
    """A denoiser, and the logit of a discriminator on the coarsest features of its network.

    The head of the discriminator is linear in the mean of the normalized features, and begins at 0.

    Args:
        denoiser: diffusion model that is trained; it stays in eval mode, so that it draws no dropout masks.
        channels: channels of the coarsest features of its network; None is no discriminator.
    """

    def __init__(self, denoiser: nn.Module, channels: int | None = None) -> None:
        super().__init__()
        self.denoiser = denoiser.eval().requires_grad_(True)
        self.head = None if channels is None else nn.Linear(channels, 1)
        if self.head is not None:
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)

    def forward(
        self, x_t: Float[Tensor, "B C H W"], sigma: Float[Tensor, " B"], class_labels: Int[Tensor, " B"] | None = None
    ) -> tuple[Float[Tensor, "B C H W"], Float[Tensor, " B"] | None]:
        """Clean images, and the logit of each noisy image being one of the data.

        Args:
            x_t: noisy images.
            sigma: their noise levels.
            class_labels: their classes.
        """
        if self.head is None:
            return self.denoiser(x_t, sigma, class_labels), None
        denoised, features = evaluated(self.denoiser, x_t, sigma, class_labels)
        precise = torch.promote_types(features.dtype, torch.float32)
        means = nn.functional.group_norm(features.to(precise), 1).mean((2, 3))
        # No view: FSDP2 follows the gradient of what a network returns.
        return denoised, self.head(means)[:, 0].to(precise).clone()


def fake_score(teacher: Denoiser, shape: tuple[int, ...] | None) -> FakeScore:
    """The critic that begins as the teacher.

    Args:
        teacher: diffusion model; of one with guidance, the model itself.
        shape: channels, height and width of the images where there is a discriminator; None is none.

    Raises:
        ValueError: the teacher has no weights, or its network no middle block to take features from.
    """
    own = teacher.denoiser if isinstance(teacher, Guided) else teacher
    if not isinstance(own, nn.Module):
        raise ValueError("distribution matching needs a network as teacher: its critic begins as a copy of it")
    denoiser = copy.deepcopy(_plain(own))
    if shape is None:
        return FakeScore(denoiser)
    some = next(denoiser.parameters())
    x, sigma, label = some.new_zeros(1, *shape), some.new_ones(1), some.new_zeros(1, dtype=torch.int64)
    classes: Any = getattr(getattr(denoiser.network, "config", None), "num_class_embeds", None)
    with torch.no_grad():
        _, features = evaluated(denoiser.eval(), x, sigma, label if classes else None)
    return FakeScore(denoiser, features.shape[1]).to(some.device)


def evaluated(
    denoiser: nn.Module, x_t: Tensor, sigma: Tensor, class_labels: Tensor | None
) -> tuple[Float[Tensor, "B C H W"], Float[Tensor, "B F h w"]]:
    """Clean images and the coarsest features of the network that made them.

    Args:
        denoiser: `Preconditioned` network.
        x_t: noisy images.
        sigma: their noise levels.
        class_labels: their classes.

    Raises:
        ValueError: the network has no middle block.
    """
    found: list[Tensor] = []
    handle = _middle(denoiser).register_forward_hook(lambda *call: found.append(call[-1]))
    try:
        return denoiser(x_t, sigma, class_labels), found[0]
    finally:
        handle.remove()


@contextlib.contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    """While entered, evaluations of a network give its parameters no gradient, and its inputs theirs.

    Args:
        network: network that is trained.
    """
    parameters = [p for p in network.parameters() if p.requires_grad]
    for p in parameters:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in parameters:
            p.requires_grad_(True)


def _plain(denoiser: nn.Module) -> nn.Module:
    """The denoiser with its network as it was before `torch.compile`, whose weights have other names."""
    network = getattr(denoiser, "network", None)
    plain = getattr(network, "_orig_mod", None)
    if plain is None or not isinstance(denoiser, Preconditioned):
        return denoiser
    return Preconditioned(plain, denoiser.scaling)


def _middle(denoiser: nn.Module) -> nn.Module:
    """The part of a network that works at the lowest resolution: the middle block, or the first of the decoder."""
    network: Any = getattr(denoiser, "network", denoiser)
    network = getattr(network, "unet", network)
    if (middle := getattr(network, "mid_block", None)) is not None:
        return middle
    if isinstance(decoder := getattr(network, "dec", None), nn.ModuleDict):
        return next(iter(decoder.values()))
    raise ValueError(f"{type(network).__name__} has no middle block to take features from; set `gan` to 0")
