"""Decisions that all processes of a run must take at the same step."""

import jax
import numpy as np
from jax.experimental import multihost_utils

from cocu_jax.stopping import StopRequest


class Agreement:
    """Context manager around a training loop: when to stop, and what process 0 decides.

    One process stops on SIGINT or SIGTERM. Of several, JAX's coordination service hears SIGTERM
    (which is also how clouds announce preemption) on any of them and names a step that none has
    passed yet.

    Attributes:
        request: the flag of a lone process; None if there are several.
    """

    def __init__(self):
        self.request = StopRequest() if jax.process_count() == 1 else None

    def __enter__(self) -> "Agreement":
        if self.request:
            self.request.__enter__()
        return self

    def __exit__(self, *raised: object) -> None:
        if self.request:
            self.request.__exit__(*raised)

    def stop(self, step: int) -> bool:
        """Whether to save and stop after this step; to be asked at every step."""
        if self.request:
            return self.request.requested
        return multihost_utils.reached_preemption_sync_point(step)

    def of_first(self, decision: bool, running: list[jax.Array]) -> bool:
        """What process 0 decided; waits for all processes.

        First for what is `running`, too: on CPU, programs that communicate at the same time may
        take each other's last thread and wait for ever.
        """
        if self.request:
            return decision
        jax.block_until_ready(running)
        return bool(multihost_utils.broadcast_one_to_all(np.array(decision)))
