"""Checkpoints of a run: written in the background, restored from the newest readable one."""

import json
import os
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers as policies

from cocu_jax.errors import UserError
from cocu_jax.files import write_file
from cocu_jax.training.reading import Outcome, Reader, Reading, Restored
from cocu_jax.training.state import TrainState

# The figure of an evaluation by which checkpoints are compared.
BEST_FIGURE = "evaluation/miou"


class Checkpoints:
    """The checkpoints in one directory.

    Attributes:
        facts: values that must be the same when a run is continued (fingerprints of the data, batch
            size, seed); they are stored with the arrays. The position in the data is a pure
            function of them and the step.
    """

    def __init__(self, directory: epath.PathLike, keep: int, facts: dict):
        self.facts = facts
        directory = os.fspath(directory)
        if "://" not in directory:  # Orbax does not accept relative paths
            directory = os.path.abspath(directory)
        self._directory = epath.Path(directory)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy(
                [
                    policies.LatestN(keep),
                    policies.BestN(n=1, get_metric_fn=_score),
                ]
            ),
            best_fn=_score,  # without it the figures are not written
            cleanup_tmp_directories=True,
            enable_async_checkpointing=True,
        )
        self._manager = ocp.CheckpointManager(
            self._directory,
            options=options,
            item_names=("state", "facts"),
        )

    @property
    def latest(self) -> int | None:
        """Step of the newest checkpoint, readable or not; None without checkpoints."""
        return self._manager.latest_step()

    def save(self, state: TrainState, step: int, evaluated: dict[str, float] | None = None) -> None:
        """Starts writing; returns as soon as the arrays are copied, so that they can be donated.

        If there is a checkpoint of this step already, the run was continued from it and the arrays
        are the same, so only the figures are added to it.
        """
        self._manager.wait_until_finished()
        if step in self._manager.all_steps():
            if evaluated:
                self._add_figures(step, evaluated)
            return
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state), facts=ocp.args.JsonSave(self.facts)
            ),
            metrics=evaluated or {},
        )

    def restore(self, target: TrainState) -> Restored | None:
        """Reads the newest checkpoint that every process can read.

        Damaged checkpoints that are newer are renamed to `damaged-STEP-TIME`.

        Args:
            target: shapes, types and shardings to restore to (`Plan.targets`); the mesh may differ
                from that of the run that saved.

        Returns:
            The state, or None if there is no checkpoint.

        Raises:
            UserError: the checkpoints belong to another run or another model, the storage does not
                answer, or all of them are damaged.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        damaged = []
        if not steps:
            return None
        with Reader(self._directory, self.facts, target) as reader:
            for step in steps:
                reading = reader.read(step)
                worst = _worst_of_processes(reading.outcome)
                if worst == Outcome.READ:
                    self._set_aside(damaged)
                    return reading.restored
                if worst != Outcome.DAMAGED:
                    raise UserError(self._refusal(step, reading, worst))
                damaged.append(step)
        reason = reading.reason or "on another host"
        raise UserError(
            f"{self._directory}: all {len(steps)} checkpoints are damaged ({reason}); "
            "restore the directory from a copy, or start again in another --workdir"
        )

    def wait(self) -> None:
        """Waits until everything is written."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Finishes writing and ends the threads."""
        self._manager.close()

    def _refusal(self, step: int, reading: Reading, worst: Outcome) -> str:
        if worst == Outcome.REFUSED:
            return reading.reason or f"{self._directory}: another host refuses checkpoint {step}"
        return (
            f"{self._directory}: checkpoint {step} cannot be read now "
            f"({reading.reason or 'on another host'}); nothing is lost: run the same command again "
            "when the storage answers"
        )

    def _add_figures(self, step: int, evaluated: dict[str, float]) -> None:
        """Rewrites the figures of a checkpoint, which Orbax stores in a separate file."""
        if jax.process_index() == 0:
            write_file(self._directory / str(step) / "metrics/metrics", json.dumps(evaluated))
        _worst_of_processes(Outcome.READ)  # a barrier: other processes read the file afterwards
        self._manager.reload()

    def _set_aside(self, steps: list[int]) -> None:
        """Renames damaged checkpoints, so that others of these steps can be written."""
        if not steps:
            return
        now = time.strftime("%Y%m%d-%H%M%S")
        for step in steps if jax.process_index() == 0 else ():
            aside = self._directory / f"damaged-{step}-{now}"
            (self._directory / str(step)).rename(aside)
            logging.warning("checkpoint %d is damaged; it was renamed to %s", step, aside)
        _worst_of_processes(Outcome.READ)  # a barrier: other processes look afterwards
        self._manager.reload()


def _worst_of_processes(outcome: Outcome) -> Outcome:
    """The largest outcome of all processes; it also waits for all of them."""
    if jax.process_count() == 1:
        return outcome
    return Outcome(int(multihost_utils.process_allgather(np.array(int(outcome))).max()))


def _score(figures: dict[str, float]) -> float:
    """The figure by which checkpoints are compared; -1 for one that was not evaluated."""
    return figures.get(BEST_FIGURE, -1.0)
