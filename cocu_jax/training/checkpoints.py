"""Checkpoints of a run: written in the background, the newest readable one is restored."""

import json
import os
from typing import NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers as policies

from cocu_jax.errors import UserError
from cocu_jax.training.state import TrainState

# The figure of an evaluation that decides which checkpoint is best.
BEST_FIGURE = "evaluation/miou"


class Restored(NamedTuple):
    """A checkpoint that was read.

    Attributes:
        step: its step.
        state: its arrays, placed as asked for.
        evaluated: figures of the evaluation at that step; None if there was none.
    """

    step: int
    state: TrainState
    evaluated: dict[str, float] | None


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

        A checkpoint of the same step is replaced: it was found damaged, or was not evaluated.
        """
        self._manager.wait_until_finished()
        if step in self._manager.all_steps():
            self._manager.delete(step)
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state), facts=ocp.args.JsonSave(self.facts)
            ),
            metrics=evaluated or {},
        )

    def restore(self, target: TrainState) -> Restored | None:
        """Reads the newest checkpoint that every process can read.

        Args:
            target: shapes, types and shardings to restore to (`Plan.targets`); the mesh may differ
                from the one that saved.

        Returns:
            The state, or None if there is no checkpoint.

        Raises:
            UserError: there are checkpoints but none can be read, or they belong to another run.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        if not steps:
            return None
        with self._reader() as reader:
            for step in steps:
                restored = self._read(reader, target, step)
                if _all_processes(restored is not None):
                    return restored
        raise UserError(
            f"{self._directory}: none of the {len(steps)} checkpoints can be read; "
            "restore the directory from a copy, or remove it to start anew"
        )

    def wait(self) -> None:
        """Returns when everything is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Finishes writing and releases the threads."""
        self._manager.close()

    def _reader(self) -> ocp.CheckpointManager:
        """Reads without waiting for other processes, which may fail where this one does not."""
        index = jax.process_index()
        alone = ocp.options.MultiprocessingOptions(
            primary_host=index, active_processes={index}, barrier_sync_key_prefix=str(index)
        )
        options = ocp.CheckpointManagerOptions(create=False, multiprocessing_options=alone)
        return ocp.CheckpointManager(
            self._directory, options=options, item_names=("state", "facts")
        )

    def _read(
        self, reader: ocp.CheckpointManager, target: TrainState, step: int
    ) -> Restored | None:
        """One checkpoint; None, with a warning, if this process cannot read it."""
        try:
            restored = reader.restore(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(target), facts=ocp.args.JsonRestore()
                ),
            )
            evaluated = reader.metrics(step) or None
        except Exception as error:  # Orbax and TensorStore raise many kinds for damaged files
            reason = str(error).strip().split("\n")[0][:200]
            logging.warning("checkpoint of step %d cannot be read (%s)", step, reason)
            return None
        self._check(restored.facts, step)
        return Restored(step, restored.state, evaluated)

    def _check(self, facts: dict, step: int) -> None:
        # Both through JSON, where tuples are lists.
        for name, value in json.loads(json.dumps(self.facts)).items():
            if facts.get(name) != value:
                raise UserError(
                    f"{self._directory}: checkpoint {step} was made with {name}={facts.get(name)}, "
                    f"this run has {value}; use another --workdir"
                )


def _all_processes(holds: bool) -> bool:
    """Whether it holds on every process; waits for all."""
    if jax.process_count() == 1:
        return holds
    return bool(multihost_utils.process_allgather(np.array(holds)).all())


def _goodness(figures: dict[str, float]) -> float:
    """What decides which checkpoint is best; least for one that was not evaluated."""
    return figures.get(BEST_FIGURE, -1.0)
