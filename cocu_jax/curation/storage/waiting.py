"""Waiting for what other processes of the run finish, and leaving together with them."""

import time
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import jax
from etils import epath
from jax._src import distributed  # the coordination service has no public door

from cocu_jax.progress import progress_bar
from cocu_jax.stopping import Stopped, StopRequest

T = TypeVar("T")

_SHORTEST_WAIT, _LONGEST_WAIT = 1.0, 15.0  # seconds between looks
_DONE, _LEAVES = "curation/done", "curation/leaves"


def wait_for(
    items: Sequence[T],
    look: Callable[[], set[T]],
    is_there: Callable[[T], bool],
    title: str,
    stop: StopRequest,
) -> None:
    """Returns when every item is there, showing how many there are.

    Args:
        items: what to wait for.
        look: one look at everything, e.g. a listing of a folder: the items that may be there. It is
            taken once a second, and more rarely while nothing new appears.
        is_there: whether an item that was seen is complete; asked again at the next look if not.
        title: of the progress bar.
        stop: heard between any two items.

    Raises:
        Stopped: on request.
    """
    missing = _still_missing(items, look(), is_there, stop)
    if not missing:
        return
    wait = _SHORTEST_WAIT
    with progress_bar(title, len(items), "shards", done=len(items) - len(missing)) as bar:
        while missing:
            _sleep(wait, stop)
            before = len(missing)
            missing = _still_missing(missing, look(), is_there, stop)
            bar.update(before - len(missing))
            wait = min(1.5 * wait, _LONGEST_WAIT) if len(missing) == before else _SHORTEST_WAIT


def names_in(folder: epath.Path) -> set[str]:
    """Names of the files in a folder, by one listing; none where there is no folder."""
    try:
        return {path.name for path in folder.iterdir()}
    except (FileNotFoundError, NotADirectoryError):
        return set()


def leave_together(stop: StopRequest) -> None:
    """Waits for all processes that `jax.distributed` has joined to come here.

    A process that leaves waits for the others in JAX's shutdown barrier, for five minutes; then all
    of them abort. Before it there is no such limit.

    Raises:
        Stopped: on request.
    """
    client = distributed.global_state.client
    if client is None or jax.process_count() == 1:
        return
    _announce(client, _DONE, stop)
    _announce(client, _LEAVES, stop)
    if jax.process_index() == 0:  # it ends the service: the others go first
        _sleep(_SHORTEST_WAIT, stop)


def _announce(client, what: str, stop: StopRequest) -> None:
    """Returns when every process has announced the same."""
    try:
        client.key_value_set(f"{what}/{jax.process_index()}", "", allow_overwrite=True)
        while len(client.key_value_dir_get(what)) < jax.process_count():
            _sleep(_SHORTEST_WAIT / 4, stop)
    except jax.errors.JaxRuntimeError:
        return  # the service has ended: nobody to wait for


def _still_missing(
    items: Iterable[T], seen: set[T], is_there: Callable[[T], bool], stop: StopRequest
) -> list[T]:
    missing = []
    for item in items:
        _check(stop)
        if item not in seen or not is_there(item):
            missing.append(item)
    return missing


def _sleep(seconds: float, stop: StopRequest) -> None:
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        _check(stop)
        time.sleep(min(left, 0.2))


def _check(stop: StopRequest) -> None:
    if stop.requested:
        raise Stopped("stopped while waiting for others; run the same command to continue")
