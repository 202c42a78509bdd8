"""Settings of a server: sizes of batches and queues, and limits of what a client may ask for."""

from dataclasses import dataclass

from unistep.checks import check_range


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """Settings of a server.

    Args:
        max_batch: images that are computed at once, at most.
        max_wait_ms: milliseconds that a batch waits to be filled, from 0 to 1,000.
        lanes: processes that compute small images on a CPU side by side, from 0 to 64; None for one a core, up to 8.
        max_queue: images that may wait; beyond it requests are refused with status 429.
        max_images: images of one request.
        max_evaluations: network evaluations of one request, over all its images.
        max_body: bytes of a request's body.
        max_pixels: pixels of an uploaded picture, and of all enlarged results of a request.
        max_side: longer side of an uploaded picture in pixels.
        max_depth: depth of nested values in a JSON body.
        rate: requests a second that one token or address may make over a minute; 0 for no limit.
        concurrency: requests of one token or address that may be open at once.
        keep_minutes: minutes that the result of a prediction is kept.
        max_predictions: results that are kept at once; the oldest go first.
        grace_seconds: seconds that running requests have to end after a signal.
        hang_seconds: seconds that one batch may take before the worker counts as hung.
        body_seconds: seconds that a request's body may take to arrive.

    Raises:
        UserError: a value out of its range.
    """

    max_batch: int = 64
    max_wait_ms: float = 10.0
    lanes: int | None = None
    max_queue: int = 4096
    max_images: int = 256
    max_evaluations: int = 20_000
    max_body: int = 16 << 20
    max_pixels: int = 24_000_000
    max_side: int = 8192
    max_depth: int = 16
    rate: float = 0.0
    concurrency: int = 256
    keep_minutes: float = 10.0
    max_predictions: int = 1000
    grace_seconds: float = 20.0
    hang_seconds: float = 300.0
    body_seconds: float = 30.0

    def __post_init__(self) -> None:
        if self.lanes is not None:
            check_range("lanes", self.lanes, 0, 64)
        for name, least, most in _RANGES:
            check_range(name, getattr(self, name), least, most)


_RANGES = (
    ("max_batch", 1, 65_536),
    ("max_wait_ms", 0, 1000),
    ("max_queue", 1, 10_000_000),
    ("max_images", 1, 100_000),
    ("max_evaluations", 1, 100_000_000),
    ("max_body", 1024, 1 << 30),
    ("max_pixels", 1, 1_000_000_000),
    ("max_side", 1, 65_535),
    ("max_depth", 2, 64),
    ("rate", 0, 1_000_000),
    ("concurrency", 1, 1_000_000),
    ("keep_minutes", 0, 10_080),
    ("max_predictions", 1, 1_000_000),
    ("grace_seconds", 0, 3600),
    ("hang_seconds", 1, 86_400),
    ("body_seconds", 1, 3600),
)
