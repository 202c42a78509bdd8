import base64
import gc
import io
import json
import re
import socket
import struct
import time
from collections import Counter
from collections.abc import Iterator
from urllib.request import Request, urlopen

import hostile
import numpy as np
import psutil
import pytest
from PIL import Image

import unistep
from unistep.serving.config import ServerConfig
from unistep.serving.protocol import Protocol
from unistep.serving.run import Server, make_server
from unistep.serving.security import Access

LONGEST = 20.0
GENERATIONS = hostile.GENERATIONS


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    config = ServerConfig(
        max_images=8, max_evaluations=40, max_body=200_000, max_pixels=1 << 18, body_seconds=1.0, keep_minutes=0.01
    )
    started = make_server({"mnist": None}, config, Access(), host="127.0.0.1", port=0, dtype="fp32", device="cpu")
    started.start()
    yield started
    started.stop()


@pytest.fixture(scope="module")
def picture() -> bytes:
    file = io.BytesIO()
    Image.fromarray(unistep.sample(num_images=1, seed=1, progress=False).pixels[0, 0].numpy()).save(file, format="PNG")
    return file.getvalue()


def connect(server: Server) -> socket.socket:
    host, _, port = server.address.rpartition("//")[2].rpartition(":")
    return socket.create_connection((host, int(port)), timeout=LONGEST)


def ask(server: Server, request: bytes) -> bytes:
    """The whole answer to the bytes of a request; the server ends the connection."""
    answer = bytearray()
    with connect(server) as connection:
        try:
            connection.sendall(request)
        except OSError:
            pass  # answered and closed before everything was read
        try:
            while part := connection.recv(1 << 16):
                answer += part
        except ConnectionResetError:
            pass
    return bytes(answer)


def fault_of(name: str, answer: bytes) -> str:
    """The fault of an answer; empty if it has none."""
    if not answer:
        return "" if name in CLOSED else "no answer"
    head, _, body = answer.partition(b"\r\n\r\n")
    status = int(head.split()[1])
    if status == 100:
        return fault_of(name, body)
    if status >= 500 or status < 200:
        return f"status {status}: {body[:300]!r}"
    if b"set-cookie" in head.lower() or b"Traceback" in body or b"/site-packages/" in body:
        return f"{head!r} {body[:300]!r}"
    if status >= 400 and "HEAD" not in name[:8]:
        length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
        try:
            body = body[: int(length[1])] if length else body
            error = json.loads(body)["error"]
        except ValueError:
            return f"status {status} without the shape of an error: {body[:200]!r}"
        if set(error) != {"message", "type", "param"} or "\n" in error["message"] or len(error["message"]) > 700:
            return f"{error}"
    return ""


CLOSED = ("endless chunk line", "endless header", "endless target")


def check_bits(server: Server) -> None:
    body = json.dumps({"n": 4, "seed": 5, "steps": 2}).encode()
    with urlopen(Request(server.address + GENERATIONS, body), timeout=60) as answer:
        data = json.load(answer)["data"]
    expected = unistep.sample(num_images=4, seed=5, steps=2, progress=False).pixels
    for datum, pixels in zip(data, expected, strict=True):
        image = Image.open(io.BytesIO(base64.b64decode(datum["b64_json"])))
        assert (np.asarray(image) == pixels[0].numpy()).all()


def send_all(server: Server, requests: list[tuple[str, bytes]]) -> Counter[str]:
    """Sends the requests one after the other; counts the statuses."""
    faults, statuses = {}, Counter()
    for name, request in requests:
        started = time.monotonic()
        answer = ask(server, request)
        fault = fault_of(name, answer)
        if time.monotonic() - started > LONGEST:
            fault = "too slow"
        statuses[answer[9:12].decode("ascii", "replace")] += 1
        if fault:
            faults[name] = fault
    assert not faults, "\n".join(f"{name}: {fault}" for name, fault in faults.items())
    return statuses


def test_hostile_requests_are_refused(server, picture):
    every = hostile.every(picture)
    chosen = [one for i, one in enumerate(every) if i < 210 or i % 5 == 0]
    assert len(chosen) > 500
    statuses = send_all(server, chosen)
    assert statuses["400"] > 250 and {"200", "403", "404", "405", "413", "421"} <= set(statuses)
    check_bits(server)


def partly(server: Server, request: bytes) -> socket.socket:
    connection = connect(server)
    connection.sendall(request)
    return connection


def answers_of(server: Server) -> str:
    with urlopen(f"{server.address}/metrics", timeout=20) as answer:
        return answer.read().decode()


def test_clients_that_vanish_leave_nothing_behind(server):
    stream = hostile.post(GENERATIONS, b'{"n": 8, "stream": true}')
    asked = hostile.post(hostile.PREDICTIONS, b'{"input": {"num_outputs": 8}}')
    body = hostile.post(GENERATIONS, b'{"n": 8, "prompt": "' + b"x" * 5000 + b'"}')
    head = b"GET /v1/models HTTP/1.1\r\nHost: 127.0.0.1\r\n"
    for number in range(48):
        request = (stream, asked, body[:-1000], head)[number % 4]
        connection = partly(server, request)
        if number % 8 == 0:
            connection.recv(10)
        if number % 3 == 0:
            reset = struct.pack("ii", 1, 0)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
        connection.close()
    end = time.monotonic() + LONGEST
    while "unistep_queue_images 0.0" not in answers_of(server) and time.monotonic() < end:
        time.sleep(0.05)
    assert "unistep_queue_images 0.0" in answers_of(server) and 'status="500"' not in answers_of(server)
    check_bits(server)


def test_slow_bodies_are_refused_while_others_are_answered(server):
    body = hostile.post(GENERATIONS, b'{"n": 1, "prompt": "' + b"x" * 5000 + b'"}')
    started = time.monotonic()
    slow = [partly(server, body[:-number]) for number in range(1000, 1016)]
    check_bits(server)
    while time.monotonic() < started + 1.5:
        for connection in slow:
            try:
                connection.sendall(b"x")
            except OSError:
                pass
        time.sleep(0.2)
    for connection in slow:
        try:
            answer = connection.recv(1000)
        except ConnectionResetError:
            continue
        assert answer.split()[1] == b"408" and b'"timeout"' in answer
        connection.close()


@pytest.mark.slow  # waits for the time that headers may take
def test_requests_that_never_end_are_closed(server):
    begun = [partly(server, text) for text in (b"", b"GET /livez HTTP/1.1\r\nHost: 127", b"\r\n")]
    started = time.monotonic()
    answers = []
    for connection in begun:
        connection.settimeout(Protocol.head_seconds + 5)
        answers.append(connection.recv(1000))
    assert time.monotonic() - started > Protocol.head_seconds - 1
    assert answers[0].split()[1] == b"408"
    check_bits(server)


@pytest.mark.slow  # three minutes
def test_memory_is_flat_under_hostile_requests(server, picture):
    every, process = hostile.every(picture), psutil.Process()
    assert len(every) > 1500
    curve = []
    for _ in range(3):
        send_all(server, every)
        gc.collect()
        curve.append(process.memory_info().rss)
    assert curve[2] < 1.05 * curve[0], curve
    check_bits(server)
