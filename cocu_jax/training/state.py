"""The state of training: everything that a step changes, as one tree of arrays.

Modules are split into a static graph and flat dictionaries of arrays by path, such as
`image/stages/0/group_tokens`. Flat dictionaries are cheap to pass through `jax.jit`, and their keys
are the names of the arrays in a checkpoint.
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
    """The arrays of a checkpoint.

    Attributes:
        step: steps done so far, skipped ones included; it also determines the position in the data
            and, with the seed, all random numbers.
        skipped: number of steps without an update, because loss or gradient was not finite.
        skipped_in_row: number of steps skipped since the last update.
        params: parameters by path.
        batch_stats: running statistics of batch normalisation by path.
        optimizer: state of the optimiser.
        average: running average of `params` and `batch_stats`; None if there is none.
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
        raise ValueError(f"the train state cannot hold this state of a module: {rest}")
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
    """The state before the first step; a pure function for `jax.eval_shape` and `jax.jit`."""
    _, params, stats = split_model(build(Keys(seed)))
    # Arrays made from Python numbers are weakly typed, the outputs of a step are not. Without the
    # conversion the second call of the step would be compiled again.
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
    """The model that is evaluated and exported: the average if there is one."""
    return merge_model(graphdef, *evaluated_arrays(state))


def evaluated_arrays(state: TrainState) -> tuple[Arrays, Arrays]:
    """Parameters and statistics of the model that is evaluated and exported."""
    if state.average is None:
        return state.params, state.batch_stats
    return tuple(
        {name: state.average[name] for name in part} for part in (state.params, state.batch_stats)
    )


def graph_of(build: Callable[[Keys], nnx.Module]) -> nnx.GraphDef:
    """Static graph of a module; no parameter is computed."""
    return nnx.split(nnx.eval_shape(lambda: build(Keys(0))))[0]


def _flat(state: nnx.State) -> Arrays:
    return {"/".join(map(str, path)): value[...] for path, value in nnx.to_flat_state(state)}
