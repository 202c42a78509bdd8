"""The network of a pipeline, as diffusers calls it: `unet(x, t, class_labels=y).sample`.

A pipeline takes the networks of this package, which it shows as a `UNet2D`, and diffusers' `UNet2DModel`, which it
leaves as it is. Both may be compiled.
"""

import inspect
import os
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from unistep.errors import UserError
from unistep.networks.outline import fields_of
from unistep.networks.table import row_of
from unistep.pipelines.frozen import FrozenConfig
from unistep.pipelines.output import UNetOutput
from unistep.prepared.network import PreparedNetwork

_SHARED = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set")


class UNet2D(nn.Module):
    """A network of this package with the interface of diffusers' `UNet2DModel`; parameters and parts are the network's.

    Args:
        network: network of a row of `NETWORKS`.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        # The same dictionaries: either way of access sees what the other changes, and no weight has two names.
        self.__dict__.update({name: network.__dict__[name] for name in _SHARED}, network=network)
        self.training = network.training

    @property
    def config(self) -> FrozenConfig:
        """Architecture, as entries and as attributes."""
        config: Any = self.network.config
        return FrozenConfig(fields_of(config))

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return device_of(self)

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the blocks."""
        return dtype_of(self)

    def forward(
        self,
        sample: Float[Tensor, "B C H W"],
        timestep: Shaped[Tensor, "..."] | float,
        class_labels: Shaped[Tensor, " B"] | None = None,
        return_dict: bool = True,
        **package: Any,
    ) -> "UNetOutput | tuple[Tensor] | Tensor":
        """Returns the network's output.

        Args:
            sample: input of the network, c_in x.
            timestep: c_noise, for all images or one an image.
            class_labels: class of each image; None for an unconditional network.
            return_dict: whether a `UNetOutput` is returned; otherwise a tuple.
            package: arguments of this package's networks, as `generator`; with any of them a tensor is returned, so
                that a `UNet2D` stands wherever a network stands.
        """
        if package:
            return self.network(sample, timestep, class_labels, **package)
        t = timestep if isinstance(timestep, Tensor) else torch.tensor(timestep, dtype=torch.float64)
        c_noise = t.to(sample.device, torch.float32).expand(len(sample))
        labels = class_labels if class_labels is None else class_labels.to(sample.device)
        output = self.network(sample, c_noise, labels)
        return UNetOutput(output) if return_dict else (output,)

    def train(self, mode: bool = True) -> "UNet2D":
        """Sets the network, and not the parts alone, to training or to evaluation mode."""
        self.network.train(mode)
        return super().train(mode)

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """Returns the number of parameters.

        Args:
            only_trainable: leave those out that need no gradient.
            exclude_embeddings: leave tables of classes out.
        """
        tables = {id(m.weight) for m in self.modules() if isinstance(m, nn.Embedding) and exclude_embeddings}
        chosen = (p for p in self.parameters() if p.requires_grad or not only_trainable)
        return sum(p.numel() for p in chosen if id(p) not in tables)

    def enable_xformers_memory_efficient_attention(self, attention_op: object = None) -> None:
        """Does nothing: attention is PyTorch's, which is memory-efficient already.

        Raises:
            UserError: another operator is asked for.
        """
        if attention_op is not None:
            raise UserError("`attention_op` cannot be chosen: attention is PyTorch's own; leave it out")

    def disable_xformers_memory_efficient_attention(self) -> None:
        """Does nothing: attention is PyTorch's."""

    is_gradient_checkpointing = False

    def enable_gradient_checkpointing(self, gradient_checkpointing_func: object = None) -> None:
        """Refuses: these networks keep all activations for the backward pass.

        Raises:
            UserError: always.
        """
        raise UserError("gradient checkpointing is not supported; train with a smaller batch size, or accumulate")

    def disable_gradient_checkpointing(self) -> None:
        """Does nothing: there is no gradient checkpointing."""

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        is_main_process: bool = True,
        save_function: None = None,
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str | None = None,
        push_to_hub: bool = False,
    ) -> None:
        """Writes config.json and the weights, as the folder `unet` of a model has them.

        Args:
            save_directory: the folder.
            is_main_process: whether this process writes.
            save_function: must be None: the weights are safetensors.
            safe_serialization: must be True.
            variant: word for the weights' file name, as "fp16"; None for the plain name.
            max_shard_size: largest size of a file, in bytes or as "5GB"; the weights must fit.
            push_to_hub: must be False: the hub holds whole models.

        Raises:
            UserError: an option that cannot be honoured; the folder cannot be written.
        """
        from unistep.pipelines.saving import check_saving, save_network

        check_saving(self, safe_serialization, variant, max_shard_size)
        if save_function is not None or push_to_hub:
            name = "push_to_hub" if push_to_hub else "save_function"
            raise UserError(f"`{name}` is not supported for a network alone; save or push the pipeline")
        if is_main_process:
            save_network(self.network, save_directory, self.dtype, variant)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "network":  # not yet there while a copy is made
                raise
            return getattr(self.network, name)


def as_unet(unet: object) -> nn.Module:
    """Returns a network in the form in which a pipeline holds it.

    Args:
        unet: network of this package, diffusers' `UNet2DModel`, or any module with a `config` that is called like one
            of them; compiled ones too.

    Raises:
        UserError: it is none.
    """
    if not isinstance(unet, nn.Module):
        raise UserError(f"a {type(unet).__name__} is no network; give a network of this package or a UNet2DModel")
    inner = unwrapped(unet)
    if not all(hasattr(getattr(inner, "config", None), name) for name in ("sample_size", "in_channels")):
        raise UserError(f"a {type(inner).__name__} has no `config` with the size of its images; give a UNet2DModel")
    return UNet2D(unet) if unet is inner and row_of(unet) is not None else unet


def unwrapped(unet: nn.Module) -> nn.Module:
    """Returns the module that was compiled, or made parallel; any other as it is."""
    while True:
        if isinstance(inner := getattr(unet, "_orig_mod", None), nn.Module):
            unet = inner
        elif isinstance(unet, nn.DataParallel | nn.parallel.DistributedDataParallel):
            unet = unet.module
        else:
            return unet


def run(unet: nn.Module, x: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
    """Returns the output of a network for one step.

    Args:
        unet: network, as `as_unet` returns it.
        x: input [B, C, H, W].
        t: entry of the scheduler's `timesteps`.
        labels: class of each image, or None.
    """
    inner = unwrapped(unet)
    if isinstance(inner, UNet2D) or "return_dict" in inspect.signature(inner.forward).parameters:
        if not isinstance(inner, UNet2D):
            x = x.to(dtype_of(inner))  # ours have parts of several precisions, and convert by themselves
        return unet(x, t, labels, return_dict=False)[0]
    return unet(x, t.float().expand(len(x)), labels)


def shape_of(unet: nn.Module) -> tuple[int, int, int]:
    """Returns channels, height and width of the images.

    Raises:
        UserError: they are not square.
    """
    config: Any = unwrapped(unet).config
    size = config.sample_size or 64
    if isinstance(size, list | tuple):
        if len(set(size)) != 1:
            raise UserError(f"`sample_size` {list(size)} is not square; consistency models are")
        size = size[0]
    return config.in_channels, size, size


def classes_of(unet: nn.Module) -> int | None:
    """Returns the number of classes; None for an unconditional network."""
    config: Any = unwrapped(unet).config
    return getattr(config, "num_class_embeds", None)


def device_of(unet: nn.Module) -> torch.device:
    """Returns the device of a network's weights."""
    return next((p.device for p in unet.parameters()), torch.device("cpu"))


def dtype_of(unet: nn.Module) -> torch.dtype:
    """Returns the precision of a network's blocks: the lowest of its weights."""
    if isinstance(unet, PreparedNetwork) and unet.precision == "bf16":
        return torch.bfloat16  # its weights here are those of embedding and output head
    found = (p.dtype for p in unet.parameters() if p.is_floating_point())
    return min(found, key=lambda d: torch.finfo(d).bits, default=torch.float32)


def is_of_diffusers(unet: nn.Module) -> bool:
    """Returns whether a module is diffusers' `UNet2DModel`."""
    kind = type(unet)
    return kind.__name__ == "UNet2DModel" and kind.__module__.partition(".")[0] == "diffusers"


def own_network(unet: nn.Module) -> nn.Module:
    """Returns a network of this package with the weights of a pipeline's, which are shared and not copied.

    Raises:
        UserError: there is none that computes the same.
    """
    from unistep.formats.model_folder.network import network_of

    inner = unwrapped(unet)
    if isinstance(inner, UNet2D):
        return inner.network
    if not is_of_diffusers(inner):
        return inner
    config: Any = inner.config
    raw = {k: list(v) if isinstance(v, tuple) else v for k, v in dict(config).items() if not k.startswith("_")}
    network = network_of(raw | {"_class_name": "UNet2DModel"}, Path("the config of `unet`"))
    try:
        network.load_state_dict(inner.state_dict(), assign=True)
    except RuntimeError:
        raise UserError("`unet` has other weights than its config describes, as adapters do; remove those") from None
    return network.train(inner.training).requires_grad_(False)


def class_of(value: object) -> tuple[str, str]:
    """Returns library and class of a part of a pipeline, as model_index.json has them."""
    if isinstance(value, nn.Module):
        inner = unwrapped(value)
        row = row_of(inner.network if isinstance(inner, UNet2D) else inner)
        if row is not None:
            return ("diffusers" if row.of_diffusers else "unistep"), row.class_name
        value = inner
    library = type(value).__module__.partition(".")[0]
    return ("diffusers" if library == "unistep" else library), type(value).__name__
