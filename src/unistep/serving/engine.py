"""The workers of a device: threads that compute the batches of waiting requests.

A batch begins when a worker is free. It takes the oldest request, and with it the waiting images of the same model and
plan, up to a tile: the images that the network computes at once. Where they fill none it waits `max_wait_ms` for more,
unless a person waits for them or nobody else asks. While a batch is computed, the answers of the last one are written
and the next one gathers. Interactive requests go before others. A request whose client has gone gives its places to
others. A batch that takes longer than `hang_seconds`, or that fails, fails its requests alone: the engine gives up its
worker and goes on with another.

There is one worker a device. Small images on a CPU have more, each with a process of its own (`unistep.serving.lane`);
the first worker computes in the server's process until its lane is ready, and whatever lanes do not compute.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from unistep.errors import UserError
from unistep.serving.batch import Row, make_rows
from unistep.serving.config import ServerConfig
from unistep.serving.errors import Busy, Stopping, WorkerFailed
from unistep.serving.lane import Lane, LaneDied
from unistep.serving.waiting import Ticket, Waiting

_log = logging.getLogger("unistep.serving")


class Observer:
    """Receives what the engine does; the server's metrics are one. The methods are called from the worker."""

    def batch(self, images: int, seconds: float, waited: Sequence[float]) -> None:
        """A batch of `images` took `seconds`; its requests had waited for so many seconds each."""

    def restarted(self) -> None:
        """The worker was given up and replaced."""


class _Worker:
    """A thread that computes batches, with its lane if it has one.

    Args:
        first: whether it also computes what lanes do not.
        lane: process that computes for it; None computes in this process.
    """

    def __init__(self, first: bool, lane: Lane | None) -> None:
        self.first, self.lane = first, lane
        self.thread: threading.Thread | None = None
        self.running: list[Ticket] = []
        self.began: float | None = None
        self.given_up = False

    def remote(self, ticket: Ticket) -> bool:
        """Whether the lane can compute a request."""
        return ticket.call is None and self.lane is not None and self.lane.computes(ticket.model)

    def takes(self, ticket: Ticket) -> bool:
        """Whether the worker can compute a request."""
        return self.first or self.remote(ticket)


class Engine:
    """Workers with their queue.

    Args:
        config: sizes and limits.
        observer: receives what the engine does.
        lane: function that starts a lane; None where this process computes everything.
        lanes: number of lanes.
    """

    def __init__(
        self,
        config: ServerConfig,
        observer: Observer | None = None,
        lane: Callable[[], Lane] | None = None,
        lanes: int = 0,
    ) -> None:
        self.config, self.observer = config, observer or Observer()
        self._lane, self._lanes = lane, lanes if lane else 0
        self._waiting = Waiting()
        lock = threading.RLock()
        self._changed, self._filled = threading.Condition(lock), threading.Condition(lock)
        self._stopping = False
        self._workers: list[_Worker] = []
        self._pace = 0.01  # seconds an image, for Retry-After
        self._watch: threading.Thread | None = None

    # ------------------------------------------------------------------------------------------------ for the server

    def start(self) -> None:
        """Starts the workers and the thread that watches them."""
        for number in range(max(1, self._lanes)):
            self._start_worker(first=number == 0)
        self._watch = threading.Thread(target=self._watch_workers, name="unistep-watch", daemon=True)
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
            waiting = self._waiting.images
            if waiting and waiting + ticket.size > self.config.max_queue:
                raise Busy(retry_after=max(1, round(waiting * self._pace)))
            self._waiting.add(ticket)
            self._changed.notify_all()
            if not ticket.call and not self._room(ticket):
                self._filled.notify_all()
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """Gives the places of a request to others; images that are being computed are thrown away."""
        with self._changed:
            ticket.cancelled = True
            self._waiting.discard(ticket)
            self._changed.notify_all()

    def stop(self, seconds: float) -> bool:
        """Takes no more requests, and waits for those that it has; returns whether all of them ended."""
        end = time.monotonic() + seconds
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
            self._filled.notify_all()
            while (self._waiting or self._running()) and time.monotonic() < end:
                self._changed.wait(timeout=max(0.0, min(0.5, end - time.monotonic())))
            left = [*self._waiting.clear(), *self._running()]
        for ticket in left:
            ticket.cancelled = True
            self._end(ticket, None, Stopping())
        return not left

    def join(self, seconds: float) -> None:
        """Waits for the workers, which may still compute what nobody wants; a process must not end meanwhile."""
        end = time.monotonic() + seconds
        for worker in [*self._workers]:
            if worker.thread is not None:
                worker.thread.join(max(0.0, end - time.monotonic()))
            if worker.lane is not None:
                worker.lane.close()

    @property
    def alive(self) -> bool:
        """Whether a worker computes or could."""
        return any(worker.thread is not None and worker.thread.is_alive() for worker in self._workers)

    def wait_for_lanes(self, seconds: float) -> int:
        """Waits until every lane is ready or has failed, and returns how many are ready."""
        end = time.monotonic() + seconds
        lanes = [worker.lane for worker in self._workers if worker.lane is not None]
        return sum(lane.wait(max(0.0, end - time.monotonic())) for lane in lanes)

    @property
    def queue_length(self) -> int:
        """Images that wait."""
        with self._changed:
            return self._waiting.images

    # ------------------------------------------------------------------------------------------------ the worker

    def _running(self) -> list[Ticket]:
        return [ticket for worker in self._workers for ticket in worker.running]

    def _start_worker(self, first: bool) -> None:
        worker = _Worker(first, self._lane() if self._lanes and self._lane else None)
        worker.thread = threading.Thread(target=self._work, args=(worker,), name="unistep-worker", daemon=True)
        self._workers.append(worker)
        worker.thread.start()

    def _work(self, worker: _Worker) -> None:
        if not worker.first and worker.lane is not None and not self._lane_opened(worker.lane):
            return
        while True:
            with self._changed:
                first = None
                while not worker.given_up and (first := self._first(worker)) is None:
                    if self._stopping and not self._waiting:
                        return
                    self._changed.wait()
                if worker.given_up:
                    return
                assert first is not None
                if first.call is None and self._room(first) and self.config.max_wait_ms:
                    # Not for `_changed`, which every request notifies.
                    self._filled.wait(timeout=self.config.max_wait_ms / 1000)
                    first = self._first(worker)
                    if worker.given_up:
                        return
                    if first is None:
                        continue
                parts = self._waiting.take(first, self._most(first))
                worker.running = [ticket for ticket, _ in parts]
                worker.began = time.monotonic()
                if worker.first and self._waiting:
                    self._changed.notify_all()
            self._compute(worker, first, parts)

    def _lane_opened(self, lane: Lane) -> bool:
        """Waits for a lane; returns whether it is used."""
        while not lane.wait(0.5):
            if lane.failed:
                _log.warning("a process that was to compute images failed, or its images differ: it is not used")
                return False
            if self._stopping:
                return False
        return True

    def _first(self, worker: _Worker) -> Ticket | None:
        """The request with which the next batch of a worker begins."""
        if not worker.first and not any(one.first and one.running for one in self._workers):
            return None  # a free machine computes with all cores
        return self._waiting.first(worker.takes)

    def _room(self, first: Ticket) -> bool:
        """Whether a batch waits for more images: others ask too, and there are less than a tile."""
        if self._stopping or first.interactive:
            return False
        together = self._waiting.together(first)
        crowd = together > first.size or any(worker.running for worker in self._workers)
        return crowd and together < self._most(first)

    def _most(self, first: Ticket) -> int:
        """Images of a batch, at most."""
        return min(first.model.tile, self.config.max_batch)

    def _compute(self, worker: _Worker, first: Ticket, parts: list[tuple[Ticket, range]]) -> None:
        started = time.monotonic()
        result, error, images = None, None, None
        try:
            if first.call is not None:
                result = first.call()
            else:
                rows = [ticket.rows[i] for ticket, numbers in parts for i in numbers]
                images = self._make(worker, first, rows, lambda: all(ticket.cancelled for ticket, _ in parts))
        except LaneDied:
            if not worker.given_up:
                self._replace(worker, "died")
            return
        except Exception as raised:
            error = raised
            if not isinstance(raised, UserError):
                _log.exception("a batch failed")
        seconds = time.monotonic() - started
        with self._changed:
            if worker.given_up:
                return  # the requests have their answers
            worker.running, worker.began = [], None
            count = sum(len(numbers) for _, numbers in parts) or 1
            self._pace = 0.8 * self._pace + 0.2 * seconds / count
        self.observer.batch(count, seconds, [started - ticket.submitted for ticket, _ in parts])
        self._hand_over(parts, images, result, error)
        with self._changed:
            self._changed.notify_all()

    def _make(self, worker: _Worker, first: Ticket, rows: Sequence[Row], unwanted: Callable[[], bool]) -> Tensor | None:
        """Images of rows: by the worker's lane where it has the model, but a few on a free machine with all cores."""
        model, plan = first.model, first.plan
        assert plan is not None
        few = model.tile_of(len(rows)) < model.tile and not any(
            one.running for one in [*self._workers] if one is not worker
        )
        if worker.lane is not None and worker.remote(first) and not few:
            return worker.lane.make(model, plan, rows, unwanted)
        return make_rows(
            model.denoiser,
            plan,
            model.shape,
            rows,
            tile=model.tile if model.by_place else model.tile_of(len(rows)),
            by_place=model.by_place,
            device=model.device,
            unwanted=unwanted,
        )

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
                    self._waiting.discard(ticket)
                self._end(ticket, None, error)
                continue
            for place, number in enumerate(numbers):
                assert own is not None
                _guarded(ticket.on_image, number, own[place])
            with self._changed:  # another worker may have other images of it
                ticket.done += len(numbers)
                done = ticket.call is not None or ticket.done == ticket.size
            if done:
                self._end(ticket, result, None)

    def _watch_workers(self) -> None:
        while True:
            with self._changed:
                if self._stopping and not self._waiting and not self._running():
                    return
                for worker in [*self._workers]:
                    hung = worker.began is not None and time.monotonic() - worker.began > self.config.hang_seconds
                    dead = worker.thread is not None and not worker.thread.is_alive() and not self._stopping
                    if hung:
                        self._replace(worker, "hangs")
                    elif dead and (worker.first or worker.running):
                        self._replace(worker, "died")
            time.sleep(min(1.0, self.config.hang_seconds / 4))

    def _replace(self, worker: _Worker, why: str) -> None:
        """Gives a worker up, fails its requests, and starts another."""
        with self._changed:
            if worker.given_up:
                return
            worker.given_up = True
            left, worker.running, worker.began = worker.running, [], None
            self._workers.remove(worker)
            for ticket in left:
                self._waiting.discard(ticket)
            if worker.lane is not None:
                worker.lane.close()
            self._start_worker(worker.first)
            self._changed.notify_all()
        _log.error("the worker %s; another one was started", why)
        self.observer.restarted()
        for ticket in left:
            self._end(ticket, None, WorkerFailed())

    def _end(self, ticket: Ticket, result: Any, error: BaseException | None) -> None:
        with self._changed:
            ended, ticket.ended = ticket.ended, True
        if not ended:
            _guarded(ticket.on_end, result, error)


def _guarded(function: Callable[..., None], *values: Any) -> None:
    """Calls what hands a result over: an event loop that is closed must not end the worker."""
    try:
        function(*values)
    except RuntimeError as error:
        _log.debug("a result found nobody: %s", error)
