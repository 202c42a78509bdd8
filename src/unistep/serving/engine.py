"""The worker of a device: a bounded queue, batches over requests, and a thread that computes them.

A batch begins when the device is free. It takes the oldest request, and with it every waiting image of the same model
and plan, up to `max_batch`, in whole tiles; where they fill none it waits `max_wait_ms` for more. Interactive requests
go before others. A request whose client has gone gives its places to others. A batch that takes longer than
`hang_seconds`, or that fails, fails its requests alone: the engine gives up the thread and goes on with another.
"""

import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from unistep.errors import UserError
from unistep.generation.plan import Plan
from unistep.serving.batch import Row, make_rows
from unistep.serving.config import ServerConfig
from unistep.serving.errors import Busy, Stopping, WorkerFailed
from unistep.serving.model import ServedModel

_log = logging.getLogger("unistep.serving")


@dataclass(eq=False)
class Ticket:
    """A request in the engine.

    Args:
        model: model that computes it.
        plan: noise levels or solver; None where `call` is one.
        rows: images to be made; empty where `call` is one.
        call: function that is called alone on the worker, for an edit.
        interactive: whether the request goes before bulk ones.
        on_image: called from the worker with (number of the row, pixels).
        on_end: called from the worker once, with the result of `call` or None, and the error or None.
    """

    model: ServedModel
    plan: Plan | None = None
    rows: Sequence[Row] = ()
    call: Callable[[], Any] | None = None
    interactive: bool = False
    on_image: Callable[[int, Tensor], None] = lambda number, pixels: None
    on_end: Callable[[Any, BaseException | None], None] = lambda result, error: None
    cancelled: bool = False
    submitted: float = field(default_factory=time.monotonic)
    taken: int = 0
    done: int = 0
    ended: bool = False

    @property
    def size(self) -> int:
        """Images that the request takes of the queue."""
        return len(self.rows) or 1

    @property
    def group(self) -> tuple[Any, ...]:
        """Requests of one group may share a batch."""
        return (id(self.model), self.plan, self.interactive)


class Observer:
    """Receives what the engine does; the server's metrics are one. The methods are called from the worker."""

    def batch(self, images: int, seconds: float, waited: Sequence[float]) -> None:
        """A batch of `images` took `seconds`; its requests had waited for so many seconds each."""

    def restarted(self) -> None:
        """The worker was given up and replaced."""


class Engine:
    """A worker thread with its queue.

    Args:
        config: sizes and limits.
        observer: receives what the engine does.
    """

    def __init__(self, config: ServerConfig, observer: Observer | None = None) -> None:
        self.config, self.observer = config, observer or Observer()
        self._waiting: deque[Ticket] = deque()
        self._changed = threading.Condition()
        self._stopping = False
        self._generation = itertools.count()
        self._worker: threading.Thread | None = None
        self._current = -1
        self._began: float | None = None
        self._running: list[Ticket] = []
        self._pace = 0.01  # seconds an image, for Retry-After
        self._watch: threading.Thread | None = None

    # ------------------------------------------------------------------------------------------------ for the server

    def start(self) -> None:
        """Starts the worker and the thread that watches it."""
        self._start_worker()
        self._watch = threading.Thread(target=self._watch_worker, name="unistep-watch", daemon=True)
        self._watch.start()

    def submit(self, ticket: Ticket) -> Ticket:
        """Takes a request.

        Raises:
            Busy: the queue has no room.
            Stopping: the engine takes no more.
        """
        with self._changed:
            if self._stopping:
                raise Stopping
            waiting = self._length()
            if waiting and waiting + ticket.size > self.config.max_queue:
                raise Busy(retry_after=max(1, round(waiting * self._pace)))
            self._waiting.append(ticket)
            self._changed.notify_all()
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """Gives the places of a request to others; images that are being computed are thrown away."""
        with self._changed:
            ticket.cancelled = True
            if ticket in self._waiting:
                self._waiting.remove(ticket)
            self._changed.notify_all()

    def stop(self, seconds: float) -> bool:
        """Takes no more requests, and waits for those that it has; returns whether all of them ended."""
        end = time.monotonic() + seconds
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
            while (self._waiting or self._running) and time.monotonic() < end:
                self._changed.wait(timeout=max(0.0, min(0.5, end - time.monotonic())))
            left = [*self._waiting, *self._running]
            self._waiting.clear()
        for ticket in left:
            ticket.cancelled = True
            _end(ticket, None, Stopping())
        return not left

    def join(self, seconds: float) -> None:
        """Waits for the worker, which may still compute what nobody wants; a process must not end meanwhile."""
        if self._worker is not None:
            self._worker.join(seconds)

    @property
    def alive(self) -> bool:
        """Whether the worker computes or could."""
        return self._worker is not None and self._worker.is_alive()

    @property
    def queue_length(self) -> int:
        """Images that wait."""
        with self._changed:
            return self._length()

    # ------------------------------------------------------------------------------------------------ the worker

    def _length(self) -> int:
        return sum(ticket.size - ticket.taken for ticket in self._waiting)

    def _start_worker(self) -> None:
        self._current = next(self._generation)
        self._worker = threading.Thread(target=self._work, args=(self._current,), name="unistep-worker", daemon=True)
        self._worker.start()

    def _work(self, generation: int) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._stopping:
                    self._changed.wait()
                    if generation != self._current:
                        return
                if not self._waiting or generation != self._current:
                    return
                first = self._first()
                if first.call is None and self._room(first) and self.config.max_wait_ms:
                    self._changed.wait(timeout=self.config.max_wait_ms / 1000)
                    if generation != self._current:
                        return
                    if not self._waiting:
                        continue
                    first = self._first()
                parts = self._take(first)
                self._running = [ticket for ticket, _ in parts]
                self._began = time.monotonic()
            self._compute(generation, first, parts)

    def _first(self) -> Ticket:
        return next((ticket for ticket in self._waiting if ticket.interactive), self._waiting[0])

    def _together(self, first: Ticket) -> int:
        """Images that the batch which begins with `first` could take."""
        return sum(t.size - t.taken for t in self._waiting if t.group == first.group)

    def _room(self, first: Ticket) -> bool:
        """Whether a batch waits for more images: less than the network computes at once are there."""
        return self._together(first) < min(first.model.tile, self.config.max_batch)

    def _take(self, first: Ticket) -> list[tuple[Ticket, range]]:
        """Takes the rows of a batch off the queue."""
        if first.call is not None:
            self._waiting.remove(first)
            first.taken = 1
            return [(first, range(0))]
        parts, room, tile = [], min(self.config.max_batch, self._together(first)), first.model.tile
        if room > tile:
            room -= room % tile  # the network computes whole tiles: the rest goes with those who come meanwhile
        for ticket in [first, *(t for t in self._waiting if t is not first and t.group == first.group)]:
            if not room or ticket.call is not None:
                continue
            numbers = range(ticket.taken, min(ticket.size, ticket.taken + room))
            ticket.taken, room = numbers.stop, room - len(numbers)
            parts.append((ticket, numbers))
            if ticket.taken == ticket.size:
                self._waiting.remove(ticket)
        return parts

    def _compute(self, generation: int, first: Ticket, parts: list[tuple[Ticket, range]]) -> None:
        started = time.monotonic()
        result, error, images = None, None, None
        try:
            if first.call is not None:
                result = first.call()
            else:
                rows = [ticket.rows[i] for ticket, numbers in parts for i in numbers]
                assert first.plan is not None
                model = first.model
                images = make_rows(
                    model.denoiser,
                    first.plan,
                    model.shape,
                    rows,
                    tile=model.tile,
                    by_place=model.by_place,
                    device=model.device,
                    unwanted=lambda: all(ticket.cancelled for ticket, _ in parts),
                )
        except Exception as raised:
            error = raised
            if not isinstance(raised, UserError):
                _log.exception("a batch failed")
        seconds = time.monotonic() - started
        with self._changed:
            if generation != self._current:
                return  # given up meanwhile; the requests have their answers
            self._running, self._began = [], None
            count = sum(len(numbers) for _, numbers in parts) or 1
            self._pace = 0.8 * self._pace + 0.2 * seconds / count
        self.observer.batch(count, seconds, [started - ticket.submitted for ticket, _ in parts])
        self._hand_over(parts, images, result, error)
        with self._changed:
            self._changed.notify_all()

    def _hand_over(
        self, parts: list[tuple[Ticket, range]], images: Tensor | None, result: Any, error: BaseException | None
    ) -> None:
        start = 0
        for ticket, numbers in parts:
            own = None if images is None else images[start : start + len(numbers)]
            start += len(numbers)
            if ticket.cancelled:
                continue
            if error is not None:
                with self._changed:
                    if ticket in self._waiting:
                        self._waiting.remove(ticket)
                _end(ticket, None, error)
                continue
            for place, number in enumerate(numbers):
                assert own is not None
                _guarded(ticket.on_image, number, own[place])
            ticket.done += len(numbers)
            if ticket.call is not None or ticket.done == ticket.size:
                _end(ticket, result, None)

    def _watch_worker(self) -> None:
        while True:
            with self._changed:
                if self._stopping and not self._waiting and not self._running:
                    return
                began, worker = self._began, self._worker
                hung = began is not None and time.monotonic() - began > self.config.hang_seconds
                dead = worker is not None and not worker.is_alive() and not self._stopping
                left = list(self._running) if hung or dead else []
                if hung or dead:
                    self._running, self._began = [], None
                    for ticket in left:
                        if ticket in self._waiting:
                            self._waiting.remove(ticket)
                    self._start_worker()
                    self._changed.notify_all()
            if hung or dead:
                _log.error("the worker %s; another one was started", "hangs" if hung else "died")
                self.observer.restarted()
                for ticket in left:
                    _end(ticket, None, WorkerFailed())
            time.sleep(min(1.0, self.config.hang_seconds / 4))


def _end(ticket: Ticket, result: Any, error: BaseException | None) -> None:
    if not ticket.ended:
        ticket.ended = True
        _guarded(ticket.on_end, result, error)


def _guarded(function: Callable[..., None], *values: Any) -> None:
    """Calls what hands a result over: an event loop that is closed must not end the worker."""
    try:
        function(*values)
    except RuntimeError as error:
        _log.debug("a result found nobody: %s", error)
