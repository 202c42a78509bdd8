"""The weights of DINOv2, under the names of the Hugging Face Hub or of the authors.

    facebook/dinov2-large, model.safetensors    ViT-L/14 without registers; 1.13 GiB; downloaded once
    dinov2_vitl14_pretrain.pth                  the same numbers under the original names

A download counts only with the published SHA-256. A user's own file may be either of them, or of a smaller ViT of the
same kind; nothing in it is executed.
"""

import math
import re
from pathlib import Path

import torch
from torch import Tensor

from unistep.errors import UserError
from unistep.formats.empty import without_weights
from unistep.formats.published.file import PublishedFile, cache_folder, expanded, fetch
from unistep.formats.tensor_file import read_tensors, tensor_name
from unistep.networks.dinov2 import VisionTransformer, VisionTransformerConfig

DINOV2_LARGE = PublishedFile(
    name="dinov2-large.safetensors",
    url="https://huggingface.co/facebook/dinov2-large/resolve/47b73eefe95e8d44ec3623f8890bd894b6ea2d6c/"
    "model.safetensors",
    sha256="399fba97a95f22c36834418bc69373364a99af3a1153da1c0fb31db567c92e23",
    key="`features_path`",
    instead="take `features` effnet-lite0 or mnist, which need no network",
)

_IN_FOLDER = ("model.safetensors", "pytorch_model.bin")
_HEAD_DIM = 64
_MASK = "mask_token"  # of the training

# Tensors that every DINOv2 has, by its original names and by the Hub's.
_LAYOUTS = (
    ("cls_token", "pos_embed", "patch_embed.proj.weight", "norm.weight"),
    ("embeddings.cls_token", "embeddings.position_embeddings", "embeddings.patch_embeddings.projection.weight"),
)

# From the Hub's names to the original ones, in this order.
_RENAMES = (
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^embeddings\.", ""),
    (r"^encoder\.layer\.", "blocks."),
    (r"\.attention\.attention\.", ".attn."),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.layer_scale([12])\.lambda1$", r".ls\1.gamma"),
    (r"^layernorm\.", "norm."),
)


def load_dinov2(path: str | Path | None = None, *, cache_dir: str | Path | None = None) -> VisionTransformer:
    """Opens DINOv2.

    Args:
        path: a file with the weights of a DINOv2 without registers, under the Hub's names or the original ones, or the
            Hub's folder of it; None downloads ViT-L/14 once.
        cache_dir: folder of downloads; None is `unistep/networks` in the user's cache.

    Returns:
        The network on the CPU in fp32, frozen. Its size is that of the weights.

    Raises:
        UserError: the file cannot be downloaded, cannot be read, is damaged, or holds something else.
    """
    file = fetch(DINOV2_LARGE, cache_folder("networks", cache_dir)) if path is None else _file(expanded(path))
    state = _original_names(read_tensors(file, None, DINOV2_LARGE.remedy, layouts=_LAYOUTS))
    config = _config_of(state, file)
    with without_weights():
        network = VisionTransformer(config)
    expected = network.state_dict()
    for wrong, word in (
        (state.keys() - expected.keys(), "has the unexpected"),
        (expected.keys() - state.keys(), "lacks"),
    ):
        if wrong:
            name = tensor_name(min(wrong))
            raise UserError(f"{file} {word} tensor {name}, so it is no DINOv2 without registers; {DINOV2_LARGE.remedy}")
    for name, value in expected.items():
        if state[name].shape != value.shape:
            raise UserError(
                f"{file}: tensor {name} has shape {list(state[name].shape)}, this DINOv2 needs {list(value.shape)}; "
                f"{DINOV2_LARGE.remedy}"
            )
    network.load_state_dict(state, assign=True)
    return network.eval().requires_grad_(False)


def _file(path: Path) -> Path:
    """The path, or the file of weights in it where it is a folder."""
    if path.is_dir():
        return next((path / name for name in _IN_FOLDER if (path / name).exists()), path / _IN_FOLDER[0])
    return path


def _original_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under the original names, queries, keys and values in one."""
    found: dict[str, Tensor] = {}
    for name, tensor in state.items():
        for pattern, replacement in _RENAMES:
            name = re.sub(pattern, replacement, name)
        found[name] = tensor
    for name in [name for name in found if re.search(r"\.attn\.query\.(weight|bias)$", name)]:
        parts = [name.replace(".query.", f".{part}.") for part in ("query", "key", "value")]
        if all(part in found for part in parts) and len({found[part].shape[1:] for part in parts}) == 1:
            found[name.replace(".query.", ".qkv.")] = torch.cat([found.pop(part) for part in parts])
    found.pop(_MASK, None)
    return found


def _config_of(state: dict[str, Tensor], file: Path) -> VisionTransformerConfig:
    """The size of the network that has these tensors."""
    depth = sum(re.fullmatch(r"blocks\.\d+\.norm1\.weight", name) is not None for name in state)
    token, positions, patches = (state.get(name) for name in ("cls_token", "pos_embed", "patch_embed.proj.weight"))
    if token is None or positions is None or patches is None or positions.ndim != 3 or patches.ndim != 4 or not depth:
        raise UserError(f"{file} does not hold the weights of a DINOv2; {DINOV2_LARGE.remedy}")
    grid = math.isqrt(max(0, positions.shape[1] - 1))
    width, patch_size = token.numel(), patches.shape[-1]
    if not width or width % _HEAD_DIM or not grid or not patch_size:
        raise UserError(f"{file}: its class token has {width} numbers, which is no DINOv2's; {DINOV2_LARGE.remedy}")
    return VisionTransformerConfig(width, depth, width // _HEAD_DIM, patch_size, grid)
