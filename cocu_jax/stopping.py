"""Stopping long work cleanly on Ctrl-C and SIGTERM."""

import signal
from types import FrameType


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

    _SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "StopRequest":
        for number in self._SIGNALS:
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
