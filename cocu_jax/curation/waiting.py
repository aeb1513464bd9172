"""Waiting for files that other processes of the run finish."""

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from cocu_jax.progress import progress_bar
from cocu_jax.stopping import Stopped, StopRequest

T = TypeVar("T")

_SECONDS_BETWEEN_LOOKS = 1.0


def wait_for(
    items: Sequence[T], is_there: Callable[[T], bool], title: str, stop: StopRequest
) -> None:
    """Returns when `is_there` holds for every item, showing how many there are.

    Raises:
        Stopped: on request.
    """
    missing = [item for item in items if not is_there(item)]
    if not missing:
        return
    with progress_bar(title, len(items), "shards", done=len(items) - len(missing)) as bar:
        while missing:
            if stop.requested:
                raise Stopped("stopped while waiting for others; run the same command to go on")
            time.sleep(_SECONDS_BETWEEN_LOOKS)
            before = len(missing)
            missing = [item for item in missing if not is_there(item)]
            bar.update(before - len(missing))
