"""Everything that a training step changes, as one tree of arrays.

Modules are split into a static graph and flat dictionaries of arrays by path, such as
`image/stages/0/group_tokens`: those cost next to nothing to pass through `jax.jit`, and give the
arrays of a checkpoint their names.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Int

from cocu_jax.models.keys import Keys

Arrays = dict[str, Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """What a checkpoint holds.

    Attributes:
        step: updates tried so far; also the position of the input, which brings all randomness.
        skipped: how many of them were skipped because loss or gradient was not finite.
        skipped_in_row: how many were skipped since the last good one.
        params: parameters by path.
        batch_stats: running statistics of batch normalisation by path.
        optimizer: state of the optimiser.
        average: running average of `params` and `batch_stats`, or None when it is off.
    """

    step: Int[Array, ""]
    skipped: Int[Array, ""]
    skipped_in_row: Int[Array, ""]
    params: Arrays
    batch_stats: Arrays
    optimizer: optax.OptState
    average: Arrays | None


def split_model(model: nnx.Module) -> tuple[nnx.GraphDef, Arrays, Arrays]:
    """Static graph, parameters and batch statistics of a module.

    Raises:
        ValueError: the module holds other state, such as a random number generator.
    """
    graphdef, params, stats, rest = nnx.split(model, nnx.Param, nnx.BatchStat, ...)
    if jax.tree.leaves(rest):
        raise ValueError(f"state that a train state has no place for: {rest}")
    return graphdef, _flat(params), _flat(stats)


def merge_model(graphdef: nnx.GraphDef, params: Arrays, batch_stats: Arrays) -> nnx.Module:
    """The inverse of `split_model`."""
    tree: dict = {}
    for name, value in {**params, **batch_stats}.items():
        *parents, leaf = (int(part) if part.isdigit() else part for part in name.split("/"))
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return nnx.merge(graphdef, tree)


def batch_stats_of(model: nnx.Module) -> Arrays:
    """Running statistics of a module, by path."""
    return _flat(nnx.state(model, nnx.BatchStat))


def create_state(
    build: Callable[[Keys], nnx.Module],
    optimizer: optax.GradientTransformation,
    seed: int,
    averaged: bool,
) -> TrainState:
    """The state before the first step. Pure: trace it, or run it under `jax.jit` with shardings."""
    _, params, stats = split_model(build(Keys(seed)))
    # Values that began as Python numbers are weakly typed; a step's outputs are not, and a second
    # call with another type would compile again.
    params = {name: jax.lax.convert_element_type(x, x.dtype) for name, x in params.items()}
    zero = jnp.zeros((), jnp.int32)
    return TrainState(
        step=zero,
        skipped=zero,
        skipped_in_row=zero,
        params=params,
        batch_stats=stats,
        optimizer=optimizer.init(params),
        average=jax.tree.map(jnp.copy, params | stats) if averaged else None,
    )


def evaluated_model(graphdef: nnx.GraphDef, state: TrainState) -> nnx.Module:
    """The model that is evaluated and exported: the average where there is one."""
    return merge_model(graphdef, *evaluated_arrays(state))


def evaluated_arrays(state: TrainState) -> tuple[Arrays, Arrays]:
    """Parameters and statistics of the model that is evaluated and exported."""
    if state.average is None:
        return state.params, state.batch_stats
    return tuple(
        {name: state.average[name] for name in part} for part in (state.params, state.batch_stats)
    )


def graph_of(build: Callable[[Keys], nnx.Module]) -> nnx.GraphDef:
    """Static graph of a module, built from shapes only."""
    return nnx.split(nnx.eval_shape(lambda: build(Keys(0))))[0]


def _flat(state: nnx.State) -> Arrays:
    return {"/".join(map(str, path)): value[...] for path, value in nnx.to_flat_state(state)}
