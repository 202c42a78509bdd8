"""Models in int8: as near to fp32 as asked, in a folder that every verb opens."""

import importlib.util
from pathlib import Path

import pytest
import torch

import unistep
from unistep.errors import UserError
from unistep.prepared.table import RUNTIMES

needs_nncf = pytest.mark.skipif(
    not RUNTIMES["openvino"].installed or importlib.util.find_spec("nncf") is None, reason="needs openvino and nncf"
)


@pytest.fixture(scope="module")
def quantized(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quantized") / "int8"
    made = unistep.quantize(str(small), folder, calibration=2, psnr=30, progress=False)
    assert min(made.psnr.values()) >= 29.5 and len(made.psnr) == 7
    assert 0 <= made.kept < made.operations and made.path == folder and "in int8" in dict(made.rows())
    return folder


@needs_nncf
@pytest.mark.slow
def test_a_quantized_model_is_a_model(quantized: Path, small: Path):
    model, eager = unistep.load(quantized), unistep.load(small)
    assert model.format == "quantized model" and model.info == eager.info
    x, sigma, labels = torch.randn(3, 1, 8, 8), torch.tensor([0.1, 1.0, 10.0]), torch.tensor([0, 1, 2])
    ours, theirs = model.denoiser(x, sigma, labels), eager.denoiser(x, sigma, labels)
    assert 10 * torch.log10(4 / (ours - theirs).square().mean()) > 25
    images = unistep.sample(str(quantized), num_images=17, progress=False).pixels
    assert torch.equal(images, unistep.sample(str(quantized), num_images=17, batch_size=3, progress=False).pixels)


@needs_nncf
@pytest.mark.slow
@pytest.mark.parametrize("name", ["trunk.xml", "trunk.bin", "ends.safetensors", "about.json"])
def test_a_damaged_one_is_refused(name: str, quantized: Path, tmp_path: Path):
    import shutil

    folder = tmp_path / "copy"
    shutil.copytree(quantized, folder)
    file = folder / "int8" / name
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match="not whole, or damaged; quantize the model again"):
        unistep.load(folder)


def test_mistakes_are_refused_at_once(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(UserError, match="calibration"):
        unistep.quantize(str(small), tmp_path / "out", calibration=0)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"quantizing needs openvino; pip install 'unistep\[openvino\]'"):
        unistep.quantize(str(small), tmp_path / "out")
    monkeypatch.undo()
    if RUNTIMES["openvino"].installed:
        with pytest.raises(UserError, match="exists and is no quantized model"):
            unistep.quantize(str(small), small)
    assert not (tmp_path / "out").exists()
