"""Loss and gradients of the global batch.

    features    every example on its own               `Objective.features`
    loss        all examples together                  `Objective.loss`
    gradients   of the loss with respect to the parameters

With gradient accumulation the features are computed in parts, yet loss and gradients are exactly
those of the whole batch (GradCache; Gao et al., 2021, arXiv 2101.06983):

    1. The features of all parts are computed, without keeping activations.
    2. The loss is computed from all features, and its gradient with respect to them.
    3. Each part is computed again, and its feature gradient is backpropagated.

The batch normalisation of the projectors belongs to the loss, so its statistics are those of the
whole batch and are updated once. Random numbers are drawn from an example's own key, so both passes
draw the same ones.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from cocu_jax.training.mesh import BATCH, make_gather, replicate
from cocu_jax.training.objective import Batch, Features, Gather, Metrics, Objective
from cocu_jax.training.state import Arrays, batch_stats_of, graph_of, merge_model


class Gradients(NamedTuple):
    """Result of the backward pass, replicated on every device.

    Attributes:
        loss: of the global batch.
        metrics: of the loss and of the features.
        params: gradient of every parameter, by path.
        batch_stats: updated statistics of batch normalisation, by path.
    """

    loss: Float[Array, ""]
    metrics: Metrics
    params: Arrays
    batch_stats: Arrays


def make_gradients(
    objective: Objective, accumulate: int, mesh: Mesh
) -> Callable[[Arrays, Arrays, Batch], Gradients]:
    """The function (params, batch_stats, batch) -> `Gradients`.

    Args:
        objective: model and loss.
        accumulate: number of parts in which features are computed; 1 computes them at once.
        mesh: devices that the batch is split over.
    """
    pure = _PureObjective(objective, graph_of(objective.build), make_gather(mesh))

    def gradients(params: Arrays, batch_stats: Arrays, batch: Batch) -> Gradients:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):  # for `fused_attention`
            params, batch_stats = replicate((params, batch_stats), mesh)
            if accumulate == 1:
                result = _at_once(pure, params, batch_stats, batch)
            else:
                result = _accumulated(pure, params, batch_stats, batch, accumulate, mesh)
        # Otherwise a sharded gradient makes XLA gather its inputs, the activations.
        return replicate(result, mesh)

    return gradients


class _PureObjective(NamedTuple):
    """Features and loss as pure functions of parameters and batch statistics."""

    objective: Objective
    graphdef: nnx.GraphDef
    gather: Gather

    def features(self, params: Arrays, batch_stats: Arrays, batch: Batch):
        """Features and their metrics."""
        return self.objective.features(merge_model(self.graphdef, params, batch_stats), batch)

    def loss(self, params: Arrays, batch_stats: Arrays, features: Features):
        """The loss, and (metrics, updated batch statistics)."""
        model = merge_model(self.graphdef, params, batch_stats)
        loss, metrics = self.objective.loss(model, features, self.gather)
        return loss, (metrics, batch_stats_of(model))


def _at_once(pure: _PureObjective, params, batch_stats, batch) -> Gradients:
    def loss_of(params):
        features, feature_metrics = pure.features(params, batch_stats, batch)
        loss, (metrics, new_stats) = pure.loss(params, batch_stats, features)
        return loss, (metrics | feature_metrics, new_stats)

    (loss, (metrics, new_stats)), grads = jax.value_and_grad(loss_of, has_aux=True)(params)
    return Gradients(loss, metrics, grads, new_stats)


def _accumulated(
    pure: _PureObjective, params, batch_stats, batch, count: int, mesh: Mesh
) -> Gradients:
    """The three passes that the module describes, over `count` parts of the batch."""
    parts = _split_batch(batch, count, mesh)
    features, feature_metrics = jax.lax.map(
        lambda part: pure.features(params, batch_stats, part), parts
    )
    loss_and_grads = jax.value_and_grad(pure.loss, argnums=(0, 2), has_aux=True)
    (loss, (metrics, new_stats)), (grads, feature_grads) = loss_and_grads(
        params, batch_stats, _join_batch(features, mesh)
    )

    def add_part(grads: Arrays, part_and_feature_grads):
        part, feature_grads = part_and_feature_grads
        _, backpropagate = jax.vjp(lambda p: pure.features(p, batch_stats, part)[0], params)
        return jax.tree.map(jnp.add, grads, backpropagate(feature_grads)[0]), None

    feature_grads = _split_batch(feature_grads, count, mesh)
    grads, _ = jax.lax.scan(add_part, grads, (parts, feature_grads))
    metrics |= jax.tree.map(jnp.mean, feature_metrics)
    return Gradients(loss, metrics, grads, new_stats)


def _split_batch(tree, count: int, mesh: Mesh):
    """[b, ...] -> [count, b / count, ...]: part p takes the examples p, p + count, p + 2 count …

    Every device keeps its own examples, so nothing is sent.
    """
    sharding = NamedSharding(mesh, PartitionSpec(None, *BATCH))

    def split(x: Array) -> Array:
        x = x.reshape(-1, count, *x.shape[1:]).swapaxes(0, 1)
        return jax.lax.with_sharding_constraint(x, sharding)

    return jax.tree.map(split, tree)


def _join_batch(tree, mesh: Mesh):
    """The inverse of `_split_batch`."""

    def join(x: Array) -> Array:
        x = x.swapaxes(0, 1).reshape(-1, *x.shape[2:])
        return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, BATCH))

    return jax.tree.map(join, tree)
