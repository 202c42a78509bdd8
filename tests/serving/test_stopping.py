import http.client
import json
import re
import signal
import socket
import sys
import threading
import time
from contextlib import contextmanager

import pytest
from server_process import server_process

from unistep.serving.config import ServerConfig
from unistep.serving.run import make_server
from unistep.serving.security import Access


@contextmanager
def started(grace_seconds: int):
    """A server in a process of its own, and its port."""
    words = [sys.executable, "-m", "unistep", "serve", "--port", "0", "--grace-seconds", str(grace_seconds)]
    with server_process(words, text=True) as server:
        port = int(re.search(r"http://127\.0\.0\.1:(\d+)", server.stderr.readline())[1])
        threading.Thread(target=server.stderr.read, daemon=True).start()
        yield server, port


@pytest.mark.slow  # starts a process
def test_what_was_accepted_is_answered_after_a_signal():
    with started(60) as (server, port):
        open_, answered, lost = set(), [], set()
        ending = threading.Event()

        def ask(number: int) -> None:
            turn = 0
            while not ending.is_set():
                name, turn = (number, turn), turn + 1
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
                try:
                    connection.request("POST", "/v1/images/generations", json.dumps({"n": 4, "seed": number}))
                    open_.add(name)
                    answer = connection.getresponse()
                    assert answer.status == 200 and len(json.loads(answer.read())["data"]) == 4
                    answered.append(name)
                except OSError:
                    lost.add(name)
                finally:
                    open_.discard(name)
                    connection.close()

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(24)]
        for thread in threads:
            thread.start()
        while len(answered) < 24:
            time.sleep(0.05)
        waiting = set(open_)
        time.sleep(0.1)
        accepted = waiting & open_
        ending.set()
        server.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join(120)
        assert server.wait(60) == 0
        assert accepted and not accepted & lost
        with pytest.raises(OSError):
            http.client.HTTPConnection("127.0.0.1", port, timeout=5).connect()


@pytest.mark.slow  # starts a process
def test_a_stream_is_ended_by_the_server():
    with started(1) as (server, port):
        while True:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            try:
                body = {"n": 256, "timesteps": list(range(0, 38)), "stream": True}
                connection.request("POST", "/v1/images/generations", json.dumps(body))
                answer = connection.getresponse()
                break
            except ConnectionError:
                time.sleep(0.1)
        assert answer.status == 200
        time.sleep(0.5)
        asked = time.monotonic()
        server.send_signal(signal.SIGTERM)
        text = answer.read()
        assert text.count(b"event: error") == 1 and b'"type": "stopping"' in text
        assert server.wait(30) == 0 and time.monotonic() - asked < 20


def test_the_address_that_is_printed_refuses_nobody():
    """Connections wait until the server runs."""
    server = make_server({"mnist": None}, ServerConfig(), Access(), host="127.0.0.1", port=0, device="cpu")
    host, port = server.address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=5) as early:
        server.start()
        try:
            early.sendall(b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
            assert early.recv(100).startswith(b"HTTP/1.1 200")
        finally:
            server.stop()
