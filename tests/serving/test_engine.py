import threading
import time

import pytest
import torch

from unistep.serving.config import ServerConfig
from unistep.serving.engine import Engine, Observer
from unistep.serving.errors import Busy, Stopping, WorkerFailed


@pytest.fixture
def engine():
    started = []

    def start(**settings):
        engine = Engine(ServerConfig(**settings))
        engine.start()
        started.append(engine)
        return engine

    yield start
    for engine in started:
        engine.stop(5)


def test_every_image_comes_once_and_the_end_once(engine, digits, collected):
    running = engine(max_batch=8)
    asked = [collected(digits, count, seed) for seed, count in enumerate((3, 17, 1, 8))]
    for one in asked:
        running.submit(one.ticket)
    assert [len(one.wait().images) for one in asked] == [3, 17, 1, 8]
    assert all(one.error is None for one in asked)


def test_requests_share_batches(engine, digits, collected):
    seen, gate = [], threading.Event()
    running = engine(max_batch=64)
    running.observer.batch = lambda images, seconds, waited: seen.append(images)
    blocker = collected(digits, call=lambda: gate.wait(30))
    running.submit(blocker.ticket)
    asked = [collected(digits, 4, seed) for seed in range(8)]
    for one in asked:
        running.submit(one.ticket)
    gate.set()
    for one in asked:
        one.wait()
    assert seen == [1, 16, 16]


def test_interactive_requests_go_first(engine, digits, collected):
    order, gate = [], threading.Event()
    running = engine()
    running.submit(collected(digits, call=lambda: gate.wait(30)).ticket)
    bulk = collected(digits, call=lambda: order.append("bulk"))
    quick = collected(digits, call=lambda: order.append("quick"), interactive=True)
    running.submit(bulk.ticket)
    running.submit(quick.ticket)
    gate.set()
    bulk.wait()
    quick.wait()
    assert order == ["quick", "bulk"]


def test_a_full_queue_refuses_and_says_when_to_come_again(engine, digits, collected):
    gate = threading.Event()
    running = engine(max_queue=10)
    first = collected(digits, call=lambda: gate.wait(30))
    running.submit(first.ticket)
    while running.queue_length:
        time.sleep(0.001)
    running.submit(collected(digits, 10).ticket)
    with pytest.raises(Busy) as refused:
        running.submit(collected(digits, 1).ticket)
    assert refused.value.status == 429 and int(refused.value.headers["Retry-After"]) >= 1
    gate.set()


def test_a_cancelled_request_gives_its_places_up(engine, digits, collected):
    gate = threading.Event()
    running = engine(max_queue=10)
    running.submit(collected(digits, call=lambda: gate.wait(30)).ticket)
    while running.queue_length:
        time.sleep(0.001)
    gone = collected(digits, 10)
    running.submit(gone.ticket)
    running.cancel(gone.ticket)
    kept = collected(digits, 10)
    running.submit(kept.ticket)
    gate.set()
    assert len(kept.wait().images) == 10 and not gone.images


def test_a_failure_is_that_request_s_own(engine, digits, collected):
    running = engine()

    def fail():
        raise RuntimeError("broken")

    broken, whole = collected(digits, call=fail), collected(digits, 2)
    running.submit(broken.ticket)
    running.submit(whole.ticket)
    assert "broken" in str(broken.wait().error) and whole.wait().error is None and running.alive


def test_a_worker_that_hangs_is_replaced(engine, digits, collected):
    gate = threading.Event()
    running = engine(hang_seconds=1)
    stuck = collected(digits, call=lambda: gate.wait(60))
    running.submit(stuck.ticket)
    assert isinstance(stuck.wait().error, WorkerFailed)
    after = collected(digits, 2)
    running.submit(after.ticket)
    assert len(after.wait().images) == 2 and running.alive
    gate.set()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_worker_that_dies_is_replaced(engine, digits, collected):
    running = engine(hang_seconds=1)

    def die():
        raise SystemExit

    dead = collected(digits, call=die)
    running.submit(dead.ticket)
    assert isinstance(dead.wait().error, WorkerFailed)
    after = collected(digits, 2)
    running.submit(after.ticket)
    assert len(after.wait().images) == 2


def test_stopping_ends_what_was_taken_and_takes_no_more(engine, digits, collected):
    running = engine(max_batch=8)
    asked = collected(digits, 40)
    running.submit(asked.ticket)
    assert running.stop(60)
    assert len(asked.wait().images) == 40
    with pytest.raises(Stopping):
        running.submit(collected(digits, 1).ticket)


def test_the_bits_are_the_same_alone_and_under_load(engine, digits, collected):
    running = engine(max_batch=48)
    alone = [collected(digits, 5, seed) for seed in range(12)]
    for one in alone:
        running.submit(one.ticket)
        one.wait()
    crowd = [collected(digits, 5, seed) for seed in range(12)]
    threads = [threading.Thread(target=running.submit, args=(one.ticket,)) for one in crowd]
    for thread in threads:
        thread.start()
    for one, other in zip(alone, crowd, strict=True):
        other.wait()
        assert all(torch.equal(one.images[i], other.images[i]) for i in range(5))


def test_batches_are_tiles(digits, collected):
    class Sizes(Observer):
        def __init__(self):
            self.found = []

        def batch(self, images, seconds, waited):
            self.found.append(images)

    sizes = Sizes()
    engine = Engine(ServerConfig(max_batch=64), sizes)
    every = [collected(digits, count, seed) for seed, count in enumerate((20, 13, 1))]
    for one in every:
        engine.submit(one.ticket)
    engine.start()
    assert [len(one.wait().images) for one in every] == [20, 13, 1]
    engine.stop(5)
    assert sizes.found == [16, 16, 2]
