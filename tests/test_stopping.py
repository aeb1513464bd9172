import signal

import pytest

from cocu_jax.stopping import StopRequest


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
