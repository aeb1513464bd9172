"""The moment at which all processes of a job stop, agreed through JAX's coordination service.

JAX's own `multihost_utils.reached_preemption_sync_point` is not used: Orbax calls it at every
checkpoint with its step number, which replaces the number of moments that this process has counted,
so that the agreed moment may already have passed and a signal is lost.
"""

import math
import threading
from typing import Protocol

import jax
from absl import logging

_STOP, _OVER = "stop", "over"
_DAY_MS = 86_400_000
_RETRY_SECONDS = 1.0
_GRACE_SECONDS = 10.0  # for processes that do not answer while this one leaves


class KeyValueStore(Protocol):
    """The part of `jax._src.distributed.global_state.client` that is needed here.

    Both methods raise `jax.errors.JaxRuntimeError` if the connection is lost.
    """

    def key_value_set(self, key: str, value: str) -> None:
        """Stores a value; raises JaxRuntimeError with ALREADY_EXISTS if the key has one."""

    def blocking_key_value_get(self, key: str, timeout_in_ms: int) -> str:
        """Waits for a value; raises JaxRuntimeError if there is none in time."""


class SharedStop:
    """Stops all processes at the same one of the moments that each of them counts.

    The first process that is asked to stop stores a request. A thread in every process waits for
    the request and stores how many moments its process has passed; from then on the process does
    not pass another one until the answer is known. The answer is the first moment that no process
    had passed. Until a request is stored, a process communicates with nobody.

    Args:
        store: shared by the processes.
        prefix: of the keys; no other `SharedStop` may use it.
        index: index of this process.
        count: number of processes.
    """

    def __init__(self, store: KeyValueStore, prefix: str, index: int, count: int):
        self._store = store
        self._prefix = prefix
        self._index, self._count = index, count
        self._lock = threading.Lock()  # the number of passed moments is not stored while it changes
        self._passed = 0
        self._halted = False  # no moment may be passed until the answer is known
        self._answered = threading.Event()
        self._last: float = math.inf  # the moment to stop at
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._negotiate, name="shared stop", daemon=True)
        self._thread.start()

    def request(self) -> None:
        """Asks all processes to stop; callable from any thread."""
        self._halted = True
        self._set("request", _STOP)

    def reached(self, moments: int = 1) -> bool:
        """Counts moments; returns whether the one to stop at has been passed.

        All processes must count the same moments. Waits for the other processes only after a
        request, for the time of a few messages.
        """
        with self._lock:
            if not self._halted:
                self._passed += moments
                return False
        self._answered.wait()
        self._passed += moments
        return self._passed >= self._last

    def close(self) -> None:
        """Ends the thread. Call this after the last moment: later requests have no effect."""
        self._closed.set()
        self._set("request", _OVER)  # wakes the thread, if there was no request
        self._thread.join(_GRACE_SECONDS)

    def _negotiate(self) -> None:
        try:
            if self._wait_for("request") != _STOP:
                return
            with self._lock:
                self._halted = True
            self._set(f"passed/{self._index}", str(self._passed))
            if self._index == 0:
                passed = [int(self._wait_for(f"passed/{i}")) for i in range(self._count)]
                self._set("last", str(max(passed) + 1))
            self._last = int(self._wait_for("last"))
        except jax.errors.JaxRuntimeError as error:
            logging.warning("the processes have not agreed where to stop: %s", error)
        finally:
            self._answered.set()

    def _set(self, key: str, value: str) -> None:
        """Stores a value, unless the key has one."""
        while True:
            try:
                return self._store.key_value_set(self._prefix + key, value)
            except jax.errors.JaxRuntimeError as error:
                if "ALREADY_EXISTS" in str(error) or self._closed.wait(_RETRY_SECONDS):
                    return None

    def _wait_for(self, key: str) -> str:
        """The value of a key, as soon as it has one."""
        while True:
            try:
                return self._store.blocking_key_value_get(self._prefix + key, _DAY_MS)
            except jax.errors.JaxRuntimeError:  # the time is up, or the connection was lost
                if self._closed.wait(_RETRY_SECONDS):
                    raise
