"""Gradients of the loss of the whole batch, with the batch at once or in parts.

In parts the towers see a part of the batch at a time, yet the result is that of the whole batch
(GradCache; Gao et al., 2021, arXiv 2101.06983): a first pass computes the features of all parts
without keeping activations; the loss, with every row as every other row's negative, gives the
gradient by feature; a second pass computes each part again and pulls its gradient back. Batch
normalisation sits in the projectors, behind the features, so its statistics are those of the whole
batch, moved once. A row's noise is its own, so it is that of the step at once, too.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from cocu_jax.training.mesh import BATCH, REPLICATED, row_gatherer
from cocu_jax.training.objective import Batch, Features, Metrics, Objective
from cocu_jax.training.state import Arrays, batch_stats_of, graph_of, merge_model

Gradients = tuple[Float[Array, ""], Metrics, Arrays, Arrays]


def make_gradients(
    objective: Objective, accumulate: int, mesh: Mesh
) -> Callable[[Arrays, Arrays, Batch], Gradients]:
    """(params, batch_stats, batch) -> loss, metrics, gradients, new batch statistics."""
    graphdef = graph_of(objective.build)
    gather = row_gatherer(mesh)

    def whole(tree):
        """Every array of `tree` undivided on every device."""
        everywhere = NamedSharding(mesh, REPLICATED)
        return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, everywhere), tree)

    def features(params: Arrays, stats: Arrays, batch: Batch):
        return objective.features(merge_model(graphdef, params, stats), batch)

    def loss(params: Arrays, stats: Arrays, features: Features):
        model = merge_model(graphdef, params, stats)
        value, metrics = objective.loss(model, features, gather)
        return value, (metrics, batch_stats_of(model))

    def at_once(params, stats, batch) -> Gradients:
        def total(params):
            rows, seen = features(params, stats, batch)
            value, (metrics, new_stats) = loss(params, stats, rows)
            return value, (metrics | seen, new_stats)

        (value, (metrics, stats)), grads = jax.value_and_grad(total, has_aux=True)(params)
        return value, metrics, grads, stats

    def in_parts(params, stats, batch) -> Gradients:
        parts = _split_rows(batch, accumulate, mesh)
        rows, seen = jax.lax.map(lambda part: features(params, stats, part), parts)
        value_and_grad = jax.value_and_grad(loss, argnums=(0, 2), has_aux=True)
        (value, (metrics, new_stats)), (grads, pull) = value_and_grad(
            params, stats, _join_rows(rows, mesh)
        )

        def add(grads: Arrays, part):
            rows, pull = part
            _, backward = jax.vjp(lambda p: features(p, stats, rows)[0], params)
            return jax.tree.map(jnp.add, grads, backward(pull)[0]), None

        pulls = _split_rows(pull, accumulate, mesh)
        grads, _ = jax.lax.scan(add, grads, (parts, pulls))
        return value, metrics | jax.tree.map(jnp.mean, seen), grads, new_stats

    def gradients(params: Arrays, stats: Arrays, batch: Batch) -> Gradients:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):  # for `fused_attention`
            result = (at_once if accumulate == 1 else in_parts)(*whole((params, stats)), batch)
        # Without this a gradient that is kept in parts has its inputs, the activations, gathered.
        return whole(result)

    return gradients


def _split_rows(tree, parts: int, mesh: Mesh):
    """[b, ...] -> [parts, b / parts, ...]; every device keeps its own rows, part p every p-th."""
    rows = NamedSharding(mesh, PartitionSpec(None, *BATCH))

    def split(x: Array) -> Array:
        x = x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1)
        return jax.lax.with_sharding_constraint(x, rows)

    return jax.tree.map(split, tree)


def _join_rows(tree, mesh: Mesh):
    """The inverse of `_split_rows`."""

    def join(x: Array) -> Array:
        x = x.swapaxes(0, 1).reshape(-1, *x.shape[2:])
        return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, BATCH))

    return jax.tree.map(join, tree)
