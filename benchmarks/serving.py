"""The server under load: throughput beside `unistep.sample`, latency, memory, and the end by a signal.

    python benchmarks/serving.py                          everything
    python benchmarks/serving.py --parts throughput memory
    python benchmarks/serving.py --requests 2000 --seconds 5

`unistep serve` runs in a process of its own with the embedded model, and so do its peers: a plain FastAPI handler that
calls `unistep.sample` under a lock, and LitServe with the same model in batches, where it is installed. The clients are
in this process. In throughput all take turns, so that a busy moment of the machine meets each of them; the numbers are
medians over the turns.
"""

import argparse
import asyncio
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import psutil

CLIENTS = 64
RAMP = 1.0  # seconds until the answers are counted
GENERATIONS = "/v1/images/generations"


class Answer(NamedTuple):
    """An answer to a request: its status, its body, and the seconds that it took."""

    status: int
    body: bytes
    seconds: float


class Client:
    """A connection that is kept open, with as little work for this machine as can be."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def post(
        self, path: str, body: dict[str, Any], name: str = "", sent: Callable[[], None] | None = None
    ) -> Answer:
        """Sends a request and waits for its whole answer; raises `OSError` where there is none."""
        if self._writer is None:
            self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port, limit=1 << 24)
        assert self._reader is not None
        content = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json"
        started = time.perf_counter()
        self._writer.write(
            f"{head}\r\nContent-Length: {len(content)}\r\nX-Request-Id: {name}\r\n\r\n".encode() + content
        )
        await self._writer.drain()
        if sent is not None:
            sent()
        try:
            lines = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower().split("\r\n")
            fields = dict(line.split(": ", 1) for line in lines[1:] if ": " in line)
            answer = await self._reader.readexactly(int(fields["content-length"]))
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            self.close()
            raise OSError("no answer") from error
        if name and fields.get("x-request-id", name) != name:
            raise RuntimeError("the answer of another request")
        if fields.get("connection") == "close":
            self.close()
        return Answer(int(lines[0].split()[1]), answer, time.perf_counter() - started)

    def close(self) -> None:
        """Closes the connection."""
        if self._writer is not None:
            self._writer.close()
        self._writer = None


# -------------------------------------------------------------------------------------------- the servers


def sampler() -> None:
    """Reads numbers of images, and writes the seconds that `unistep.sample` takes for each."""
    import unistep

    model = unistep.load(device="cpu")
    for line in sys.stdin:
        started = time.perf_counter()
        unistep.sample(model, num_images=int(line), seed=0, progress=False)
        print(time.perf_counter() - started, flush=True)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


class Served:
    """A server in a process of its own."""

    def __init__(self, name: str, *words: str) -> None:
        self.name, self.port = name, free_port()
        own = [sys.executable, "-m", "unistep", "serve", "--port", str(self.port), *words]
        peer = [sys.executable, str(Path(__file__).with_name("serving_peers.py")), name, str(self.port)]
        # To a file descriptor that nobody reads: the lines of a log must not fill a pipe.
        self.process = subprocess.Popen(
            own if name == "unistep" else peer, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        started = time.monotonic()
        while asyncio.run(self._answers()) is False:
            if self.process.poll() is not None or time.monotonic() - started > 120:
                raise RuntimeError(f"{name} does not start")
            time.sleep(0.1)
        self.seconds_to_first = time.monotonic() - started

    async def _answers(self) -> bool:
        client = Client(self.port)
        try:
            return (await client.post(GENERATIONS, {"n": 1, "seed": 0})).status == 200
        except OSError:
            return False
        finally:
            client.close()

    def metric(self, name: str) -> float:
        """A counter of `/metrics`."""
        from urllib.request import urlopen

        with urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=20) as answer:
            lines = answer.read().decode().splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith((f"{name} ", f"{name}{{")))

    def rss(self) -> int:
        """Bytes of memory that the process and its lanes have."""
        own = psutil.Process(self.process.pid)
        return sum(one.memory_info().rss for one in (own, *own.children(recursive=True)))

    def __enter__(self) -> "Served":
        return self

    def __exit__(self, *error: object) -> None:
        for child in psutil.Process(self.process.pid).children(recursive=True) if self.process.poll() is None else ():
            child.terminate()
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()


# -------------------------------------------------------------------------------------------- the load


async def loaded(port: int, images: int, seconds: float, clients: int = CLIENTS) -> tuple[float, list[float]]:
    """Images a second that clients get who ask again at once, and the seconds of their requests.

    Counted are the answers that come in `seconds`, after those of a first while in which all ask for the first time.
    """
    start = time.perf_counter() + RAMP
    end, made, took = start + seconds, 0, []

    async def ask(number: int) -> None:
        nonlocal made
        client, turn = Client(port), 0
        while time.perf_counter() < end:
            answer = await client.post(GENERATIONS, {"n": images, "seed": number * 100_000 + turn})
            if answer.status != 200:
                raise RuntimeError(f"status {answer.status}: {answer.body[:200]!r}")
            turn += 1
            if start <= time.perf_counter() < end:
                made += images
                took.append(answer.seconds)
        client.close()

    await asyncio.gather(*(ask(number) for number in range(clients)))
    return made / seconds, took


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(share * (len(ordered) - 1)))]


def throughput(seconds: float, turns: int) -> dict[str, Any]:
    """Measures images a second of all servers and of `unistep.sample`, in turns."""
    names = ["unistep", "fastapi", *(["litserve"] if find_spec("litserve") else [])]
    with ExitStack() as stack:
        served = {name: stack.enter_context(Served(name)) for name in names}
        sample = subprocess.Popen(
            [sys.executable, __file__, "--sampler"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        stack.callback(sample.kill)

        def sampled(count: int) -> float:
            assert sample.stdin is not None and sample.stdout is not None
            sample.stdin.write(f"{count}\n")
            sample.stdin.flush()
            return count / float(sample.stdout.readline())

        sampled(64)
        count = max(64, round(sampled(128) * seconds))
        rows: dict[str, list[float]] = {}
        latencies: dict[str, list[float]] = {}
        for _ in range(turns):
            rows.setdefault("unistep sample", []).append(sampled(count))
            for name, server in served.items():
                for images in (1, 16) if name != "litserve" else (1,):
                    label = f"{'unistep serve' if name == 'unistep' else name}, {images} an answer"
                    rate, took = asyncio.run(loaded(server.port, images, seconds))
                    rows.setdefault(label, []).append(rate)
                    latencies.setdefault(label, []).extend(took)
    base = statistics.median(rows["unistep sample"])
    print(f"\nimages a second, {CLIENTS} clients, medians of {turns} turns of {seconds:g} s")
    print(f"{'':32}{'images/s':>10}{'of sample':>11}{'p50 ms':>9}{'p99 ms':>9}")
    found = {}
    for label, values in rows.items():
        rate, took = statistics.median(values), latencies.get(label)
        share = statistics.median(a / b for a, b in zip(values, rows["unistep sample"], strict=True))
        times = f"{percentile(took, 0.5) * 1000:9.0f}{percentile(took, 0.99) * 1000:9.0f}" if took else ""
        print(f"{label:32}{rate:10.1f}{share:11.0%}{times}")
        found[label] = {"images_per_second": rate, "share": share}
    return {"base": base, "rows": found}


def latency(seconds: float) -> dict[str, Any]:
    """Measures how long one interactive request takes while others ask for many images."""
    with Served("unistep") as server:

        async def measure() -> list[float]:
            bulk = asyncio.create_task(loaded(server.port, 16, seconds))
            await asyncio.sleep(min(1.0, seconds / 4))
            end, took, client = time.perf_counter() + seconds * 0.7, [], Client(server.port)
            while time.perf_counter() < end:
                body = {"n": 1, "seed": len(took), "interactive": True}
                took.append((await client.post(GENERATIONS, body)).seconds)
                await asyncio.sleep(0.05)
            await bulk
            return took

        names = ("images_sum", "seconds_sum", "seconds_count")
        before = [server.metric(f"unistep_batch_{name}") for name in names]
        took = asyncio.run(measure())
        images, busy, batches = (
            server.metric(f"unistep_batch_{name}") - old for name, old in zip(names, before, strict=True)
        )
    batch = busy / batches
    half, most = percentile(took, 0.5), percentile(took, 0.99)
    print(f"\nan interactive image while {CLIENTS} clients ask for 16 each: {len(took)} requests")
    print(
        f"a batch of {images / batches:.1f} images takes {batch * 1000:.0f} ms; "
        f"p50 {half * 1000:.0f} ms = {half / batch:.2f} batches, "
        f"p99 {most * 1000:.0f} ms = {most / batch:.2f} batches"
    )
    return {"batch": batch, "p50": half, "p99": most}


def memory(requests: int) -> dict[str, Any]:
    """Sends many requests, and follows the memory of the server."""
    with Served("unistep") as server:
        curve, answered = [], set()
        numbers = iter(range(requests))

        async def ask() -> None:
            client = Client(server.port)
            for number in numbers:
                answer = await client.post(GENERATIONS, {"n": 1, "seed": number}, f"r{number}")
                if answer.status != 200 or number in answered:
                    raise RuntimeError(f"request {number}: status {answer.status}")
                answered.add(number)
                if number % max(1, requests // 20) == 0:
                    curve.append(server.rss())

        async def every() -> None:
            await asyncio.gather(*(ask() for _ in range(CLIENTS)))

        started = time.perf_counter()
        asyncio.run(every())
        seconds = time.perf_counter() - started
        curve.append(server.rss())
    settled = curve[len(curve) // 10 :]
    growth = settled[-1] / settled[0] - 1
    print(f"\n{len(answered):,} of {requests:,} requests answered, each once, in {seconds:.0f} s")
    print("memory in MB: " + " ".join(f"{one / 1e6:.0f}" for one in curve) + f"; growth after a tenth {growth:+.1%}")
    return {"answered": len(answered), "growth": growth}


def end_by_signal() -> dict[str, Any]:
    """Ends the server under load: whatever it had received is answered."""
    with Served("unistep") as server:
        open_, answered, lost, later = set(), 0, [], 0
        ending: float | None = None

        async def ask(number: int) -> None:
            nonlocal answered, later
            client, turn = Client(server.port), 0
            while ending is None:
                name = (number, turn)
                try:
                    body = {"n": 4, "seed": number}
                    answer = await client.post(GENERATIONS, body, sent=lambda: open_.add(name))  # noqa: B023
                    if answer.status == 200:
                        answered += 1
                    else:
                        lost.append((name, answer.status))
                except OSError:
                    # Sent at the moment of the signal, on a connection that the server was closing: never received.
                    later += name not in accepted
                    if name in accepted:
                        lost.append((name, 0))
                open_.discard(name)
                turn += 1
            client.close()

        accepted: set[tuple[int, int]] = set()

        async def every() -> None:
            nonlocal ending
            tasks = [asyncio.create_task(ask(number)) for number in range(CLIENTS)]
            await asyncio.sleep(2)
            waiting = set(open_)
            await asyncio.sleep(0.05)  # what was sent before is received
            accepted.update(waiting & open_)
            server.process.send_signal(signal.SIGTERM)
            ending = time.perf_counter()
            await asyncio.gather(*tasks)

        asyncio.run(every())
        code = server.process.wait(60)
        seconds = time.perf_counter() - (ending or 0)
    print(f"\nSIGTERM under load: {len(accepted)} accepted requests open, {len(lost)} lost; {later} came too late")
    print(f"{answered} answered in all, exit code {code} after {seconds:.1f} s")
    return {"accepted": len(accepted), "lost": len(lost), "code": code}


def first_minute() -> dict[str, Any]:
    """Measures the seconds from the command to the first image."""
    with Served("unistep") as server:
        print(f"\nfrom the command to the first image: {server.seconds_to_first:.1f} s")
        return {"seconds": server.seconds_to_first}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parts = {"first": 0, "throughput": 1, "latency": 2, "memory": 3, "signal": 4}
    parser.add_argument("--parts", nargs="+", choices=list(parts), default=list(parts))
    parser.add_argument("--seconds", type=float, default=10.0, help="of one turn of a server")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--json", help="file that the results are written to")
    parser.add_argument("--sampler", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.sampler:
        return sampler()
    print(f"{os.cpu_count()} cores, load of the machine before: {os.getloadavg()[0]:.1f}")
    found: dict[str, Any] = {}
    for part in given.parts:
        if part == "first":
            found[part] = first_minute()
        elif part == "throughput":
            found[part] = throughput(given.seconds, given.turns)
        elif part == "latency":
            found[part] = latency(given.seconds)
        elif part == "memory":
            found[part] = memory(given.requests)
        else:
            found[part] = end_by_signal()
    if given.json:
        with open(given.json, "w", encoding="utf-8") as file:
            json.dump(found, file, indent=1)


if __name__ == "__main__":
    main()
