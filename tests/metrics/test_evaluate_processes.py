"""One, two and three processes measure the same, and share the work."""

import json
import socket
from pathlib import Path

import pytest
import torch

from unistep.data import open_dataset

SCRIPT = Path(__file__).with_name("measure_among_others.py")


@pytest.fixture(scope="module")
def pixels(tmp_path_factory) -> Path:
    images = open_dataset("mnist-test").images
    path = tmp_path_factory.mktemp("pixels") / "images.pt"
    torch.save({"samples": images[:1700].clone(), "reference": images[2000:4100].clone()}, path)
    return path


def measured(start_script, pixels: Path, folder: Path, count: int) -> dict[str, dict[str, float]]:
    folder.mkdir()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    names = {"count": count, "port": port, "pixels": str(pixels), "cache": str(folder / "cache")}
    started = [start_script(SCRIPT, rank=rank, said=str(folder / f"said-{rank}"), **names) for rank in range(count)]
    for process in started:
        process.join(120)
    assert [process.exitcode for process in started] == [0] * count
    first, *others = (json.loads((folder / f"said-{rank}").read_text()) for rank in range(count))
    assert first[2] == ["pool"]
    assert others == [[first[0], [], []]] * (count - 1)  # all have the numbers, the first alone what is large
    return first[0]


@pytest.mark.slow
def test_the_same_numbers(start_script, pixels, tmp_path):
    alone = measured(start_script, pixels, tmp_path / "1", 1)
    assert {"fd", "fd_extrapolated", "kd", "is", "precision", "recall", "density", "coverage"} <= alone.keys()
    for count in (2, 3):
        together = measured(start_script, pixels, tmp_path / str(count), count)
        assert together.keys() == alone.keys()
        for name, expected in alone.items():
            assert together[name]["value"] == pytest.approx(expected["value"], rel=1e-9), (count, name)
            assert together[name]["standard_error"] == pytest.approx(expected["standard_error"], rel=1e-9)
        files = {str(p.relative_to(tmp_path / "1")): p.read_bytes() for p in (tmp_path / "1").rglob("*.npy")}
        assert len(files) == 7 + 7 + 9  # of 256 images: pool and probabilities of the samples, pool of the reference
        for path, content in files.items():
            assert (tmp_path / str(count) / path).read_bytes() == content
