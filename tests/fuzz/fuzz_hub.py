"""A hostile hub: a server on this machine whose answers are wrong, each in its own way."""

import hashlib
import json
import random
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from fuzz_case import Case, Good
from fuzz_models import _wrong_values, spoiled_json

COMMIT = "a" * 40
_FILES = {
    "model_index.json": b'{"_class_name": "ConsistencyModelPipeline"}',
    "unet/config.json": b"{}",
    "scheduler/scheduler_config.json": b"{}",
    "README.md": b"A model.\n",
    "unet/diffusion_pytorch_model.safetensors": b"weights",
}


def _sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def listing(**changes: Any) -> dict[str, Any]:
    siblings = [{"rfilename": name, "size": len(c), "blobId": _sha1(c)} for name, c in _FILES.items()]
    return {"id": "o/m", "sha": COMMIT, "siblings": siblings} | changes


Answer = Callable[["Handler", str], None]


class Handler(BaseHTTPRequestHandler):
    """A request to the address /BEHAVIOUR/NUMBER/...; the behaviour answers, or else all is well."""

    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        _, behaviour, number, *rest = self.path.split("?")[0].split("/")
        self.random = random.Random(number)
        with suppress(OSError, ValueError):
            BEHAVIOURS[behaviour](self, "/".join(rest))
        self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def out(self, body: bytes, code: int = 200, length: int | str | None = None, **headers: str) -> None:
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def well(self, place: str, **changes: Any) -> None:
        """Answers as a hub does; `changes` are those of the listing."""
        if place.startswith("api/"):
            return self.out(json.dumps(listing(**changes)).encode())
        name = place.split("/resolve/")[1].split("/", 1)[1]
        if name not in _FILES:
            return self.out(b"", 404, X_Error_Code="EntryNotFound")
        self.out(_FILES[name], ETag=f'"{_sha1(_FILES[name])}"', X_Repo_Commit=COMMIT)


def _of_listing(make: Callable[[random.Random], Any]) -> Answer:
    """Another listing; bytes, text or JSON."""

    def answer(handler: Handler, place: str) -> None:
        if not place.startswith("api/"):
            return handler.well(place)
        made = make(handler.random)
        text = made if isinstance(made, bytes | str) else json.dumps(made)
        handler.out(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))

    return answer


def _of_files(**headers: Any) -> Answer:
    """Other headers of files."""

    def answer(handler: Handler, place: str) -> None:
        if place.startswith("api/"):
            return handler.well(place)
        name = place.split("/resolve/")[1].split("/", 1)[1]
        given = {k: v(handler.random) if callable(v) else v for k, v in headers.items()}
        handler.out(_FILES[name], **({"ETag": f'"{_sha1(_FILES[name])}"', "X_Repo_Commit": COMMIT} | given))

    return answer


def _listed_with(**values: Any) -> Callable[[random.Random], Any]:
    def make(r: random.Random) -> Any:
        made = listing()
        made["siblings"][r.randrange(len(made["siblings"]))] |= {
            k: v(r) if callable(v) else v for k, v in values.items()
        }
        return made

    return make


def _status(handler: Handler, place: str) -> None:
    code = handler.random.choice([400, 401, 403, 404, 410, 418, 429, 451, 500, 502, 503, 504, 599])
    body = handler.random.choice(
        [
            b"<html>" + b"<p>error</p>\n" * 50 + b"</html>",
            json.dumps({"error": "line\n" * 40}).encode(),
            json.dumps({"error": "\x1b[2J\x1b]0;x\x07"}).encode(),
            json.dumps({"error": ["a"] * 50, "errors": [{"message": "x\ny"}] * 30}).encode(),
            b"",
            b"\xff\xfe" * 100,
            b'{"error": ' + b"[" * 5000,
        ]
    )
    where = handler.random.choice(["api", "resolve"])
    if (where == "api") != place.startswith("api/"):
        return handler.well(place)
    message = handler.random.choice(["x", "x\ty", "z" * 3000])
    handler.out(body, code, X_Error_Message=message)


def _redirect(handler: Handler, place: str) -> None:
    r = handler.random
    if r.randrange(2) and place.startswith("api/"):
        return handler.well(place)
    target = r.choice(
        [
            "file:///etc/passwd",
            "ftp://127.0.0.1/x",
            "http://[",
            "http://127.0.0.1:1/x",
            "gopher://x",
            "data:text/plain,x",
            "//127.0.0.1:1/x",
            "http://127.0.0.1:99999/x",
            "http://" + "a" * 300 + "/",
            "",
            handler.path,
            "x" * 5000,
            "http://user:pass@127.0.0.1:1/",
            "javascript:alert(1)",
        ]
    )
    handler.out(b"", r.choice([301, 302, 303, 307, 308]), Location=target)


def _silent(handler: Handler, place: str) -> None:
    if handler.random.randrange(2) and place.startswith("api/"):
        return handler.well(place)
    time.sleep(8)


def _slow(handler: Handler, place: str) -> None:
    """A byte now and then."""
    if handler.command == "HEAD" or (handler.random.randrange(2) and place.startswith("api/")):
        return handler.well(place)
    handler.send_response(200)
    handler.send_header("Content-Length", "1000000")
    handler.end_headers()
    for _ in range(40):
        handler.wfile.write(b" ")
        handler.wfile.flush()
        time.sleep(0.2)


def _endless(handler: Handler, place: str) -> None:
    if handler.command == "HEAD" or (handler.random.randrange(2) and place.startswith("api/")):
        return handler.well(place)
    handler.send_response(200)
    handler.send_header("Connection", "close")
    handler.end_headers()
    ending = time.monotonic() + 8
    while time.monotonic() < ending:
        handler.wfile.write(b"[" * (1 << 16))


def _compressed(handler: Handler, place: str) -> None:
    import gzip

    handler.out(gzip.compress(bytes(5_000_000)), Content_Encoding=handler.random.choice(["gzip", "deflate", "br", "x"]))


def _headers(handler: Handler, place: str) -> None:
    r = handler.random
    handler.send_response(200)
    if r.randrange(2):
        for i in range(300):
            handler.send_header(f"X-{i}", "y")
    else:
        handler.send_header("X-Long", "z" * 200_000)
    handler.send_header("Content-Length", "0")
    handler.end_headers()


def _raw(handler: Handler, place: str) -> None:
    """No HTTP."""
    r = handler.random
    handler.wfile.write(
        r.choice([b"SSH-2.0-x\r\n", b"HTTP/9.9 999 \xff\r\n\r\n", r.randbytes(200), b"\0", b"HTTP/1.1 200\r\n"])
    )


def _reset(handler: Handler, place: str) -> None:
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    handler.connection.close()


def _length(handler: Handler, place: str) -> None:
    """Another length than stated."""
    if place.startswith("api/"):
        return handler.well(place)
    name = place.split("/resolve/")[1].split("/", 1)[1]
    length = handler.random.choice(["-5", "x", "9" * 30, "1", "1000000"])
    handler.out(_FILES[name], length=length, ETag=f'"{_sha1(_FILES[name])}"', X_Repo_Commit=COMMIT)


def _content(handler: Handler, place: str) -> None:
    """Other bytes than those whose hash is stated."""
    if place.startswith("api/"):
        return handler.well(place)
    name = place.split("/resolve/")[1].split("/", 1)[1]
    handler.out(_FILES[name][::-1], ETag=f'"{_sha1(_FILES[name])}"', X_Repo_Commit=COMMIT)


def _wrong_json(r: random.Random) -> Any:
    text = spoiled_json(r, listing())[1]
    return text


_PATHS = [
    "/tmp/canary",
    "../../../canary",
    "..",
    ".",
    "a/b",
    "x" * 5000,
    "",
    "g" * 40,
    "A" * 40,
    "a" * 39,
    "\\x",
    "~/x",
]
_NAMES = [
    "../canary",
    "/tmp/canary",
    "a\nb",
    "unet/../../x",
    "x" * 5000,
    "\x1b[31m",
    "a\\b",
    "unet/config.json\0",
    "\ud800",
]

BEHAVIOURS: dict[str, Answer] = {
    "etag": _of_files(ETag=lambda r: r.choice(_PATHS), X_Linked_ETag=lambda r: r.choice(_PATHS)),
    "linked": _of_files(
        X_Linked_ETag=lambda r: r.choice(_PATHS), X_Linked_Size=lambda r: r.choice(["-1", "x", "9" * 40])
    ),
    "commit": _of_files(X_Repo_Commit=lambda r: r.choice(_PATHS)),
    "sha": _of_listing(lambda r: listing(sha=r.choice([*_PATHS, None, 3, [], {}, "\x1b[2J"]))),
    "size": _of_listing(_listed_with(size=lambda r: r.choice(["12", -1, 1.5, 10**30, [], True, {}]))),
    "hash": _of_listing(_listed_with(blobId=lambda r: r.choice([*_PATHS, 3, [], {}, True]))),
    "lfs": _of_listing(
        _listed_with(lfs=lambda r: r.choice([{"sha256": "x"}, {"sha256": 3}, "x", [1], {"oid": "y"}, True]))
    ),
    "name": _of_listing(_listed_with(rfilename=lambda r: r.choice([None, 3, [], {}, True]))),
    "missing": _of_listing(lambda r: listing(siblings=[{"rfilename": n} for n in r.sample(_NAMES, 4)])),
    "siblings": _of_listing(lambda r: listing(siblings=r.choice([3, "x", [3], [[]], [None], {"a": 1}, [{}], True]))),
    "json": _of_listing(_wrong_json),
    "value": _of_listing(lambda r: r.choice(_wrong_values(r))),
    "large": _of_listing(lambda r: b'{"sha": "' + b"a" * (20 << 20)),
    "many": _of_listing(lambda r: listing(siblings=[{"rfilename": f"{i}" * 20} for i in range(100_000)])),
    "deep": _of_listing(lambda r: listing(siblings=[{"rfilename": "a/" * 3000 + "x"}])),
    "html": _of_listing(lambda r: "<!DOCTYPE html>\n" + "<p>sign in</p>\n" * 100),
    "status": _status,
    "redirect": _redirect,
    "silent": _silent,
    "slow": _slow,
    "endless": _endless,
    "compressed": _compressed,
    "headers": _headers,
    "raw": _raw,
    "reset": _reset,
    "length": _length,
    "content": _content,
}
# Those that take seconds each.
_SLOW = ("silent", "slow", "endless")


def hub(r: random.Random, good: Good) -> Case:
    behaviour = r.choice([b for b in BEHAVIOURS if b not in _SLOW or r.randrange(6) == 0])
    words = r.choice(
        [
            ["inspect", "o/m", "--cache-dir", "cache"],
            ["sample", "o/m", "--num-images", "1", "--cache-dir", "cache"],
            ["convert", "o/m", "converted", "--cache-dir", "cache"],
            ["inspect", "o/m", "--cache-dir", "cache", "--revision", r.choice(["main", "v1", "refs/pr/1"])],
        ]
    )
    address = f"{good.hub}/{behaviour}/{r.randrange(10**6)}"
    return Case(words, environment={"HF_ENDPOINT": address}, note=f"{behaviour} {address.rsplit('/', 1)[1]}")


def serve() -> tuple[ThreadingHTTPServer, str]:
    """Starts the server; gives it and its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # pyright: ignore[reportAttributeAccessIssue]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server, f"http://127.0.0.1:{server.server_port}"
