"""Counters of a server, in the form that Prometheus reads."""

from collections.abc import Callable, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from unistep.serving.engine import Observer

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


class Metrics(Observer):
    """Counters of requests, batches and images, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "unistep_requests", "Requests by route and status.", ["route", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "unistep_request_seconds", "Seconds of a request.", ["route"], buckets=_SECONDS, registry=self.registry
        )
        self.images = Counter("unistep_images", "Images that were made.", registry=self.registry)
        self.batches = Histogram("unistep_batch_images", "Images of a batch.", buckets=_SIZES, registry=self.registry)
        self.model_seconds = Histogram(
            "unistep_batch_seconds", "Seconds of the model for a batch.", buckets=_SECONDS, registry=self.registry
        )
        self.queue_seconds = Histogram(
            "unistep_queue_seconds", "Seconds that a request waited.", buckets=_SECONDS, registry=self.registry
        )
        self.restarts = Counter("unistep_worker_restarts", "Workers that were given up.", registry=self.registry)
        self._queue = Gauge("unistep_queue_images", "Images that wait.", registry=self.registry)

    def watch_queue(self, length: Callable[[], int]) -> None:
        """Reads the length of the queue from a function."""
        self._queue.set_function(length)

    def batch(self, images: int, seconds: float, waited: Sequence[float]) -> None:
        self.images.inc(images)
        self.batches.observe(images)
        self.model_seconds.observe(seconds)
        for one in waited:
            self.queue_seconds.observe(one)

    def restarted(self) -> None:
        self.restarts.inc()

    def request(self, route: str, status: int, seconds: float) -> None:
        """Counts a request that was answered."""
        self.requests.labels(route, str(status)).inc()
        self.seconds.labels(route).observe(seconds)

    def text(self) -> bytes:
        """Returns all counters as text."""
        return generate_latest(self.registry)
