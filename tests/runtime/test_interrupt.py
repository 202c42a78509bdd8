import os
import signal
import threading

import pytest

from unistep.runtime.interrupt import SIGNALS, Interrupted, StopRequest, signals_raise


def send(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


@pytest.fixture(autouse=True)
def handlers_come_back():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    yield
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


@pytest.mark.parametrize("number", SIGNALS)
def test_first_signal_is_a_request(number):
    with StopRequest() as stop:
        assert stop.signal is None
        send(number)
        assert stop.signal == number


def test_the_first_signal_is_told_once():
    heard = []
    with StopRequest(heard.append):
        send(signal.SIGUSR1)
        send(signal.SIGTERM)
    assert heard == [signal.SIGUSR1]


def test_second_ctrl_c_stops_at_once():
    with pytest.raises(Interrupted) as stopped, StopRequest() as stop:
        send(signal.SIGTERM)
        send(signal.SIGTERM)  # a manager may repeat it
        assert stop.signal == signal.SIGTERM
        send(signal.SIGINT)
    assert stopped.value.signal == signal.SIGINT


@pytest.mark.parametrize("context", [StopRequest, signals_raise])
def test_off_the_main_thread_the_host_keeps_its_handlers(context):
    seen = []

    def run():
        with context() as stop:
            seen.append(stop and stop.signal)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [None]


@pytest.mark.parametrize("number", SIGNALS)
def test_outside_of_the_loop_a_signal_raises(number):
    with pytest.raises(Interrupted, match=f"^stopped by {number.name}$") as stopped, signals_raise():
        send(number)
    assert (stopped.value.signal, stopped.value.step) == (number, None)


def test_a_loop_within():
    with pytest.raises(Interrupted), signals_raise():
        with StopRequest() as stop:
            send(signal.SIGTERM)
            assert stop.signal == signal.SIGTERM
        send(signal.SIGTERM)


def test_library_code_does_not_catch_it():
    assert not issubclass(Interrupted, Exception)
