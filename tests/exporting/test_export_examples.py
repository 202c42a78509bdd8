"""The examples of `examples/export`: an exported sampler in Node and in C++ makes the image of `unistep sample`."""

import os
import shutil
import subprocess
import tarfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import unistep
from unistep.core.random import ImageRandom, image_seed
from unistep.exporting.web.page import OWN

EXAMPLES = Path(__file__).parents[2] / "examples/export"
# The headers of onnxruntime are in no package of PyPI; those for iOS in this one of npm are the same.
HEADERS = "com.github.asus4.onnxruntime@0.4.9"
_INSIDE = "package/Plugins/iOS~/onnxruntime.xcframework/ios-arm64_x86_64-simulator/onnxruntime.framework/Headers/"


def needs(program: str):
    return pytest.mark.skipif(shutil.which(program) is None, reason=f"there is no {program}")


def run(words: list[object], folder: Path, **environment: str) -> str:
    done = subprocess.run(
        [*map(str, words)], cwd=folder, env=os.environ | environment, capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def npm(folder: Path, *words: str) -> None:
    quiet = {"npm_config_ignore_scripts": "true", "npm_config_audit": "false", "npm_config_fund": "false"}
    done = subprocess.run(["npm", *words], cwd=folder, env=os.environ | quiet, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"npm cannot fetch the package: {done.stderr[-300:]}")


@pytest.fixture(scope="module")
def sampler(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("sampler") / "digits.onnx"
    unistep.export("mnist", path, steps=2, batches=[1], progress=False)
    return path


def check(path: Path) -> None:
    expected = unistep.sample(num_images=1, seed=3, steps=2, class_labels=7, progress=False).pixels[0, 0].numpy()
    apart = np.abs(np.asarray(Image.open(path)).astype(int) - expected)
    assert (apart <= 1).mean() >= 0.999


@pytest.mark.slow
@needs("npm")
def test_node_makes_the_image(sampler, tmp_path):
    for path in (EXAMPLES / "node").iterdir():
        shutil.copy(path, tmp_path)
    npm(tmp_path, "ci")
    run(["node", "sample.mjs", sampler, 7, 3, "seven.png", OWN], tmp_path)
    check(tmp_path / "seven.png")


@pytest.fixture(scope="module")
def headers(tmp_path_factory) -> Path:
    """The folder of onnxruntime's headers: the system's, or those of a package."""
    for folder in (Path("/usr/include/onnxruntime"), Path("/usr/local/include/onnxruntime")):
        if (folder / "onnxruntime_cxx_api.h").is_file():
            return folder
    if shutil.which("npm") is None:
        pytest.skip("there are no headers of onnxruntime, and no npm")
    folder = tmp_path_factory.mktemp("headers")
    npm(folder, "pack", HEADERS)
    with tarfile.open(next(folder.glob("*.tgz"))) as archive:
        for member in archive:
            if member.name.startswith(_INSIDE) and member.isfile():
                source = archive.extractfile(member)
                assert source is not None
                (folder / Path(member.name).name).write_bytes(source.read())
    return folder


@pytest.mark.slow
@needs("g++")
def test_cpp_makes_the_image(sampler, headers, tmp_path):
    spec = find_spec("onnxruntime")
    if spec is None or spec.origin is None:
        pytest.skip("there is no library of onnxruntime")
    library = next((Path(spec.origin).parent / "capi").glob("libonnxruntime.so.*.*"), None)
    if library is None:
        pytest.skip("the package onnxruntime has no library of its own")
    (tmp_path / "libonnxruntime.so.1").symlink_to(library)
    words = ["g++", "-std=c++17", "-O1", "-I", headers, EXAMPLES / "cpp/sample.cpp", library, "-o", "sample"]
    run(words, tmp_path)
    run(["./sample", sampler, 7, 3, "seven.png"], tmp_path, LD_LIBRARY_PATH=str(tmp_path))
    check(tmp_path / "seven.png")


_PARTS = """
#include <cstdio>
#include "png.hpp"
#include "random.hpp"
int main() {
    const auto noise = unit_noise(image_seed(18446744073709551615ull, 5, 0x1ABE1), 3, 1001);
    std::fwrite(noise.data(), sizeof(float), noise.size(), stdout);
    std::vector<uint8_t> pixels(3 * 300 * 200);
    for (size_t i = 0; i < pixels.size(); ++i) pixels[i] = uint8_t(i * i / 7);
    write_png("colour.png", pixels.data(), 300, 200, 3);
    write_png("grey.png", pixels.data(), 5, 7, 1);
}
"""


@needs("g++")
def test_noise_and_pictures_of_cpp(tmp_path):
    (tmp_path / "parts.cpp").write_text(_PARTS)
    run(
        ["g++", "-std=c++17", "-Wall", "-Wextra", "-Werror", "-I", EXAMPLES / "cpp", "parts.cpp", "-o", "parts"],
        tmp_path,
    )
    made = subprocess.run([tmp_path / "parts"], cwd=tmp_path, capture_output=True, check=True).stdout
    random = ImageRandom([image_seed(2**64 - 1, 5, 0x1ABE1)])
    expected = np.concatenate([random.randn(1001).numpy().ravel() for _ in range(3)])
    apart = np.abs(np.frombuffer(made, np.int32).astype(np.int64) - expected.view(np.int32))
    assert apart.max() <= 1 and (apart > 0).mean() < 1e-3
    values = np.arange(3 * 300 * 200, dtype=np.uint64)
    values = ((values * values) // 7 % 256).astype(np.uint8)
    assert (np.asarray(Image.open(tmp_path / "colour.png")).ravel() == values).all()
    assert (np.asarray(Image.open(tmp_path / "grey.png")).ravel() == values[:35]).all()
