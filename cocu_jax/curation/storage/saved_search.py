"""A search that is part of the way through, on disk: what a stop or a crash cannot undo."""

import time
from collections.abc import Callable, Mapping

import jax
import numpy as np

from cocu_jax.curation.plan import Plan
from cocu_jax.curation.search import SearchState
from cocu_jax.curation.storage.shard_files import is_complete, open_arrays, write_arrays
from cocu_jax.stopping import Stopped, StopRequest

_SECONDS = 60.0  # between two saves


class SavedSearch:
    """The state of a search, saved every minute and before a stop."""

    def __init__(self, plan: Plan, name: str, searched: Mapping[str, str]):
        """Args: the run, a name for the search, and what it depends on but for the run."""
        self._path = plan.workdir / "searches" / f"{name}.safetensors"
        self._open = lambda: open_arrays(plan.staging.local(self._path))
        devices = str(jax.local_device_count())
        self._identity = {"made_from": plan.identity, "devices": devices, **searched}
        self._saved_at = time.monotonic()

    def state(self) -> SearchState | None:
        """What an earlier run has saved, or None."""
        if not is_complete(self._path, self._identity):
            return None
        arrays = self._open()
        rows, scores = (np.array(arrays[name]) for name in ("rows", "scores"))
        return SearchState(int(arrays["turn"][0]), rows, scores)

    def offer(self, state: Callable[[], SearchState], now: bool) -> None:
        """Saves the state if the last save is a minute old, or `now`."""
        if now or time.monotonic() - self._saved_at > _SECONDS:
            found = state()
            arrays = {"turn": np.array([found.turn]), "rows": found.rows, "scores": found.scores}
            write_arrays(self._path, arrays, self._identity)
            self._saved_at = time.monotonic()

    def offer_or_stop(self, state: Callable[[], SearchState], stop: StopRequest) -> None:
        """Saves the state if it is time to, and before it raises on request.

        Raises:
            Stopped: on request.
        """
        stopping = stop.requested  # asked once: a stop between two looks would save nothing
        self.offer(state, now=stopping)
        if stopping:
            raise Stopped(
                "stopped while searching; what is found is kept, run the same command to continue"
            )

    def remove(self) -> None:
        """Removes what was saved: the group's shards are written."""
        self._path.unlink(missing_ok=True)
