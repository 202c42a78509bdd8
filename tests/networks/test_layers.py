import pytest
import torch
from torch import Tensor, nn

from unistep.networks.layers import Attention, Dropout, ResBlock, sinusoidal_embedding, zero_init


def seeded(seed: int, device: str = "cpu") -> torch.Generator:
    return torch.Generator(device).manual_seed(seed)


def test_dropout_mask_is_the_seeds():
    student, target = Dropout(0.3), Dropout(0.3)
    x = torch.ones(4, 8, 5, 5)
    mask = student(x, seeded(1))
    assert torch.equal(mask, target(x, seeded(1)))
    assert not torch.equal(mask, target(x, seeded(2)))
    # Not of the values, nor of the precision: student and target may differ in both.
    assert torch.equal(mask == 0, target(3 * x.bfloat16(), seeded(1)) == 0)


def test_dropout_keeps_the_mean():
    x = torch.ones(100_000)
    out = Dropout(0.3)(x, seeded(0))
    assert sorted({round(v, 5) for v in out.unique().tolist()}) == [0.0, round(1 / 0.7, 5)]
    assert (out == 0).double().mean().item() == pytest.approx(0.3, abs=0.005)  # 3.4 standard deviations


def test_dropout_draws_anew_at_each_call():
    generator, x = seeded(0), torch.ones(64)
    dropout = Dropout(0.5)
    assert not torch.equal(dropout(x, generator), dropout(x, generator))


def test_dropout_off():
    x = torch.ones(64)
    generator = seeded(0)
    before = generator.get_state()
    assert Dropout(0.5).eval()(x, generator) is x
    assert Dropout(0.0)(x, generator) is x
    assert torch.equal(generator.get_state(), before)
    assert Dropout(0.5)(x, None) is x


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_dropout_mask_is_the_seeds_on_a_gpu():
    x = torch.ones(4, 8, 5, 5, device="cuda")
    mask = Dropout(0.3)(x, seeded(1, "cuda"))
    assert torch.equal(mask, Dropout(0.3)(x, seeded(1, "cuda")))
    assert not torch.equal(mask, Dropout(0.3)(x, seeded(2, "cuda")))


def test_sinusoidal_embedding():
    c_noise = torch.tensor([0.0, 2.0, -1000.0])
    embedding = sinusoidal_embedding(c_noise, 6)
    assert embedding.shape == (3, 6)
    assert embedding[0].tolist() == [1, 1, 1, 0, 0, 0]
    angles = c_noise.double()[:, None] * torch.tensor([1, 10_000 ** (-1 / 3), 10_000 ** (-2 / 3)]).double()
    expected = torch.cat([angles.cos(), angles.sin()], dim=1)
    torch.testing.assert_close(embedding.double(), expected, rtol=0, atol=1e-4)


def test_sinusoidal_embedding_is_single_precision_for_half_precision_noise_levels():
    assert sinusoidal_embedding(torch.tensor([3.0]).bfloat16(), 4).dtype == torch.float32


def residual(**options: object) -> ResBlock:
    torch.manual_seed(0)
    settings = {"groups": 2, "eps": 1e-5, "dropout": 0.0, "scale_shift": True} | options
    block = ResBlock(4, 4, 8, **settings)  # pyright: ignore[reportArgumentType]
    nn.init.normal_(block.conv2.weight)
    return block


@pytest.mark.parametrize(("resample", "size"), [(None, 8), ("up", 16), ("down", 4)])
def test_residual_block_starts_as_resampling_alone(resample: str | None, size: int, generator: torch.Generator):
    block = residual(resample=resample)
    zero_init(block.conv2)
    x = torch.randn(2, 4, 8, 8, generator=generator)
    out = block(x, torch.randn(2, 8, generator=generator), None)
    assert out.shape == (2, 4, size, size)
    if resample == "up":
        x = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    if resample == "down":
        x = x.unfold(2, 2, 2).unfold(3, 2, 2).mean(dim=(-1, -2))
    torch.testing.assert_close(out, x)


def test_scale_and_shift_come_after_the_norm(generator: torch.Generator):
    # scale = -1 leaves the shift alone, whatever x is; added before the norm, a constant shift would vanish.
    block = residual(scale_shift=True)
    x = torch.randn(2, 4, 8, 8, generator=generator)
    zero_init(block.time_emb_proj)
    block.time_emb_proj.bias.data = torch.tensor([-1.0] * 4 + [0.1, 0.2, 0.3, 0.4])
    constant = nn.functional.silu(torch.tensor([0.1, 0.2, 0.3, 0.4])).view(1, 4, 1, 1).expand(2, 4, 8, 8)
    torch.testing.assert_close(block(x, torch.zeros(2, 8), None), x + block.conv2(constant))


def test_attention_without_a_norm(generator: torch.Generator):
    attention = Attention(8, 4, groups=None, eps=1e-5)
    assert not [name for name in attention.state_dict() if "norm" in name]
    nn.init.normal_(attention.to_out[0].weight, generator=generator)
    x = torch.randn(1, 8, 4, 4, generator=generator)

    def change(x: Tensor) -> Tensor:
        return attention(x) - x

    # No norm: adding a constant to the input is seen.
    assert not torch.allclose(change(x), change(x + 1), atol=1e-3)
    torch.testing.assert_close(change(x.flip(2)), change(x).flip(2))  # no position is told from another
