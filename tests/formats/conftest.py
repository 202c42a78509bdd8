"""Servers on this machine: of single files, and the part of the Hub that `huggingface_hub` uses, with faults."""

import base64
import hashlib
import json
import os
import socket
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from unistep.formats.published.file import PublishedFile

_LARGE = (".safetensors", ".bin", ".pt")  # kept by LFS: known by sha256, the others by git's sha1


@dataclass
class Fault:
    """What happens to requests for a path that ends so; it wears off after `times` requests.

    Args:
        path: the end of the request's path.
        method: GET, HEAD or POST.
        status: answered instead, with `code` as the Hub's error code.
        drop, reset: end the connection after so many bytes of the body, in order or with an RST.
        content: served instead, under the true hash and size; with `status` the body of that.
        headers: sent with a file instead of the true ones.
    """

    path: str
    method: str = "GET"
    times: int = 1_000_000
    status: int | None = None
    code: str | None = None
    drop: int | None = None
    reset: int | None = None
    content: bytes | None = None
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Hub:
    """Repositories, what was asked for, and the faults to come."""

    url: str = ""
    commits: dict[str, dict[str, dict[str, bytes]]] = field(default_factory=dict)  # id -> commit -> path -> content
    branches: dict[str, dict[str, str]] = field(default_factory=dict)  # id -> name -> commit
    private: set[str] = field(default_factory=set)
    requests: list[tuple[str, str]] = field(default_factory=list)
    ranges: list[str] = field(default_factory=list)  # of the Range headers
    tokens: list[str | None] = field(default_factory=list)  # of the Authorization headers
    uploads: dict[str, bytes] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)  # of commits
    faults: list[Fault] = field(default_factory=list)
    required_token: str | None = None  # to write
    lists_hashes: bool = True  # and sizes; some mirrors do not

    def commit(self, model_id: str, files: dict[str, bytes], branch: str = "main") -> str:
        """Puts a commit on a branch; returns its hash."""
        listing = json.dumps({path: hashlib.sha256(content).hexdigest() for path, content in sorted(files.items())})
        commit = hashlib.sha1(listing.encode()).hexdigest()
        self.commits.setdefault(model_id, {})[commit] = dict(files)
        self.branches.setdefault(model_id, {})[branch] = commit
        return commit

    def files(self, model_id: str) -> dict[str, bytes]:
        return self.commits[model_id][self.branches[model_id]["main"]]

    def fail(self, path: str, **fault: Any) -> None:
        self.faults.append(Fault(path, **fault))

    def fetched(self, method: str = "GET") -> list[str]:
        """The files that were asked for, in order."""
        paths = [path for asked, path in self.requests if asked == method and "/resolve/" in path]
        return [path.split("/resolve/")[1].split("/", 1)[1] for path in paths]

    def take_fault(self, method: str, path: str) -> Fault | None:
        for fault in self.faults:
            if fault.method == method and path.endswith(fault.path) and fault.times > 0:
                fault.times -= 1
                return fault
        return None


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else every answer waits 40 ms
    hub: Hub

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._handle()

    do_GET = do_POST = do_PUT = do_HEAD

    def _handle(self) -> None:
        path = unquote(urlsplit(self.path).path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        hub = self.hub
        hub.requests.append((self.command, path))
        hub.tokens.append((self.headers.get("Authorization") or "").removeprefix("Bearer ") or None)
        if self.headers.get("Range"):
            hub.ranges.append(self.headers["Range"])
        fault = hub.take_fault(self.command, path)
        if fault and fault.status:
            return self._refuse(fault.status, fault.code, fault.content)
        if fault and fault.content is not None and "/resolve/" not in path:
            return self._send(fault.content)
        parts = path.strip("/").split("/")
        if self.command in ("GET", "HEAD") and parts[:2] == ["api", "models"]:
            return self._model("/".join(parts[2:4]), "/".join(parts[5:]) or "main")
        if self.command in ("GET", "HEAD") and parts[2:3] == ["resolve"]:
            return self._file("/".join(parts[:2]), parts[3], "/".join(parts[4:]), fault)
        if hub.required_token and hub.tokens[-1] != hub.required_token and not path.startswith("/lfs/"):
            return self._refuse(401, None)
        return self._write(path, parts, body)

    def _model(self, model_id: str, revision: str) -> None:
        if (commit := self._commit(model_id, revision)) is None:
            return None
        siblings = []
        for path, content in self.hub.commits[model_id][commit].items():
            sibling: dict[str, Any] = {"rfilename": path, "size": len(content), "blobId": _git_hash(content)}
            if path.endswith(_LARGE):
                lfs = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest(), "pointerSize": 130}
                sibling |= {"lfs": lfs, "blobId": "0" * 40}
            siblings.append(sibling if self.hub.lists_hashes else {"rfilename": path})
        answer = {"id": model_id, "sha": commit, "private": model_id in self.hub.private, "siblings": siblings}
        return self._send(json.dumps(answer).encode())

    def _file(self, model_id: str, revision: str, path: str, fault: Fault | None) -> None:
        if (commit := self._commit(model_id, revision)) is None:
            return None
        if path not in self.hub.commits[model_id][commit]:
            return self._refuse(404, "EntryNotFound")
        content = self.hub.commits[model_id][commit][path]
        large = path.endswith(_LARGE)
        etag = hashlib.sha256(content).hexdigest() if large else _git_hash(content)
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if large:
            headers |= {"X-Linked-Etag": f'"{etag}"', "X-Linked-Size": str(len(content))}
        if fault:
            headers |= fault.headers
        if fault and fault.content is not None:
            content = fault.content
        start, status = 0, 200
        if given := self.headers.get("Range"):
            start, status = int(given.removeprefix("bytes=").rstrip("-")), 206
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        end = None if fault is None else fault.drop if fault.drop is not None else fault.reset
        self._send(content[start:], status, headers, end)
        if fault and fault.reset is not None:
            # Close without the FIN that the server's own way would send first.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            os.close(self.connection.detach())

    def _write(self, path: str, parts: list[str], body: bytes) -> None:
        hub = self.hub
        if path == "/api/repos/create":
            asked = json.loads(body)
            model_id = f"{asked['organization']}/{asked['name']}"
            if model_id in hub.commits:
                return self._send(json.dumps({"url": f"{hub.url}/{model_id}", "error": "exists"}).encode(), 409)
            hub.commit(model_id, {".gitattributes": b"*.safetensors filter=lfs\n"})
            if asked.get("visibility") == "private" or asked.get("private"):
                hub.private.add(model_id)
            return self._send(json.dumps({"url": f"{hub.url}/{model_id}"}).encode())
        if path == "/api/validate-yaml":
            return self._send(b'{"warnings": [], "errors": []}')
        if path.startswith("/lfs/"):
            hub.uploads[parts[1]] = body
            return self._send(b"")
        if path.endswith(".git/info/lfs/objects/batch"):
            objects = json.loads(body)["objects"]
            for item in objects:
                item["actions"] = {"upload": {"href": f"{hub.url}/lfs/{item['oid']}"}}
            return self._send(json.dumps({"transfer": "basic", "objects": objects}).encode())
        model_id = "/".join(parts[2:4])
        if parts[4:5] == ["preupload"]:
            files = [
                {"path": f["path"], "uploadMode": "lfs" if f["path"].endswith(_LARGE) else "regular"}
                for f in json.loads(body)["files"]
            ]
            answer = {"files": [f | {"shouldIgnore": False} for f in files]}
            return self._send(json.dumps(answer).encode())
        if parts[4:5] == ["commit"]:
            files = dict(hub.files(model_id))
            for line in body.splitlines():
                item = json.loads(line)
                value = item["value"]
                if item["key"] == "header":
                    hub.messages.append(value["summary"])
                elif item["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif item["key"] == "lfsFile":
                    files[value["path"]] = hub.uploads[value["oid"]]
            commit = hub.commit(model_id, files)
            answer = {"commitUrl": f"{hub.url}/{model_id}/commit/{commit}", "commitOid": commit}
            return self._send(json.dumps(answer).encode())
        return self._refuse(404, None)

    def _commit(self, model_id: str, revision: str) -> str | None:
        """The commit that a revision names; None where the request has been refused."""
        if model_id not in self.hub.commits:
            self._refuse(404, "RepoNotFound")
        elif revision in self.hub.commits[model_id]:
            return revision
        elif revision not in self.hub.branches[model_id]:
            self._refuse(404, "RevisionNotFound")
        else:
            return self.hub.branches[model_id][revision]
        return None

    def _refuse(self, status: int, code: str | None, content: bytes | None = None) -> None:
        content = b'{"error": "Because\\nof that"}' if content is None else content
        self._send(content, status, {"X-Error-Code": code} if code else {})

    def _send(
        self, content: bytes, status: int = 200, headers: dict[str, str] | None = None, end: int | None = None
    ) -> None:
        """Answers; `end` cuts the body there, and the connection with it."""
        self.send_response(status)
        for name, value in ({"Content-Type": "application/json"} | (headers or {})).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[:end])
        self.close_connection = self.close_connection or end is not None


def _git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A running Hub, at HF_ENDPOINT, and nothing else within reach."""
    from huggingface_hub import constants

    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    # The library asks the public Hub about its users' programs, to say so in the User-Agent.
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    yield hub
    server.shutdown()
    server.server_close()


@dataclass
class FileServer:
    """Files by their path, and what was asked for."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    cut: int | None = None  # end the connection after so many bytes of the body

    def publish(self, name: str, content: bytes) -> PublishedFile:
        self.files[f"/{name}"] = content
        key = f"lpips.{name.split('.')[0]}"
        return PublishedFile(name, f"{self.url}/{name}", hashlib.sha256(content).hexdigest(), key)


@pytest.fixture
def file_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    state = FileServer()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            pass

        def do_GET(self) -> None:
            state.requests.append(self.path)
            if self.path not in state.files:
                self.send_error(404)
                return
            content = state.files[self.path]
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: state.cut])

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    yield state
    server.shutdown()
    server.server_close()
