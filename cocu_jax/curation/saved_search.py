"""A search that is part of the way through, on disk: what a stop or a crash cannot undo."""

import time
from collections.abc import Callable, Sequence

import jax
import numpy as np

from cocu_jax.curation.plan import Plan
from cocu_jax.curation.search import SearchState
from cocu_jax.curation.shard_files import is_complete, open_arrays, write_arrays

_SECONDS = 60.0  # between two saves


class SavedSearch:
    """The state of the search of a group of shards, saved every minute and before a stop."""

    def __init__(self, plan: Plan, group: Sequence[int]):
        """Args: the run, and the shards that are searched together."""
        self._path = plan.workdir / "searches" / f"{group[0]:05d}.safetensors"
        self._open = lambda: open_arrays(plan.staging.local(self._path))
        self._identity = {
            "made_from": plan.identity,
            "shards": ",".join(map(str, group)),
            "devices": str(jax.local_device_count()),
            "tile_rows": str(plan.config.tile_rows),
        }
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

    def remove(self) -> None:
        """Removes what was saved: the group's shards are written."""
        self._path.unlink(missing_ok=True)
