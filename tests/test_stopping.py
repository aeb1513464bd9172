import os
import signal
import threading

import pytest

from cocu_jax.stopping import StopRequest, StopSignals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_and_the_second_interrupts(number):
    interrupted = []
    before = signal.signal(number, lambda *_: interrupted.append(number))
    try:
        with StopRequest() as stop:
            assert not stop.requested
            signal.raise_signal(number)
            assert stop.requested
            assert not interrupted
            signal.raise_signal(number)
            assert interrupted == [number]
    finally:
        signal.signal(number, before)


def test_nested_requests_are_told_together_and_leave_the_handlers_as_they_were():
    before = signal.getsignal(signal.SIGTERM)
    with StopRequest() as outer:
        with StopRequest() as inner:
            signal.raise_signal(signal.SIGTERM)
            assert inner.requested
        assert outer.requested
        assert signal.getsignal(signal.SIGTERM) is before
    assert signal.getsignal(signal.SIGTERM) is before


def test_nothing_is_requested_without_a_signal():
    before = signal.getsignal(signal.SIGINT)
    with StopRequest() as stop:
        pass
    assert not stop.requested
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_calls_the_function_while_the_main_thread_runs_no_python(number):
    called, blocked, end = threading.Event(), *os.pipe()
    before = signal.getsignal(number)

    def unblock():
        called.set()
        os.write(end, b"x")

    with StopSignals(unblock):
        threading.Timer(0.05, os.kill, (os.getpid(), number)).start()
        # Keeps the main thread inside the call, as a wait for devices does.
        signal.pthread_sigmask(signal.SIG_BLOCK, [number])
        try:
            assert os.read(blocked, 1) == b"x"
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [number])
        assert called.is_set()
    assert signal.getsignal(number) is before
    assert signal.set_wakeup_fd(-1) == -1
    os.close(blocked)
    os.close(end)


@pytest.fixture
def interruptible():
    """Ctrl-C raises KeyboardInterrupt; shells start background jobs with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_only_a_second_ctrl_c_interrupts():
    requests = threading.Semaphore(0)
    with StopSignals(requests.release):
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
            signal.raise_signal(number)
            assert requests.acquire(timeout=10)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
