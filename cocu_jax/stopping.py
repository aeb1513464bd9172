"""Stopping long work cleanly on Ctrl-C and SIGTERM."""

import signal
import socket
import threading
from collections.abc import Callable
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_GRACE_SECONDS = 10.0  # for a request that is being made


class Stopped(Exception):
    """Work was stopped on request, after all finished work was saved.

    The message explains how to continue. `main.py` prints it and exits with status 0.
    """


class StopRequest:
    """Context manager that turns the first SIGINT or SIGTERM into a flag.

    Loops check `requested` between units of work, save, and raise `Stopped`. A second signal has
    its usual effect and interrupts at once. Nested contexts pass the request on to the outer ones.

        with StopRequest() as stop:
            for shard in shards:
                if stop.requested:
                    raise Stopped("stopped after 12 of 64 shards; run the same command to continue")
    """

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "StopRequest":
        for number in _SIGNALS:
            self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        outer = getattr(self._previous.get(number), "__self__", None)
        self._restore()
        if isinstance(outer, StopRequest):
            outer._receive(number, frame)

    def _restore(self) -> None:
        while self._previous:
            signal.signal(*self._previous.popitem())


class StopSignals:
    """Context manager that calls a function on SIGINT and SIGTERM, from a thread.

    The function is called at once even if the main thread is waiting for devices or compiling, when
    Python does not run signal handlers. A second SIGINT has its usual effect and interrupts; every
    SIGTERM calls the function.
    """

    def __init__(self, request: Callable[[], None]) -> None:
        self._request = request
        self._thread = threading.Thread(target=self._listen, name="stop signals", daemon=True)

    def __enter__(self) -> "StopSignals":
        self._received, self._wake = socket.socketpair()
        self._wake.setblocking(False)
        self._thread.start()
        # Python's C handlers write the number of each signal there, whatever the main thread does.
        self._previous_wake = signal.set_wakeup_fd(self._wake.fileno(), warn_on_full_buffer=False)
        self._previous = {
            signal.SIGTERM: signal.signal(signal.SIGTERM, lambda *_: None),
            signal.SIGINT: signal.signal(signal.SIGINT, self._restore_interrupt),
        }
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._previous_wake)
        self._wake.close()  # ends the thread
        self._thread.join(_GRACE_SECONDS)
        self._received.close()

    def _listen(self) -> None:
        while number := self._received.recv(1):
            if number[0] in _SIGNALS:
                self._request()

    def _restore_interrupt(self, number: int, frame: FrameType | None) -> None:
        signal.signal(number, self._previous[number])
