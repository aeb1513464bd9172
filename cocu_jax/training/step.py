"""One optimisation step: a pure function of (state, batch), compiled once for a mesh."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array

from cocu_jax.training.gradients import make_gradients
from cocu_jax.training.mesh import BATCH, REPLICATED, state_shardings
from cocu_jax.training.objective import Batch, Metrics, Objective
from cocu_jax.training.programs import COMPILER_OPTIONS
from cocu_jax.training.schedule import Schedule
from cocu_jax.training.state import Arrays, TrainState


@dataclasses.dataclass(frozen=True)
class StepSettings:
    """Options of the training step.

    Attributes:
        accumulate: number of parts in which the towers process the batch; 1: all at once.
        average_decay: decay of the running average of the parameters; 0: no average.
        split_update: every device updates only its part of the parameters, and stores only that
            part of the moments and the average. Gradients are reduce-scattered and new parameters
            are gathered, instead of an all-reduce of the gradients; the communication is the same
            (Xu et al., 2020, arXiv 2004.13336).
    """

    accumulate: int = 1
    average_decay: float = 0.0
    split_update: bool = False


def make_train_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    schedule: Schedule,
    settings: StepSettings,
    mesh: Mesh,
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """The uncompiled step: loss and gradients, then an update; `compile_step` adds the shardings.

    If the loss or the gradient is not finite, the step changes nothing but the counters.
    """
    gradients = make_gradients(objective, settings.accumulate, mesh)

    def split(arrays: Arrays) -> Arrays:
        """Shards arrays for the update if updates are split."""
        if not settings.split_update:
            return arrays
        return jax.lax.with_sharding_constraint(arrays, _update_shardings(mesh, arrays))

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        loss, metrics, grads, stats = gradients(state.params, state.batch_stats, batch)
        grads, old = split(grads), split(state.params)
        norm = optax.global_norm(grads)
        finite = jnp.isfinite(loss) & jnp.isfinite(norm)
        updates, moments = optimizer.update(grads, state.optimizer, old)
        params = optax.apply_updates(old, updates)
        updates_done = state.step - state.skipped
        average = state.average
        if average is not None:
            average = _move_average(average, params | stats, updates_done, settings.average_decay)
        params, stats, moments, average = jax.tree.map(
            lambda new, old: jnp.where(finite, new, old),
            (params, stats, moments, average),
            (old, state.batch_stats, state.optimizer, state.average),
        )
        params = split(params)  # so that they are gathered after everything else
        skipped = 1 - finite.astype(jnp.int32)
        state = TrainState(
            step=state.step + 1,
            skipped=state.skipped + skipped,
            skipped_in_row=(state.skipped_in_row + skipped) * skipped,
            params=params,
            batch_stats=stats,
            optimizer=moments,
            average=average,
        )
        metrics |= {
            "loss/total": loss,
            "gradient_norm": norm,
            "learning_rate": schedule(updates_done),
            "skipped_steps": state.skipped.astype(jnp.float32),
            "skipped_in_row": state.skipped_in_row.astype(jnp.float32),
        }
        return state, metrics

    return train_step


def place_state(mesh: Mesh, shapes: TrainState, settings: StepSettings) -> TrainState:
    """Shardings of a train state; if updates are split, moments and average are split further."""
    shardings = state_shardings(mesh, shapes)
    if not settings.split_update:
        return shardings
    optimizer, average = _update_shardings(mesh, (shapes.optimizer, shapes.average))
    return dataclasses.replace(shardings, optimizer=optimizer, average=average)


def _update_shardings(mesh: Mesh, tree):
    return state_shardings(mesh, tree, ("fsdp", "data"))


def compile_step(train_step, mesh: Mesh, shardings: TrainState):
    """`train_step` under `jax.jit`, with the state sharded by `shardings` and the batch by example.

    The old state is donated: its buffers are reused for the new one.
    """
    return jax.jit(
        train_step,
        in_shardings=(shardings, NamedSharding(mesh, BATCH)),
        out_shardings=(shardings, NamedSharding(mesh, REPLICATED)),
        donate_argnums=0,
        compiler_options=COMPILER_OPTIONS.get(mesh.devices.flat[0].platform),
    )


def _move_average(average: Arrays, values: Arrays, updates: Array, decay: float) -> Arrays:
    """Exponential moving average.

    The decay rises to `decay` over the first updates, so that the initial values are soon
    forgotten.
    """
    updates = updates.astype(jnp.float32)
    decay = jnp.minimum(decay, (1 + updates) / (10 + updates))
    return {name: decay * old + (1 - decay) * values[name] for name, old in average.items()}
