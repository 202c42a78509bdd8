"""The embedded model's images on each device: the same to rounding, in any batch, in half precision nearly.

On a machine without a GPU the CPU is compared with itself, which shows that the tests can run.
"""

import pytest
import torch

from unistep.core.denoiser import Denoiser
from unistep.core.random import ImageRandom, image_seeds
from unistep.formats.model_folder.folder import load_model
from unistep.generation.generate import generate
from unistep.generation.plan import default_plan
from unistep.runtime.precision import set_precision
from unistep.workflows.models import EMBEDDED

_NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
DEVICES = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, _NO_GPU])])
COUNT = 20


@pytest.fixture(autouse=True)
def _full_precision():
    """Convolutions in fp32, which cuDNN else rounds to TF32."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


def pixels(device: str, steps: int = 1, *, batch_size: int = COUNT, dtype: torch.dtype | None = None):
    """Images as numbers from 0 to 255."""
    model = load_model(EMBEDDED, device)
    if dtype is not None:
        set_precision(model.denoiser.network, dtype)
    batches = generate(
        model.denoiser,
        default_plan(model.info, steps),
        model.image_shape,
        range(COUNT),
        labels=torch.arange(COUNT) % 10,
        batch_size=batch_size,
        device=device,
    )
    return torch.cat(list(batches)).float()


@DEVICES
@pytest.mark.parametrize("steps", [1, 2])
def test_images_are_those_of_the_cpu(device, steps):
    difference = (pixels(device, steps) - pixels("cpu", steps)).abs()
    assert difference.max() <= 1  # a number between two of 255 may be rounded to either
    assert difference.mean() < 0.01


@DEVICES
def test_an_image_does_not_depend_on_its_batch(device):
    difference = (pixels(device, 2) - pixels(device, 2, batch_size=7)).abs()
    assert difference.max() <= 1 and difference.mean() < 0.01


@DEVICES
def test_half_precision_is_close(device):
    difference = (pixels(device, dtype=torch.bfloat16) - pixels("cpu")).abs()
    assert 0 < difference.mean() < 1
    assert (difference > 16).float().mean() < 0.01


@DEVICES
def test_noise_of_a_large_batch_is_that_of_the_cpu(device):
    seeds = image_seeds(3, range(64))
    there, here = ImageRandom(seeds, device), ImageRandom(seeds)
    for _ in range(2):
        a, b = there.randn(3, 32, 32).cpu(), here.randn(3, 32, 32)
        units = torch.nextafter(b.abs(), torch.tensor(float("inf"))) - b.abs()
        assert ((a - b).abs() <= units).all()
    torch.testing.assert_close(there.rand(1000).cpu(), here.rand(1000), rtol=0, atol=2**-24)
    assert torch.equal(there.randint(1000).cpu(), here.randint(1000))


@DEVICES
def test_the_denoiser_agrees_at_every_noise_level(device):
    model: Denoiser = load_model(EMBEDDED, device).denoiser
    here: Denoiser = load_model(EMBEDDED).denoiser
    x = torch.randn(4, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    for sigma in (0.002, 0.5, 80.0):
        sigmas, labels = torch.full((4,), sigma), torch.arange(4)
        there = model((x * sigma).to(device), sigmas.to(device), labels.to(device))
        torch.testing.assert_close(there.cpu(), here(x * sigma, sigmas, labels), rtol=0, atol=1e-3)
