"""LPIPS' files: read from paths in every form, downloaded once and whole, refused where they are anything else."""

import os
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from unistep.errors import UserError
from unistep.formats.published import lpips as lpips_weights
from unistep.formats.published.file import PublishedFile
from unistep.formats.published.lpips import HEADS, VGG16, load_lpips
from unistep.networks.lpips import LPIPS

WIDTHS = (4, 5, 6, 7, 8)


@pytest.fixture(scope="module")
def network() -> LPIPS:
    network = LPIPS(widths=WIDTHS)
    noise = torch.Generator().manual_seed(0)
    for p in network.parameters():
        # Numbers that fp16 holds exactly.
        p.data = (torch.rand(p.shape, generator=noise) * 64).round() / 256
    return network


@pytest.fixture
def vgg(network: LPIPS) -> dict[str, Tensor]:
    state = {name: v.clone() for name, v in network.state_dict().items() if name.startswith("features")}
    return state | {"classifier.0.weight": torch.zeros(3, 5)}


@pytest.fixture
def heads(network: LPIPS) -> dict[str, Tensor]:
    return {name: v.clone() for name, v in network.state_dict().items() if name.startswith("lin")}


@pytest.fixture
def paths(tmp_path: Path, vgg: dict[str, Tensor], heads: dict[str, Tensor]) -> tuple[Path, Path]:
    for name, state in (("vgg.pth", vgg), ("heads.pth", heads)):
        torch.save(state, tmp_path / name)
    return tmp_path / "vgg.pth", tmp_path / "heads.pth"


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(UserError) as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value)


def assert_same(found: LPIPS, expected: LPIPS) -> None:
    ours, theirs = found.state_dict(), expected.state_dict()
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert value.dtype == torch.float32 and torch.equal(value, theirs[name]), name
    assert not found.training and not any(p.requires_grad for p in found.parameters())


@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors", "half"])
def test_reads_files_of_the_user(
    form: str, tmp_path: Path, network: LPIPS, vgg: dict[str, Tensor], heads: dict[str, Tensor]
):
    suffix = ".safetensors" if form == "safetensors" else ".pth"
    for name, state in (("vgg", vgg), ("heads", heads)):
        if form == "safetensors":
            save_file(state, tmp_path / f"{name}{suffix}")
        else:
            state = {key: v.half() for key, v in state.items()} if form == "half" else state
            torch.save(state, tmp_path / f"{name}{suffix}", _use_new_zipfile_serialization=form != "legacy")
    found = load_lpips(tmp_path / f"vgg{suffix}", str(tmp_path / f"heads{suffix}"), cache_dir=tmp_path / "cache")
    assert_same(found, network)
    assert not (tmp_path / "cache").exists()
    a, b = torch.rand(2, 2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    assert torch.equal(found(a, b), network(a, b))


def test_the_loaded_weights_do_not_hang_on_the_file(paths: tuple[Path, Path], network: LPIPS):
    found = load_lpips(*paths)
    for path in paths:
        path.write_bytes(b"\0" * path.stat().st_size)
    assert_same(found, network)


def test_pooling_is_passed_on(paths: tuple[Path, Path]):
    assert isinstance(load_lpips(*paths).features[4], torch.nn.AvgPool2d)
    assert isinstance(load_lpips(*paths, pooling="max").features[4], torch.nn.MaxPool2d)


# ------------------------------------------------------------------------------------------------- downloads


def test_the_published_hash_is_that_of_the_name():
    assert VGG16.url.endswith(f"vgg16-{VGG16.sha256[:8]}.pth") and VGG16.name in VGG16.url
    assert all(len(file.sha256) == 64 and int(file.sha256, 16) for file in (VGG16, HEADS))


def test_downloads_both_once(
    file_server: Any, paths: tuple[Path, Path], tmp_path: Path, network: LPIPS, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(lpips_weights, "VGG16", file_server.publish("vgg.pth", paths[0].read_bytes()))
    monkeypatch.setattr(lpips_weights, "HEADS", file_server.publish("heads.pth", paths[1].read_bytes()))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert_same(load_lpips(), network)
    assert file_server.requests == ["/heads.pth", "/vgg.pth"]
    assert sorted(os.listdir(tmp_path / "xdg" / "unistep" / "lpips")) == ["heads.pth", "vgg.pth"]
    assert_same(load_lpips(), network)
    assert_same(load_lpips(heads=paths[1], cache_dir=tmp_path / "xdg" / "unistep" / "lpips"), network)
    assert len(file_server.requests) == 2


def test_the_cache_is_in_the_home_where_the_variable_is_not_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    cache = tmp_path / ".cache" / "unistep" / "lpips"
    cache.mkdir(parents=True)
    (cache / HEADS.name).write_bytes(b"something else")
    message = refusal(load_lpips)
    assert str(cache / HEADS.name) in message and "delete it" in message


def test_offline_it_says_what_to_fetch(tmp_path: Path, file_server: Any, monkeypatch: pytest.MonkeyPatch):
    closed = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    port = closed.server_address[1]
    closed.server_close()
    for name, published in (("VGG16", VGG16), ("HEADS", HEADS)):
        changed = PublishedFile(published.name, f"http://127.0.0.1:{port}/{name}", published.sha256, published.key)
        monkeypatch.setattr(lpips_weights, name, changed)
    message = refusal(lambda: load_lpips(cache_dir=tmp_path / "cache"))
    for piece in (f":{port}/VGG16", f":{port}/HEADS", "lpips.vgg", "lpips.heads", "Connection refused"):
        assert piece in message
    assert os.listdir(tmp_path / "cache") == []


# --------------------------------------------------------------------------------------------- what is refused


class Code:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("legacy", [False, True])
def test_code_in_a_file_is_not_run(legacy: bool, paths: tuple[Path, Path], vgg: dict[str, Any], tmp_path: Path):
    vgg["more"] = Code(tmp_path / "marker")
    torch.save(vgg, paths[0], _use_new_zipfile_serialization=not legacy)
    assert "holds objects" in refusal(lambda: load_lpips(*paths))
    assert not (tmp_path / "marker").exists()
    torch.load(paths[0], weights_only=False)  # the file would have done it
    assert (tmp_path / "marker").exists()


@pytest.mark.parametrize("length", [0, 10, 1000, -1])
def test_a_truncated_file_is_refused(length: int, paths: tuple[Path, Path]):
    for index, key in enumerate(("lpips.vgg", "lpips.heads")):
        whole = paths[index].read_bytes()
        paths[index].write_bytes(whole[:length])
        message = refusal(lambda: load_lpips(*paths))
        assert str(paths[index]) in message and key in message
        paths[index].write_bytes(whole)


def _changed(state: dict[str, Any], change: str) -> object:
    name = "features.7.weight"
    if change == "none":
        return None
    if change == "list":
        return list(state.values())
    if change == "lacks":
        del state[name]
    elif change == "shape":
        state[name] = state[name][:, 1:].clone()
    elif change == "bias":
        state["features.0.bias"] = torch.zeros(())
    elif change == "empty":
        state["features.0.bias"] = torch.zeros(0)
    elif change == "nan":
        state[name][0, 0, 0, 0] = float("nan")
    elif change == "integers":
        state[name] = state[name].int()
    elif change == "sparse":
        state[name] = state[name].to_sparse()
    elif change == "huge":
        state[name] = torch.zeros(1).expand(1 << 20, 1 << 20)
    elif change == "text":
        state[name] = "weights"
    return state


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("none", "holds no state dict"),
        ("list", "holds no state dict"),
        ("lacks", "lacks tensor features.7.weight"),
        ("shape", "tensor features.7.weight has shape [5, 4, 3, 3], LPIPS needs [5, 5, 3, 3]"),
        ("bias", "features.0.weight has shape [4, 3, 3, 3], LPIPS needs [1, 3, 3, 3]"),
        ("empty", "features.0.weight has shape [4, 3, 3, 3], LPIPS needs [1, 3, 3, 3]"),
        ("nan", "not finite"),
        ("integers", "features.7.weight (torch.int32) is no dense tensor"),
        ("sparse", "features.7.weight (torch.sparse_coo) is no dense tensor"),
        ("huge", "claim more bytes"),
        ("text", "features.7.weight (str) is no dense tensor"),
    ],
)
def test_other_contents_are_refused(change: str, words: str, paths: tuple[Path, Path], vgg: dict[str, Tensor]):
    torch.save(_changed(vgg, change), paths[0])
    message = refusal(lambda: load_lpips(*paths))
    assert words in message and str(paths[0]) in message and VGG16.url in message and "lpips.vgg" in message


def test_heads_of_another_network_are_refused(paths: tuple[Path, Path], heads: dict[str, Tensor]):
    heads["lin1.model.1.weight"] = torch.zeros(1, 192, 1, 1)  # as AlexNet's
    torch.save(heads, paths[1])
    message = refusal(lambda: load_lpips(*paths))
    assert "lin1.model.1.weight has shape [1, 192, 1, 1], LPIPS needs [1, 5, 1, 1]" in message
    assert str(paths[1]) in message and "lpips.heads" in message


def test_swapped_and_missing_files_are_refused(paths: tuple[Path, Path], tmp_path: Path):
    vgg, heads = paths
    assert "lacks tensor lin0.model.1.weight" in refusal(lambda: load_lpips(heads, vgg))
    assert "is missing" in refusal(lambda: load_lpips(tmp_path / "none.pth", heads))
    assert "is a folder" in refusal(lambda: load_lpips(vgg, tmp_path))
    assert "is missing" in refusal(lambda: load_lpips("~nobody-of-this-name/vgg.pth", heads))
