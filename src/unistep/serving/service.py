"""The state of a server: its models, its engine, and the results that are kept for a while."""

import asyncio
import secrets
import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from unistep.errors import UserError
from unistep.serving.config import ServerConfig
from unistep.serving.engine import Engine
from unistep.serving.errors import Refusal
from unistep.serving.metrics import Metrics
from unistep.serving.model import ServedModel
from unistep.serving.work import Outbox
from unistep.text import nearest


@dataclass
class Service:
    """Models, engine, counters and kept results, as the routes use them.

    Args:
        config: sizes and limits.
        models: models by name; the first answers requests that name none.
        engine: worker of the device.
        metrics: counters of the server.
        kept: files and predictions that clients may still fetch.
        ready: whether requests are answered; not while models load, nor after a signal.
        outbox: way of results from the worker to the event loop.
    """

    config: ServerConfig
    models: Mapping[str, ServedModel]
    engine: Engine
    metrics: Metrics
    kept: "Kept"
    ready: bool = False
    outbox: Outbox = field(default_factory=Outbox)
    tasks: set[asyncio.Task[Any]] = field(default_factory=set)

    def model(self, name: str | None, param: str = "model") -> ServedModel:
        """Returns the model of a name; the first where none is given.

        Raises:
            Refusal: there is none by that name.
        """
        if not name:
            return next(iter(self.models.values()))
        if name in self.models:
            return self.models[name]
        near = nearest(name, self.models)
        hint = f"did you mean {near}?" if near else "see /v1/models"
        raise Refusal(404, "model_not_found", f"there is no model {name[:100]!r}; {hint}", param)


class Kept:
    """Results by id, for a time and up to a number.

    Args:
        minutes: minutes that a result is kept after it was put.
        most: results that are kept at once.
    """

    def __init__(self, minutes: float, most: int) -> None:
        self._seconds, self._most = minutes * 60, most
        self._items: OrderedDict[str, tuple[float, Any]] = OrderedDict()

    def put(self, item: Any) -> str:
        """Keeps a result and returns its id, which cannot be guessed."""
        self._drop()
        name = secrets.token_urlsafe(18)
        self._items[name] = (time.monotonic(), item)
        while len(self._items) > self._most:
            self._items.popitem(last=False)
        return name

    def get(self, name: str) -> Any:
        """Returns a result; None where there is none, or no longer."""
        self._drop()
        found = self._items.get(name)
        return None if found is None else found[1]

    def __len__(self) -> int:
        return len(self._items)

    def _drop(self) -> None:
        """Forgets what is too old; they lie in the order of their age."""
        oldest = time.monotonic() - self._seconds
        while self._items and next(iter(self._items.values()))[0] < oldest:
            self._items.popitem(last=False)


def by_name(models: Iterable[ServedModel]) -> dict[str, ServedModel]:
    """Returns models by their names.

    Raises:
        UserError: two have one name.
    """
    found: dict[str, ServedModel] = {}
    for model in models:
        if model.name in found:
            raise UserError(f"two models are called {model.name}", "give other names", field="name")
        found[model.name] = model
    return found
