"""Models of EDM's files are sampled as by NVIDIA's generate.py: no clamp in the solver, levels rounded by the network.

The published sampler is written down here once more, in fp64 as there: Karras et al. 2022, algorithm 2.
"""

import importlib.util
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import unistep
from unistep.core.parameterization import EDMScaling, IDDPMScaling, Preconditioned, VEScaling, VPScaling
from unistep.core.pixels import to_uint8
from unistep.core.random import ImageRandom, image_seed
from unistep.formats.model import ModelInfo, precondition
from unistep.generation.plan import default_plan, make_plan
from unistep.samplers.heun import heun
from unistep.samplers.ode import Churn

SCALINGS = {"edm": EDMScaling(0.5, "edm"), "vp": VPScaling(), "ve": VEScaling(), "iddpm": IDDPMScaling()}
RANGES = {"edm": (0.002, 80.0), "vp": (0.002, 80.0), "ve": (0.02, 80.0), "iddpm": (0.0064, 80.0)}
CHURN = {"s_churn": 40.0, "s_min": 0.05, "s_max": 50.0, "s_noise": 1.003}


class Waves(nn.Module):
    """A network whose output depends on the noise level, and goes beyond [-1, 1]."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(2.0), requires_grad=False)

    def forward(self, x: Tensor, c_noise: Tensor, class_labels: Tensor | None = None, *, generator: Any = None):
        wave = torch.sin(0.37 * c_noise)[:, None, None, None]
        return self.weight * (0.4 * x + 0.3 * wave * x.flip(-1) + 0.2 * torch.tanh(3 * x))


def round_to(u: Tensor | None, sigma: Tensor) -> Tensor:
    """The nearest entry of a table, compared in fp32; without a table the level itself."""
    if u is None:
        return sigma
    distance = (sigma.float().reshape(-1, 1) - u[None]).abs()
    return u[distance.argmin(dim=1)].to(sigma.dtype).reshape(sigma.shape)


def published(
    net: Callable[[Tensor, Tensor], Tensor],
    latents: Tensor,
    draws: Callable[[], Tensor],
    *,
    num_steps: int,
    sigma_min: float,
    sigma_max: float,
    rho: float = 7.0,
    u: Tensor | None = None,
    s_churn: float = 0.0,
    s_min: float = 0.0,
    s_max: float = math.inf,
    s_noise: float = 1.0,
) -> Tensor:
    """The sampler of generate.py, without its names."""
    i = torch.arange(num_steps, dtype=torch.float64)
    high, low = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    t = (high + i / (num_steps - 1) * (low - high)) ** rho
    t = torch.cat([round_to(u, t), torch.zeros(1, dtype=torch.float64)])
    x_next = latents.double() * t[0]
    for step, (now, then) in enumerate(zip(t[:-1], t[1:], strict=True)):
        x = x_next
        gamma = min(s_churn / num_steps, np.sqrt(2) - 1) if s_min <= now <= s_max else 0
        hat = round_to(u, now + gamma * now)
        x_hat = x + (hat**2 - now**2).sqrt() * s_noise * draws().double()
        slope = (x_hat - net(x_hat, hat)) / hat
        x_next = x_hat + (then - hat) * slope
        if step < num_steps - 1:
            second = (x_next - net(x_next, then)) / then
            x_next = x_hat + (then - hat) * (0.5 * slope + 0.5 * second)
    return x_next


def net_of(model: nn.Module, labels: Tensor | None = None) -> Callable[[Tensor, Tensor], Tensor]:
    """A denoiser as generate.py calls one: fp32 inside, fp64 outside."""
    return lambda x, sigma: model(x.float(), sigma.float().expand(len(x)), labels).double()


@pytest.mark.parametrize("churn", [{}, CHURN], ids=["deterministic", "churn"])
@pytest.mark.parametrize("kind", list(SCALINGS))
@torch.no_grad()
def test_heun_of_every_preconditioning(kind, churn):
    model = Preconditioned(Waves(), SCALINGS[kind])
    low, high = RANGES[kind]
    info = ModelInfo("diffusion", low, high, preconditioning=kind, noise_embedding="edm", clip=False)
    seeds = [image_seed(3, i) for i in range(2)]
    ours, theirs = ImageRandom(seeds), ImageRandom(seeds)
    x_T, same = ours.randn(3, 8, 8), theirs.randn(3, 8, 8)
    images = make_plan(info, steps=12, **churn).sample(precondition(Waves(), info), x_T, None, ours)
    draws = (lambda: theirs.randn(3, 8, 8)) if churn else (lambda: torch.zeros(2, 3, 8, 8))
    u = IDDPMScaling().levels() if kind == "iddpm" else None
    expected = published(net_of(model), same, draws, num_steps=12, sigma_min=low, sigma_max=high, u=u, **churn)
    assert expected.abs().max() > 1  # or a clamp would change nothing
    # Noise levels to 80 in fp32, and embeddings of hundreds.
    torch.testing.assert_close(images.double(), expected, rtol=1e-3, atol=2e-3)


@torch.no_grad()
def test_levels_of_iddpm_are_those_of_its_table():
    """Without rounding c_out has another level than the network."""
    levels, called = IDDPMScaling().levels(), []

    class Recording(Preconditioned):
        def forward(self, x_t, sigma, class_labels=None, **more):
            called.append(sigma[0])
            return super().forward(x_t, sigma, class_labels, **more)

    model, random = Recording(Waves(), IDDPMScaling()), ImageRandom([1])
    heun(model, random.randn(1, 4, 4), 9, sigma_min=0.0064, churn=Churn(random, 30.0), clip=False)
    assert len(called) == 17 and all(bool((levels == sigma).any()) for sigma in called)


@torch.no_grad()
def test_clamping_is_asked_for_or_not():
    info = ModelInfo("diffusion", preconditioning="edm", noise_embedding="edm", clip=False)
    model, x_T = precondition(Waves(), info), torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    for clip, plan in ((False, default_plan(info)), (False, make_plan(info)), (True, make_plan(info, clip=True))):
        assert torch.equal(plan.sample(model, x_T, None, ImageRandom([0, 1])), heun(model, x_T, 18, clip=clip))
    openai = ModelInfo("diffusion")
    assert make_plan(openai).clip and not make_plan(openai, clip=False).clip


# ---------------------------------------------------------------------------------------- files


@pytest.fixture(scope="module")
def files() -> Any:
    """The builders of EDM's files in the tests of their reader."""
    path = Path(__file__).parents[1] / "formats" / "test_edm.py"
    spec = importlib.util.spec_from_file_location("edm_files", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(params=["EDMPrecond", "iDDPMPrecond"])
def edm_file(request, files, tmp_path, monkeypatch) -> Path:
    name = request.param
    attributes = {"EDMPrecond": files.EDM, "iDDPMPrecond": files.IDDPM}
    kwargs = files.SONG | {"attn_resolutions": []} | ({"out_channels": 6} if name == "iDDPMPrecond" else {})
    ema = files.whole(name, attributes[name], "SongUNet", kwargs, files.song_weights(kwargs))
    if name == "iDDPMPrecond":
        ema.register_buffer("u", IDDPMScaling().levels())
    return files.write(tmp_path / "network.pkl", {"ema": ema}, monkeypatch)


def sampled(path: Path, **options: Any) -> Tensor:
    return unistep.sample(path, num_images=3, steps=3, seed=5, class_labels=[0, 1, 4], progress=False, **options).pixels


def expected_of(model: Any, *, clip: bool = False, churn: dict[str, float] | None = None) -> Tensor:
    """Pixels of Heun's method from the same noise, in the tile of 16 that a CPU computes."""
    info, random = model.info, ImageRandom([image_seed(5, i if i < 3 else 0) for i in range(16)])
    labels = torch.tensor([[0, 1, 4][i] if i < 3 else 0 for i in range(16)])
    x_T = random.randn(3, 16, 16)
    own = None if churn is None else Churn(random, churn["s_churn"], churn["s_min"], churn["s_max"], churn["s_noise"])
    with torch.no_grad():
        x = heun(
            model.denoiser, x_T, 3, labels, sigma_min=info.sigma_min, sigma_max=info.sigma_max, clip=clip, churn=own
        )
    return to_uint8(x[:3])


def test_a_file_through_sample(edm_file, tmp_path):
    model = unistep.load(edm_file)
    assert not model.info.clip
    images = sampled(edm_file)
    assert torch.equal(images, expected_of(model))
    if model.info.preconditioning == "edm":
        return
    assert torch.equal(sampled(edm_file, **CHURN), expected_of(model, churn=CHURN))
    unistep.convert(edm_file, tmp_path / "folder")
    plan = default_plan(unistep.load(tmp_path / "folder").info, 3)
    assert plan == default_plan(model.info, 3) and not plan.clip
