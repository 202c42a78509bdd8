"""Pipelines in other runtimes, and every verb that samples in them."""

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import unistep
from unistep import ConsistencyModelPipeline
from unistep.core.parameterization import Preconditioned
from unistep.errors import UserError
from unistep.formats.embedded import EMBEDDED_MODELS
from unistep.formats.model import LoadedModel
from unistep.generation import prepare
from unistep.pipelines.runtimes import check_place
from unistep.prepared.network import PreparedNetwork, ends_of
from unistep.prepared.table import RUNTIMES

needs_openvino = pytest.mark.skipif(not RUNTIMES["openvino"].installed, reason="needs openvino")
opens = ConsistencyModelPipeline.from_pretrained
CALL: dict[str, Any] = {"batch_size": 3, "seeds": [0, 1, 2], "output_type": "pt", "class_labels": [0, 1, 2]}


@pytest.fixture
def own_trunk(monkeypatch: pytest.MonkeyPatch):
    """Every runtime computes a network's own trunk, in fp32."""

    def instead(
        name: Any, options: Any, open_model: Callable[[str], LoadedModel], runtime: str, precision: str, **_: Any
    ):
        model, outline = open_model("cpu").denoiser, open_model("meta")
        network: Any = outline.denoiser.network
        prepared = PreparedNetwork(network, ends_of(model.network), model.network.trunk, "ab" * 20, runtime, precision)
        return replace(outline, denoiser=Preconditioned(prepared, outline.denoiser.scaling).requires_grad_(False)), ""

    monkeypatch.setattr(prepare, "prepared_model", instead)


@needs_openvino
@pytest.mark.slow
def test_a_pipeline_in_openvino_makes_the_images_of_eager(model_folder, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = model_folder("consistency")
    ours, eager = opens(folder, runtime="openvino"), opens(folder)
    assert type(ours.unet).__name__ == "PreparedNetwork"
    for steps in (1, 2):
        images = [pipe(num_inference_steps=steps, **CALL).images for pipe in (ours, eager)]
        assert (images[0] - images[1]).abs().max() < 1e-3
    half = opens(folder, runtime="openvino", dtype="bf16")
    assert half.dtype == torch.bfloat16 and (half(**CALL).images - eager(**CALL).images).abs().max() < 0.1
    with pytest.raises(UserError, match="`dtype` fp16: `runtime` openvino computes in fp32 or bf16"):
        opens(folder, runtime="openvino", dtype="fp16")
    assert type(opens(folder, runtime="auto", dtype="fp16").unet).__name__ == "UNet2D"


def test_a_pipeline_of_a_prepared_network(own_trunk, model_folder, tmp_path: Path):
    folder = model_folder("consistency")
    ours, eager = opens(folder, runtime="openvino"), opens(folder)
    assert type(ours.unet).__name__ == "PreparedNetwork" and ours.dtype == torch.float32
    assert torch.equal(ours(**CALL).images, eager(**CALL).images)
    assert torch.equal(ConsistencyModelPipeline.from_pipe(ours)(**CALL).images, eager(**CALL).images)
    images = [unistep.sample(pipe, num_images=2, progress=False).pixels for pipe in (ours, eager)]
    assert torch.equal(*images)
    with pytest.raises(UserError, match="`runtime` openvino has the weights"):
        ours.save_pretrained(tmp_path / "copy")
    assert not (tmp_path / "copy").exists()
    with pytest.raises(UserError, match="`runtime` openvino is for the CPU"):
        check_place(ours.unet, torch.device("cuda"))


def test_the_precision_is_that_of_the_opening(own_trunk, model_folder, caplog: pytest.LogCaptureFixture):
    pipe = opens(model_folder("consistency"), runtime="openvino", dtype="bf16")
    assert pipe.dtype == torch.bfloat16
    with caplog.at_level(logging.WARNING, "unistep"):
        pipe.to("cpu", torch.bfloat16).to(torch.float32)
    assert caplog.messages == ["the network stays in bf16, as `runtime` openvino was opened; give `dtype` there"]
    assert {p.dtype for p in pipe.unet.parameters()} == {torch.float32}  # embedding and head, as before


def test_runtimes_of_a_pipeline(model_folder, monkeypatch: pytest.MonkeyPatch):
    folder = model_folder("consistency")
    monkeypatch.setattr(torch, "compile", lambda unet, **options: torch.nn.DataParallel(unet))
    assert type(opens(folder, runtime="compiled").unet).__name__ == "DataParallel"
    with pytest.raises(UserError, match="`runtime` is for the model's own network"):
        opens(folder, runtime="openvino", unet=opens(folder).unet)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'unistep\[openvino\]'"):
        opens(folder, runtime="openvino")
    assert type(opens(folder, runtime="auto").unet).__name__ == "UNet2D"


class Taken(Exception):
    """Raised in place of preparing a model."""


FOLDER = str(EMBEDDED_MODELS["mnist"].folder)
QUIET: dict[str, Any] = {"progress": False}
VERBS: dict[str, Callable[[Any], object]] = {
    "load": lambda runtime: unistep.load(runtime=runtime),
    "sample": lambda runtime: unistep.sample(num_images=1, runtime=runtime, **QUIET),
    "edit": lambda runtime: unistep.edit(
        None, torch.zeros(1, 28, 28, dtype=torch.uint8), "denoise", runtime=runtime, **QUIET
    ),
    "evaluate": lambda runtime: unistep.evaluate(FOLDER, num_images=9, runtime=runtime, **QUIET),
    "search": lambda runtime: unistep.search(reference="mnist", runtime=runtime, **QUIET),
    "serve": lambda runtime: unistep.serve([FOLDER], port=0, runtime=runtime, background=True),
    "from_pretrained": lambda runtime: opens(FOLDER, runtime=runtime),
}


@pytest.mark.parametrize("runtime", ["openvino", "auto"])
@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_that_samples_takes_a_runtime(verb: str, runtime: str, monkeypatch: pytest.MonkeyPatch):
    taken: list[str] = []

    def instead(name: object, options: object, opens: object, runtime: str, precision: str, **given: object) -> None:
        taken.append(runtime)
        raise Taken

    monkeypatch.setattr(prepare, "prepared_model", instead)
    with pytest.raises(Taken):
        VERBS[verb](runtime)
    assert taken == [runtime]
