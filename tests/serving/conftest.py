from collections.abc import Iterator

import pytest
from starlette.testclient import TestClient

import unistep
from unistep.serving.app import make_app
from unistep.serving.config import ServerConfig
from unistep.serving.engine import Engine
from unistep.serving.metrics import Metrics
from unistep.serving.model import ServedModel, serve_model
from unistep.serving.run import Server
from unistep.serving.security import Access
from unistep.serving.service import Kept, Service
from unistep.workflows.models import load


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
