import os
import signal
import time

import pytest
import torch

import unistep
from unistep.generation.plan import default_plan
from unistep.serving.batch import Row
from unistep.serving.config import ServerConfig
from unistep.serving.engine import Engine
from unistep.serving.errors import WorkerFailed
from unistep.serving.lane import Lane, LaneDied, fingerprints
from unistep.serving.work import MakeOptions, rows_of

pytestmark = pytest.mark.skipif(os.name != "posix", reason="lanes wait for each other by POSIX's select")
OPTIONS = {"digits": {"model": None, "device": "cpu", "dtype": "fp32"}}


@pytest.fixture(scope="module")
def start(digits):
    """A function that starts a lane of the embedded model."""
    [digest] = fingerprints(digits.loaded, [digits.tile]).values()
    lanes = []

    def one(expected=digest):
        lanes.append(Lane({"digits": digits}, OPTIONS, 1, {"digits": expected}))
        return lanes[-1]

    yield one
    for lane in lanes:
        lane.close()


@pytest.fixture(scope="module")
def lane(start):
    lane = start()
    assert lane.wait(300)
    return lane


def process(lane):
    return lane._process


def asked(digits, count, steps=1, seed=3):
    return rows_of(digits, MakeOptions(steps=steps, seed=seed), count, ServerConfig())


@pytest.mark.parametrize("steps", [1, 2])
def test_images_of_a_lane_are_those_of_sample(lane, digits, steps):
    expected = unistep.sample(num_images=21, steps=steps, seed=3, progress=False, device="cpu").pixels
    plan, rows = asked(digits, 21, steps)
    assert torch.equal(torch.cat([lane.make(digits, plan, rows[:16]), lane.make(digits, plan, rows[16:])]), expected)


def test_nothing_more_is_made_of_what_nobody_wants_and_the_lane_goes_on(lane, digits):
    plan, rows = asked(digits, 16, steps=36)
    started = time.monotonic()
    assert lane.make(digits, plan, rows, unwanted=lambda: True) is None
    assert time.monotonic() - started < 60
    plan, rows = asked(digits, 2)
    assert lane.make(digits, plan, rows).shape == (2, 1, 28, 28)


def test_a_cancellation_that_comes_too_late_is_passed_over(lane, digits):
    lane._send(b"\n")
    plan, rows = asked(digits, 1)
    assert lane.make(digits, plan, rows) is not None


def test_an_error_is_carried_over(lane, digits):
    plan = default_plan(digits.loaded.info)
    with pytest.raises(RuntimeError, match="Error"):
        lane.make(digits, plan, [Row(1, 0, 99)])
    plan, rows = asked(digits, 1)
    assert lane.make(digits, plan, rows) is not None


def test_a_signal_to_all_processes_does_not_end_a_lane(lane, digits):
    process(lane).send_signal(signal.SIGTERM)
    process(lane).send_signal(signal.SIGINT)
    plan, rows = asked(digits, 1)
    assert lane.make(digits, plan, rows) is not None


def test_a_lane_with_other_bits_is_not_used(start, digits):
    lane = start(expected="0" * 64)
    assert not lane.wait(300) and lane.failed and not lane.computes(digits)
    process(lane).stdin.close()  # a lane ends with its input
    assert process(lane).wait(30) == 0


def test_a_lane_that_is_killed_says_so(start, digits):
    lane = start()
    assert lane.wait(300)
    process(lane).kill()
    plan, rows = asked(digits, 1)
    with pytest.raises(LaneDied):
        lane.make(digits, plan, rows)


@pytest.mark.slow
def test_an_engine_loses_only_the_requests_of_a_lane_that_dies(start, digits, collected):
    started = []

    def begin():
        started.append(start())
        return started[-1]

    engine = Engine(ServerConfig(lanes=2), lane=begin, lanes=2)
    engine.start()
    assert engine.wait_for_lanes(300) == 2
    before = [collected(digits, 5, seed) for seed in range(20)]
    for one in before:
        engine.submit(one.ticket)
    assert all(len(one.wait().images) == 5 for one in before)
    for lane in [*started]:
        process(lane).kill()
    during = [collected(digits, 16, seed) for seed in range(4)]
    for one in during:
        engine.submit(one.ticket)
    ends = [one.wait().error for one in during]
    assert all(error is None or isinstance(error, WorkerFailed) for error in ends)
    assert any(ends), "a killed lane was not noticed"
    after = [collected(digits, 16, seed) for seed in range(4)]
    for one in after:
        engine.submit(one.ticket)
    assert all(one.wait().error is None for one in after) and engine.alive
    assert engine.stop(60)
    engine.join(30)
    assert all(process(lane).poll() is not None for lane in started)


def test_the_bits_are_the_same_in_lanes_as_alone(start, digits, collected):
    engine = Engine(ServerConfig(lanes=2), lane=start, lanes=2)
    engine.start()
    assert engine.wait_for_lanes(300) == 2
    crowd = [collected(digits, 7, seed) for seed in range(12)]
    for one in crowd:
        engine.submit(one.ticket)
    quiet = Engine(ServerConfig())
    quiet.start()
    for seed, one in enumerate(crowd):
        alone = collected(digits, 7, seed)
        quiet.submit(alone.ticket)
        one.wait(), alone.wait()
        assert all(torch.equal(one.images[i], alone.images[i]) for i in range(7))
    for each in (engine, quiet):
        assert each.stop(60)
        each.join(30)
