"""DINOv2's weights: the Hub's names and the original ones give one network; what is something else is refused."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from unistep.errors import UserError
from unistep.formats.published import dinov2 as dinov2_weights
from unistep.formats.published.dinov2 import DINOV2_LARGE, load_dinov2
from unistep.networks.dinov2 import VisionTransformer, VisionTransformerConfig

CONFIG = VisionTransformerConfig(width=128, depth=2, heads=2, patch_size=14, grid=3)
PARTS = ("query", "key", "value")


@pytest.fixture(scope="module")
def network() -> VisionTransformer:
    network = VisionTransformer(CONFIG).eval().requires_grad_(False)
    noise = torch.Generator().manual_seed(0)
    for p in network.parameters():
        p.copy_(torch.randn(p.shape, generator=noise) * 0.1)
    return network


@pytest.fixture
def original(network: VisionTransformer) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()} | {"mask_token": torch.zeros(1, 128)}


@pytest.fixture
def of_the_hub(network: VisionTransformer) -> dict[str, Tensor]:
    """Under the names of facebook/dinov2-large, written out."""
    p = network.state_dict()
    found = {
        "embeddings.cls_token": p["cls_token"],
        "embeddings.mask_token": torch.zeros(1, 128),
        "embeddings.position_embeddings": p["pos_embed"],
        "embeddings.patch_embeddings.projection.weight": p["patch_embed.proj.weight"],
        "embeddings.patch_embeddings.projection.bias": p["patch_embed.proj.bias"],
        "layernorm.weight": p["norm.weight"],
        "layernorm.bias": p["norm.bias"],
    }
    for i in range(CONFIG.depth):
        ours, theirs = f"blocks.{i}.", f"encoder.layer.{i}."
        for end in ("weight", "bias"):
            for part, rows in zip(PARTS, p[f"{ours}attn.qkv.{end}"].chunk(3), strict=True):
                found[f"{theirs}attention.attention.{part}.{end}"] = rows
            found[f"{theirs}attention.output.dense.{end}"] = p[f"{ours}attn.proj.{end}"]
            for same in ("norm1", "norm2", "mlp.fc1", "mlp.fc2"):
                found[f"{theirs}{same}.{end}"] = p[f"{ours}{same}.{end}"]
        for k in (1, 2):
            found[f"{theirs}layer_scale{k}.lambda1"] = p[f"{ours}ls{k}.gamma"]
    return {name: value.clone() for name, value in found.items()}


def assert_same(found: VisionTransformer, expected: VisionTransformer) -> None:
    assert found.config == expected.config
    ours, theirs = found.state_dict(), expected.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(value, theirs[name]) for name, value in ours.items())
    assert not found.training and not any(p.requires_grad for p in found.parameters())
    x = torch.randn(1, 3, 28, 28, generator=torch.Generator().manual_seed(1))
    assert torch.equal(found(x), expected(x))


@pytest.mark.parametrize("form", ["original", "file", "folder", "folder of .bin"])
def test_every_form_gives_the_same_network(
    form: str,
    tmp_path: Path,
    network: VisionTransformer,
    original: dict[str, Tensor],
    of_the_hub: dict[str, Tensor],
):
    path = tmp_path
    if form == "original":
        path = tmp_path / "dinov2.pth"
        torch.save(original, path)
    elif form == "folder of .bin":
        torch.save(of_the_hub, tmp_path / "pytorch_model.bin")
    else:
        save_file(of_the_hub, tmp_path / "model.safetensors")
        path = tmp_path / "model.safetensors" if form == "file" else tmp_path
    assert_same(load_dinov2(path, cache_dir=tmp_path / "cache"), network)
    assert not (tmp_path / "cache").exists()


def test_downloads_the_published_file_once(
    tmp_path: Path,
    network: VisionTransformer,
    of_the_hub: dict[str, Tensor],
    file_server: Any,
    monkeypatch: pytest.MonkeyPatch,
):
    save_file(of_the_hub, tmp_path / "model.safetensors")
    content = (tmp_path / "model.safetensors").read_bytes()
    monkeypatch.setattr(dinov2_weights, "DINOV2_LARGE", file_server.publish(DINOV2_LARGE.name, content))
    for _ in range(2):
        assert_same(load_dinov2(cache_dir=tmp_path / "cache"), network)
    assert file_server.requests == [f"/{DINOV2_LARGE.name}"]


def test_the_published_file_is_a_commit_of_the_hub():
    assert re.fullmatch(r"https://huggingface\.co/facebook/dinov2-large/resolve/[0-9a-f]{40}/.*", DINOV2_LARGE.url)
    assert re.fullmatch(r"[0-9a-f]{64}", DINOV2_LARGE.sha256) and DINOV2_LARGE.name.endswith(".safetensors")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("registers", "has the unexpected tensor register_tokens"),
        ("lacks", "lacks tensor blocks.1.ls2.gamma"),
        ("no key", "blocks.0.attn"),
        ("shape", r"tensor blocks.0.mlp.fc1.weight has shape \[3, 3\], this DINOv2 needs \[512, 128\]"),
        ("grid", r"tensor pos_embed has shape \[1, 11, 128\], this DINOv2 needs \[1, 10, 128\]"),
        ("far block", "blocks.999999"),
        ("width", "its class token has 100 numbers"),
        ("other", "does not hold the weights of a DINOv2"),
    ],
)
def test_other_contents_are_refused(change: str, words: str, tmp_path: Path, of_the_hub: dict[str, Tensor]):
    state = of_the_hub
    if change == "registers":
        state["embeddings.register_tokens"] = torch.zeros(1, 4, 128)
    elif change == "lacks":
        del state["encoder.layer.1.layer_scale2.lambda1"]
    elif change == "no key":
        del state["encoder.layer.0.attention.attention.key.weight"]
    elif change == "shape":
        state["encoder.layer.0.mlp.fc1.weight"] = torch.zeros(3, 3)
    elif change == "grid":
        state["embeddings.position_embeddings"] = torch.zeros(1, 11, 128)
    elif change == "far block":
        state["encoder.layer.999999.norm1.weight"] = torch.zeros(128)
    elif change == "width":
        state["embeddings.cls_token"] = torch.zeros(1, 1, 100)
    elif change == "other":
        state = {"conv.weight": torch.zeros(3)}
    path = tmp_path / "model.safetensors"
    save_file(state, path)
    with pytest.raises(UserError, match=words) as error:
        load_dinov2(path)
    message = str(error.value)
    assert str(path) in message and DINOV2_LARGE.url in message and "\n" not in message


def test_a_folder_without_weights_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match=r"model\.safetensors is missing"):
        load_dinov2(tmp_path)
