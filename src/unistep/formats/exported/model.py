"""Exported programs as models: a denoiser over another runtime, in place of a network with its scalings."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from unistep.core.parameterization import Preconditioned
from unistep.engines.engine import Engine, EngineDenoiser
from unistep.errors import UserError
from unistep.formats.exported.description import Description
from unistep.formats.exported.digest import digest_of
from unistep.formats.model import LoadedModel, scaling_of

_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "int8": torch.int8}


@dataclass(frozen=True)
class ExportedConfig:
    """The facts about the network of an exported program that are left; a `NetworkConfig`.

    Args:
        sample_size: side of the image in pixels.
        in_channels, out_channels: channels of the image.
        num_class_embeds: number of classes with the null class; None is unconditional.
    """

    sample_size: int | None
    in_channels: int
    out_channels: int
    num_class_embeds: int | None


class ExportedNetwork(nn.Module):
    """The network within an exported program: it cannot be called by itself, and its weights cannot be seen.

    Args:
        config: size of the images and number of classes.
        num_parameters: number of parameters.
        digest: digest of the file, hexadecimal; part of the state, so that images are known to depend on it.
    """

    def __init__(self, config: ExportedConfig, num_parameters: int, digest: str = "") -> None:
        super().__init__()
        self.config, self.num_parameters = config, num_parameters
        self.register_buffer("digest", torch.tensor(list(bytes.fromhex(digest)), dtype=torch.uint8))

    def cast_blocks(self, dtype: torch.dtype) -> "ExportedNetwork":
        """Does nothing: the program has its precision."""
        return self


class ExportedDenoiser(Preconditioned):
    """An exported program as a `Denoiser`.

    Args:
        engine: program (x_t, sigma, class_labels) -> x0, or that of a flow map; None for a model that is only looked
            at.
        description: description of the model.
        digest: digest of the file; empty for a model that is only looked at.
    """

    def __init__(self, engine: Engine | None, description: Description, digest: str = "") -> None:
        info = description.info
        embeds = description.classes + (info.null_label is not None)
        channels, size, _ = description.shape
        config = ExportedConfig(size, channels, channels, embeds or None)
        scaling = scaling_of(info)
        further: dict[str, Any] = {"flow_map": info.flow_map, "guidance": info.guidance_scale}
        super().__init__(ExportedNetwork(config, description.parameters, digest), scaling, **further)
        self.config = config
        self.run = None if engine is None else EngineDenoiser(engine, scaling, _DTYPES[description.dtype], **further)

    @property
    def device(self) -> torch.device:
        """Device of its inputs and outputs."""
        return torch.device("meta") if self.run is None else self.run.device

    def forward(
        self,
        x_t: Float[Tensor, "B C H W"],
        sigma: Float[Tensor, " B"],
        class_labels: Int[Tensor, " B"] | None = None,
        sigma_end: Float[Tensor, " B"] | None = None,
        *,
        generator: torch.Generator | None = None,
        augment_labels: Float[Tensor, "B A"] | None = None,
        guidance: Float[Tensor, " B"] | None = None,
    ) -> Float[Tensor, "B C H W"]:
        """Returns clean images; the arguments are those of `Preconditioned`, without a generator and augmentation.

        Raises:
            ValueError: labels missing for a conditional model, or given to an unconditional one; an end or a scale for
                a model without this input.
        """
        if self.run is None:
            raise RuntimeError("a model on the device meta computes nothing")
        if (class_labels is None) == bool(self.config.num_class_embeds):
            raise ValueError("this network " + ("needs class_labels" if class_labels is None else "is unconditional"))
        return self.run(x_t, sigma, class_labels, sigma_end, guidance=guidance)


def exported_model(
    description: Description,
    open_engine: Callable[[], Engine],
    path: Path,
    title: str,
    device: torch.device | str,
    weights: Sequence[Path] = (),
) -> LoadedModel:
    """Returns the model of an exported file.

    Args:
        description: description in the file.
        open_engine: opener of the program; it is not called for the device "meta".
        path: the file.
        title: title of its format.
        device: device of the model.
        weights: files with its weights, beside `path`.

    Raises:
        UserError: the program is no denoiser, is damaged, or cannot be opened.
    """
    if description.program != "denoiser":
        raise UserError(
            f"{path} holds a program that {'samples' if description.program == 'sampler' else 'edits'} by a fixed "
            "schedule, which its runtime computes",
            "to open a model here, export its denoiser",
        )
    if torch.device(device).type == "meta":
        denoiser = ExportedDenoiser(None, description).eval()
    else:
        digest = digest_of(path, weights, description.digest)
        denoiser = ExportedDenoiser(open_engine(), description, digest).eval()
    return LoadedModel(denoiser, description.info, denoiser.config, path, title, _DTYPES[description.dtype])


def is_exported(model: LoadedModel) -> bool:
    """Returns whether a model is an exported program."""
    return isinstance(model.denoiser, ExportedDenoiser)


def check_weights(model: LoadedModel) -> None:
    """Passes where a model's weights can be taken.

    Raises:
        UserError: it is an exported program.
    """
    if is_exported(model):
        raise UserError(
            f"{model.path} is an exported program, whose weights cannot be taken out",
            "give the model that it was exported from",
        )
