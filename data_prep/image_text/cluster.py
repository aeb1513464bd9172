"""Work on a Dask cluster: its scheduler deals tasks out and gives those of lost workers to others.

Beam's DaskRunner does not: it puts 128 elements into one task, and sets up a worker anew for each
task.
"""

import threading
import uuid
from collections.abc import Callable, Sequence

from etils import epath

from cocu_jax.errors import UserError

try:
    from distributed import Client, KilledWorker, WorkerPlugin, as_completed, get_worker
except ImportError:
    raise UserError(
        "--cluster needs Dask here and on all workers: pip install 'cocu-jax[cluster]'"
    ) from None

_WAIT_SECONDS = 60
_RETRIES = 2  # of a task that raised an error; a lost worker does not count as one


class _Doer(WorkerPlugin):
    """What every worker of the cluster holds: the function that does a task, one a thread."""

    def __init__(self, make: Callable[[], Callable[..., None]], stop_file: str) -> None:
        self._make = make
        self._stop_file = stop_file

    def setup(self, worker) -> None:
        self._thread = threading.local()

    def do(self, task: tuple) -> None:
        if epath.Path(self._stop_file).exists():
            return
        if not hasattr(self._thread, "do"):
            self._thread.do = self._make()
        self._thread.do(*task)


def work_on_cluster(
    make: Callable[[], Callable[..., None]],
    tasks: Sequence[tuple],
    stop_file: epath.Path,
    address: str,
) -> None:
    """Does all tasks.

    Args:
        make: makes the function that does a task, once in every thread of a worker.
        tasks: its arguments.
        stop_file: after it has appeared, no task is begun.
        address: of the scheduler, e.g. `tcp://10.0.0.2:8786`.

    Raises:
        UserError: the cluster cannot be reached, has no workers, or lacks the package.
    """
    try:
        client = Client(address, timeout=_WAIT_SECONDS, set_as_default=False)
    except (OSError, ValueError) as error:  # a time-out is an OSError
        raise UserError(
            f"{address}: no Dask scheduler answers there ({error}); start it with: dask scheduler"
        ) from None
    with client:
        try:
            client.wait_for_workers(1, timeout=_WAIT_SECONDS)
        except TimeoutError:
            raise UserError(
                f"{address}: the cluster has no workers; start some with: dask worker {address}"
            ) from None
        name = f"cocu-{uuid.uuid4().hex}"
        try:
            client.register_plugin(_Doer(make, str(stop_file)), name=name)
        except Exception as error:  # Dask hands on errors of loading it as text
            if "ModuleNotFoundError" not in f"{error!r}":
                raise
            raise UserError(
                f"{address}: workers cannot import what they need ({error}); "
                "install cocu-jax[cluster] on all of them"
            ) from None
        try:
            _finish(client, name, tasks)
        finally:
            if client.status == "running":
                client.unregister_worker_plugin(name)


def _finish(client: Client, name: str, tasks: Sequence[tuple]) -> None:
    futures = client.map(
        _do, tasks, [name] * len(tasks), pure=False, retries=_RETRIES, key="cocu-task"
    )
    try:
        for future in as_completed(futures, loop=client.loop):
            future.result()
    except KilledWorker as error:
        raise UserError(
            f"a task ended its worker several times ({error}); give workers more memory, "
            "look into their logs, and run the same command to continue"
        ) from None
    finally:
        client.cancel(futures)


def _do(task: tuple, name: str) -> None:
    get_worker().plugins[name].do(task)
