import asyncio
import json
import socket
import sys

import pytest

from unistep.serving.protocol import JoinedWrites, Protocol
from unistep.serving.run import _new_event_loop

BODY = b'{"n": 1, "seed": 3}'
HEAD = b"POST /v1/images/generations HTTP/1.1\r\nHost: 127.0.0.1\r\n"
WHOLE = HEAD + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY


@pytest.fixture
def talk(live):
    """A function that sends parts and returns all answers: statuses and bodies."""

    def send(*parts: bytes) -> list[tuple[int, dict]]:
        port = int(live.address.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
            try:
                for part in parts:
                    connection.sendall(part)
            except OSError:
                pass  # refused before all was sent
            received = b""
            try:
                while part := connection.recv(1 << 16):
                    received += part
            except ConnectionResetError:
                pass
        answers = []
        while received:
            head, _, rest = received.partition(b"\r\n\r\n")
            fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
            length = int(fields[b"content-length"])
            answers.append((int(head.split()[1]), json.loads(rest[:length])))
            received = rest[length:]
        return answers

    return send


@pytest.mark.parametrize(
    "request_",
    [
        pytest.param(b"GET /livez HTTP/1.1\r\nX: " + b"a" * Protocol.most_head + b"\r\n\r\n", id="one long header"),
        pytest.param(b"GET /" + b"a" * Protocol.most_head + b" HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", id="a long path"),
        pytest.param(
            b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\n" + b"X: aaaaaaaaaa\r\n" * 4000 + b"\r\n", id="many headers"
        ),
        pytest.param(b"GET /livez HTTP/1.1\r\n\r\n", id="no host"),
        pytest.param(b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\nHost: evil.example\r\n\r\n", id="two hosts"),
        pytest.param(HEAD + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd", id="two lengths"),
        pytest.param(
            HEAD + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", id="length and chunks"
        ),
        pytest.param(HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n\r\n", id="a chunk without a length"),
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", id="TLS"),
    ],
)
def test_what_is_no_http_gets_one_error(talk, request_):
    [(status, body)] = talk(request_)
    assert status == 400 and body["error"]["type"] == "invalid_request_error"


def test_headers_without_an_end_are_refused_before_their_time_is_over(talk):
    endless = [b"GET /livez HTTP/1.1\r\nX: "] + [b"a" * 4096] * 200
    [(status, _)] = talk(*endless)
    assert status == 400


def test_what_comes_behind_a_request_is_refused_after_its_answer(talk):
    answers = talk(WHOLE, b"no HTTP at all\r\n\r\n")
    assert [status for status, _ in answers] in ([200, 400], [400])


def test_requests_behind_each_other_are_answered_in_order(talk):
    last = WHOLE.replace(b"Host: 127.0.0.1", b"Host: 127.0.0.1\r\nConnection: close")
    answers = talk(WHOLE + WHOLE, last)
    assert [status for status, _ in answers] == [200] * 3
    assert len({body["data"][0]["b64_json"] for _, body in answers}) == 1


class _Written:
    """A transport that keeps what is written."""

    def __init__(self):
        self.parts, self.closed = [], False

    def write(self, data):
        self.parts.append(data)

    def is_closing(self):
        return self.closed

    def close(self):
        self.closed = True


def _written(use):
    """What a transport is given by `use`, which writes to it, and what it was given after the next turn of the loop."""
    inner = _Written()

    async def turn():
        joined = JoinedWrites(inner, asyncio.get_running_loop())
        use(joined)
        before = [*inner.parts]
        await asyncio.sleep(0)
        return before, inner.parts

    return asyncio.run(turn())


def test_head_and_body_are_one_write():
    before, _ = _written(lambda to: (to.write(b"head"), to.write(b"body")))
    assert before == [b"headbody"]


def test_a_head_without_a_body_does_not_wait_for_one():
    assert _written(lambda to: to.write(b"head")) == ([], [b"head"])


def test_what_is_long_is_not_held():
    before, after = _written(lambda to: to.write(b"a" * 10_000))
    assert before == after == [b"a" * 10_000]


def test_what_is_held_is_sent_before_the_end():
    before, after = _written(lambda to: (to.write(b"head"), to.close()))
    assert before == after == [b"head"]


def test_nothing_is_written_to_a_connection_that_was_lost():
    assert _written(lambda to: (to.write(b"head"), to._transport.close())) == ([], [])


def test_python_s_own_event_loop_serves_where_uvloop_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "uvloop", None)
    assert _new_event_loop() is None
