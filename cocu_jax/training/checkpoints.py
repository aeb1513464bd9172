"""Checkpoints of a run: written in the background, the newest readable one is restored."""

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

# The figure of an evaluation that decides which checkpoint is best.
BEST_FIGURE = "evaluation/miou"


class Checkpoints:
    """The checkpoints below one directory.

    Attributes:
        facts: what must be equal for a run to go on (fingerprints of the data, batch size, seed);
            stored beside the arrays. The position of the input is a pure function of the step.
    """

    def __init__(self, directory: epath.PathLike, keep: int, facts: dict):
        self.facts = facts
        directory = os.fspath(directory)
        if "://" not in directory:  # Orbax takes no relative paths
            directory = os.path.abspath(directory)
        self._directory = epath.Path(directory)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy(
                [
                    policies.LatestN(keep),
                    policies.BestN(n=1, get_metric_fn=_goodness),
                ]
            ),
            best_fn=_goodness,  # without it the figures are not written
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
        """Step of the newest checkpoint, readable or not."""
        return self._manager.latest_step()

    def save(self, state: TrainState, step: int, evaluated: dict[str, float] | None = None) -> None:
        """Starts writing; returns once the arrays are copied, and they may be donated.

        Where there is a checkpoint of this step its arrays are these, for the run went on from it:
        only the figures are added.
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

        Newer ones that are damaged are set aside: renamed to `damaged-STEP-TIME`.

        Args:
            target: shapes, types and shardings to restore to (`Plan.targets`); the mesh may differ
                from the one that saved.

        Returns:
            The state, or None if there is no checkpoint.

        Raises:
            UserError: they belong to another run or another model, the storage does not answer, or
                all are damaged.
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
            "restore the directory from a copy, or start anew in another --workdir"
        )

    def wait(self) -> None:
        """Returns when everything is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Finishes writing and releases the threads."""
        self._manager.close()

    def _refusal(self, step: int, reading: Reading, worst: Outcome) -> str:
        if worst == Outcome.REFUSED:
            return reading.reason or f"{self._directory}: another host refuses checkpoint {step}"
        return (
            f"{self._directory}: checkpoint {step} cannot be read now "
            f"({reading.reason or 'on another host'}); nothing is lost: run the same command when "
            "the storage answers again"
        )

    def _add_figures(self, step: int, evaluated: dict[str, float]) -> None:
        """Rewrites the figures of a checkpoint, which Orbax keeps in a file of their own."""
        if jax.process_index() == 0:
            write_file(self._directory / str(step) / "metrics/metrics", json.dumps(evaluated))
        _worst_of_processes(Outcome.READ)  # nobody reads before it is written
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
        _worst_of_processes(Outcome.READ)  # nobody looks before they are renamed
        self._manager.reload()


def _worst_of_processes(outcome: Outcome) -> Outcome:
    """The largest outcome of all processes; waits for all."""
    if jax.process_count() == 1:
        return outcome
    return Outcome(int(multihost_utils.process_allgather(np.array(int(outcome))).max()))


def _goodness(figures: dict[str, float]) -> float:
    """What decides which checkpoint is best; least for one that was not evaluated."""
    return figures.get(BEST_FIGURE, -1.0)
