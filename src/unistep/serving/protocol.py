"""HTTP on a connection: uvicorn's, which also refuses malformed, overlong and unfinished requests as all errors are."""

import asyncio
import json
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from unistep.serving.errors import Refusal, body_of

_MOST_HELD = 4 << 10


class JoinedWrites:
    """A transport that sends the head of an answer with its body, not one before the other.

    uvicorn writes both by themselves: two system calls, of which the first wakes a client that then waits for the rest.
    What is short is held until the next write, or until the event loop has nothing before it.

    Args:
        transport: transport of the connection; those of asyncio and uvloop have no class in common.
        loop: event loop of the connection.
    """

    def __init__(self, transport: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop, self._held = transport, loop, b""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Sends bytes after those that are held, or holds them."""
        if not self._held and data and len(data) <= _MOST_HELD:
            self._held = data
            self._loop.call_soon(self._flush)
        else:
            data, self._held = self._held + data, b""
            self._transport.write(data)

    def close(self) -> None:
        """Sends what is held, and closes the connection."""
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        data, self._held = self._held, b""
        if data and not self._transport.is_closing():
            self._transport.write(data)


class Protocol(HttpToolsProtocol):
    """A connection whose requests must begin, and have all of their headers, within some seconds and bytes."""

    head_seconds = 15.0
    most_head = 32 << 10
    _late: asyncio.TimerHandle | None = None
    _in_head = False
    _arrived = 0

    def connection_made(self, transport: Any) -> None:
        """Begins to wait for a request."""
        super().connection_made(cast(asyncio.Transport, JoinedWrites(transport, self.loop)))
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Reads bytes, and waits for the rest of a request's headers."""
        went_on = self._in_head
        super().data_received(data)
        # What the parser holds of headers that have not ended; their first bytes may come behind the end of a body.
        self._arrived = self._arrived + len(data) if went_on and self._in_head else 0
        if self._arrived > self.most_head:
            self.send_400_response("")
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Waits for nothing more."""
        self._forget()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        """Begins a request."""
        super().on_message_begin()
        self._in_head = True

    def on_headers_complete(self) -> None:
        """Begins to answer a request.

        Raises:
            ValueError: its headers are too long, or name no host or several; it is refused as malformed.
        """
        self._in_head = False
        if len(self.url) + sum(len(name) + len(value) for name, value in self.headers) > self.most_head:
            raise ValueError("the headers are too long")
        hosts = sum(name == b"host" for name, _ in self.headers)
        assert self.parser is not None
        if hosts > 1 or (not hosts and self.parser.get_http_version() == "1.1"):
            raise ValueError("a request names one host")
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        """Refuses what is no HTTP."""
        self._refuse(Refusal(400, "invalid_request_error", "this is no valid HTTP request"))

    def _refuse(self, refusal: Refusal) -> None:
        """Answers with a refusal, unless an answer has begun, and closes the connection."""
        if self.transport.is_closing():
            return
        if self.cycle is None or self.cycle.response_complete or not self.cycle.response_started:
            body = json.dumps(body_of(refusal)).encode()
            head = (
                b"content-type: application/json\r\ncontent-length: %d\r\n"
                b"x-content-type-options: nosniff\r\nconnection: close\r\n\r\n" % len(body)
            )
            self.transport.write(STATUS_LINE[refusal.status] + head + body)
        if self.cycle is not None:
            self.cycle.disconnected = True  # what its request still sends is for nobody
            self.cycle.message_event.set()
        self.transport.close()

    def _waiting(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _watch(self) -> None:
        if not self._waiting():
            self._forget()
        elif self._late is None and not self.transport.is_closing():
            self._late = self.loop.call_later(self.head_seconds, self._give_up)

    def _give_up(self) -> None:
        self._late = None
        if self._waiting():
            self._refuse(Refusal(408, "timeout", "the request did not arrive in time"))

    def _forget(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None
