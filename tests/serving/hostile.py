"""Hostile requests as bytes: malformed bodies, fields of wrong types, tricks of paths, headers and forms."""

import json
from collections.abc import Iterator

HEAD = b"Host: 127.0.0.1\r\nConnection: close\r\n"
GENERATIONS, EDITS, PREDICTIONS = "/v1/images/generations", "/v1/images/edits", "/predictions"
JSON_ROUTES = (GENERATIONS, PREDICTIONS, "/models/mnist")
EVERY_ROUTE = ("/", "/livez", "/readyz", "/metrics", "/docs", "/openapi.json", "/v1/models", *JSON_ROUTES, EDITS)

VALUES = (
    *(b"null true -1 0 1.5 1e999 -1e999 NaN Infinity 1e-320 0x10 01 9007199254740993 18446744073709551616".split()),
    b"1" + b"0" * 400,
    b"1" + b"0" * 5000,
    b'""',
    b'"\\u0000"',
    b'"\\ud800"',
    b'"\\ud83d\\ude00"',
    b'"' + b"x" * 40_000 + b'"',
    b'"../../../../etc/passwd"',
    b'"http://127.0.0.1:9/"',
    b'"data:image/png;base64,AAAA"',
    b"[]",
    b"[[]]",
    b"[null]",
    b"[-1, 2]",
    b'["a", 3, {}]',
    b"[1e999]",
    b"{}",
    b'{"a": {"b": []}}',
    b"[" + b"1," * 3000 + b"1]",
)
FIELDS = {
    GENERATIONS: "n size model prompt seed seeds steps timesteps sigmas solver class_labels first stream"
    " response_format output_format interactive user nothing",
    PREDICTIONS: "num_outputs seed seeds steps class_labels size output_format task image mask candidates",
    "/models/mnist": "seed seeds steps class_labels num_inference_steps task mask",
}
BODIES = (
    b"{",
    b"}",
    b"[1",
    b'{"n": }',
    b"{'n': 1}",
    b'{"n": 1,}',
    b'{"n": 1} x',
    b"nul",
    b'"text"',
    b"7",
    b"\x00",
    b"\xff\xfe{\x00}\x00",
    b'\xef\xbb\xbf{"n": 1}',
    b'{"n": 1, "n": "x"}',
    b'{"\\ud800": 1}',
    b'{"": {}}',
    b'{"__proto__": {"n": 1}}',
    b"[" * 20_000,
    b'{"a":' * 5000 + b"1" + b"}" * 5000,
    b"[" * 17 + b"]" * 17,
    b"\x1f\x8b\x08\x00",
    b"n=1&seed=2",
    b"--x\r\n\r\n--x--",
)

ODD_PATHS = b"""
/../../etc/passwd /page/../serve.py /page/%2e%2e/serve.py /page/..%2f..%2fserve.py /page/..%5cserve.py //etc/passwd
/page//etc/passwd /%00 /page/%00 /%ff%fe /%F0%9F%98%80 /page/.%00./x /page /page/ /./livez /files/../../x
/files/%2e%2e /files/a%00b /predictions/.. /predictions/%2e%2e/cancel /models/ /models// /v1/models/%2e%2e%2fmnist
/v1/models/mnist%00 /livez?a=%ff&b[]=1 /metrics?%s%s%n http://127.0.0.1/livez http://evil.example/ /a;b=c
/%c0%ae%c0%ae/ /.git/config /.env /wp-login.php /cgi-bin/test * example.com:443
"""


def post(path: str, body: bytes, kind: bytes = b"application/json", more: bytes = b"") -> bytes:
    head = b"POST %b HTTP/1.1\r\n%bContent-Type: %b\r\nContent-Length: %d\r\n%b\r\n"
    return head % (path.encode(), HEAD, kind, len(body), more) + body


def get(target: bytes, method: bytes = b"GET", head: bytes = HEAD) -> bytes:
    return b"%b %b HTTP/1.1\r\n%b\r\n" % (method, target, head)


def fields() -> Iterator[tuple[str, bytes]]:
    for path, names in FIELDS.items():
        for name in names.split():
            for value in VALUES:
                body = b'{"%b": %b}' % (name.encode(), value)
                if path == PREDICTIONS:
                    body = b'{"input": %b}' % body
                elif path != GENERATIONS:
                    body = b'{"inputs": "3", "parameters": %b}' % body
                yield f"{path} {name} {value[:20]!r}", post(path, body)
    for path, name in ((PREDICTIONS, b"version"), (PREDICTIONS, b"input"), ("/models/mnist", b"inputs")):
        for value in VALUES:
            yield f"{path} {name!r} {value[:20]!r}", post(path, b'{"%b": %b}' % (name, value))


def bodies() -> Iterator[tuple[str, bytes]]:
    for path in (*JSON_ROUTES, EDITS):
        for body in BODIES:
            yield f"{path} body {body[:12]!r}", post(path, body)
    for kind in (b"text/xml", b"application/json; charset=utf-7", b";;;", b"multipart/form-data", b"x" * 3000):
        yield f"content type {kind[:20]!r}", post(GENERATIONS, b'{"n": 1}', kind)
    yield "too large", post(GENERATIONS, b" " * 300_000)
    yield "encoded", post(GENERATIONS, b'{"n": 1}', more=b"Content-Encoding: gzip\r\n")


def form(*parts: tuple[bytes, bytes], end: bytes = b"--x--\r\n") -> bytes:
    return b"".join(b"--x\r\n" + head + b"\r\n\r\n" + body + b"\r\n" for head, body in parts) + end


def forms(picture: bytes) -> Iterator[tuple[str, bytes]]:
    def named(name: bytes, more: bytes = b"") -> bytes:
        return b'Content-Disposition: form-data; name="%b"%b' % (name, more)

    file = b'; filename="a.png"\r\nContent-Type: image/png'
    image = (named(b"image", file), picture)
    wanted = (
        named(b"options"),
        json.dumps({"task": "inpaint", "mask": "lower", "class_labels": 3, "steps": 1}).encode(),
    )
    kind = b"multipart/form-data; boundary=x"
    yield "no boundary", post(EDITS, form(image), b"multipart/form-data")
    yield "another boundary", post(EDITS, form(image), b"multipart/form-data; boundary=y")
    yield "long boundary", post(EDITS, form(image), b"multipart/form-data; boundary=" + b"y" * 5000)
    yield "no end", post(EDITS, form(image, end=b""), kind)
    yield "no blank line", post(EDITS, b'--x\r\nContent-Disposition: form-data; name="image"\r\n--x--\r\n', kind)
    yield "no name", post(EDITS, form((b"Content-Disposition: form-data", b"1")), kind)
    yield "no disposition", post(EDITS, form((b"X-A: 1", b"1")), kind)
    yield "many parts", post(EDITS, form(*[(named(b"a%d" % i), b"1") for i in range(1500)]), kind)
    yield "many files", post(EDITS, form(*[(named(b"image", file), b"1")] * 1200), kind)
    yield "long field", post(EDITS, form((named(b"options"), b"{" + b" " * 100_000)), kind)
    yield "long header", post(EDITS, form((b"X-A: " + b"b" * 60_000, b"1")), kind)
    yield "odd charset", post(EDITS, form(image, wanted), kind + b"; charset=zzz")
    yield "odd text", post(EDITS, form((named(b"options\xff\xfe\x00"), b"\xff\xfe")), kind)
    for name in (b"../../etc/passwd", b"a\\b", b"\xff", b"", b'"', b"a" * 9000, b"%00", b"CON", b"\r\nX: y"):
        odd = (named(b"image", b'; filename="%b"\r\nContent-Type: image/png' % name), picture)
        yield f"file name {name[:12]!r}", post(EDITS, form(odd, wanted), kind)
    for content in (
        b"",
        b"\0" * 500,
        b"GIF89a",
        picture[: len(picture) // 2],
        b"<svg/>",
        b"\x89PNG\r\n\x1a\n" + b"\0" * 99,
    ):
        for part in (b"image", b"mask"):
            damaged = [(named(part, file), content), wanted] + ([image] if part == b"mask" else [])
            yield f"{part!r} {content[:8]!r}", post(EDITS, form(*damaged), kind)
    yield "image is text", post(EDITS, form((named(b"image"), b"../../etc/passwd"), wanted), kind)
    yield "mask is a path", post(EDITS, form(image, (named(b"mask"), b"/etc/passwd")), kind)
    yield "no image", post(EDITS, form(wanted), kind)
    for options in (*BODIES[:15], b'{"task": "nothing"}', b'{"task": null}', b'{"task": ["inpaint"]}'):
        yield f"options {options[:12]!r}", post(EDITS, form(image, (named(b"options"), options)), kind)
    for (
        name
    ) in "task margin factor blur share sigma strength quality settle candidates seeds stops frames fit n size".split():
        for value in (
            b"-1",
            b"1e999",
            b"nan",
            b"x" * 3000,
            b"\xf0\x9f\x98\x80",
            b"0",
            b"1,2,,",
            b"999999999999999999999",
        ):
            parts = (image, wanted, (named(name.encode()), value))
            yield f"form {name} {value[:8]!r}", post(EDITS, form(*parts), kind)


def paths() -> Iterator[tuple[str, bytes]]:
    odd = (
        *ODD_PATHS.split(),
        b"/" + b"a" * 8000,
        b"/livez?" + b"a=1&" * 2000,
        b"/models/" + b"%2e%2e%2f" * 300,
    )
    for target in odd:
        yield f"GET {target[:30]!r}", get(target)
        if target.startswith((b"/models", b"/predictions", b"/v1")):
            yield f"POST {target[:30]!r}", post(target.decode(), b"{}")
    for method in (
        b"HEAD",
        b"OPTIONS",
        b"PUT",
        b"DELETE",
        b"PATCH",
        b"TRACE",
        b"CONNECT",
        b"PROPFIND",
        b"get",
        b"X" * 300,
    ):
        for path in EVERY_ROUTE[:: 1 if method in (b"HEAD", b"OPTIONS", b"DELETE") else 4]:
            yield f"{method[:9]!r} {path}", get(path.encode(), method)


def headers() -> Iterator[tuple[str, bytes]]:
    local, close = b"Host: 127.0.0.1\r\n", b"Connection: close\r\n"
    for host in (
        b"evil.example",
        b"127.0.0.1.evil.example",
        b"",
        b"localhost@evil.example",
        b"[::1",
        b"127.0.0.1:x",
        b"\xff",
        b"a" * 5000,
    ):
        yield f"host {host[:20]!r}", get(b"/livez", head=b"Host: " + host + b"\r\n" + close)
    yield "no host", get(b"/livez", head=close)
    yield "two hosts", get(b"/livez", head=local + local + close)
    more = {
        "upgrade": b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: eA==\r\n",
        "h2c": b"Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABk\r\n",
        "injected": b"X-Request-Id: a\r\n b: c\r\n",
        "injected id": b"X-Request-Id: a%0d%0aSet-Cookie: x\r\n",
        "authorization": b"Authorization: Bearer \xff\xfe" + b"x" * 4000 + b"\r\n",
        "range": b"Range: bytes=0-1,5-2,-9999999999\r\n",
        "cookie": b"Cookie: " + b"a=b; " * 1000 + b"\r\n",
        "many": b"".join(b"X-%d: y\r\n" % i for i in range(700)),
        "huge": b"X-A: " + b"b" * 60_000 + b"\r\n",
        "odd name": b"X A: 1\r\n",
        "no colon": b"nonsense\r\n",
        "null": b"X-A: a\x00b\r\n",
        "accept": b"Accept: ,,;q=x,image/webp;q=9\r\n",
        "negative length": b"Content-Length: -5\r\n",
        "odd length": b"Content-Length: 5x\r\n",
        "huge length": b"Content-Length: " + b"9" * 400 + b"\r\n",
        "two lengths": b"Content-Length: 0\r\nContent-Length: 5\r\n",
        "smuggled": b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n",
        "odd coding": b"Transfer-Encoding: gzip\r\n",
        "if": b"If-None-Match: *\r\nIf-Modified-Since: never\r\n",
        "forwarded": b"X-Forwarded-For: 1.2.3.4\r\nX-Forwarded-Host: evil.example\r\nX-Original-URL: /etc\r\n",
    }
    for name, lines in more.items():
        yield f"GET {name}", get(b"/v1/models", head=HEAD + lines)
        yield f"GET page {name}", get(b"/page/main.js", head=HEAD + lines)
        yield f"POST {name}", post(GENERATIONS, b'{"n": 1}', more=lines)
    for origin in (
        b"https://evil.example",
        b"null",
        b"http://127.0.0.1:1",
        b"http://[::1",
        b"\xff\xfe",
        b"http://127.0.0.1.evil.example",
    ):
        yield f"origin {origin!r}", post(GENERATIONS, b"{}", more=b"Origin: " + origin + b"\r\n")
        ask = b"Origin: " + origin + b"\r\nAccess-Control-Request-Method: POST\r\n"
        yield f"asked {origin!r}", get(GENERATIONS.encode(), b"OPTIONS", HEAD + ask)
    for prefer in (b"wait=999999", b"wait=-1", b"respond-async, wait=x", b"x" * 300, b"\xff"):
        yield f"prefer {prefer[:12]!r}", post(PREDICTIONS, b'{"input": {}}', more=b"Prefer: " + prefer + b"\r\n")


def wire() -> Iterator[tuple[str, bytes]]:
    """Bytes that are no HTTP, or break off."""
    chunked = b"POST %b HTTP/1.1\r\n%bTransfer-Encoding: chunked\r\n\r\n" % (GENERATIONS.encode(), HEAD)
    yield "random", bytes(range(256)) * 4 + b"\r\n\r\n"
    yield "TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 200 + b"\r\n\r\n"
    yield "HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    yield "HTTP/0.9", b"GET /livez\r\n\r\n"
    yield "HTTP/1.0", b"GET /livez HTTP/1.0\r\n\r\n"
    yield "HTTP/9.9", b"GET /livez HTTP/9.9\r\nConnection: close\r\n\r\n"
    yield "line feeds", b"GET /livez HTTP/1.1\nHost: 127.0.0.1\nConnection: close\n\n"
    yield "spaces", b"GET  /livez  HTTP/1.1\r\n" + HEAD + b"\r\n"
    yield "odd chunk", chunked + b"zz\r\n{}\r\n0\r\n\r\n"
    yield "negative chunk", chunked + b"-1\r\n{}\r\n0\r\n\r\n"
    yield "huge chunk", chunked + b"f" * 40 + b"\r\n{}\r\n0\r\n\r\n"
    yield "endless chunk line", chunked + b"2;" + b"a" * 70_000
    yield "large in chunks", chunked + (b"8000\r\n" + b" " * 0x8000 + b"\r\n") * 12 + b"0\r\n\r\n"
    yield "trailers", chunked + b"2\r\n{}\r\n0\r\nHost: evil.example\r\n\r\n"
    yield "endless header", b"GET /livez HTTP/1.1\r\nX-A: " + b"b" * 200_000
    yield "endless target", b"GET /" + b"b" * 200_000
    yield "pipelined", get(b"/livez", head=b"Host: 127.0.0.1\r\n") * 5 + get(b"/livez")


def every(picture: bytes) -> list[tuple[str, bytes]]:
    """All hostile requests by their names."""
    return [*wire(), *headers(), *paths(), *bodies(), *forms(picture), *fields()]
