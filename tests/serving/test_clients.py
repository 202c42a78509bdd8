"""The examples of clients, run with the real packages against a server that listens."""

import base64
import concurrent.futures
import io
import json
import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from urllib.request import Request, urlopen

import numpy as np
import pytest
from PIL import Image

import unistep

ROOT = Path(__file__).parents[2]
CLIENTS = ROOT / "examples/clients"


def run(words: list[str], folder: Path) -> str:
    environment = os.environ | {"no_proxy": "127.0.0.1", "NO_PROXY": "127.0.0.1"}
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def check_digits(files: list[Path], **given) -> None:
    """The files hold what `unistep.sample` makes, enlarged by whole numbers or not at all."""
    expected = unistep.sample(num_images=len(files), progress=False, **given).pixels
    for file, pixels in zip(files, expected, strict=True):
        with Image.open(file) as image:
            shown = np.asarray(image.resize((28, 28), Image.Resampling.NEAREST))
        assert (shown == pixels[0].numpy()).all(), file


def needs(package: str):
    return pytest.mark.skipif(find_spec(package) is None, reason=f"{package} is not installed")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        pytest.param("requests", "digit-1.png: class 8", marks=needs("requests")),
        pytest.param("huggingface", "seven.png: 28x28", marks=needs("huggingface_hub")),
        pytest.param("openai", "2 images, 2 edits", marks=needs("openai")),
        pytest.param("replicate", "succeeded: 3 images", marks=needs("replicate")),
    ],
)
def test_clients_in_python(live, tmp_path, name, words):
    out = run([sys.executable, str(CLIENTS / f"{name}_client.py"), live.address], tmp_path)
    assert words in out
    if name == "requests":
        check_digits([tmp_path / "digit-0.png", tmp_path / "digit-1.png"], class_labels=[3, 8], steps=2, seed=0)
    elif name == "huggingface":
        check_digits([tmp_path / "seven.png"], class_labels=7, steps=2, seed=3)
    elif name == "openai":
        # 256 is no multiple of 28: what is compared is the size.
        assert Image.open(tmp_path / "three-1.png").size == (256, 256)
        assert Image.open(tmp_path / "edited-1.png").size == (28, 28)


@pytest.mark.skipif(shutil.which("node") is None, reason="there is no node")
def test_node_by_itself(live, tmp_path):
    assert "3 images" in run(["node", str(CLIENTS / "fetch.mjs"), live.address], tmp_path)
    check_digits([tmp_path / f"image-{i}.png" for i in range(3)], steps=2, seed=0)


@pytest.fixture(scope="module")
def packages(tmp_path_factory) -> Path:
    """A folder with Node's clients and their packages."""
    folder = tmp_path_factory.mktemp("clients")
    for path in CLIENTS.iterdir():
        shutil.copy(path, folder)
    words = ["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts"]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=300)
    if done.returncode:
        pytest.skip(f"npm cannot install them: {done.stderr[-200:]}")
    return folder


@pytest.mark.slow  # installs packages
@pytest.mark.skipif(shutil.which("npm") is None, reason="there is no npm")
@pytest.mark.parametrize(
    ("name", "words"),
    [("openai", "2 images"), ("huggingface", "seven.png"), ("replicate", "succeeded: 3 images")],
)
def test_clients_in_node(live, packages, name, words):
    assert words in run(["node", f"{name}.mjs", live.address], packages)
    if name == "openai":
        check_digits([packages / "three-0.png", packages / "three-1.png"], class_labels=3, steps=2, seed=7)
    elif name == "huggingface":
        check_digits([packages / "seven.png"], class_labels=7, steps=2, seed=3)


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
def test_curl(live, tmp_path):
    run(["sh", str(CLIENTS / "curl.sh"), live.address], tmp_path)
    check_digits([tmp_path / "three.png"], class_labels=3, steps=2, seed=0)
    edited, three = (np.asarray(Image.open(tmp_path / name)) for name in ("edited.png", "three.png"))
    assert (edited[:14] == three[:14]).all()
    assert json.loads((tmp_path / "prediction.json").read_text())["status"] in ("starting", "processing", "succeeded")


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
def test_the_commands_of_the_page_of_serving(live, tmp_path):
    lines = [
        line
        for line in (ROOT / "docs/serving.md").read_text().splitlines()
        if line.startswith("curl http://127.0.0.1:8000/")
    ]
    assert len(lines) >= 4
    pixels = unistep.sample(num_images=1, class_labels=3, progress=False).pixels[0, 0].numpy()
    Image.fromarray(pixels).save(tmp_path / "digit.png")
    for line in lines:
        command = line.replace("http://127.0.0.1:8000", live.address).replace("curl ", "curl -sSf ", 1)
        out = run(["sh", "-c", command], tmp_path)
        assert "-o " in line or json.loads(out)
    assert Image.open(tmp_path / "seven.png").size == (28, 28)


def test_no_lock_file_names_a_host():
    locks = [path for path in CLIENTS.iterdir() if "lock" in path.name] + [ROOT / "constraints.txt"]
    for path in locks:
        assert not re.search(r"resolved|registry|\.npmjs\.|pypi\.", path.read_text()), path


@pytest.mark.slow  # a minute
def test_a_thousand_images_under_load_are_those_of_sample(live):
    """Runs of many seeds and parts of runs at once, and some of them alone in the end."""
    expected = unistep.sample(num_images=1000, seed=11, progress=False).pixels

    def ask(part: range) -> dict[int, np.ndarray]:
        body = {"n": len(part), "seed": 11, "first": part.start}
        answer = urlopen(Request(f"{live.address}/v1/images/generations", json.dumps(body).encode()), timeout=300)
        data = json.load(answer)["data"]
        images = [np.asarray(Image.open(io.BytesIO(base64.b64decode(one["b64_json"])))) for one in data]
        return dict(zip(part, images, strict=True))

    parts, start = [], 0
    while start < 1000:
        size = min((1, 3, 16, 7, 40, 5, 64)[len(parts) % 7], 1000 - start)
        parts.append(range(start, start + size))
        start += size
    with concurrent.futures.ThreadPoolExecutor(32) as pool:
        found = {number: image for made in pool.map(ask, parts) for number, image in made.items()}
    assert len(found) == 1000
    for number, pixels in enumerate(expected):
        assert (found[number] == pixels[0].numpy()).all(), number
    for number in (0, 17, 512, 999):
        assert (ask(range(number, number + 1))[number] == expected[number, 0].numpy()).all()
