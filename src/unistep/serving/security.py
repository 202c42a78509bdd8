"""Checks before the routes: hosts, tokens, limits of bodies and rates; and the headers of every answer.

Pure ASGI, so that streams pass through without being held. Nothing of a request but its method, route, status and
duration is logged.
"""

import asyncio
import hmac
import json
import logging
import re
import secrets
import time
from collections import deque
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from unistep.serving.config import ServerConfig
from unistep.serving.errors import Refusal, body_of
from unistep.serving.metrics import Metrics

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_log = logging.getLogger("unistep.serving")
_requests = logging.getLogger("unistep_requests")  # apart from the notes of the command line

OPEN = ("/livez", "/readyz")
"""Routes that need no token."""
PAGE = ("/", "/page/")
"""The page itself needs no token: it asks for one."""

_LOCAL = re.compile(r"(localhost|127\.0\.0\.1|\[::1\])(:\d+)?", re.IGNORECASE)
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "font-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_MOST_HELD = 16  # bodies of the largest size that are held at once
_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-frame-options", b"DENY"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"content-security-policy", _POLICY.encode()),
)


@dataclass(frozen=True)
class Access:
    """Tokens, hosts and origins that are admitted.

    Args:
        tokens: tokens of which a request must carry one; empty for no tokens.
        hosts: names in a `Host` header that are answered; empty for any.
        local: whether only names of this machine are answered.
        origins: origins of other pages that may read the answers, as https://example.org; "*" is any.
    """

    tokens: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    local: bool = True
    origins: tuple[str, ...] = ()


class Guard:
    """An ASGI application around another.

    Args:
        app: application with the routes.
        access: tokens, hosts and origins that are admitted.
        config: limits.
        metrics: counters.
    """

    def __init__(self, app: App, access: Access, config: ServerConfig, metrics: Metrics) -> None:
        self._app, self._access, self._config, self._metrics = app, access, config, metrics
        self._open: dict[str, int] = {}
        self._held = _Held(config.max_body * _MOST_HELD)
        self._times: dict[str, deque[float]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        # Files are sent whole, as HTTP allows: ranges are nothing but another way to ask for what is not there.
        scope["headers"] = [pair for pair in scope["headers"] if pair[0] != b"range"]
        answer = _Answer(send, scope, self._cors(scope))
        started, client, body = time.monotonic(), "", None
        try:
            client = self._admit(scope)
            if scope["method"] == "OPTIONS" and _header(scope, b"access-control-request-method"):
                await answer.plain(204)
                return
            body = _Body(scope, receive, self._config, self._held)
            await self._app(scope, body.receive, answer.send)
        except Refusal as refusal:
            await answer.refuse(refusal)
        except asyncio.CancelledError:
            raise
        except Exception:
            _log.exception("request %s failed", answer.id)
            await answer.refuse(Refusal(500, "internal_error", "the server failed; its log has the reason"))
        finally:
            if body is not None:
                body.release()
            if client:
                self._open[client] -= 1
                if not self._open[client]:
                    del self._open[client]
            self._note(scope, answer, time.monotonic() - started)

    def _admit(self, scope: Scope) -> str:
        """Returns the client's name in the counters, after all checks that need no body."""
        self._check_host(scope)
        token = self._check_token(scope)
        client = token or str((scope.get("client") or ("?",))[0])
        path = scope["path"]
        if path in OPEN:
            return ""
        if scope["method"] == "POST":
            self._check_origin(scope)
            self._check_rate(client)
        if self._open.get(client, 0) >= self._config.concurrency:
            raise Refusal(429, "too_many_requests", "too many requests are open at once", headers={"Retry-After": "1"})
        self._open[client] = self._open.get(client, 0) + 1
        return client

    def _check_host(self, scope: Scope) -> None:
        host, access = _header(scope, b"host"), self._access
        known = host.rsplit(":", 1)[0].lower() in access.hosts or (access.local and _LOCAL.fullmatch(host))
        if (access.local or access.hosts) and not known:
            # A page of another name that points at this machine (DNS rebinding) is not to talk to it.
            raise Refusal(421, "wrong_host", "this server is not called that; give `allow_host`", "Host")

    def _check_origin(self, scope: Scope) -> None:
        """Refuses requests that a page of another origin sends."""
        origin = _header(scope, b"origin")
        if not origin or self._allowed(origin):
            return
        if _host_of(origin) != _header(scope, b"host").lower():
            raise Refusal(403, "wrong_origin", "pages of other origins may not ask; see `allow_origin`", "Origin")

    def _check_token(self, scope: Scope) -> str:
        tokens, path = self._access.tokens, scope["path"]
        if not tokens or path in OPEN or path == PAGE[0] or path.startswith(PAGE[1]):
            return ""
        if scope["method"] == "OPTIONS":
            return ""
        scheme, _, given = _header(scope, b"authorization").partition(" ")
        given = given.strip() if scheme.lower() in ("bearer", "token") else ""
        # Every token is compared, each in constant time.
        found = [token for token in tokens if hmac.compare_digest(token.encode(), given.encode("utf-8", "replace"))]
        if not found:
            headers = {"WWW-Authenticate": "Bearer"}
            raise Refusal(401, "invalid_token", "a token is needed: Authorization: Bearer ...", headers=headers)
        return found[0]

    def _check_rate(self, client: str) -> None:
        most = self._config.rate * 60
        if not most:
            return
        now, times = time.monotonic(), self._times.setdefault(client, deque())
        while times and times[0] < now - 60:
            times.popleft()
        if len(times) >= most:
            wait = str(max(1, round(times[0] + 60 - now)))
            raise Refusal(
                429, "rate_limited", f"too many requests; try again in {wait} s", headers={"Retry-After": wait}
            )
        times.append(now)
        if len(self._times) > 10_000:
            self._times = {name: kept for name, kept in self._times.items() if kept and kept[-1] > now - 60}

    def _allowed(self, origin: str) -> bool:
        return "*" in self._access.origins or origin in self._access.origins

    def _cors(self, scope: Scope) -> list[tuple[bytes, bytes]]:
        origin = _header(scope, b"origin")
        if not origin or not self._allowed(origin):
            return []
        return [
            (b"access-control-allow-origin", origin.encode("latin-1", "replace")),
            (b"vary", b"Origin"),
            (b"access-control-allow-methods", b"GET, POST, OPTIONS"),
            (b"access-control-allow-headers", b"authorization, content-type, prefer"),
            (b"access-control-expose-headers", b"x-request-id, retry-after, x-unistep-note"),
            (b"access-control-max-age", b"600"),
        ]

    def _note(self, scope: Scope, answer: "_Answer", seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "other") if answer.status != 404 else "other"
        status = answer.status or 499
        self._metrics.request(route, status, seconds)
        _requests.info(
            json.dumps(
                {"id": answer.id, "method": scope["method"], "route": route, "status": status, "s": round(seconds, 4)}
            )
        )


@dataclass
class _Held:
    """Bytes of the bodies of all requests that are open.

    Args:
        most: bytes that are held at once.
        now: bytes that are held.
    """

    most: int
    now: int = 0


class _Body:
    """The body of a request, counted while it arrives."""

    def __init__(self, scope: Scope, receive: Receive, config: ServerConfig, held: _Held) -> None:
        length = _header(scope, b"content-length")
        if length and (not length.isdecimal() or int(length[:20]) > config.max_body):
            raise _too_large(config)
        self._receive, self._config, self._held, self._bytes, self._whole = receive, config, held, 0, False
        self._end = time.monotonic() + config.body_seconds

    async def receive(self) -> MutableMapping[str, Any]:
        if self._whole:
            return await self._receive()
        try:
            async with asyncio.timeout(max(0.01, self._end - time.monotonic())):
                message = await self._receive()
        except TimeoutError:
            raise Refusal(408, "timeout", "the body did not arrive in time", headers={"Connection": "close"}) from None
        if message["type"] == "http.request":
            self._bytes += len(message.get("body", b""))
            self._held.now += len(message.get("body", b""))
            self._whole = not message.get("more_body", False)
            if self._bytes > self._config.max_body:
                raise _too_large(self._config)
            if self._held.now > self._held.most:
                message = "too many large bodies arrive at once; try again in 2 s"
                raise Refusal(429, "overloaded", message, headers={"Retry-After": "2", "Connection": "close"})
        return message

    def release(self) -> None:
        """Gives back the bytes, as the request has ended."""
        self._held.now -= self._bytes


class _Answer:
    """An answer on its way, with the headers that every one has."""

    def __init__(self, send: Send, scope: Scope, cors: list[tuple[bytes, bytes]]) -> None:
        self._send, self._cors, self.status = send, cors, 0
        given = _header(scope, b"x-request-id")
        self.id = given if re.fullmatch(r"[\w.-]{1,64}", given, re.ASCII) else secrets.token_hex(8)

    async def send(self, message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [*message.get("headers", ()), *self._cors, (b"x-request-id", self.id.encode())]
            have = {name.lower() for name, _ in message["headers"]}
            message["headers"] += [(name, value) for name, value in _HEADERS if name not in have]
        await self._send(message)

    async def refuse(self, refusal: Refusal) -> None:
        """Answers with a refusal, if nothing was answered so far."""
        if self.status:
            return
        body = json.dumps(body_of(refusal)).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        headers += [(name.lower().encode(), value.encode()) for name, value in refusal.headers.items()]
        await self.send({"type": "http.response.start", "status": refusal.status, "headers": headers})
        await self._send({"type": "http.response.body", "body": body})

    async def plain(self, status: int) -> None:
        """Answers with no body."""
        await self.send({"type": "http.response.start", "status": status, "headers": []})
        await self._send({"type": "http.response.body", "body": b""})


def _host_of(origin: str) -> str:
    """Host and port of an origin; empty for none."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


def _header(scope: Scope, name: bytes) -> str:
    return next((value.decode("latin-1") for key, value in scope["headers"] if key == name), "")


def _too_large(config: ServerConfig) -> Refusal:
    most = f"{config.max_body / (1 << 20):g} MiB"
    return Refusal(413, "too_large", f"the body is larger than {most}", headers={"Connection": "close"})


def check_tokens(tokens: Sequence[str]) -> None:
    """Refuses tokens that can be guessed or that no header can carry.

    Raises:
        ValueError: a token is shorter than 16 characters, or has other than visible ASCII ones.
    """
    for token in tokens:
        if not re.fullmatch(r"[!-~]{16,512}", token):
            raise ValueError
