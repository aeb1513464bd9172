"""Decisions that all processes of a job share: when to stop, and decisions of process 0.

The processes communicate through JAX's coordination service; devices are not involved.
"""

import contextlib
import itertools
from collections.abc import Callable

import jax

from cocu_jax.errors import UserError
from cocu_jax.shared_stop import SharedStop
from cocu_jax.stopping import StopRequest, StopSignals

_PATIENCE_MS = 3_600_000  # process 0 may be drawing pictures or writing a checkpoint
_KEPT_ANSWERS = 32  # answers that stay readable; no process lags behind by that many


class Agreement:
    """Context manager around the work of a job that may run as several processes.

    A single process stops on SIGINT or SIGTERM, with which clouds also announce preemption. Several
    processes stop together if any of them receives one, at a moment that they agree on
    (`SharedStop`). A second SIGINT interrupts at once.
    """

    # Distinguishes the answers of this agreement from those of earlier ones: all processes make
    # the same agreements in the same order.
    _numbers = itertools.count()

    def __init__(self):
        self._keys = f"cocu_jax/agreement/{next(self._numbers)}/"
        # This initialises the backend, whose libraries may install signal handlers of their own.
        self._several = jax.process_count() > 1
        self._questions = 0
        self._entered = contextlib.ExitStack()

    def __enter__(self) -> "Agreement":
        if self._several:
            processes = jax.process_index(), jax.process_count()
            self._shared = SharedStop(_store(), f"{self._keys}stop/", *processes)
            self._entered.callback(self._shared.close)
            self._entered.enter_context(StopSignals(self._shared.request))
        else:
            self._request = self._entered.enter_context(StopRequest())
        return self

    def __exit__(self, *raised: object) -> None:
        self._entered.close()

    def stop(self, moments: int = 1) -> bool:
        """Whether to save and stop now.

        All processes must count the same moments, such as training steps or evaluated images.
        Once the answer is True, it stays True.

        Args:
            moments: how many moments have passed since the last call.
        """
        return self._shared.reached(moments) if self._several else self._request.requested

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
        if not self._several:
            return answer()
        client = _store()
        self._questions += 1
        key = self._keys + "{}"
        if jax.process_index() == 0:
            value = answer()
            client.key_value_set(key.format(self._questions), value or " ")
            if self._questions > _KEPT_ANSWERS:
                client.key_value_delete(key.format(self._questions - _KEPT_ANSWERS))
            return value
        return client.blocking_key_value_get(key.format(self._questions), _PATIENCE_MS).strip()


def _store():
    """JAX's key-value store; it has no public name. Flax and Orbax use it this way, too."""
    return jax._src.distributed.global_state.client
