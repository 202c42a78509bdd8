"""Models in other runtimes: the images of eager, in any batch."""

import json
import logging
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch

import unistep
from unistep.core.parameterization import Preconditioned
from unistep.errors import UserError
from unistep.generation import prepare
from unistep.prepared.network import PreparedNetwork, ends_of
from unistep.prepared.table import RUNTIMES, find_runtime
from unistep.runtime.child import child_environment
from unistep.workflows.models import as_model

needs_openvino = pytest.mark.skipif(not RUNTIMES["openvino"].installed, reason="needs openvino")


def agrees(folder: Path, runtime: str, dtype: str = "fp32", least: float = 60.0) -> None:
    model = unistep.load(folder, runtime=runtime, dtype=dtype)
    assert type(model.denoiser.network).__name__ == "PreparedNetwork"
    eager = unistep.load(folder)
    generator = torch.Generator().manual_seed(1)
    for batch in (1, 3, 17):
        x = torch.randn(batch, *eager.image_shape, generator=generator) * 2
        sigma, labels = torch.linspace(0.5, 20, batch), torch.arange(batch) % 3
        ours, theirs = model.denoiser(x, sigma, labels), eager.denoiser(x, sigma, labels)
        assert 10 * torch.log10(4 / (ours - theirs).square().mean()) > least


@pytest.mark.slow
@needs_openvino
def test_openvino_makes_the_images_of_eager(small: Path, cache: Path):
    agrees(small, "openvino")
    agrees(small, "openvino", "bf16", 35.0)
    listed = unistep.cache()
    assert {entry["precision"] for entry in listed.entries} == {"fp32", "bf16"}
    assert all(entry["psnr"] and not entry.get("failure") for entry in listed.entries)
    assert unistep.cache(clear=True).cleared == 2 and not unistep.cache().entries


@needs_openvino
def test_the_same_image_in_every_batch(small: Path, cache: Path):
    model = unistep.load(small, runtime="openvino")
    whole = unistep.sample(model, num_images=18, seed=3, progress=False).pixels
    parts = unistep.sample(model, num_images=18, seed=3, batch_size=5, progress=False).pixels
    alone = unistep.sample(small, runtime="openvino", num_images=1, seed=3, progress=False).pixels
    assert torch.equal(whole, parts) and torch.equal(whole[:1], alone)


@pytest.mark.slow
@pytest.mark.parametrize("runtime", ["onnxruntime", "aoti"])
def test_other_runtimes(runtime: str, small: Path, cache: Path):
    if not RUNTIMES[runtime].installed:
        pytest.skip(f"needs {runtime}")
    agrees(small, runtime)


@pytest.mark.slow
def test_compiled(small: Path, tmp_path: Path):
    """In a process of its own: the checks of types that the tests run with cannot be compiled."""
    out = str(tmp_path / "images.npz")
    options = {"runtime": "compiled", "num_images": 2, "progress": False, "output": out}
    code = f"import unistep; unistep.sample({str(small)!r}, **{options!r})"
    subprocess.run([sys.executable, "-c", code], check=True, env=child_environment())
    images = torch.from_numpy(np.load(out)["arr_0"]).permute(0, 3, 1, 2).int()
    eager = unistep.sample(small, num_images=2, progress=False).pixels
    assert (images - eager.int()).abs().max() <= 1


@needs_openvino
def test_other_weights_are_another_entry(small: Path, cache: Path, monkeypatch: pytest.MonkeyPatch):
    keys = []
    monkeypatch.setattr(prepare, "_make", lambda request, progress: keys.append(request.key) or "not made")
    unistep.load(small, runtime="openvino")
    unistep.load(small, runtime="openvino", dtype="bf16")
    file = small / "unet" / "config.json"
    config = file.read_text()
    file.write_text(json.dumps(json.loads(config) | {"norm_eps": 1e-4}))
    unistep.load(small, runtime="openvino")
    file.write_text(config)
    assert len(set(keys)) == 3


@needs_openvino
@pytest.mark.parametrize("runtime", ["openvino", "auto"])
def test_a_process_that_dies_leaves_eager(
    runtime: str, small: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setattr(prepare.sys, "executable", "/bin/false")
    with caplog.at_level(logging.WARNING, "unistep"):
        model = unistep.load(small, runtime=runtime)
    assert type(model.denoiser.network).__name__ == "UNet"
    assert caplog.messages == [
        "runtime openvino: the process that prepares it ended with 1; eager is taken",
    ]


@needs_openvino
def test_a_runtime_that_differs_leaves_eager(
    small: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    from unistep.generation.prepare_alone import make as prepare_here
    from unistep.prepared import make

    monkeypatch.setattr(prepare, "_make", lambda request, progress: prepare_here(request, lambda stage: None))
    monkeypatch.setattr(make, "BOUNDS", {"fp32": 190.0})
    with caplog.at_level(logging.WARNING, "unistep"):
        model = unistep.load(small, runtime="openvino")
    assert type(model.denoiser.network).__name__ == "UNet"
    assert len(caplog.messages) == 1 and "it differs from eager" in caplog.text and "190 asked" in caplog.text
    assert unistep.cache().entries[0]["files"] == {}


def test_ends_are_what_half_precision_leaves(small: Path):
    network = unistep.load(small).denoiser.network
    names = {name.partition(".")[0] for name in ends_of(network)}
    assert names == {"time_embedding", "class_embedding", "conv_in", "conv_norm_out", "conv_out"}
    assert next(network.parameters()).dtype == torch.float32  # as before


def test_a_prepared_network_has_its_ends_alone(small: Path):
    model, outline = unistep.load(small), prepare_outline(small)
    ends = ends_of(model.denoiser.network)
    network = PreparedNetwork(outline, ends, model.denoiser.network.trunk, "ab" * 20, "own", "fp32")
    denoiser = Preconditioned(network, model.denoiser.scaling)
    x, sigma, labels = torch.randn(2, 1, 8, 8), torch.tensor([1.0, 80.0]), torch.tensor([0, 2])
    with torch.no_grad():
        assert torch.equal(denoiser(x, sigma, labels), model.denoiser(x, sigma, labels))
        with pytest.raises(UserError, match="8x8"):
            denoiser(torch.randn(2, 1, 16, 16), sigma, labels)
        with pytest.raises(ValueError, match="class_labels"):
            denoiser(x, sigma)
    assert {name.partition(".")[0] for name in network.state_dict()} == {"network", "key"}
    assert sum(p.numel() for p in network.parameters()) < sum(p.numel() for p in model.denoiser.parameters()) / 4


def prepare_outline(folder: Path) -> torch.nn.Module:
    from unistep.workflows.models import open_any

    return open_any(folder, "meta").denoiser.network


def test_unknown_and_missing_runtimes(small: Path, cache: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(UserError, match="give eager, auto, compiled"):
        find_runtime("tvm")
    with pytest.raises(UserError, match="bf16"):
        as_model(small, runtime="onnxruntime", dtype="bf16")
    with pytest.raises(UserError, match="`runtime` is for a model given by name"):
        as_model(unistep.load(small), runtime="openvino")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'unistep\[openvino\]'"):
        unistep.load(small, runtime="openvino")
    assert type(unistep.load(small, runtime="auto").denoiser.network).__name__ == "UNet"


@needs_openvino
def test_a_signal_is_received_after_a_network_is_gone(small: Path, cache: Path):
    code = """
        import gc, os, signal, sys
        import torch, unistep
        model = unistep.load(sys.argv[1], runtime="openvino")
        for batch in (1, 17):  # which are compiled each on its own
            x = torch.zeros(batch, *model.image_shape)
            model.denoiser(x, torch.ones(batch), torch.zeros(batch, dtype=torch.int64))
        del model
        gc.collect()
        received = []
        signal.signal(signal.SIGINT, lambda number, frame: received.append(number))
        os.kill(os.getpid(), signal.SIGINT)
        assert received == [signal.SIGINT]
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code), str(small)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
