"""Decisions that all processes of a job share: when to stop, and decisions of process 0.

The processes communicate through JAX's coordination service; devices are not involved.
"""

import itertools
import os
import signal
from collections.abc import Callable
from types import FrameType
from typing import TypeVar

import jax
from jax.experimental import multihost_utils

from cocu_jax.errors import UserError
from cocu_jax.stopping import StopRequest

T = TypeVar("T")

_PATIENCE_MS = 3_600_000  # process 0 may be drawing pictures or writing a checkpoint
_KEPT_ANSWERS = 32  # answers that stay readable; no process lags behind by that many


class Agreement:
    """Context manager around the work of a job that may run as several processes.

    A single process stops on SIGINT or SIGTERM. With several, JAX's coordination service receives
    SIGTERM (with which clouds also announce preemption) on any of them and chooses a moment that
    none has reached yet; a SIGINT is forwarded to it. A second SIGINT interrupts at once.
    """

    # Distinguishes the answers of this agreement from those of earlier ones: all processes make
    # the same agreements in the same order.
    _numbers = itertools.count()

    def __init__(self):
        self._number = next(self._numbers)
        self._request = StopRequest() if jax.process_count() == 1 else None
        self._previous = None
        self._moment = 0
        self._stopping = False
        self._questions = 0

    def __enter__(self) -> "Agreement":
        if self._request:
            self._request.__enter__()
        else:
            self._previous = signal.signal(signal.SIGINT, self._forward)
        return self

    def __exit__(self, *raised: object) -> None:
        if self._request:
            self._request.__exit__(*raised)
        else:
            signal.signal(signal.SIGINT, self._previous)

    def stop(self, moments: int = 1) -> bool:
        """Whether to save and stop now.

        All processes must count the same moments, such as training steps or evaluated images.
        Once the answer is True, it stays True.

        Args:
            moments: how many moments have passed since the last call.
        """
        if self._request:
            return self._request.requested
        for _ in range(0 if self._stopping else moments):
            self._moment += 1
            if multihost_utils.reached_preemption_sync_point(self._moment):
                self._stopping = True
                break
        return self._stopping

    def of_first(self, decision: bool) -> bool:
        """The decision of process 0. The others wait for its call, but not for its devices."""
        return self._from_first(lambda: str(int(decision))) == "1"

    def on_first(self, action: Callable[[], None]) -> None:
        """Runs an action on process 0 while the others wait.

        Raises:
            UserError: on all processes, if the action raises it on process 0.
        """

        def error_message() -> str:
            try:
                action()
            except UserError as error:
                return str(error)
            return ""

        if message := self._from_first(error_message):
            raise UserError(message)

    def _from_first(self, answer: Callable[[], str]) -> str:
        """The answer of process 0; all processes must call this in the same order."""
        if self._request:
            return answer()
        # JAX has no public access to its key-value store, which Flax and Orbax use this way, too.
        client = jax._src.distributed.global_state.client
        self._questions += 1
        key = f"cocu_jax/agreement/{self._number}/" + "{}"
        if jax.process_index() == 0:
            value = answer()
            client.key_value_set(key.format(self._questions), value or " ")
            if self._questions > _KEPT_ANSWERS:
                client.key_value_delete(key.format(self._questions - _KEPT_ANSWERS))
            return value
        return client.blocking_key_value_get(key.format(self._questions), _PATIENCE_MS).strip()

    def _forward(self, number: int, frame: FrameType | None) -> None:
        signal.signal(number, self._previous)
        os.kill(os.getpid(), signal.SIGTERM)
