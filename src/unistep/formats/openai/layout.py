"""The tensors of OpenAI's ADM U-Net (`cm/unet.py`) by their names there, to and from those of `UNet`.

The tensors there (`cm/unet.py` of openai/consistency_models, state dicts only; n counts from 0):

    time_embed.0/2, label_emb                 time and class embeddings
    input_blocks.0.0                          first convolution
    input_blocks.n.0, .n.1                    a residual block, and its attention where the resolution attends
    input_blocks.n.0                          or, after the blocks of a resolution, the step down: a residual block,
                                              or a convolution `op`
    middle_block.0/1/2                        residual block, attention, residual block
    output_blocks.n.0, .n.1                   as in input_blocks; one residual block more a resolution
    output_blocks.n.1 or .n.2                 the step up, beside the last block of a resolution: a residual block,
                                              or a convolution `conv`
    out.0/2                                   last norm and convolution

    residual block   in_layers.0/2 norm, conv; emb_layers.1 embedding; out_layers.0/3 norm, conv; skip_connection
    attention        norm; qkv, a 1x1 convolution whose output channels are (three, heads, channels); proj_out

The architecture is read off the tensors, except for three facts that leave no trace in them: the channels of an
attention head, the size of the images and the dropout.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from unistep.errors import UserError
from unistep.formats.empty import without_weights
from unistep.networks.adm import UNet
from unistep.networks.adm_config import HeadsUNetConfig, UNetConfig

MARKS = (
    "input_blocks.0.0.weight",
    "time_embed.0.weight",
    "middle_block.0.in_layers.2.weight",
    "output_blocks.0.0.in_layers.2.weight",
    "out.2.weight",
)
"""Tensors that every network of this layout has."""

# What the published code fixes: `GroupNorm32(32, channels)`, with the default epsilon of torch.
_GROUPS = 32
_EPS = 1e-5

_RES_BLOCK = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}


def openai_config(
    state: Mapping[str, Tensor],
    attention_head_dim: int | None = 64,
    *,
    num_heads: int | None = None,
    sample_size: int | None = None,
) -> UNetConfig:
    """The architecture that a state dict in OpenAI's layout belongs to.

    Args:
        state: tensors by name.
        attention_head_dim: channels of an attention head.
        num_heads: number of attention heads at every resolution, where `attention_head_dim` is None.
        sample_size: side of the images in pixels; None leaves it open.

    Raises:
        UserError: not such a state dict, or of a variant that `UNet` has no counterpart of; names the tensor.
    """
    ups = _up_steps(state)
    blocks = _count(state, "output_blocks.{}.0.in_layers.2.weight")
    depth = len(ups) + 1
    per_level, rest = divmod(blocks, depth)
    if rest or per_level < 2 or list(ups) != [per_level * (i + 1) - 1 for i in range(depth - 1)]:
        raise UserError(
            f"output_blocks has {blocks} blocks and steps up after those of index {list(ups)}; "
            "only resolutions with equally many blocks are supported"
        )
    layers = per_level - 1

    # Finest resolution first; output_blocks begins with the coarsest.
    outputs = [per_level * (depth - 1 - i) for i in range(depth)]
    inputs = [1 + per_level * i for i in range(depth)]
    widths = [_shape(state, f"output_blocks.{n}.0.in_layers.2.weight")[0] for n in outputs]
    up_attends = [f"output_blocks.{n}.1.qkv.weight" in state for n in outputs]
    down_attends = [f"input_blocks.{n}.1.qkv.weight" in state for n in inputs]
    up_type = "resnet" if depth > 1 and "resnet" in ups.values() else "conv"
    down_type = "resnet" if depth > 1 and f"input_blocks.{per_level}.0.op.weight" not in state else "conv"
    down_block = "ResnetDownsampleBlock2D" if down_type == "resnet" else "DownBlock2D"
    up_block = "ResnetUpsampleBlock2D" if up_type == "resnet" else "UpBlock2D"

    attending = {width for width, attends in zip(widths, down_attends, strict=True) if attends} | {widths[-1]}
    if (
        num_heads and num_heads > 0 and len(attending) == 1 and widths[-1] % num_heads == 0
    ):  # in the field that diffusers has
        attention_head_dim, num_heads = widths[-1] // num_heads, None
    embedding = _shape(state, "input_blocks.1.0.emb_layers.1.weight")[0]
    classes = _shape(state, "label_emb.weight")[0] if "label_emb.weight" in state else None
    try:
        return (UNetConfig if num_heads is None else partial(HeadsUNetConfig, num_heads=num_heads))(
            sample_size=sample_size,
            in_channels=_shape(state, "input_blocks.0.0.weight")[1],
            out_channels=_shape(state, "out.2.weight")[0],
            down_block_types=tuple("AttnDownBlock2D" if attends else down_block for attends in down_attends),
            up_block_types=tuple("AttnUpBlock2D" if attends else up_block for attends in reversed(up_attends)),
            block_out_channels=tuple(widths),
            layers_per_block=layers,
            downsample_type=down_type,
            upsample_type=up_type,
            attention_head_dim=attention_head_dim,
            norm_num_groups=_GROUPS,
            attn_norm_num_groups=_GROUPS,
            norm_eps=_EPS,
            resnet_time_scale_shift="scale_shift" if embedding == 2 * widths[0] else "default",
            num_class_embeds=classes,
        )
    except ValueError as error:
        raise UserError(str(error)) from None


def usual_sample_size(config: UNetConfig) -> int | None:
    """The side of the images in pixels, if attention begins at 32 pixels; None if no resolution attends.

    All published models attend at 32, 16 and 8 pixels; nothing else in the tensors hints at a size.
    """
    for level, kind in enumerate(config.down_block_types):
        if kind.startswith("Attn"):
            size = 32 * 2**level
            return None if size % 2 ** (len(config.block_out_channels) - 1) else size
    return None


def openai_to_diffusers(state: Mapping[str, Tensor], config: UNetConfig) -> dict[str, Tensor]:
    """Renames the tensors of OpenAI's U-Net to those of `UNet(config)`; dtypes and devices stay.

    Raises:
        UserError: a tensor is missing, unexpected or of the wrong shape.
    """
    slots = list(_slots(config))
    unexpected = sorted(state.keys() - {slot.openai for slot in slots})
    if unexpected:
        more = f" and {len(unexpected) - 1} more" if len(unexpected) > 1 else ""
        raise UserError(f"unexpected tensor {unexpected[0]}{more}: not a U-Net of OpenAI's consistency models")
    result = {}
    for slot in slots:
        shape = _shape(state, slot.openai)
        if shape != slot.shape:
            hint = "; 1-d convolutions are guided-diffusion's" if len(shape) == 3 else ""
            raise UserError(f"tensor {slot.openai} has shape {list(shape)}, expected {list(slot.shape)}{hint}")
        tensor = state[slot.openai].reshape(-1, *slot.part[1:])
        parts = tensor.chunk(len(slot.diffusers))
        # Copied where it is cut in three: safetensors writes no two tensors of one storage.
        result |= zip(slot.diffusers, [p.clone() for p in parts] if len(parts) > 1 else parts, strict=True)
    return result


def diffusers_to_openai(state: Mapping[str, Tensor], config: UNetConfig) -> dict[str, Tensor]:
    """Renames the tensors of `UNet(config)` to those of OpenAI's U-Net: the reverse of `openai_to_diffusers`.

    Raises:
        UserError: OpenAI's code has no counterpart of the config; a tensor is missing, unexpected or of the
            wrong shape.
    """
    _check_representable(config)
    slots = list(_slots(config))
    unexpected = sorted(state.keys() - {name for slot in slots for name in slot.diffusers})
    if unexpected:
        raise UserError(f"unexpected tensor {unexpected[0]}: the weights do not belong to the config")
    result = {}
    for slot in slots:
        for name in slot.diffusers:
            if (shape := _shape(state, name)) != slot.part:
                raise UserError(f"tensor {name} has shape {list(shape)}, expected {list(slot.part)}")
        parts = [state[name] for name in slot.diffusers]
        result[slot.openai] = (torch.cat(parts) if len(parts) > 1 else parts[0]).reshape(slot.shape)
    return result


@dataclass(frozen=True)
class _Slot:
    """One tensor of OpenAI's, and the tensors of `UNet` that it consists of, one after the other.

    Args:
        openai: name of the tensor there.
        diffusers: names of the tensors here.
        shape: shape of the tensor there.
        part: shape of each tensor here.
    """

    openai: str
    diffusers: tuple[str, ...]
    shape: tuple[int, ...]
    part: tuple[int, ...]


def _slots(config: UNetConfig) -> Iterator[_Slot]:
    """Every tensor of `UNet(config)`, with its place and shape in OpenAI's layout."""
    with without_weights():
        shapes = {name: tuple(tensor.shape) for name, tensor in UNet(config).state_dict().items()}
    for openai, layers in _layers(config):
        for kind in ("weight", "bias"):
            names = tuple(f"{layer}.{kind}" for layer in layers)
            if names[0] in shapes:  # embeddings have no bias, blocks of constant width no shortcut
                part = shapes[names[0]]
                shape = (len(names) * part[0], *part[1:])
                # Attention's linear layers are 1x1 convolutions there.
                convolution = openai.endswith((".qkv", ".proj_out")) and kind == "weight"
                yield _Slot(f"{openai}.{kind}", names, (*shape, 1, 1) if convolution else shape, part)


def _layers(config: UNetConfig) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Layers by both names: OpenAI's, and the one or three of `UNet` that it is made of."""
    depth, layers = len(config.block_out_channels), config.layers_per_block

    def residual(openai: str, ours: str) -> Iterator[tuple[str, tuple[str, ...]]]:
        for theirs, name in _RES_BLOCK.items():
            yield f"{openai}.{theirs}", (f"{ours}.{name}",)

    def attention(openai: str, ours: str) -> Iterator[tuple[str, tuple[str, ...]]]:
        yield f"{openai}.norm", (f"{ours}.group_norm",)
        yield f"{openai}.qkv", (f"{ours}.to_q", f"{ours}.to_k", f"{ours}.to_v")
        yield f"{openai}.proj_out", (f"{ours}.to_out.0",)

    yield "time_embed.0", ("time_embedding.linear_1",)
    yield "time_embed.2", ("time_embedding.linear_2",)
    yield "label_emb", ("class_embedding",)

    yield "input_blocks.0.0", ("conv_in",)
    n = 1
    for i, kind in enumerate(config.down_block_types):
        for j in range(layers):
            yield from residual(f"input_blocks.{n}.0", f"down_blocks.{i}.resnets.{j}")
            if kind.startswith("Attn"):
                yield from attention(f"input_blocks.{n}.1", f"down_blocks.{i}.attentions.{j}")
            n += 1
        if i < depth - 1:
            # One of the two exists: the caller leaves out what the network does not have.
            yield from residual(f"input_blocks.{n}.0", f"down_blocks.{i}.downsamplers.0")
            yield f"input_blocks.{n}.0.op", (f"down_blocks.{i}.downsamplers.0.conv",)
            n += 1

    yield from residual("middle_block.0", "mid_block.resnets.0")
    yield from attention("middle_block.1", "mid_block.attentions.0")
    yield from residual("middle_block.2", "mid_block.resnets.1")

    n = 0
    for i, kind in enumerate(config.up_block_types):
        attends = kind.startswith("Attn")
        for j in range(layers + 1):
            yield from residual(f"output_blocks.{n}.0", f"up_blocks.{i}.resnets.{j}")
            if attends:
                yield from attention(f"output_blocks.{n}.1", f"up_blocks.{i}.attentions.{j}")
            n += 1
        if i < depth - 1:
            step = f"output_blocks.{n - 1}.{2 if attends else 1}"
            yield from residual(step, f"up_blocks.{i}.upsamplers.0")
            yield f"{step}.conv", (f"up_blocks.{i}.upsamplers.0.conv",)

    yield "out.0", ("conv_norm_out",)
    yield "out.2", ("conv_out",)


def _check_representable(config: UNetConfig) -> None:
    def refuse(field: str, value: object, needed: str) -> None:
        raise UserError(f"{field} {value} has no counterpart in OpenAI's U-Net, which has {needed}")

    patch_size = getattr(config, "patch_size", 1)
    if patch_size != 1:
        refuse("patch_size", patch_size, "no folded images")
    if config.norm_num_groups != _GROUPS:
        refuse("norm_num_groups", config.norm_num_groups, f"{_GROUPS} groups in every norm")
    if config.norm_eps != _EPS:
        refuse("norm_eps", config.norm_eps, f"{_EPS}")
    if not config.add_attention:
        refuse("add_attention", config.add_attention, "attention in the middle block")
    inherits = config.attn_norm_num_groups is None and config.resnet_time_scale_shift == "default"
    if config.attn_norm_num_groups != _GROUPS and not inherits:
        refuse("attn_norm_num_groups", config.attn_norm_num_groups, f"{_GROUPS} groups in every norm")
    attends = [kind.startswith("Attn") for kind in config.down_block_types]
    if attends != [kind.startswith("Attn") for kind in reversed(config.up_block_types)]:
        refuse("up_block_types", config.up_block_types, "attention at the same resolutions on the way down and up")
    # Which way the coarsest resolution would resample on the way down, and the finest on the way up, is no matter.
    steps = [
        "resnet" if kind.startswith("Resnet") or (kind.startswith("Attn") and attending == "resnet") else "conv"
        for kinds, attending in (
            (config.down_block_types, config.downsample_type),
            (config.up_block_types, config.upsample_type),
        )
        for kind in kinds[:-1]
    ]
    if len(set(steps)) > 1:
        refuse("resampling", "by residual blocks here and by convolutions there", "one of the two everywhere")


def _up_steps(state: Mapping[str, Tensor]) -> dict[int, str]:
    """The entries of output_blocks that end with a step up, in order, and how they step: "resnet" or "conv"."""
    steps = {}
    for n in range(_count(state, "output_blocks.{}.0.in_layers.2.weight")):
        for m in (1, 2):
            if f"output_blocks.{n}.{m}.in_layers.2.weight" in state:
                steps[n] = "resnet"
            elif f"output_blocks.{n}.{m}.conv.weight" in state:
                steps[n] = "conv"
    return steps


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    n = 0
    while pattern.format(n) in state:
        n += 1
    if n == 0:
        raise UserError(f"tensor {pattern.format(0)} is missing: not a U-Net of OpenAI's consistency models")
    return n


def _shape(state: Mapping[str, Tensor], name: str) -> tuple[int, ...]:
    """The shape of a weight; it has at least one axis, convolutions have four."""
    if name not in state:
        raise UserError(f"tensor {name} is missing")
    shape = tuple(state[name].shape)
    if not shape or (name in ("input_blocks.0.0.weight", "out.2.weight") and len(shape) != 4):
        raise UserError(f"tensor {name} has shape {list(shape)}, which a weight of this U-Net cannot have")
    return shape
