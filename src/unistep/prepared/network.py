"""A network whose trunk is computed by another runtime.

The embedding of noise level and class and the output head stay in PyTorch and in fp32, as in every precision: there a
rounding would show in the image, and they cost next to nothing.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from unistep.errors import UserError

Trunk = Callable[[Tensor, Tensor], tuple[Tensor, ...]]
"""A trunk, (x [B, C, H, W], emb [B, E]) -> features of the output heads [B, F, H, W]; all fp32, on the CPU."""


def has_parts(network: nn.Module) -> bool:
    """Whether a network consists of an embedding, a trunk and a head that can be called one by one."""
    return all(callable(getattr(network, name, None)) for name in ("embed", "trunk", "head", "cast_blocks"))


def ends_of(network: Any) -> dict[str, Tensor]:
    """Returns parameters and buffers that half precision leaves in fp32, by name; all outside the trunk are of them.

    Args:
        network: network for which `has_parts` holds, of any device, fp32.
    """
    state = network.state_dict(keep_vars=True)
    with torch.device("meta"):
        shapes = {name: torch.empty(tensor.shape) for name, tensor in state.items()}
    outline = copy.deepcopy(network, {id(tensor): nn.Parameter(shapes[name]) for name, tensor in state.items()})
    kept = outline.cast_blocks(torch.bfloat16).state_dict()
    return {name: tensor.detach() for name, tensor in state.items() if kept[name].dtype == torch.float32}


class TrunkAlone(nn.Module):
    """The trunk of a network as a module of two inputs, to be traced.

    Args:
        network: network for which `has_parts` holds.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network: Any = network

    def forward(self, x: Float[Tensor, "B C H W"], emb: Float[Tensor, "B E"]) -> tuple[Tensor, ...]:
        return self.network.trunk(x, emb)


class OtherTrunk(nn.Module):
    """A network of which another trunk is tried, beside its own.

    Args:
        network: network for which `has_parts` holds.
        trunk: the trunk.
    """

    def __init__(self, network: nn.Module, trunk: Trunk) -> None:
        super().__init__()
        self.network: Any = network
        self.trunk = trunk

    def forward(
        self,
        x: Float[Tensor, "B C H W"],
        c_noise: Float[Tensor, " B"],
        class_labels: Int[Tensor, " B"] | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "B D H W"]:
        return self.network.head(self.trunk(x.float(), self.network.embed(c_noise, class_labels).float()))


class PreparedNetwork(nn.Module):
    """A network with its trunk in another runtime; called as the network itself.

    Args:
        network: network for which `has_parts` holds, without weights (on the meta device).
        ends: its parameters and buffers outside the trunk, as `ends_of` returns them.
        trunk: its trunk.
        key: identity of the trunk, hexadecimal; part of the state, so that the images of a run are known to depend on
            it.
        runtime: name of the runtime.
        precision: precision of the trunk: fp32, bf16 or int8.
    """

    def __init__(
        self, network: nn.Module, ends: dict[str, Tensor], trunk: Trunk, key: str, runtime: str, precision: str
    ) -> None:
        super().__init__()
        network.load_state_dict(ends, strict=False, assign=True)
        for module in network.modules():
            for held in (module._parameters, module._buffers):
                for name, tensor in held.items():
                    if tensor is not None and tensor.is_meta:
                        held[name] = None  # its values are in the trunk
        self.network: Any = network
        self.config: Any = network.config
        self.runtime, self.precision = runtime, precision
        self._trunk = trunk
        self.register_buffer("key", torch.frombuffer(bytearray.fromhex(key), dtype=torch.uint8))

    def forward(
        self,
        x: Float[Tensor, "B C H W"],
        c_noise: Float[Tensor, " B"],
        class_labels: Int[Tensor, " B"] | None = None,
        *,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "B D H W"]:
        """Returns the network's output.

        Raises:
            UserError: images of another size than the trunk was prepared for.
            ValueError: labels are missing for a conditional network, or given to an unconditional one.
        """
        side = self.config.sample_size or 64
        if tuple(x.shape[2:]) != (side, side):
            raise UserError(
                f"images of {x.shape[3]}x{x.shape[2]} pixels: `runtime` {self.runtime} is prepared for {side}x{side}",
                "take `runtime` eager",
            )
        if (class_labels is None) == bool(self.config.num_class_embeds):
            raise ValueError("class_labels are for conditional networks, and these need them")
        emb = self.network.embed(c_noise, class_labels)
        return self.network.head(self._trunk(x.float(), emb.float()))
