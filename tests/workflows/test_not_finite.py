"""A network that overflows in half precision: every verb says so and leaves no image; fp32 makes them."""

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import unistep
from unistep.core.finite import NotFiniteError, not_finite
from unistep.formats.model import LoadedModel
from unistep.runtime.precision import set_precision

WORDS = r'not finite \(NaN or inf\) in fp16, .*; give `dtype="fp32"`, or `dtype="bf16"`$'


@pytest.fixture(scope="module")
def cold(model_folder) -> Path:
    """A model of three classes whose values fp16 holds."""
    return model_folder("consistency", num_class_embeds=3)


@pytest.fixture(scope="module")
def hot(cold, tmp_path_factory) -> Path:
    """A model whose values overflow fp16, as those of trained ones can."""
    folder = tmp_path_factory.mktemp("models") / "hot"
    shutil.copytree(cold, folder)
    file = folder / "unet/diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    name = next(name for name in weights if name.endswith("down_blocks.0.resnets.0.conv1.weight"))
    weights[name] = weights[name] * 1e6
    save_file(weights, file, metadata={"format": "pt"})
    return folder


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).save("a.png")
    return tmp_path


def in_fp16(folder: Path) -> LoadedModel:
    """The model in fp16, which verbs replace on a CPU where they open it."""
    model = unistep.load(folder)
    set_precision(model.denoiser.network, torch.float16)
    return model


def left(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


CALLS: dict[str, Any] = {
    "memory": lambda m: unistep.sample(m, num_images=2, progress=False),
    "grid": lambda m: unistep.sample(m, num_images=2, output="x.png", progress=False),
    "npz": lambda m: unistep.sample(m, num_images=20, batch_size=4, output="x.npz", progress=False),
    "folder": lambda m: unistep.sample(m, num_images=2, output="new/x", progress=False),
    "two steps": lambda m: unistep.sample(m, num_images=2, steps=2, progress=False),
    "edit": lambda m: unistep.edit(m, "a.png", "inpaint", mask="lower", class_labels=2, output="x.png", progress=False),
    "guess": lambda m: unistep.edit(m, "a.png", "vary", output="x/", sheet="s.png", progress=False),
    "walk": lambda m: unistep.edit(m, None, "walk", frames=2, stops=2, output="x.gif", progress=False),
    "evaluate": lambda m: unistep.evaluate(
        m,
        num_images=20,
        reference=torch.zeros(20, 1, 16, 16, dtype=torch.uint8),
        features="mnist",
        metrics=["fd"],
        output="x.json",
        feature_cache="../cache",
        progress=False,
    ),
    "search": lambda m: unistep.search(m, num_images=20, metric="is", features="mnist", progress=False),
    "search of a task": lambda m: unistep.search(
        m,
        task="upscale",
        images=torch.zeros(40, 1, 16, 16, dtype=torch.uint8),
        num_images=20,
        steps=1,
        progress=False,
    ),
}


@pytest.mark.parametrize("name", list(CALLS))
def test_nothing_is_made_of_it(here, hot, name):
    before = left(here)
    with pytest.raises(NotFiniteError, match=WORDS):
        CALLS[name](in_fp16(hot))
    assert [path for path in left(here) if path != "new"] == before


@pytest.mark.parametrize("kind", ["pil", "np", "pt"])
def test_pipelines(hot, kind):
    pipe = unistep.ConsistencyModelPipeline.from_pretrained(hot, torch_dtype=torch.float16)
    with pytest.raises(NotFiniteError, match=WORDS):
        pipe(class_labels=[2], output_type=kind)
    again = unistep.ConsistencyModelPipeline.from_pretrained(hot, torch_dtype="fp32")
    images = again(class_labels=[2], output_type="pt").images
    assert images.isfinite().all() and images.std() > 0


def test_the_remedy_works(here, hot):
    assert unistep.sample(hot, num_images=2, dtype="fp32", progress=False).pixels.float().std() > 0


@pytest.mark.parametrize("place", ["x.npz", "x"])
def test_images_that_were_made_before_stay(here, cold, monkeypatch, place):
    """The remedy then has to say what becomes of them, for images of two precisions do not go together."""
    from unistep.generation import collect as module

    made, make = [], module.generate

    def overflowing(*args: Any, **more: Any) -> Any:
        made.append(args)
        if len(made) > 1:
            raise not_finite(torch.float16)
        return make(*args, **more)

    options: dict[str, Any] = {"num_images": 40, "batch_size": 4, "output": place, "progress": False}
    with monkeypatch.context() as patch:
        patch.setattr(module, "generate", overflowing)
        with pytest.raises(NotFiniteError, match=r"; as 16 images made before are kept, with `restart=True`$"):
            unistep.sample(cold, **options, dtype="bf16")
    with pytest.raises(unistep.UserError, match=r"16 of 40 images .* differs in dtype .*`restart=True`"):
        unistep.sample(cold, **options, dtype="fp32")
    if place == "x":
        assert len([name for name in os.listdir("x/.parts") if name.endswith(".png")]) == 16
        return
    again = unistep.sample(cold, **options, dtype="fp32", restart=True)
    assert torch.equal(again.pixels, unistep.sample(cold, num_images=40, progress=False).pixels)
