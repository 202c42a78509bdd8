import threading
from collections.abc import Iterator

import pytest
from starlette.testclient import TestClient

import unistep
from unistep.core.random import image_seeds
from unistep.generation.plan import default_plan
from unistep.serving.app import make_app
from unistep.serving.batch import Row
from unistep.serving.config import ServerConfig
from unistep.serving.engine import Engine
from unistep.serving.metrics import Metrics
from unistep.serving.model import ServedModel, serve_model
from unistep.serving.run import Server
from unistep.serving.security import Access
from unistep.serving.service import Kept, Service
from unistep.serving.waiting import Ticket
from unistep.workflows.models import load


class Collected:
    """Images, result and error of a ticket."""

    def __init__(self, model, count=0, seed=0, call=None, **given):
        self.images, self.error, self.result, self.ended = {}, None, None, threading.Event()
        rows = [Row(int(k), i, 3) for i, k in enumerate(image_seeds(seed, range(count)))]
        plan = default_plan(model.loaded.info) if count else None
        self.ticket = Ticket(model, plan, rows, call, on_image=self.take, on_end=self.end, **given)

    def take(self, number, pixels):
        assert number not in self.images
        self.images[number] = pixels

    def end(self, result, error):
        assert not self.ended.is_set()
        self.result, self.error = result, error
        self.ended.set()

    def wait(self):
        assert self.ended.wait(60)
        return self


@pytest.fixture
def collected() -> type[Collected]:
    """The class of tickets whose images, result and error are collected."""
    return Collected


@pytest.fixture(scope="session")
def digits() -> ServedModel:
    return serve_model("digits", load(device="cpu"), 64)


@pytest.fixture
def serve(digits):
    """A function that starts a server of the embedded model and returns a client of it."""
    open_clients = []

    def start(access: Access | None = None, **settings) -> TestClient:
        config, metrics = ServerConfig(**settings), Metrics()
        kept = Kept(config.keep_minutes, config.max_predictions)
        service = Service(config, {"digits": digits}, Engine(config, metrics), metrics, kept)
        app = make_app(service, access or Access(hosts=("testserver",), local=True))
        client = TestClient(app, raise_server_exceptions=False)
        client.__enter__()
        client.service = service  # pyright: ignore[reportAttributeAccessIssue]
        open_clients.append(client)
        return client

    yield start
    for client in open_clients:
        client.__exit__(None, None, None)


@pytest.fixture
def client(serve) -> Iterator[TestClient]:
    return serve()


@pytest.fixture(scope="module")
def live() -> Iterator[Server]:
    """A server of the embedded model that listens.

    It ends with the module: tests of others may replace the clock, by which a running event loop would wait for ever.
    """
    with unistep.serve(port=0, device="cpu", background=True) as server:
        yield server
