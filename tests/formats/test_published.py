"""Published files: downloaded once and whole, and refused where they are anything else."""

import os
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from unistep.errors import UserError
from unistep.formats.published.file import PublishedFile, cache_folder, expanded, fetch


def refusal(call: Callable[[], object]) -> str:
    with pytest.raises(UserError) as error:
        call()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_downloads_once(file_server: Any, tmp_path: Path):
    published = file_server.publish("vgg.pth", b"content")
    for _ in range(2):
        assert fetch(published, tmp_path / "a" / "b").read_bytes() == b"content"
    assert file_server.requests == ["/vgg.pth"]
    assert os.listdir(tmp_path / "a" / "b") == ["vgg.pth"]


@pytest.mark.parametrize("fault", ["other content", "truncated", "404"])
def test_a_failed_download_leaves_nothing(fault: str, file_server: Any, tmp_path: Path):
    published = file_server.publish("vgg.pth", b"0123456789" * 1000)
    if fault == "other content":
        file_server.files["/vgg.pth"] = b"<html>log in</html>"
    elif fault == "truncated":
        file_server.cut = 5000
    else:
        file_server.files.clear()
    message = refusal(lambda: fetch(published, tmp_path / "cache"))
    assert published.url in message and published.key in message
    assert os.listdir(tmp_path / "cache") == []
    file_server.files["/vgg.pth"], file_server.cut = b"0123456789" * 1000, None
    assert fetch(published, tmp_path / "cache").read_bytes() == b"0123456789" * 1000
    assert os.listdir(tmp_path / "cache") == ["vgg.pth"]


def test_offline_it_says_what_to_fetch_and_how_to_give_it(tmp_path: Path):
    closed = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    host = f"http://127.0.0.1:{closed.server_address[1]}"
    closed.server_close()
    one, two = (PublishedFile(name, f"{host}/{name}", "0" * 64, f"--{name}") for name in ("one", "two"))
    message = refusal(lambda: fetch(one, tmp_path))
    assert f"fetch {host}/one elsewhere and give the path as --one" in message and "Connection refused" in message
    message = refusal(lambda: fetch(one, tmp_path, needed=(one, two)))
    assert f"fetch {host}/one and {host}/two elsewhere and give their paths as --one and --two" in message
    assert os.listdir(tmp_path) == []


def test_a_cache_that_cannot_be_written_is_refused(tmp_path: Path, file_server: Any):
    (tmp_path / "cache").write_text("a file")
    message = refusal(lambda: fetch(file_server.publish("vgg.pth", b"0"), tmp_path / "cache"))
    assert str(tmp_path / "cache") in message
    assert file_server.requests == []


def test_a_damaged_download_is_not_used(tmp_path: Path, file_server: Any):
    published = file_server.publish("vgg.pth", b"0123456789")
    path = fetch(published, tmp_path)
    path.write_bytes(b"0123456780")
    assert "damaged" in (message := refusal(lambda: fetch(published, tmp_path))) and str(path) in message
    assert len(file_server.requests) == 1
    path.unlink()
    path.mkdir()
    assert "is a folder" in refusal(lambda: fetch(published, tmp_path))


def test_the_cache_is_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder("lpips") == tmp_path / "xdg" / "unistep" / "lpips"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder("features") == tmp_path / ".cache" / "unistep" / "features"
    assert cache_folder("features", "~/mine") == tmp_path / "mine"
    assert expanded("~nobody-of-this-name/x") == Path("~nobody-of-this-name/x")
