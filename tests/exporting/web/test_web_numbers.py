"""The page's own arithmetic, run by Node, against the package's: noise, levels, sampling, edits, pictures."""

import base64
import io
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from unistep.core.parameterization import Preconditioned
from unistep.core.random import DEGRADE, GUESS, IMAGES, LABELS, ImageRandom, image_seed
from unistep.editing.noise_level import estimate_noise
from unistep.editing.operators.colorization import Colorization
from unistep.editing.operators.deblurring import GaussianBlur
from unistep.editing.operators.super_resolution import SuperResolution
from unistep.exporting.web.page import OWN
from unistep.formats.model import LoadedModel, ModelInfo, scaling_of
from unistep.generation.generate import generate
from unistep.generation.labels import make_labels
from unistep.generation.plan import make_plan
from unistep.images.read import read_picture
from unistep.networks.adm_config import UNetConfig
from unistep.workflows.edit import edit

DRIVER = Path(__file__).with_name("page_driver.mjs")
pytestmark = pytest.mark.skipif(shutil.which("node") is None, reason="there is no node")


def node(action: str, **given: object):
    words = ["node", DRIVER, OWN, action]
    done = subprocess.run(words, input=json.dumps(given), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


class StandIn(Preconditioned):
    """The network of page_driver.mjs."""

    def __init__(self, info: ModelInfo) -> None:
        super().__init__(torch.nn.Linear(1, 1), scaling_of(info))

    def forward(
        self, x_t: Tensor, sigma: Tensor, class_labels: Tensor | None = None, sigma_end: Tensor | None = None
    ) -> Tensor:
        seen = sigma.double() if sigma_end is None else sigma.double() - sigma_end.double() / 4
        square = seen[:, None, None, None] ** 2
        wave = torch.zeros_like(x_t, dtype=torch.float64)
        if class_labels is not None:
            place = torch.arange(x_t[0].numel(), dtype=torch.float64)
            wave = (0.5 * torch.sin(place * 0.05 * (class_labels.double()[:, None] + 1))).view_as(x_t)
        return ((x_t.double() + square * wave) / (1 + square)).to(x_t.dtype)


def stand_in(shape=(1, 16, 16), classes=5, **info) -> tuple[LoadedModel, dict]:
    """The model, and its description as the page has it."""
    channels, height, width = shape
    names = tuple("abcdefgh"[:classes])
    own = ModelInfo(**info, class_names=names)
    config = UNetConfig(sample_size=height, in_channels=channels, out_channels=channels, num_class_embeds=classes)
    described = {"channels": channels, "height": height, "width": width, "classes": names}
    described |= {"noise_levels": own.num_train_timesteps, "schedules": own.all_schedules, "clip": own.clip}
    described |= {name: getattr(own, name) for name in ("sigma_min", "sigma_max", "rho", "flow_map", "gamma")}
    return LoadedModel(StandIn(own), own, config, Path("stand-in")), described


def picture(size: tuple[int, int], mode: str = "L", seed: int = 0) -> Image.Image:
    """A smooth picture with some black and white in it."""
    width, height = size
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8)).resize((width, height), Image.BICUBIC)
    stretched = small.point(lambda v: max(0, min(255, int((v - 128) * 2.2 + 110))))
    return stretched.convert(mode)


def sent(image: Image.Image) -> dict:
    """A picture as a canvas holds it."""
    return {"data": list(image.convert("RGBA").tobytes()), "width": image.width, "height": image.height}


def pixels(images) -> np.ndarray:
    return np.asarray(images, dtype=np.int64)


def close(mine: np.ndarray, theirs: np.ndarray) -> None:
    """Equal to one level in 99.9% of pixels, and never far."""
    apart = np.abs(mine.reshape(-1) - theirs.reshape(-1).astype(np.int64))
    assert (apart <= 1).mean() >= 0.999 and apart.max() <= 8


def test_philox_gives_the_published_words():
    ones, pi = [0xFFFFFFFF] * 4, [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344]
    cases = [([0] * 4, [0] * 2), (ones, ones[:2]), (pi, [0xA4093822, 0x299F31D0])]
    words = node("words", cases=cases, seeds=[])["words"]
    assert words == [
        [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8],
        [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ]


def test_keys_are_those_of_python():
    rng = np.random.default_rng(0)
    seeds = [0, 1, 2**32, 2**64 - 1, *(int(v) for v in rng.integers(0, 2**63, 60))]
    cases = [(s, int(i), stream) for s in seeds for i in (0, 1, 5 << 20) for stream in (IMAGES, LABELS, GUESS, DEGRADE)]
    made = node("words", cases=[], seeds=[[str(word) for word in case] for case in cases])["seeds"]
    assert [int(one) for one in made] == [image_seed(*case) for case in cases]


def test_normals_are_those_of_python_to_the_last_bit():
    keys, draws = [image_seed(3, i) for i in range(40)], [784, 3, 1, 3072]
    random = ImageRandom(keys)
    for made, count in zip(node("normals", keys=[str(key) for key in keys], draws=draws), draws, strict=True):
        expected = random.randn(count).numpy().ravel()
        apart = np.abs(np.asarray(made, dtype=np.float32).view(np.int32).astype(np.int64) - expected.view(np.int32))
        # Implementations of log, cos and sin may differ in the last bit of float64, which rounding to float32 hides.
        assert (apart != 0).mean() < 1e-4 and apart.max() <= 1


@pytest.mark.parametrize(
    ("options", "info"),
    [
        ({}, {}),
        ({"steps": 2}, {"timesteps": (0, 23)}),
        ({"steps": 4}, {}),
        ({"timesteps": [0, 5, 30]}, {}),
        ({"sigmas": [80.0, 3.0]}, {}),
        ({"steps": 3}, {"num_train_timesteps": 18, "sigma_min": 0.0, "sigma_max": 60.0, "rho": 5.0}),
        ({}, {"flow_map": True, "sigma_min": 0.0}),
        ({"steps": 4}, {"flow_map": True, "sigma_min": 0.0}),
        ({"sigmas": [80.0, 9.0, 0.7]}, {"flow_map": True, "sigma_min": 0.0, "gamma": 0.6}),
        ({"steps": 2}, {"flow_map": True, "sigma_min": 0.0, "gamma": 1.0}),
    ],
)
def test_sampling_is_that_of_python(options, info):
    model, described = stand_in(**info)
    plan, labels = make_plan(model.info, **options), make_labels(5, 12, None, 9)
    made = node("sample", model=described, options=options | {"seed": 9}, count=12)
    assert made["sigmas"] == pytest.approx(list(plan.sigmas), rel=1e-12)
    assert made["labels"] == labels.tolist()
    expected = torch.cat([*generate(model.denoiser, plan, (1, 16, 16), range(12), seed=9, labels=labels)])
    close(pixels(made["pixels"]), expected.numpy())


@pytest.mark.parametrize(
    "options",
    [
        {"task": "inpaint"},
        {"task": "inpaint", "class_labels": 2, "steps": 3, "settle": 1},
        {"task": "outpaint"},
        {"task": "upscale"},
        {"task": "upscale", "factor": 2},
        {"task": "deblur", "blur": 1.0},
        {"task": "colorize"},
        {"task": "strokes"},
        {"task": "vary", "strength": 0.5},
        {"task": "denoise"},
        {"task": "denoise", "steps": 3, "sigma": 0.8},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_edits_are_those_of_python(options):
    shape = (1, 16, 16) if options["task"] in ("outpaint", "denoise") else (3, 16, 16)
    model, described = stand_in(shape)
    image, mask = picture((16, 16), "L" if shape[0] == 1 else "RGB"), Image.new("L", (16, 16))
    mask.paste(255, (3, 8, 12, 14))
    given = options | {"candidates": 3, "seed": 4}
    marked = {"mask": mask} if options["task"] == "inpaint" else {}
    expected = edit(model, image, progress=False, **(given | marked))
    masks = {name: sent(one) for name, one in marked.items()}
    made = node("edit", model=described, options=given, picture=sent(image), **masks)
    result = expected[0]
    assert made["labels"] == result.class_labels.tolist()
    close(pixels(made["images"]), result.candidates.numpy())


@pytest.mark.parametrize("options", [{"loop": True}, {"class_labels": 3, "steps": 2}, {}], ids=str)
def test_walks_are_those_of_python(options):
    model, described = stand_in()
    given = options | {"task": "walk", "seeds": [3, 8], "frames": 5}
    expected = edit(model, None, progress=False, **given)
    close(pixels(node("path", model=described, options=given)), expected.frames.numpy())


def test_paths_between_pictures_are_those_of_python():
    model, described = stand_in()
    ends = [picture((16, 16), seed=seed) for seed in (1, 2)]
    given = {"task": "interpolate", "frames": 6}
    expected = edit(model, ends, progress=False, **given)
    made = node("path", model=described, options=given, pictures=[sent(one) for one in ends])
    close(pixels(made), expected.frames.numpy())


@pytest.mark.parametrize("size", [(28, 28), (40, 28), (64, 100), (300, 200), (9, 7), (14, 14)])
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 14, 14)])
def test_pictures_are_fitted_as_files_are(size, shape):
    image = picture(size, "RGB", seed=sum(size))
    made = node("fit", picture=sent(image), shape=shape)
    expected = read_picture(image, shape).pixels.numpy().ravel()
    apart = np.abs(pixels(made) - expected)
    assert apart.max() == 0


@pytest.mark.parametrize("shape", [(1, 5, 7), (3, 64, 3)])
def test_png_files_hold_the_pixels(shape):
    values = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    url = node("png", pixels=values.ravel().tolist(), shape=shape)
    image = Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))
    assert image.mode == ("L" if shape[0] == 1 else "RGB")
    back = np.asarray(image).reshape(*shape[1:], shape[0])
    assert (back.transpose(2, 0, 1) == values).all()


def test_noise_is_estimated_as_in_python():
    clean = torch.from_numpy(np.array(picture((24, 24), "RGB"))).permute(2, 0, 1)[None] / 127.5 - 1
    noise = ImageRandom([5]).randn(3, 24, 24)
    images = [clean + sigma * noise for sigma in (0.0, 0.05, 0.3, 1.5)]
    images += [one.clamp(-1, 1) for one in images]
    made = node("noise", images=[one.ravel().tolist() for one in images], shape=(3, 24, 24))
    assert made == pytest.approx(estimate_noise(torch.cat(images)).tolist(), rel=2e-3, abs=1e-5)


def test_operators_are_those_of_python():
    x = ImageRandom([1]).randn(3, 12, 20)
    made = node("operators", x=x.ravel().tolist(), shape=(3, 12, 20))
    for kind, operator in {"blur": GaussianBlur(1.5), "patches": SuperResolution(4), "luma": Colorization()}.items():
        y = operator.A(x)
        assert made[kind]["y"] == pytest.approx(y.ravel().tolist(), abs=2e-6)
        assert made[kind]["x"] == pytest.approx(operator.A_pinv(y).ravel().tolist(), abs=2e-5)
