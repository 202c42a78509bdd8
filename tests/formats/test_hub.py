"""Fetching from and pushing to a Hub that runs in the test, with every fault that it can have."""

import hashlib
import json
import logging
import os
import resource
import shutil
import socket
import socketserver
import subprocess
import sys
import threading
import time
from collections import namedtuple
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from unistep.errors import UserError
from unistep.formats.hub import download as hub_module
from unistep.formats.hub import listing as listing_module
from unistep.formats.hub import transfer
from unistep.formats.hub.download import fetch_folder
from unistep.formats.hub.push import push_folder
from unistep.formats.model_folder.folder import load_model

ID = "someone/tiny-cd"
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
SMALL = ["model_index.json", "unet/config.json", "scheduler/scheduler_config.json", "README.md"]

Files = dict[str, bytes]
Fetch = Callable[..., Path]


@pytest.fixture(scope="module")
def files(model_folder: Callable[..., Path]) -> Files:
    folder = model_folder("consistency")
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture
def model(hub: Any, files: Files) -> Files:
    hub.commit(ID, files)
    return files


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def fetch(hub: Any, cache: Path) -> Fetch:
    return lambda model_id=ID, **options: fetch_folder(model_id, cache_dir=cache, **options)


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Pauses are noted, not made."""
    noted: list[float] = []
    monkeypatch.setattr(time, "sleep", noted.append)
    return noted


@pytest.fixture
def no_network(hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{unused.getsockname()[1]}")


def refusal(call: Callable[..., Any], *args: Any, **options: Any) -> str:
    """The message of the UserError that the call raises: one line, without the token."""
    with pytest.raises(UserError) as caught:
        call(*args, **options)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 400
    assert caught.value.__cause__ is None and (caught.value.__suppress_context__ or not caught.value.__context__)
    return message


def contents(folder: Path) -> Files:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def blobs(cache: Path) -> list[Path]:
    # Earlier versions of huggingface_hub keep the beginning of a download, to go on from there.
    return [path for path in cache.glob("models--*/blobs/*") if path.is_file() and path.suffix != ".incomplete"]


def assert_no_partial_files(cache: Path) -> None:
    """Every blob is what its name says, and nothing else lies about."""
    for blob in blobs(cache):
        content = blob.read_bytes()
        git = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        assert blob.name in (git, hashlib.sha256(content).hexdigest())


# ----------------------------------------------------------------------------------------------------- what is fetched


def test_the_model_comes_whole_and_opens(fetch: Fetch, model: Files, model_folder: Callable[..., Path]) -> None:
    folder = fetch()
    assert contents(folder) == model
    ours, theirs = (load_model(path).denoiser.state_dict() for path in (folder, model_folder("consistency")))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def index_of(*shards: str) -> bytes:
    return json.dumps({"metadata": {}, "weight_map": {f"layer{i}": name for i, name in enumerate(shards)}}).encode()


STEM = "unet/diffusion_pytorch_model"
SHARDS = [f"diffusion_pytorch_model-0000{i}-of-00002.safetensors" for i in (1, 2)]
FP16_SHARDS = [f"diffusion_pytorch_model.fp16-0000{i}-of-00002.safetensors" for i in (1, 2)]
BIN_SHARDS = [f"diffusion_pytorch_model-0000{i}-of-00002.bin" for i in (1, 2)]
SINGLE = {f"{STEM}.safetensors": b"st", f"{STEM}.bin": b"b"}
FP16 = {f"{STEM}.fp16.safetensors": b"st16", f"{STEM}.fp16.bin": b"b16"}
SHARDED = {f"{STEM}.safetensors.index.json": index_of(*SHARDS)} | {f"unet/{s}": s.encode() for s in SHARDS}
SHARDED_FP16 = {f"{STEM}.safetensors.index.fp16.json": index_of(*FP16_SHARDS)} | {
    f"unet/{s}": s.encode() for s in FP16_SHARDS
}
SHARDED_BIN = {f"{STEM}.bin.index.json": index_of(*BIN_SHARDS)} | {f"unet/{s}": s.encode() for s in BIN_SHARDS}
OTHERS = {
    f"{STEM}.msgpack": b"flax",
    "unet/notes.txt": b"",
    "samples.png": b"p",
    "cd_l2.pt": b"pt",
    ".gitattributes": b"",
    "vae/config.json": b"{}",
}


@pytest.mark.parametrize(
    ("there", "variant", "wanted"),
    [
        (SINGLE | FP16, None, [f"{STEM}.safetensors"]),
        ({f"{STEM}.bin": b"b"} | FP16, None, [f"{STEM}.bin"]),
        (SINGLE | FP16, "fp16", [f"{STEM}.fp16.safetensors"]),
        (SINGLE | {f"{STEM}.fp16.bin": b"b16"}, "fp16", [f"{STEM}.fp16.bin"]),
        (SHARDED | SHARDED_BIN | SHARDED_FP16, None, sorted(SHARDED)),
        (SHARDED | SHARDED_FP16 | SHARDED_BIN, "fp16", sorted(SHARDED_FP16)),
        (SHARDED_BIN | FP16, None, sorted(SHARDED_BIN)),
        (SHARDED | {f"{STEM}.bin": b"b"}, None, sorted(SHARDED)),
    ],
)
def test_one_set_of_weights_is_fetched_and_nothing_that_is_not_needed(
    hub: Any, fetch: Fetch, files: Files, there: Files, variant: str | None, wanted: list[str]
) -> None:
    without = {path: content for path, content in files.items() if path != WEIGHTS}
    repository = without | OTHERS | there
    hub.commit(ID, repository)
    folder = fetch(variant=variant)
    assert sorted(hub.fetched()) == sorted([*SMALL, *wanted])
    assert contents(folder) == {path: repository[path] for path in [*SMALL, *wanted]}
    assert fetch(variant=variant, local_files_only=True) == folder


def test_another_variant_is_added_to_the_folder(hub: Any, fetch: Fetch, files: Files) -> None:
    hub.commit(ID, files | FP16)
    folder = fetch()
    assert "not whole" in refusal(fetch, variant="fp16", local_files_only=True)
    hub.requests.clear()
    assert fetch(variant="fp16") == folder
    assert hub.fetched() == [f"{STEM}.fp16.safetensors"]


def test_a_variant_that_is_not_there_names_those_that_are(hub: Any, fetch: Fetch, files: Files) -> None:
    hub.commit(ID, files | FP16 | SHARDED_FP16 | {f"{STEM}.non_ema.bin": b"x"})
    message = refusal(fetch, variant="bf16")
    assert "no weights of variant bf16; it has the plain ones (no variant), variant fp16, variant non_ema" in message
    hub.commit(ID, {path: content for path, content in files.items() if path != WEIGHTS} | FP16)
    assert "no plain weights; it has variant fp16" in refusal(fetch)
    assert hub.fetched() == []


def test_a_card_is_not_required(hub: Any, fetch: Fetch, files: Files) -> None:
    without = {path: content for path, content in files.items() if path != "README.md"}
    hub.commit(ID, without)
    assert contents(fetch()) == without


def test_a_revision_is_a_branch_or_a_commit(hub: Any, fetch: Fetch, files: Files) -> None:
    old = hub.commit(ID, files)
    hub.commit(ID, files | {"README.md": b"new"}, branch="main")
    hub.commit(ID, files | {"README.md": b"other"}, branch="pr/1")
    assert (fetch(revision=old) / "README.md").read_bytes() == files["README.md"]
    assert (fetch() / "README.md").read_bytes() == b"new"
    assert (fetch(revision="pr/1") / "README.md").read_bytes() == b"other"
    assert (fetch(revision="pr/1", local_files_only=True) / "README.md").read_bytes() == b"other"


# ------------------------------------------------------------------------------------------------------------ the cache


def test_the_second_call_asks_for_the_commit_and_downloads_nothing(hub: Any, fetch: Fetch, model: Files) -> None:
    folder = fetch()
    hub.requests.clear()
    assert fetch() == folder
    assert hub.requests == [("GET", f"/api/models/{ID}/revision/main")]


def test_a_commit_in_the_cache_asks_nothing(hub: Any, fetch: Fetch, model: Files) -> None:
    commit = fetch().name
    hub.requests.clear()
    assert fetch(revision=commit).name == commit
    assert hub.requests == []


def test_a_new_commit_brings_what_changed(hub: Any, fetch: Fetch, model: Files) -> None:
    old = fetch()
    hub.commit(ID, model | {"README.md": b"better"})
    hub.requests.clear()
    new = fetch()
    assert new != old and contents(new) == model | {"README.md": b"better"}
    assert hub.fetched() == ["README.md"]


@pytest.mark.usefixtures("model")
def test_a_model_in_the_cache_opens_without_a_network(
    hub: Any, fetch: Fetch, request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> None:
    folder = fetch()
    hub.requests.clear()
    assert fetch(local_files_only=True) == folder
    assert hub.requests == []
    request.getfixturevalue("no_network")
    with caplog.at_level(logging.WARNING, "unistep"):
        assert fetch() == folder
    (record,) = (r for r in caplog.records if r.name.startswith("unistep"))
    assert "cannot reach 127.0.0.1" in record.getMessage() and "using the copy in the cache" in record.getMessage()


@pytest.mark.usefixtures("model")
def test_a_model_in_the_cache_opens_where_the_hub_is_out_of_order(hub: Any, fetch: Fetch) -> None:
    folder = fetch()
    hub.fail("/revision/main", status=503)
    assert fetch() == folder


@pytest.mark.usefixtures("model")
def test_offline_by_the_environment(hub: Any, fetch: Fetch, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = fetch()
    hub.requests.clear()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert fetch() == folder
    assert "unset HF_HUB_OFFLINE" in refusal(fetch, "someone/else")
    assert "unset it" in refusal(push_folder, folder, ID)
    assert hub.requests == []


@pytest.mark.usefixtures("model")
def test_offline_from_the_start(hub: Any, fetch: Fetch, cache: Path) -> None:
    folder = fetch()
    hub.requests.clear()
    code = f"""
import os
import huggingface_hub.constants
del os.environ["HF_HUB_OFFLINE"]  # too late: the library has read it
from unistep.formats.hub.download import fetch_folder
from unistep.formats.hub.push import push_folder
print(fetch_folder({ID!r}, cache_dir={str(cache)!r}))
try:
    fetch_folder("someone/else", cache_dir={str(cache)!r})
except ValueError as error:
    print(error)
"""
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    first, second = run.stdout.splitlines()
    assert first == str(folder) and "unset HF_HUB_OFFLINE" in second
    assert hub.requests == []


@pytest.mark.usefixtures("no_network")
def test_what_is_not_in_the_cache_says_how_to_fetch_it(fetch: Fetch) -> None:
    assert "leave out `local_files_only`" in refusal(fetch, local_files_only=True)
    assert "check the network" in refusal(fetch)


@pytest.mark.parametrize("file", [*SMALL[:3], WEIGHTS])
def test_an_incomplete_folder_of_another_program_is_not_taken_for_a_model(
    hub: Any, fetch: Fetch, model: Files, file: str
) -> None:
    (fetch() / file).unlink()
    assert "not whole in the cache" in refusal(fetch, local_files_only=True)
    assert contents(fetch()) == model


def test_missing_shards_are_noticed_without_a_network(hub: Any, fetch: Fetch, files: Files) -> None:
    hub.commit(ID, {path: content for path, content in files.items() if path != WEIGHTS} | SHARDED)
    folder = fetch()
    (folder / "unet" / SHARDS[1]).unlink()
    assert "not whole in the cache" in refusal(fetch, local_files_only=True)


def test_a_file_cut_short_in_the_cache_is_fetched_again(hub: Any, fetch: Fetch, model: Files) -> None:
    folder = fetch()
    with (folder / WEIGHTS).open("r+b") as file:
        file.truncate(100)
    hub.requests.clear()
    assert contents(fetch()) == model
    assert hub.fetched() == [WEIGHTS]


# ---------------------------------------------------------------------------------------------------- broken downloads


@pytest.mark.parametrize("fault", [{"drop": 5000}, {"reset": 5000}, {"status": 500}, {"drop": 0}])
def test_one_broken_connection_is_mended(hub: Any, fetch: Fetch, model: Files, fault: dict[str, int]) -> None:
    hub.fail(WEIGHTS, times=1, **fault)
    assert contents(fetch()) == model
    assert hub.fetched().count(WEIGHTS) == 2


def test_a_download_resumes_where_it_broke(hub: Any, fetch: Fetch, model: Files) -> None:
    hub.fail(WEIGHTS, times=1, drop=5500)
    assert contents(fetch()) == model
    assert hub.ranges == ["bytes=5500-"]


@pytest.mark.parametrize("kind", ["drop", "reset"])
def test_a_download_that_breaks_off_leaves_nothing_that_passes_for_a_model(
    hub: Any, fetch: Fetch, model: Files, cache: Path, pauses: list[float], kind: str
) -> None:
    hub.fail(WEIGHTS, **{kind: 5000})
    message = refusal(fetch)
    assert f"the download of {WEIGHTS} of {ID} broke off" in message and "try again" in message
    assert len(hub.fetched()) <= 25 and sum(pauses) < 60
    assert_no_partial_files(cache)
    assert "not whole" in refusal(fetch, local_files_only=True)
    hub.faults.clear()
    hub.requests.clear()
    assert contents(fetch()) == model
    assert hub.fetched() == [WEIGHTS]


@pytest.mark.usefixtures("model")
def test_the_last_whole_commit_stays_when_a_newer_one_breaks_off(hub: Any, fetch: Fetch, files: Files) -> None:
    old = fetch()
    new = {WEIGHTS: files[WEIGHTS] + b"more", "README.md": b"new"}
    hub.commit(ID, files | new)
    hub.fail(WEIGHTS, reset=5000)
    assert "broke off" in refusal(fetch)
    assert fetch(local_files_only=True) == old
    hub.faults.clear()
    assert contents(fetch()) == files | new


@pytest.mark.parametrize("file", ["unet/config.json", WEIGHTS])
def test_wrong_bytes_are_noticed_and_deleted(hub: Any, fetch: Fetch, model: Files, cache: Path, file: str) -> None:
    wrong = bytearray(model[file])
    wrong[-2] ^= 1
    hub.fail(file, content=bytes(wrong), times=3)
    message = refusal(fetch)
    assert f"{file} of {ID} came damaged" in message and "try again" in message
    assert hub.fetched().count(file) == 3
    assert_no_partial_files(cache)
    assert "not whole" in refusal(fetch, local_files_only=True)
    assert contents(fetch()) == model


@pytest.mark.parametrize("file", ["unet/config.json", WEIGHTS])
def test_a_hub_that_lists_no_hashes_states_them_with_the_file(
    hub: Any, fetch: Fetch, model: Files, cache: Path, file: str
) -> None:
    hub.lists_hashes = False
    hub.fail(file, content=model[file][::-1], times=3)
    assert "came damaged" in refusal(fetch)
    assert_no_partial_files(cache)
    assert contents(fetch()) == model
    hub.requests.clear()
    fetch()
    assert hub.fetched() == []


def test_wrong_bytes_once_are_mended(hub: Any, fetch: Fetch, model: Files) -> None:
    hub.fail(WEIGHTS, content=model[WEIGHTS][::-1], times=1)
    assert contents(fetch()) == model


def test_wrong_bytes_that_were_in_the_cache_before_are_noticed(
    hub: Any, fetch: Fetch, model: Files, cache: Path
) -> None:
    folder = fetch()
    (folder / WEIGHTS).resolve().write_bytes(model[WEIGHTS][::-1])
    # A new commit has the same blob: nothing is downloaded for it, and what is there is not what it is called.
    hub.commit(ID, model | {"README.md": b"new"})
    assert (fetch() / WEIGHTS).read_bytes() == model[WEIGHTS]
    assert_no_partial_files(cache)


@pytest.mark.parametrize("change", [lambda c: c[:-10], lambda c: c + b"more", lambda c: b""])
def test_a_wrong_size_is_noticed(
    hub: Any, fetch: Fetch, model: Files, cache: Path, change: Callable[[bytes], bytes]
) -> None:
    hub.fail(WEIGHTS, content=change(model[WEIGHTS]))
    assert WEIGHTS in refusal(fetch)
    assert_no_partial_files(cache)
    hub.faults.clear()
    assert contents(fetch()) == model


def test_an_interrupt_while_the_hash_is_computed_leaves_no_unchecked_file(
    fetch: Fetch, model: Files, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(path: Path, digits: int) -> str:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(hub_module, "digest_of", interrupt)
        with pytest.raises(KeyboardInterrupt):
            fetch()
    assert blobs(cache) == []
    assert contents(fetch()) == model


@pytest.mark.usefixtures("model")
def test_a_hub_that_fails_in_between_is_given_up(hub: Any, fetch: Fetch, pauses: list[float]) -> None:
    hub.fail(WEIGHTS, method="HEAD", status=503)
    message = refusal(fetch)
    assert "HTTP 503" in message and "try again later" in message
    assert sum(pauses) < 60


# ---------------------------------------------------------------------------------------------- a hub that means harm


def hub_headers(etag: str) -> dict[str, str]:
    return {"ETag": etag, "X-Linked-Etag": etag}


@pytest.mark.parametrize("form", ["{target}", '"{target}"', 'W/"{target}"', '"../../../../victim"', "", '"short"'])
@pytest.mark.parametrize("listed", [True, False])
@pytest.mark.parametrize("file", ["README.md", WEIGHTS])
def test_an_etag_that_is_no_hash_writes_nothing(
    hub: Any, fetch: Fetch, model: Files, cache: Path, tmp_path: Path, form: str, listed: bool, file: str
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    hub.lists_hashes = listed
    hub.fail(file, method="HEAD", headers=hub_headers(form.format(target=victim)))
    assert f"does not answer as the Hub does (asked for {file}): no hash as ETag" in refusal(fetch)
    assert victim.read_text() == "mine" and {p.name for p in tmp_path.iterdir()} <= {"cache", "victim"}
    assert file not in hub.fetched()
    assert_no_partial_files(cache)


@pytest.mark.parametrize("form", ["{}", '"{}"', 'W/"{}"'])
def test_the_forms_of_an_etag_are_read(hub: Any, fetch: Fetch, model: Files, form: str) -> None:
    hub.lists_hashes = False
    digest = hashlib.sha256(model[WEIGHTS]).hexdigest()
    hub.fail(WEIGHTS, method="HEAD", headers=hub_headers(form.format(digest)))
    assert contents(fetch()) == model


@pytest.mark.parametrize("commit", ["../../../../out", "a" * 40, "", "x" * 39])
@pytest.mark.usefixtures("model")
def test_another_commit_with_a_file_is_refused(hub: Any, fetch: Fetch, cache: Path, commit: str) -> None:
    hub.fail("model_index.json", method="HEAD", headers={"X-Repo-Commit": commit})
    assert "another commit" in refusal(fetch)
    assert not cache.exists()


@pytest.mark.parametrize("size", ["-1", "many", "9" * 30, "9" * 5000, "1e3", "0x10"])
@pytest.mark.usefixtures("model")
def test_a_size_that_is_none_is_refused(hub: Any, fetch: Fetch, size: str) -> None:
    hub.lists_hashes = False
    hub.fail(WEIGHTS, method="HEAD", headers={"X-Linked-Size": size})
    assert WEIGHTS in refusal(fetch)
    assert WEIGHTS not in hub.fetched()


def listing(**entry: Any) -> bytes:
    files = [*SMALL[:3], WEIGHTS]
    return json.dumps({"id": ID, "sha": "a" * 40, "siblings": [{"rfilename": name} | entry for name in files]}).encode()


@pytest.mark.parametrize(
    "content",
    [
        *(listing(size=size) for size in (-1, 10**18, 10**400, "12", 1.5, True, [], {})),
        *(listing(blobId=digest) for digest in ("short", "../../x", "g" * 40, 7, [], {"a": 1})),
        *(listing(lfs=lfs) for lfs in ({"sha256": "/etc/passwd"}, {"sha256": None}, "x", 7, [1])),
        *(listing(rfilename=name) for name in (None, 7, [], {})),
        listing(size=0).replace(b"a" * 40, b"../../.."),
        listing(size=0).replace(b'"' + b"a" * 40 + b'"', b"7"),
        listing().replace(b"[", b"[" * 100_000),
        b'{"sha": ' + b"9" * 5000 + b"}",
        b'{"siblings": ' + b"[" * 900 + b"]" * 900 + b', "sha": "' + b"a" * 40 + b'"}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
    ],
)
@pytest.mark.usefixtures("model")
def test_a_listing_that_is_malformed(hub: Any, fetch: Fetch, cache: Path, content: bytes) -> None:
    hub.fail("/revision/main", content=content)
    message = refusal(fetch)
    assert "does not answer as the Hub does" in message
    assert not cache.exists() and hub.fetched("HEAD") == hub.fetched() == []


@pytest.mark.parametrize("content", [b"[" * 100_000, b"[]", b'{"error": {}}', b'{"errors": 7}', b"\xff", b"x" * 10**6])
@pytest.mark.usefixtures("model")
def test_the_body_of_a_refusal_is_not_trusted(hub: Any, fetch: Fetch, content: bytes) -> None:
    hub.fail("/revision/main", status=400, content=content)
    assert "HTTP 400" in refusal(fetch)


def test_names_in_a_listing_stay_on_their_line(hub: Any, fetch: Fetch) -> None:
    hub.commit(ID, {"a\n\x1b[31mb.pt": b""})
    assert "download a\\n\\x1b[31mb.pt" in refusal(fetch)


def test_a_configuration_of_gigabytes_is_not_downloaded(hub: Any, fetch: Fetch) -> None:
    hub.fail("/revision/main", content=listing(size=10**10))
    hub.commit(ID, dict.fromkeys([*SMALL[:3], WEIGHTS], b"x"))
    hub.commits[ID]["a" * 40] = hub.files(ID)
    assert "takes 10,000 MB, which no such file does" in refusal(fetch)
    assert hub.fetched() == []


@pytest.fixture
def serve(hub: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., list[str]]]:
    """Starts a server that answers a request with what a function yields for it; returns the requests."""
    stopped: list[socketserver.BaseServer] = []

    def start(answer: Callable[[str], Iterator[bytes]]) -> list[str]:
        asked: list[str] = []

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                asked.append(self.rfile.readline().decode())
                while self.rfile.readline().strip():
                    pass
                with suppress(OSError):
                    for part in answer(asked[-1]):
                        self.wfile.write(part)

        server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads, server.block_on_close = True, False
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        stopped.append(server)
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_address[1]}")
        return asked

    yield start
    for server in stopped:
        server.shutdown()
        server.server_close()


def forever(part: bytes, pause: float) -> Iterator[bytes]:
    end = time.monotonic() + 10
    while time.monotonic() < end:
        yield part
        threading.Event().wait(pause)


OK = b"HTTP/1.1 200 OK\r\n"


def one_file(request: str, body: Callable[[], Iterator[bytes]], size: int) -> Iterator[bytes]:
    """A Hub whose files all have the same size and the same body."""
    if "/api/" in request:
        content = listing(size=size, blobId="b" * 40)
        yield OK + b"Content-Length: %d\r\n\r\n" % len(content) + content
    elif request.startswith("HEAD"):
        yield OK + b"Content-Length: %d\r\nETag: %s\r\n\r\n" % (size, b"b" * 40)
    else:
        yield OK + b"Connection: close\r\n\r\n"
        yield from body()


@pytest.mark.parametrize(
    "start",
    [b"", b"HTTP/1.1 200 OK\r\nX: ", OK + b"Content-Length: 99\r\n\r\n[", b"HTTP/1.1 503 No\r\n\r\n"],
    ids=["nothing", "headers", "body", "error"],
)
@pytest.mark.parametrize("pause", [0.02, 10])
def test_a_listing_that_trickles_is_given_up(
    serve: Callable[..., list[str]], fetch: Fetch, monkeypatch: pytest.MonkeyPatch, start: bytes, pause: float
) -> None:
    monkeypatch.setattr(transfer, "SILENCE", 0.2)

    def answer(request: str) -> Iterator[bytes]:
        yield start
        yield from forever(b" " if start else b"", pause)

    asked, began = serve(answer), time.monotonic()
    assert "sends nothing, or hardly anything" in refusal(fetch)
    assert time.monotonic() - began < 3 and len(asked) == 1


@pytest.mark.parametrize("pause", [0.02, 10])
def test_a_file_that_trickles_is_given_up(
    serve: Callable[..., list[str]], fetch: Fetch, cache: Path, monkeypatch: pytest.MonkeyPatch, pause: float
) -> None:
    monkeypatch.setattr(transfer, "SILENCE", 0.2)
    serve(lambda request: one_file(request, lambda: forever(b"x", pause), 100_000))
    began = time.monotonic()
    assert "sends nothing, or hardly anything, of model_index.json" in refusal(fetch)
    assert time.monotonic() - began < 3
    assert not [path for path in cache.rglob("*") if path.is_file()]


def test_a_body_that_does_not_end_is_cut_at_the_size_stated(
    serve: Callable[..., list[str]], fetch: Fetch, cache: Path
) -> None:
    serve(lambda request: one_file(request, lambda: forever(b"x" * 65536, 0), 100_000))
    assert "more than the 100000 bytes stated" in refusal(fetch)
    assert not [path for path in cache.rglob("*") if path.is_file()]


@pytest.mark.parametrize("encoding", [b"", b"Content-Encoding: gzip\r\n"])
def test_a_listing_that_does_not_end_is_not_kept(
    serve: Callable[..., list[str]], fetch: Fetch, monkeypatch: pytest.MonkeyPatch, encoding: bytes
) -> None:
    monkeypatch.setattr(listing_module, "_MOST_BYTES", 1 << 20)

    def answer(request: str) -> Iterator[bytes]:
        yield OK + encoding + b"Connection: close\r\n\r\n"
        yield from forever(b" " * 65536, 0)

    serve(answer)
    assert "does not answer as the Hub does" in refusal(fetch)


@pytest.mark.parametrize("target", ["/x", "http://[::1", "http://127.0.0.1:99999/", "file:///etc/passwd", "\\", ""])
def test_redirections_that_lead_nowhere(serve: Callable[..., list[str]], fetch: Fetch, target: str) -> None:
    def answer(request: str) -> Iterator[bytes]:
        if "/api/" in request or request.startswith("HEAD"):
            there = b"" if "/api/" in request else b"Location: %s\r\n" % target.encode()
            content = listing(size=1) if "/api/" in request else b""
            status = OK if "/api/" in request else b"HTTP/1.1 307 There\r\n"
            yield status + there + b"Content-Length: %d\r\n\r\n" % len(content) + content

    asked = serve(answer)
    refusal(fetch)
    assert len(asked) < 12


@pytest.mark.parametrize("folder", ["", "blobs", "snapshots", "snapshots/COMMIT/unet"])
def test_a_folder_of_the_cache_that_is_a_link_out_of_it_is_not_written(
    hub: Any, fetch: Fetch, model: Files, cache: Path, tmp_path: Path, folder: str
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    commit = hub.branches[ID]["main"]
    link = cache / f"models--{ID.replace('/', '--')}" / folder.replace("COMMIT", commit)
    link.parent.mkdir(parents=True)
    link.symlink_to(outside)
    assert "leads out of the cache" in refusal(fetch)
    assert not list(outside.iterdir())


def test_files_that_are_links_out_of_the_cache_are_replaced_and_not_followed(
    hub: Any, fetch: Fetch, model: Files, tmp_path: Path
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    folder = fetch()
    blob = (folder / WEIGHTS).resolve()
    blob.unlink()
    blob.symlink_to(victim)
    (folder / "README.md").unlink()
    (folder / "README.md").symlink_to(victim)
    assert contents(fetch()) == model
    assert victim.read_text() == "mine" and not blob.is_symlink()


def test_a_cache_that_is_itself_a_link(hub: Any, fetch: Fetch, model: Files, cache: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    cache.symlink_to(tmp_path / "elsewhere")
    assert contents(fetch()) == model
    assert_no_partial_files(cache)


# ------------------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("fault", "parts"),
    [
        ({"status": 404, "code": "RepoNotFound"}, ["HTTP 404", "check the name", "`token`", "HF_TOKEN"]),
        ({"status": 404}, ["HTTP 404", "check the name"]),
        ({"status": 401, "code": "RepoNotFound"}, ["HTTP 401", "check the name", "`token`"]),
        ({"status": 401}, ["HTTP 401", "check the name", "`token`"]),
        ({"status": 403}, ["no permission to read", "HTTP 403", "`token`"]),
        ({"status": 403, "code": "GatedRepo"}, ["gated", "ask for access", "`token`"]),
        ({"status": 404, "code": "RevisionNotFound"}, ["no revision 'main'"]),
        ({"status": 429}, ["HTTP 429", "try again later"]),
        ({"status": 500}, ["HTTP 500", "try again later"]),
        ({"status": 400}, ["HTTP 400: Because of that"]),
        ({"content": b"<html>Welcome to the hotel</html>"}, ["does not answer as the Hub does", "HF_ENDPOINT"]),
        ({"content": b"\xff\xfe"}, ["does not answer as the Hub does"]),
        ({"content": b'{"id": "a/b", "sha": "short", "siblings": []}'}, ["does not answer as the Hub does"]),
        ({"content": b'{"id": "a/b", "siblings": [{"rfilename": "a"}]}'}, ["does not answer as the Hub does"]),
        ({"content": b"[]"}, ["does not answer as the Hub does"]),
    ],
)
@pytest.mark.usefixtures("model")
def test_the_hub_refuses(hub: Any, fetch: Fetch, cache: Path, fault: dict[str, Any], parts: list[str]) -> None:
    hub.fail("/revision/main", **fault)
    message = refusal(fetch)
    assert all(part in message for part in parts), message
    assert not cache.exists()


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize("method", ["HEAD", "GET"])
@pytest.mark.usefixtures("model")
def test_a_gated_model_lists_its_files_and_does_not_give_them(hub: Any, fetch: Fetch, status: int, method: str) -> None:
    hub.fail("model_index.json", method=method, status=status, code="GatedRepo")
    message = refusal(fetch)
    assert f"{ID} is gated" in message and f"ask for access at {hub.url[7:]}/{ID}" in message
    assert "`token`" in message
    assert hub.fetched("HEAD") == ["model_index.json"]


@pytest.mark.parametrize(("status", "code"), [(401, None), (403, None), (404, "RepoNotFound"), (403, "GatedRepo")])
@pytest.mark.usefixtures("model")
def test_a_refusal_tells_of_a_copy_in_the_cache(hub: Any, fetch: Fetch, status: int, code: str | None) -> None:
    fetch()
    hub.fail("/revision/main", status=status, code=code)
    assert refusal(fetch).endswith("; the copy in the cache opens with `local_files_only`")


@pytest.mark.usefixtures("model")
def test_a_revision_that_is_not_there(fetch: Fetch) -> None:
    assert f"{ID} has no revision 'v9'" in refusal(fetch, revision="v9")
    assert "has no revision '0123" in refusal(fetch, revision="0123456789" * 4)


@pytest.mark.usefixtures("model")
def test_a_listed_file_that_is_not_there(hub: Any, fetch: Fetch) -> None:
    hub.fail("unet/config.json", method="HEAD", status=404, code="EntryNotFound")
    assert "lists unet/config.json" in refusal(fetch)


def test_no_address(fetch: Fetch, hub: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **options: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    monkeypatch.setenv("HF_ENDPOINT", "http://someone:secret@hub.invalid")
    message = refusal(fetch)
    assert "cannot reach hub.invalid" in message and "Name or service not known" in message
    assert "secret" not in message


def test_no_answer(hub: Any, fetch: Fetch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_module, "TIMEOUT", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        given_up = threading.Timer(5, silent.close)  # so that a call that waits for ever fails the test
        given_up.start()
        message = refusal(fetch)
        given_up.cancel()
    assert "cannot reach 127.0.0.1" in message and "timed out" in message


@pytest.mark.parametrize(
    "model_id",
    [
        "tiny",
        "a/b/c",
        "",
        "/b",
        "a/",
        "../a",
        "a/..",
        "a b/c",
        "a/b\n",
        "https://hf.co/a/b",
        "a--b/c",
        "a/b.git",
        "é/b",
    ],
)
def test_what_is_no_id(hub: Any, fetch: Fetch, model_id: str) -> None:
    assert "is no model of the Hub" in refusal(fetch, model_id)
    assert hub.requests == []


@pytest.mark.parametrize("revision", ["", "../../x", "a b", "/etc", "a\n", "a..b", ".hidden", "-x", "a:b"])
def test_what_is_no_revision(hub: Any, fetch: Fetch, revision: str) -> None:
    assert "branch, tag or commit" in refusal(fetch, revision=revision)
    assert "branch, tag or commit" in refusal(fetch, revision=revision, local_files_only=True)
    assert hub.requests == []


@pytest.mark.parametrize("token", ["", "hf_secret\n", "hf secret", "hf_sécret"])
def test_what_is_no_token_is_not_repeated(hub: Any, fetch: Fetch, token: str) -> None:
    message = refusal(fetch, token=token)
    assert message.startswith("`token` is empty or holds") and "hf" not in message
    assert hub.requests == []


@pytest.mark.parametrize("variant", ["", "../x", "fp16.safetensors"])
def test_what_is_no_variant(fetch: Fetch, variant: str) -> None:
    assert "name of a variant" in refusal(fetch, variant=variant)


@pytest.mark.parametrize("endpoint", ["huggingface.co", "ftp://hub", "http://", "http://[::1", "http://hub:port"])
def test_what_is_no_endpoint(fetch: Fetch, monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    assert "HF_ENDPOINT is no URL" in refusal(fetch)


@pytest.mark.usefixtures("model")
def test_the_token_is_sent(hub: Any, fetch: Fetch, monkeypatch: pytest.MonkeyPatch) -> None:
    fetch(token="hf_option")
    assert set(hub.tokens) == {"hf_option"}
    monkeypatch.setenv("HF_TOKEN", "hf_environment")
    hub.tokens.clear()
    fetch()
    fetch(token=True)
    assert set(hub.tokens) == {"hf_environment"}
    hub.tokens.clear()
    fetch(token=False)
    assert set(hub.tokens) == {None}
    monkeypatch.delenv("HF_TOKEN")
    assert "run `hf auth login`, or set HF_TOKEN" in refusal(fetch, token=True)


# ------------------------------------------------------------------------------------------------- what is not a model


@pytest.mark.parametrize("missing", SMALL[:3])
def test_not_a_model_folder(hub: Any, fetch: Fetch, files: Files, missing: str) -> None:
    hub.commit(ID, {path: content for path, content in files.items() if path != missing})
    message = refusal(fetch)
    assert f"{ID} is not the folder of a consistency model: it has no {missing}; check the name" in message
    assert hub.fetched() == []


def test_a_repository_of_checkpoints_says_what_to_do(hub: Any, fetch: Fetch) -> None:
    hub.commit(ID, {"README.md": b"", "cd_imagenet64_l2.pt": b"", "ct_bedroom256.pt": b""})
    assert "download cd_imagenet64_l2.pt and give its path" in refusal(fetch)


def test_a_folder_without_weights(hub: Any, fetch: Fetch, files: Files) -> None:
    hub.commit(ID, {path: content for path, content in files.items() if path != WEIGHTS} | OTHERS)
    assert f"no {STEM}.safetensors or .bin at all" in refusal(fetch)
    assert hub.fetched() == []


@pytest.mark.parametrize(
    ("index", "part"),
    [
        ({"text_encoder": ["transformers", "CLIPTextModel"]}, "it has a text_encoder too"),
        (None, "model_index.json is damaged"),
    ],
)
def test_a_pipeline_of_more_parts_is_refused_before_its_weights(
    hub: Any, fetch: Fetch, files: Files, index: Any, part: str
) -> None:
    content = b"{" if index is None else json.dumps(json.loads(files["model_index.json"]) | index).encode()
    hub.commit(ID, files | {"model_index.json": content})
    assert part in refusal(fetch)
    assert WEIGHTS not in hub.fetched()


def test_parts_that_are_absent_do_not_count(hub: Any, fetch: Fetch, files: Files) -> None:
    index = json.loads(files["model_index.json"]) | {"safety_checker": [None, None], "requires_safety_checker": True}
    hub.commit(ID, files | {"model_index.json": json.dumps(index).encode()})
    fetch()


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (index_of(*SHARDS, "diffusion_pytorch_model-00003-of-00003.safetensors"), "has no unet/diffusion_pytorch_mod"),
        (index_of("../../../evil.safetensors"), "not an index of shards"),
        (index_of("/etc/passwd.safetensors"), "not an index of shards"),
        (index_of("diffusion_pytorch_model.bin"), "not an index of shards"),
        (b'{"weight_map": {"a": 1, "b": "x"}}', "not an index of shards"),
        (b'{"weight_map": {}}', "not an index of shards"),
        (b'{"weight_map": {"a": 1}}', "not an index of shards"),
        (b"[]", "not an index of shards"),
        (b"{", "not an index of shards"),
        (b"[" * 100_000, "not an index of shards"),
    ],
)
def test_an_index_that_is_wrong(hub: Any, fetch: Fetch, files: Files, content: bytes, part: str) -> None:
    without = {path: content for path, content in files.items() if path != WEIGHTS}
    hub.commit(ID, without | SHARDED | {f"{STEM}.safetensors.index.json": content})
    assert part in refusal(fetch)
    assert not [path for path in hub.fetched() if path.endswith(".safetensors")]
    assert "not whole" in refusal(fetch, local_files_only=True)


# ------------------------------------------------------------------------------------------------------------ the disk


@pytest.mark.usefixtures("model")
def test_a_cache_that_cannot_be_made(fetch: Fetch, cache: Path) -> None:
    cache.write_text("not a folder")
    message = refusal(fetch)
    assert f"cannot use the cache {cache}" in message and "cache_dir" in message and "HF_HOME" in message


@pytest.mark.usefixtures("model")
def test_a_disk_without_room_is_noticed_before_the_download(
    hub: Any, fetch: Fetch, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10_000, 0, 10_000))
    message = refusal(fetch)
    assert f"{WEIGHTS} of {ID} takes" in message and "cache_dir" in message
    assert WEIGHTS not in hub.fetched()


def test_a_disk_that_fills_up_leaves_nothing(fetch: Fetch, model: Files, cache: Path, pauses: list[float]) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(model[WEIGHTS]) // 2, limits[1]))
    try:
        message = refusal(fetch)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert f"cannot use the cache {cache}" in message and "File too large" in message
    assert pauses == []  # another attempt would not help
    assert_no_partial_files(cache)
    assert contents(fetch()) == model


def test_the_import_is_cheap() -> None:
    heavy = "{'torch', 'huggingface_hub', 'numpy'}"
    code = f"import sys, unistep.formats.hub.download; print(sorted({heavy} & sys.modules.keys()))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


# ------------------------------------------------------------------------------------------------------------- pushing


@pytest.fixture
def push(hub: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    hub.required_token = "hf_write"

    def push(folder: str | Path, model_id: str = ID, token: str = "hf_write", **options: Any) -> str:
        with monkeypatch.context() as patch:
            # The other way of transfer (Xet) speaks to a service of its own.
            patch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True, raising=False)
            # Earlier versions of huggingface_hub read the answers by the endpoint that they were imported with.
            patch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
            return push_folder(folder, model_id, token=token, **options)

    return push


@pytest.fixture
def local(files: Files, tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    for path, content in (files | {".hidden": b"", "unet/.secret/key": b"", "images/grid.png": b"png"}).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    return folder


def test_a_pushed_model_comes_back(hub: Any, push: Callable[..., str], fetch: Fetch, local: Path, files: Files) -> None:
    assert push(local, private=True, commit_message="First") == f"{hub.url}/{ID}"
    assert hub.private == {ID} and hub.messages == ["First"]
    pushed = hub.files(ID)
    assert pushed.pop(".gitattributes") and pushed == files | {"images/grid.png": b"png"}
    folder = fetch()
    assert contents(folder) == files
    load_model(folder)


def test_a_second_push_changes_what_changed(hub: Any, push: Callable[..., str], local: Path) -> None:
    push(local)
    (local / "README.md").write_bytes(b"A better card.\n")
    push(str(local))
    assert hub.files(ID)["README.md"] == b"A better card.\n" and WEIGHTS in hub.files(ID)
    assert hub.messages == ["Upload model", "Upload model"] and not hub.private


def test_private_is_refused_where_the_repository_is_public(
    hub: Any, push: Callable[..., str], local: Path, files: Files
) -> None:
    before = hub.commit(ID, files)
    assert "exists and is public" in refusal(push, local, private=True)
    assert hub.branches[ID] == {"main": before}
    hub.private.add(ID)
    push(local, private=True)


def test_pushing_without_permission(hub: Any, push: Callable[..., str], local: Path) -> None:
    message = refusal(push, local, token="hf_read")
    assert f"no permission to write to {ID}" in message and "`token`" in message
    hub.fail("/commit/main", method="POST", status=403)
    assert f"no permission to write to {ID}" in refusal(push, local)
    assert WEIGHTS not in hub.files(ID)


def test_pushing_to_a_hub_that_fails(hub: Any, push: Callable[..., str], local: Path) -> None:
    hub.fail("/api/repos/create", method="POST", status=500)
    assert "HTTP 500" in refusal(push, local)
    hub.faults.clear()
    answer = {"errors": [{"message": "license is unknown"}], "warnings": []}
    hub.fail("/api/validate-yaml", method="POST", status=400, content=json.dumps(answer).encode())
    assert "Invalid metadata in README.md. - license is unknown" in refusal(push, local)


@pytest.mark.usefixtures("no_network")
def test_pushing_without_a_network(push: Callable[..., str], local: Path) -> None:
    assert "check the network" in refusal(push, local)


@pytest.mark.parametrize("missing", ["model_index.json", "unet/config.json", WEIGHTS])
def test_pushing_what_is_not_a_model_folder(
    hub: Any, push: Callable[..., str], local: Path, tmp_path: Path, missing: str
) -> None:
    (local / missing).unlink()
    assert "is not a whole model folder" in refusal(push, local)
    assert "is not a whole model folder" in refusal(push, tmp_path / "none")
    assert hub.requests == []


def test_a_folder_of_a_variant_alone_is_pushed(hub: Any, push: Callable[..., str], local: Path) -> None:
    (local / WEIGHTS).rename(local / f"{STEM}.fp16.safetensors")
    push(local)
    assert f"{STEM}.fp16.safetensors" in hub.files(ID)
