"""A server's process: the models loaded, the socket bound, uvicorn run, the end awaited."""

import asyncio
import gc
import logging
import os
import signal
import socket
import threading
import time
import urllib.request
import webbrowser
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
import uvicorn

from unistep.errors import UserError
from unistep.prepared.table import RuntimeName
from unistep.serving.app import make_app
from unistep.serving.config import ServerConfig
from unistep.serving.engine import Engine
from unistep.serving.lane import Lane, fingerprints
from unistep.serving.metrics import Metrics
from unistep.serving.model import ServedModel, serve_model
from unistep.serving.protocol import Protocol
from unistep.serving.security import Access, Guard
from unistep.serving.service import Kept, Service
from unistep.workflows.models import load

_log = logging.getLogger("unistep")
_SECONDS_TO_WRITE = 2
_BACKLOG = 2048  # connections that wait until they are taken, as uvicorn has it
_MOST_LANES = 8


class Server:
    """A server that listens.

    Args:
        app: application.
        service: models, engine and limits.
        listening: bound socket.
        host: address that the socket is bound to.
    """

    def __init__(self, app: Guard, service: Service, listening: socket.socket, host: str) -> None:
        self._service, self._socket = service, listening
        shown_host = f"[{host}]" if ":" in host else {"0.0.0.0": "127.0.0.1"}.get(host, host)
        self.address = f"http://{shown_host}:{listening.getsockname()[1]}"
        self._thread: threading.Thread | None = None
        self._server = uvicorn.Server(
            uvicorn.Config(
                app,
                log_level="warning",
                access_log=False,
                server_header=False,
                # What is left then has been told that the server stops, and only has to be written.
                timeout_graceful_shutdown=round(service.config.grace_seconds) + _SECONDS_TO_WRITE,
                timeout_keep_alive=15,
                lifespan="on",
                http=Protocol,
                ws="none",
            )
        )

    def run(self) -> None:
        """Serves until a signal or `stop` ends it."""
        with asyncio.Runner(loop_factory=_new_event_loop()) as runner:
            runner.run(_serve(self._server, self._socket, self._service))

    def start(self) -> None:
        """Serves on a thread of its own; returns when requests are answered."""
        self._thread = threading.Thread(target=self.run, name="unistep-server", daemon=True)
        self._thread.start()
        while not self._service.ready and self._thread.is_alive():
            time.sleep(0.01)

    def stop(self) -> None:
        """Answers what was accepted, and ends."""
        self._server.should_exit = True
        if self._thread is not None:
            self._thread.join()

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"Server({self.address})"


def make_server(
    places: Mapping[str, str | None],
    config: ServerConfig,
    access: Access,
    *,
    host: str,
    port: int,
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto",
    runtime: RuntimeName = "eager",
    device: str | None = None,
) -> Server:
    """Returns a server whose models are open, and whose address is its own.

    Args:
        places: place of each model by its name; None for the embedded one.
        config: sizes and limits.
        access: tokens, hosts and origins that are admitted.
        host: address to listen at.
        port: port to listen at; 0 takes a free one.
        dtype: precision of the networks.
        runtime: runtime of the networks.
        device: device of the networks.

    Raises:
        UserError: a model that cannot be opened, or an address that cannot be listened at.
    """
    listening = bound(host, port)
    try:
        service = make_service(places, config, dtype=dtype, runtime=runtime, device=device)
    except BaseException:
        listening.close()
        raise
    server = Server(make_app(service, access), service, listening, host)
    listening.listen(_BACKLOG)  # who reads the line below and asks at once waits, and is not refused
    _log_requests()
    _log.info("serving %s at %s (API: %s/docs); Ctrl-C stops", ", ".join(places), server.address, server.address)
    return server


def browse(address: str) -> None:
    """Opens the page in a browser as soon as the server answers, without waiting for that."""
    threading.Thread(target=_browse, args=(address,), daemon=True).start()


def _new_event_loop() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Function that makes the event loop: of uvloop where it is installed, which has none for Windows; else None."""
    try:
        from uvloop import new_event_loop
    except ImportError:
        return None
    return new_event_loop


async def _serve(server: uvicorn.Server, listening: socket.socket, service: Service) -> None:
    """Serves until SIGINT or SIGTERM; a second one ends without waiting."""
    loop = asyncio.get_running_loop()

    def stop() -> None:
        server.force_exit = server.should_exit
        server.should_exit = True

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop)
    limit = asyncio.create_task(_end_in_time(server, service))
    gc.freeze()  # models and modules stay: looking through them for garbage takes 5% of an answer
    # uvicorn would raise the signal again when all is done: a server that ended well ends with 0.
    await server._serve([listening])
    limit.cancel()


async def _end_in_time(server: uvicorn.Server, service: Service) -> None:
    """Ends what still runs when the time of grace is over: streams get their last event, others status 503."""
    while not server.should_exit:
        await asyncio.sleep(0.1)
    await asyncio.sleep(service.config.grace_seconds)
    service.engine.stop(0)


def make_service(
    places: Mapping[str, str | None],
    config: ServerConfig,
    *,
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto",
    runtime: RuntimeName = "eager",
    device: str | None = None,
) -> Service:
    """Returns the service of models that are opened and have made their first images."""
    metrics, models, options = Metrics(), {}, {}
    for name, place in places.items():
        options[name] = {"model": place, "device": device, "dtype": dtype}
        models[name] = serve_model(name, load(**options[name], runtime=runtime), config.max_batch)
    kept = Kept(config.keep_minutes, config.max_predictions)
    # A network of another runtime is computed in one call, which waits for nothing.
    count, start = _lanes(models if runtime == "eager" else {}, options, config)
    return Service(config, models, Engine(config, metrics, start, count), metrics, kept)


def _lanes(
    models: Mapping[str, ServedModel], options: Mapping[str, Mapping[str, Any]], config: ServerConfig
) -> tuple[int, Callable[[], Lane]]:
    """Number of lanes, and the function that starts one.

    Large networks have none: each of their operations fills all cores.
    """
    small = {
        name: model
        for name, model in models.items()
        if model.device.type == "cpu" and model.tile > 1 and not model.by_place
    }
    cores = torch.get_num_threads()
    count = min(cores, _MOST_LANES) if config.lanes is None else config.lanes
    if not small or os.name != "posix" or (config.lanes is None and cores == 1):
        count = 0
    expected = {}
    for name, model in small.items() if count else ():
        [expected[name]] = fingerprints(model.loaded, [model.tile]).values()
    threads = max(1, cores // max(1, count))
    chosen = {name: {**options[name], "device": "cpu"} for name in small}
    return count, lambda: Lane(small, chosen, threads, expected)


def _log_requests() -> None:
    """Prints a line of JSON on stderr for each request: id, method, route, status, seconds."""
    requests = logging.getLogger("unistep_requests")
    if not requests.handlers:
        requests.addHandler(logging.StreamHandler())
    requests.setLevel(logging.INFO)
    requests.propagate = False


def bound(host: str, port: int) -> socket.socket:
    """Returns a socket that is bound to an address.

    Raises:
        UserError: the address is taken, or is none of this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except OSError as error:
        listening.close()
        remedy = "give another `port`, or 0 for a free one"
        raise UserError(f"{host}:{port} cannot be listened at: {error.strerror or error}", remedy) from None
    return listening


def _browse(address: str) -> None:
    """Opens the page when the server answers."""
    for _ in range(200):
        try:
            with urllib.request.urlopen(f"{address}/livez", timeout=1):
                webbrowser.open(address)
                return
        except OSError:
            time.sleep(0.05)
