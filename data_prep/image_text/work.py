"""Tasks that are done here, in other processes or on other machines, with a bar that counts them.

A task has been done when its files are there. So a run that was stopped goes on with the others,
and whatever does the work need not tell what it has done.
"""

import dataclasses
import functools
import threading
import time
from collections.abc import Callable, Sequence

from etils import epath

from cocu_jax.errors import UserError
from cocu_jax.progress import progress_bar
from cocu_jax.stopping import Stopped, StopRequest

STOP_FILE = "stop"  # in the folder of unfinished work

_POLL_SECONDS = 0.5
_LOOK_SHARE = 0.05  # of the time, at most, for looking
_LAG_SECONDS = 90.0  # network disks show what other machines have written a minute later


@dataclasses.dataclass(frozen=True)
class Work:
    """Tasks of one kind.

    Attributes:
        title: what is done, for the bar.
        noun: what is counted, plural.
        make: makes the function that does a task, once in every worker; can be pickled.
        tasks: arguments of that function; can be pickled.
        folder: where the results go; all workers must reach it.
        files: names in `folder` that are there when a task has been done, for each task.
    """

    title: str
    noun: str
    make: Callable[[], Callable[..., None]]
    tasks: Sequence[tuple]
    folder: epath.Path
    files: Sequence[tuple[str, ...]]


@dataclasses.dataclass(frozen=True)
class Workers:
    """Who does the work.

    Attributes:
        count: processes on this machine; 1 stays in this one.
        beam: Beam's own flags; when they name a runner, it does the work.
        cluster: address of a Dask scheduler, whose workers do the work; "" for none.
    """

    count: int = 1
    beam: tuple[str, ...] = ()
    cluster: str = ""

    @property
    def are_elsewhere(self) -> bool:
        """Whether the workers may be on other machines."""
        return bool(self.cluster) or any(flag.startswith("--runner") for flag in self.beam)


def do_work(work: Work, workers: Workers, stop_file: epath.Path) -> None:
    """Does the tasks that have not been done yet.

    Args:
        work: the tasks.
        workers: who does them.
        stop_file: written to tell workers that they shall not begin another task.

    Raises:
        Stopped: an interrupt was requested; what was done is kept.
        UserError: a task failed, or its files are not in `work.folder`.
    """
    stop_file.unlink(missing_ok=True)
    finished = _Finished(work)
    done = len(finished.numbers)
    todo = [task for number, task in enumerate(work.tasks) if number not in finished.numbers]
    if not todo:
        return
    run = _runner(workers, len(todo))
    failures: list[BaseException] = []

    def attempt() -> None:
        try:
            run(work.make, todo, stop_file)
        except BaseException as error:  # told by the thread that waits
            failures.append(error)

    thread = threading.Thread(target=attempt, daemon=True)
    with StopRequest() as stop, progress_bar(work.title, len(work.tasks), work.noun, done) as bar:
        thread.start()
        while thread.is_alive():
            thread.join(max(_POLL_SECONDS, finished.seconds / _LOOK_SHARE))
            bar.update(finished.look())
            if stop.requested and not stop_file.exists():
                stop_file.touch()
        bar.update(finished.look())
        end = time.monotonic() + _LAG_SECONDS
        while not (failures or stop.requested or finished.all) and time.monotonic() < end:
            time.sleep(_POLL_SECONDS)
            bar.update(finished.look())
    if stop.requested:
        raise Stopped(
            f"stopped after {len(finished.numbers)} of {len(work.tasks)} {work.noun}; "
            "run the same command to continue"
        )
    if not (failures or finished.all):
        raise UserError(
            f"{work.folder}: lacks {len(work.tasks) - len(finished.numbers)} of the "
            f"{len(work.tasks)} {work.noun} that workers have finished; "
            "use a --data_dir that is the same place for all of them"
        )
    if failures:
        if isinstance(failures[0], UserError):
            raise failures[0]
        reason = str(failures[0]).strip().splitlines()[-1:] or [type(failures[0]).__name__]
        raise UserError(
            f"preparing stopped: {reason[0]}; correct that and run the same command to continue"
        ) from failures[0]


def work_here(make: Callable, tasks: Sequence[tuple], stop_file: epath.Path) -> None:
    """Does the tasks one after the other in this process."""
    do = make()
    for task in tasks:
        if stop_file.exists():
            return
        do(*task)


def _runner(workers: Workers, tasks: int) -> Callable:
    """The function that does tasks; what it needs is imported only then."""
    if workers.cluster:
        from data_prep.image_text.cluster import work_on_cluster

        return functools.partial(work_on_cluster, address=workers.cluster)
    if workers.are_elsewhere or min(workers.count, tasks) > 1:
        from data_prep.image_text.beam import work_on_beam

        return functools.partial(
            work_on_beam, processes=min(workers.count, tasks), flags=list(workers.beam)
        )
    return work_here


class _Finished:
    """Which tasks have been done, seen from their files by one listing a look."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self.numbers: set[int] = set()
        self.seconds = 0.0  # that a look takes
        self.look()

    @property
    def all(self) -> bool:
        """Whether nothing is left to be done."""
        return len(self.numbers) == len(self._work.tasks)

    def look(self) -> int:
        """Looks again and tells how many have been done since."""
        start = time.monotonic()
        names = {path.name for path in self._work.folder.iterdir()}
        new = {
            number
            for number, files in enumerate(self._work.files)
            if number not in self.numbers and names.issuperset(files)
        }
        self.numbers |= new
        self.seconds = time.monotonic() - start
        return len(new)
