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
from cocu_jax.training.schedule import Schedule
from cocu_jax.training.state import Arrays, TrainState


@dataclasses.dataclass(frozen=True)
class StepSettings:
    """How a step updates.

    Attributes:
        accumulate: parts in which the towers see the batch; 1 is all at once.
        average_decay: of the running average of the parameters; 0 keeps none.
        split_update: every device updates its part of the parameters, with its part of the moments
            and the average, and all of them gather the new parameters: gradients are scattered
            instead of summed everywhere, at the same bytes on the links (Xu et al., 2020, arXiv
            2004.13336).
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
    """The uncompiled step; `compile_step` adds the shardings.

    A step whose loss or gradient is not finite changes nothing but the counters.
    """
    gradients = make_gradients(objective, settings.accumulate, mesh)

    def split(arrays: Arrays) -> Arrays:
        """Every device's part, where updates are split."""
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
        done = state.step - state.skipped
        average = state.average
        if average is not None:
            average = _move_average(average, params | stats, done, settings.average_decay)
        changed = params, stats, moments, average
        kept = old, state.batch_stats, state.optimizer, state.average
        params, stats, moments, average = jax.tree.map(
            lambda new, old: jnp.where(finite, new, old), changed, kept
        )
        params = split(params)  # gathered at the very end
        bad = 1 - finite.astype(jnp.int32)
        state = TrainState(
            step=state.step + 1,
            skipped=state.skipped + bad,
            skipped_in_row=(state.skipped_in_row + bad) * bad,
            params=params,
            batch_stats=stats,
            optimizer=moments,
            average=average,
        )
        metrics |= {
            "loss/total": loss,
            "gradient_norm": norm,
            "learning_rate": schedule(done),
            "skipped_steps": state.skipped.astype(jnp.float32),
            "skipped_in_row": state.skipped_in_row.astype(jnp.float32),
        }
        return state, metrics

    return train_step


def place_state(mesh: Mesh, shapes: TrainState, settings: StepSettings) -> TrainState:
    """Shardings of a train state: split updates split the moments and the average as well."""
    shardings = state_shardings(mesh, shapes)
    if not settings.split_update:
        return shardings
    optimizer, average = _update_shardings(mesh, (shapes.optimizer, shapes.average))
    return dataclasses.replace(shardings, optimizer=optimizer, average=average)


def _update_shardings(mesh: Mesh, tree):
    return state_shardings(mesh, tree, ("fsdp", "data"))


def compile_step(train_step, mesh: Mesh, shardings: TrainState):
    """`train_step` under `jax.jit`: state placed as `shardings` says, batch split by rows.

    The old state's buffers become the new state's.
    """
    return jax.jit(
        train_step,
        in_shardings=(shardings, NamedSharding(mesh, BATCH)),
        out_shardings=(shardings, NamedSharding(mesh, REPLICATED)),
        donate_argnums=0,
    )


def _move_average(average: Arrays, values: Arrays, done: Array, decay: float) -> Arrays:
    """Exponential average whose decay warms up, so that early averages are not the first values."""
    done = done.astype(jnp.float32)
    decay = jnp.minimum(decay, (1 + done) / (10 + done))
    return {name: decay * old + (1 - decay) * values[name] for name, old in average.items()}
