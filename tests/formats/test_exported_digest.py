"""The digest within an exported file: damage is found, whichever part it is in, and models are told apart by it."""

import random
import shutil

import pytest
import torch

import unistep
from unistep.errors import UserError
from unistep.formats.exported.digest import NO_DIGEST, digest_of, stamp
from unistep.generation.settings import weights_digest


@pytest.fixture
def stamped(tmp_path):
    path, weights = tmp_path / "m", tmp_path / "m.bin"
    path.write_bytes(b"before " + NO_DIGEST.encode() + b" after")
    weights.write_bytes(bytes(range(256)))
    stamp(path, [weights])
    stated = path.read_bytes()[7:-6].decode()
    return path, weights, stated


def test_every_byte_counts(stamped):
    path, weights, stated = stamped
    digest_of(path, [weights], stated)
    for file in (path, weights):
        whole = file.read_bytes()
        for i in range(len(whole)):
            file.write_bytes(whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :])
            with pytest.raises(UserError, match="damaged, or was changed"):
                digest_of(path, [weights], stated)
        file.write_bytes(whole[:-1])
        with pytest.raises(UserError, match="damaged, or was changed"):
            digest_of(path, [weights], stated)
        file.write_bytes(whole)


def test_files_without_a_digest_stay(tmp_path):
    path = tmp_path / "m"
    path.write_bytes(b"nothing here")
    stamp(path)
    assert path.read_bytes() == b"nothing here" and len(digest_of(path)) == 64


@pytest.mark.slow
@pytest.mark.parametrize("to", ["onnx", "openvino"])
def test_no_damaged_file_opens(saved, tmp_path, to):
    pytest.importorskip("openvino" if to == "openvino" else "onnxruntime")
    ending = ".xml" if to == "openvino" else ".onnx"
    source = unistep.export(saved("consistency"), tmp_path / f"m{ending}", to=to, batches=[1], progress=False).path
    rng, parts = random.Random(0), [source] + ([source.with_suffix(".bin")] if to == "openvino" else [])
    for part in parts:
        whole = part.read_bytes()
        for _ in range(100):
            place = rng.randrange(len(whole))
            part.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << rng.randrange(8)]) + whole[place + 1 :])
            with pytest.raises(UserError):
                unistep.load(source)
        part.write_bytes(whole)
    unistep.load(source)


@pytest.mark.slow
def test_weights_of_another_export(saved, tmp_path):
    """Of the same network, so that everything fits but the numbers."""
    pytest.importorskip("openvino")
    model = unistep.load(saved("consistency"))
    for name in ("a", "b"):
        unistep.export(model, tmp_path / f"{name}.xml", to="openvino", batches=[1], progress=False)
        with torch.no_grad():
            next(model.denoiser.parameters()).mul_(1.25)
    a, b = unistep.load(tmp_path / "a.xml"), unistep.load(tmp_path / "b.xml")
    assert weights_digest(a.denoiser) != weights_digest(b.denoiser)  # images of the one are not kept for the other
    shutil.copy(tmp_path / "b.bin", tmp_path / "a.bin")
    with pytest.raises(UserError, match=r"a\.xml or a\.bin is damaged"):
        unistep.load(tmp_path / "a.xml")
