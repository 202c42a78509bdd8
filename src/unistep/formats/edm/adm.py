"""EDM's DhariwalUNet is the ADM U-Net: its tensors as those of `unistep.networks.adm.UNet`.

    map_layer0, map_layer1, map_label     time embedding; class embedding, transposed
    enc.64x64_conv, .64x64_block0         first convolution; residual block and its attention
    enc.32x32_down                        the step from 64x64 down to 32x32
    dec.8x8_in0, .8x8_in1                 the middle
    dec.8x8_block0, .16x16_up             residual block and its attention; the step from 8x8 up to 16x16
    out_norm, out_conv                    last norm and convolution

    residual block   norm0, conv0, affine (embedding), norm1, conv1, skip
    attention        norm2; qkv, whose output channels are (heads, channels, three); proj

The projection of the augmentation (map_augment) is left out: it adds nothing to images that are not augmented. So are
the filters (resample_filter): resampling takes the mean of 2x2 pixels, or repeats them.
"""

from collections.abc import Iterator, Mapping

from torch import Tensor

from unistep.errors import UserError
from unistep.formats.empty import without_weights
from unistep.networks.adm import UNet, UNetConfig
from unistep.networks.song_config import SongUNetConfig, num_groups

_HEAD_DIM = 64
_RES_BLOCK = {
    "norm0": "norm1",
    "conv0": "conv1",
    "affine": "time_emb_proj",
    "norm1": "norm2",
    "conv1": "conv2",
    "skip": "conv_shortcut",
}
_FILTERED = ("_down.conv0", "_down.skip", "_up.conv0", "_up.skip")


def adm_config(arch: SongUNetConfig) -> UNetConfig:
    """The config of the `UNet` that a DhariwalUNet is.

    Args:
        arch: arguments of the DhariwalUNet; those of a SongUNet alone are not used.

    Raises:
        UserError: the `UNet` has no counterpart of these arguments.
    """
    widths = tuple(arch.model_channels * mult for mult in arch.channel_mult)
    for width in widths:
        if width % _HEAD_DIM or num_groups(width) != 32:
            raise UserError(f"a DhariwalUNet of width {width} is not supported; multiples of 64 from 128 on are")
    if arch.channel_mult[0] != 1 or arch.channel_mult_emb != 4:
        raise UserError(
            f"channel_mult {list(arch.channel_mult)} and channel_mult_emb {arch.channel_mult_emb} are not supported in "
            "a DhariwalUNet; the first must be 1 and the embedding 4"
        )
    attends = [arch.sample_size >> i in arch.attn_resolutions for i in range(len(widths))]
    try:
        return UNetConfig(
            sample_size=arch.sample_size,
            in_channels=arch.in_channels,
            out_channels=arch.out_channels,
            down_block_types=tuple("AttnDownBlock2D" if a else "ResnetDownsampleBlock2D" for a in attends),
            up_block_types=tuple("AttnUpBlock2D" if a else "ResnetUpsampleBlock2D" for a in reversed(attends)),
            block_out_channels=widths,
            layers_per_block=arch.num_blocks,
            dropout=arch.dropout,
            attention_head_dim=_HEAD_DIM,
            num_class_embeds=arch.num_class_embeds,
        )
    except ValueError as error:
        raise UserError(str(error)) from None


def adm_shapes(arch: SongUNetConfig) -> dict[str, tuple[int, ...]]:
    """The names and shapes of a DhariwalUNet's tensors."""
    ours = _our_shapes(arch)
    shapes = {}
    for name, parts in _tensors(arch, ours):
        shape = (len(parts) * ours[parts[0]][0], *ours[parts[0]][1:])
        if name == "map_label.weight":
            shape = shape[::-1]
        elif name.endswith((".qkv.weight", ".proj.weight")):
            shape = (*shape, 1, 1)
        shapes[name] = shape
    if arch.augment_dim:
        shapes["map_augment.weight"] = (arch.model_channels, arch.augment_dim)
    filtered = (layer for layer, _ in _layers(arch) if layer.endswith(_FILTERED))
    return shapes | {f"{layer}.resample_filter": (1, 1, 2, 2) for layer in filtered}


def adm_to_unet(tensors: Mapping[str, Tensor], arch: SongUNetConfig) -> dict[str, Tensor]:
    """The state dict for `UNet(adm_config(arch))`; the tensors must have the shapes of `adm_shapes`."""
    ours = _our_shapes(arch)
    state: dict[str, Tensor] = {}
    for name, parts in _tensors(arch, ours):
        tensor = tensors[name]
        if name == "map_label.weight":
            split = [tensor.t().contiguous()]
        elif len(parts) == 3:
            split = tensor.reshape(-1, _HEAD_DIM, 3, tensor[0].numel()).unbind(2)
            # Copied: safetensors writes no two tensors of one storage.
            split = [t.reshape(ours[part]).clone() for part, t in zip(parts, split, strict=True)]
        else:
            split = [tensor.reshape(ours[parts[0]])]
        state |= zip(parts, split, strict=True)
    return state


def _our_shapes(arch: SongUNetConfig) -> dict[str, tuple[int, ...]]:
    with without_weights():
        return {name: tuple(tensor.shape) for name, tensor in UNet(adm_config(arch)).state_dict().items()}


def _tensors(arch: SongUNetConfig, ours: Mapping[str, object]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Tensors by both names: EDM's, and the one or three of `UNet` that it is made of."""
    for theirs, layers in _layers(arch):
        for kind in ("weight", "bias"):
            parts = tuple(f"{layer}.{kind}" for layer in layers)
            if parts[0] in ours:  # blocks of constant width have no skip, embeddings no bias
                yield f"{theirs}.{kind}", parts


def _layers(arch: SongUNetConfig) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Layers by both names, more than a network has."""

    def block(theirs: str, ours: str, attention: str = "") -> Iterator[tuple[str, tuple[str, ...]]]:
        for part, name in _RES_BLOCK.items():
            yield f"{theirs}.{part}", (f"{ours}.{name}",)
        if attention:
            yield f"{theirs}.norm2", (f"{attention}.group_norm",)
            yield f"{theirs}.qkv", (f"{attention}.to_q", f"{attention}.to_k", f"{attention}.to_v")
            yield f"{theirs}.proj", (f"{attention}.to_out.0",)

    depth = len(arch.channel_mult)
    sides = [f"{arch.sample_size >> i}x{arch.sample_size >> i}" for i in range(depth)]
    yield "map_layer0", ("time_embedding.linear_1",)
    yield "map_layer1", ("time_embedding.linear_2",)
    yield "map_label", ("class_embedding",)
    yield f"enc.{sides[0]}_conv", ("conv_in",)
    for i, side in enumerate(sides):
        if i:
            yield from block(f"enc.{side}_down", f"down_blocks.{i - 1}.downsamplers.0")
        for j in range(arch.num_blocks):
            down = f"down_blocks.{i}"
            yield from block(f"enc.{side}_block{j}", f"{down}.resnets.{j}", f"{down}.attentions.{j}")
    yield from block(f"dec.{sides[-1]}_in0", "mid_block.resnets.0", "mid_block.attentions.0")
    yield from block(f"dec.{sides[-1]}_in1", "mid_block.resnets.1")
    for i, side in enumerate(reversed(sides)):
        if i:
            yield from block(f"dec.{side}_up", f"up_blocks.{i - 1}.upsamplers.0")
        for j in range(arch.num_blocks + 1):
            up = f"up_blocks.{i}"
            yield from block(f"dec.{side}_block{j}", f"{up}.resnets.{j}", f"{up}.attentions.{j}")
    yield "out_norm", ("conv_norm_out",)
    yield "out_conv", ("conv_out",)
