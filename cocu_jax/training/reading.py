"""Reads one checkpoint, and distinguishes the reasons why it cannot be read."""

import enum
import json
import time
from typing import NamedTuple

import jax
import orbax.checkpoint as ocp
from absl import logging
from etils import epath

from cocu_jax.errors import UserError
from cocu_jax.training.state import TrainState

# Seconds before each further attempt. Storage that does not answer gets several. Damaged files are
# read once more, because they may not have been completely visible at first.
_WAITS_FOR_STORAGE = (1.0, 2.0, 4.0)
_WAITS_FOR_DAMAGE = (0.5,)

# Parts of error messages of TensorStore, TensorFlow and Google's clients that mean a failure of the
# storage, not damaged data.
_STORAGE_ERRORS = (
    "UNAVAILABLE",
    "DEADLINE_EXCEEDED",
    "PERMISSION_DENIED",
    "UNAUTHENTICATED",
    "RESOURCE_EXHAUSTED",
    "ABORTED",
    "[OS error",
    "UnavailableError",
    "DeadlineExceededError",
    "PermissionDeniedError",
    "UnauthenticatedError",
)


class Outcome(enum.IntEnum):
    """Result of reading on one process; for several processes the largest is used."""

    READ = 0
    DAMAGED = 1  # files are incomplete or invalid
    UNREACHABLE = 2  # the storage did not answer
    REFUSED = 3  # the checkpoint belongs to another model or other data


class Restored(NamedTuple):
    """A checkpoint that was read.

    Attributes:
        step: its step.
        state: its arrays, with the requested shardings.
        evaluated: figures of the evaluation at that step; None if there was none.
    """

    step: int
    state: TrainState
    evaluated: dict[str, float] | None


class Reading(NamedTuple):
    """Result of reading one checkpoint.

    Attributes:
        outcome: result on this process.
        restored: the checkpoint, if it was read.
        reason: otherwise the reason, in one line.
    """

    outcome: Outcome
    restored: Restored | None = None
    reason: str = ""


class Reader:
    """Reads the checkpoints in a directory without synchronising with other processes.

    Args:
        directory: an absolute path, or a directory in a bucket.
        facts: values that must be the same in the checkpoint.
        target: shapes, types and shardings to restore to.
    """

    def __init__(self, directory: epath.Path, facts: dict, target: TrainState):
        self._directory = directory
        self._facts = json.loads(json.dumps(facts))  # as stored: tuples become lists
        self._target = target
        index = jax.process_index()
        alone = ocp.options.MultiprocessingOptions(
            primary_host=index, active_processes={index}, barrier_sync_key_prefix=str(index)
        )
        handlers = {"state": ocp.StandardCheckpointHandler, "facts": ocp.JsonCheckpointHandler}
        self._manager = ocp.CheckpointManager(
            directory,
            options=ocp.CheckpointManagerOptions(create=False, multiprocessing_options=alone),
            item_names=tuple(handlers),
            item_handlers={
                name: handler(multiprocessing_options=alone) for name, handler in handlers.items()
            },
        )

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *_: object) -> None:
        self._manager.close()

    def read(self, step: int) -> Reading:
        """Reads one checkpoint, with further attempts where they may help."""
        attempt = 0
        while True:
            try:
                return Reading(Outcome.READ, self._read(step))
            except UserError as error:
                return Reading(Outcome.REFUSED, reason=str(error))
            except Exception as error:  # Orbax and TensorStore raise many types for damaged files
                reason, unreachable = _root(error), _of_storage(error)
            waits = _WAITS_FOR_STORAGE if unreachable else _WAITS_FOR_DAMAGE
            logging.warning("%s/%d: cannot be read (%s)", self._directory, step, reason)
            if attempt >= len(waits):
                outcome = Outcome.UNREACHABLE if unreachable else Outcome.DAMAGED
                return Reading(outcome, reason=reason)
            time.sleep(waits[attempt])
            attempt += 1

    def _read(self, step: int) -> Restored:
        facts = self._manager.restore(step, args=ocp.args.Composite(facts=ocp.args.JsonRestore()))
        self._check_facts(facts.facts, step)
        self._check_arrays(step)
        restored = self._manager.restore(
            step, args=ocp.args.Composite(state=ocp.args.StandardRestore(self._target))
        )
        return Restored(step, restored.state, self._manager.metrics(step) or None)

    def _check_facts(self, facts: dict, step: int) -> None:
        for name, value in self._facts.items():
            if facts.get(name) != value:
                raise UserError(
                    f"{self._directory}: checkpoint {step} was written with "
                    f"{name}={facts.get(name)}, this run has {value}; use another --workdir"
                )

    def _check_arrays(self, step: int) -> None:
        """Compares names, shapes and types before any array is read."""
        saved = self._manager.item_metadata(step).state
        if saved is None:
            raise ValueError("it does not describe its arrays")
        before, now = _described(saved), _described(self._target)
        different = sorted(n for n in before.keys() | now.keys() if before.get(n) != now.get(n))
        if different:
            name = different[0]
            more = f" and {len(different) - 1} more differ" if len(different) > 1 else ""
            raise UserError(
                f"{self._directory}: checkpoint {step} is of another model: {name} is "
                f"{before.get(name, 'absent')} there, {now.get(name, 'absent')} in this run{more}; "
                "use the config that it was written with, or another --workdir"
            )


def _described(tree) -> dict[str, str]:
    """Type and shape of every array, by name."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): (
            f"{jax.numpy.dtype(leaf.dtype).name}{list(leaf.shape)}"
        )
        for path, leaf in leaves
    }


def _causes(error: BaseException | None) -> list[BaseException]:
    """The chain of exceptions from an error to its first cause."""
    found = []
    while error is not None:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found


def _root(error: Exception) -> str:
    """The first cause of an error, in one line."""
    cause = _causes(error)[-1]
    return (str(cause).strip() or type(cause).__name__).split("\n")[0][:200]


def _of_storage(error: Exception) -> bool:
    """Whether the storage failed, as opposed to damaged data."""
    for cause in _causes(error):
        if isinstance(cause, OSError) and not isinstance(cause, FileNotFoundError):
            return True
        text = f"{type(cause).__name__} {cause}"
        if any(sign in text for sign in _STORAGE_ERRORS) and "ENOENT" not in text:
            return True
    return False
