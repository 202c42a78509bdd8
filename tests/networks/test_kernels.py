"""The forms that images in bf16 on a CPU take: they compute what the plain ones do, and are taken nowhere else."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unistep.networks import kernels

BF16 = torch.bfloat16


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = BF16) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def error(found: Tensor, exact: Tensor) -> float:
    """Root of the mean square of the difference, over that of the exact values."""
    return ((found.double() - exact).square().mean() / exact.square().mean()).sqrt().item()


@pytest.fixture
def plain(monkeypatch):
    """Switches the other forms off."""
    return lambda: monkeypatch.setattr(kernels, "is_swift", lambda x: False)


@pytest.mark.parametrize("pairs", [1 << 23, 2 * 3 * 25 * 25, 1])
@pytest.mark.parametrize("images", [1, 5])
def test_attention(monkeypatch, pairs: int, images: int):
    monkeypatch.setattr(kernels, "_MOST_PAIRS", pairs)  # all images at once, two, or one after the other
    q, k, v = (drawn(images, 25, 3 * 8, seed=i).view(images, 25, 3, 8).transpose(1, 2) for i in range(3))
    exact = F.scaled_dot_product_attention(q.double(), k.double(), v.double()).transpose(1, 2).flatten(2)
    with torch.no_grad():
        assert kernels.is_swift(q)
        found = kernels.attention(q, k, v)
    assert found.shape == (images, 25, 24) and found.is_contiguous()
    assert error(found, exact) < 0.008


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("size", [3, 4, 9])
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_convolution(kernel: int, size: int, images: int, shift: bool, memory_format: torch.memory_format):
    layer = nn.Conv2d(5, 7, kernel, padding=kernel // 2)
    layer = layer.to(BF16).to(memory_format=memory_format)  # pyright: ignore[reportCallIssue]
    x = drawn(images, 5, size, size).contiguous(memory_format=memory_format)
    e = drawn(images, 7, seed=1) if shift else None
    assert layer.bias is not None
    exact = F.conv2d(x.double(), layer.weight.double(), layer.bias.double(), padding=kernel // 2)
    exact = exact if e is None else exact + e.double()[:, :, None, None]
    before = layer.bias.clone()
    with torch.no_grad():
        found = kernels.convolution(layer, x, e)
    assert error(found, exact) < 0.005
    assert found.is_contiguous(memory_format=memory_format)
    assert torch.equal(layer.bias, before)


@pytest.mark.parametrize("images", [1, 2])
def test_a_shift_in_fp32_as_that_of_song_unets(images: int):
    layer, x, e = nn.Conv2d(5, 7, 3, padding=1).to(BF16), drawn(images, 5, 9, 9), drawn(images, 7, seed=1)
    with torch.no_grad():
        assert torch.equal(kernels.convolution(layer, x, e.float()), kernels.convolution(layer, x, e))


@pytest.mark.parametrize("images", [1, 3])
def test_a_modulated_norm(images: int):
    norm = nn.GroupNorm(4, 8, 1e-5).to(BF16)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x, scale, shift = drawn(images, 8, 6, 6), drawn(images, 8, seed=1), drawn(images, 8, seed=2)
    normal = F.group_norm(x.double(), 4, norm.weight.double(), norm.bias.double(), 1e-5)
    exact = normal * (1 + scale.double()[:, :, None, None]) + shift.double()[:, :, None, None]
    with torch.no_grad():
        assert error(kernels.modulated(norm, x, scale, shift), exact) < 0.008


def test_a_sum_leaves_its_second_term():
    h, x = drawn(2, 3), drawn(2, 3, seed=1)
    expected, kept = h + x, x.clone()
    with torch.no_grad():
        assert torch.equal(kernels.add(h, x), expected)
    assert torch.equal(x, kept)
    wide = h.float()
    assert kernels.add(h, wide).dtype == torch.float32


def test_where_they_are_taken():
    x = drawn(1, 4)
    assert not kernels.is_swift(x)  # gradients are recorded
    with torch.no_grad():
        assert kernels.is_swift(x)
        assert not kernels.is_swift(x.float())
        assert not kernels.is_swift(x.to("meta"))
        with torch.autocast("cpu", torch.bfloat16):
            assert not kernels.is_swift(x)
        seen: list[bool] = []
        torch.jit.trace(lambda y: seen.append(kernels.is_swift(y)) or y + 1, (x,), check_trace=False)
        assert seen == [False]
    with torch.inference_mode():
        assert kernels.is_swift(x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_other_precisions_stay_the_same_to_the_bit(plain, dtype: torch.dtype):
    layer, norm = nn.Conv2d(4, 4, 3, padding=1).to(dtype), nn.GroupNorm(2, 4).to(dtype)
    x, e = drawn(1, 4, 5, 5, dtype=dtype), drawn(1, 4, seed=1, dtype=dtype)

    def all_of_it() -> list[Tensor]:
        with torch.no_grad():
            h = kernels.modulated(norm, kernels.convolution(layer, x, e), e, e)
            q = h.flatten(2).transpose(1, 2)[:, None]
            return [h, kernels.attention(q, q, q), kernels.add(h.clone(), x)]

    found = all_of_it()
    plain()
    assert all(torch.equal(a, b) for a, b in zip(found, all_of_it(), strict=True))


@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("dtype", [BF16, torch.float32])
def test_rows_as_images(images: int, dtype: torch.dtype):
    rows = drawn(images, 20, 32, dtype=dtype)
    with torch.no_grad():
        found = kernels.as_image(rows, torch.empty(images, 32, 4, 5))
        assert torch.equal(found, rows.transpose(1, 2).reshape(images, 32, 4, 5))
        # Their format is read off their strides, for a single image too.
        like = F.group_norm(found, 8)
    assert like.is_contiguous(memory_format=torch.channels_last) or (dtype == torch.float32 and images == 1)


def test_all_of_an_image_is_channels_last(monkeypatch):
    from torch.overrides import TorchFunctionMode

    from unistep.networks.adm import UNet
    from unistep.networks.adm_config import UNetConfig
    from unistep.runtime.precision import set_precision

    config = UNetConfig(
        sample_size=16,
        block_out_channels=(32, 64),
        layers_per_block=1,
        attention_head_dim=32,
        down_block_types=("AttnDownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "AttnUpBlock2D"),
    )
    network = UNet(config).eval()
    set_precision(network, BF16)
    others: list[object] = []

    class Watch(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            found = func(*args, **(kwargs or {}))
            if func in (F.group_norm, torch.cat, F.interpolate) and isinstance(found, Tensor) and found.ndim == 4:
                others.extend([func] * (not found.is_contiguous(memory_format=torch.channels_last)))
            return found

    with torch.no_grad(), Watch():
        network(torch.randn(1, 3, 16, 16), torch.ones(1))
    assert others == []
