"""k-means over the concepts of many small archives at once (CoCu, section 3.3; method, 1.6).

An archive has a handful of concepts, so its points are never needed: all distances to centroids
follow from the Gram matrix of the gallery's text embeddings. The squared distance of concept i to
the centroid of cluster k with members S is

    G[i, i] - 2 * sum_{j in S} G[i, j] / |S| + sum_{j, l in S} G[j, l] / |S|^2

and one batched product of Gram matrices and membership matrices gives it for every archive,
restart, concept and cluster.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

RESTARTS = 5
MAX_ITERATIONS = 100


@jax.jit
def gram_matrix(concept_embeddings: Float[Array, "g d"]) -> Float[Array, "g g"]:
    """Inner products of all concepts."""
    embeddings = concept_embeddings.astype(jnp.float32)
    return jnp.dot(embeddings, embeddings.T, precision=jax.lax.Precision.HIGHEST)


@partial(jax.jit, static_argnames=("restarts", "max_iterations"))
def cluster_archives(
    concepts: Int[Array, "b n"],
    gram: Float[Array, "g g"],
    seed: int,
    anchor: Int[Array, "b"],
    restarts: int = RESTARTS,
    max_iterations: int = MAX_ITERATIONS,
) -> Int[Array, "b n"]:
    """Cluster labels of each archive's concepts: k-means with K = ceil(size / 2).

    Initialised by greedy k-means++ (Arthur and Vassilvitskii, 2007, with 2 + ln K candidates per
    centre as scikit-learn does), then Lloyd's iterations; the restart of least inertia wins. An
    empty cluster takes the concept farthest from its centroid.

    Args:
        concepts: ids, -1 beyond the archive; all real ids come first.
        gram: inner products of all concepts of the gallery.
        seed: of the whole run.
        anchor: a number of each archive's image that does not depend on how archives are batched;
            the random numbers of an archive follow from (seed, anchor, n) alone.
        restarts: number of initialisations.
        max_iterations: bound on Lloyd's iterations of each restart.

    Returns:
        Labels, numbered in the order of their first concept; -1 beyond the archive, and -1
        throughout for archives of at most two concepts.
    """
    width = concepts.shape[1]
    valid = concepts >= 0
    ids = jnp.maximum(concepts, 0)
    local = gram[ids[:, :, None], ids[:, None, :]]
    local = jnp.where(valid[:, :, None] & valid[:, None, :], local, 0.0)
    sizes = valid.sum(-1)
    clusters = (sizes + 1) // 2
    initialise = partial(_plus_plus, restarts=restarts, max_clusters=(width + 1) // 2)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), anchor)
    centres = jax.vmap(initialise)(keys, local, valid, clusters)
    labels, inertia = _lloyd(local, valid, clusters, centres, max_iterations)
    best = jnp.argmin(inertia, axis=1)
    labels = jnp.take_along_axis(labels, best[:, None, None], axis=1)[:, 0]
    return jnp.where(valid & (sizes > 2)[:, None], _in_order_of_appearance(labels), -1)


def _plus_plus(
    key: Array,
    gram: Float[Array, "n n"],
    valid: Array,
    clusters: Int[Array, ""],
    restarts: int,
    max_clusters: int,
) -> Int[Array, "r k"]:
    """Positions of the initial centres of one archive, one row per restart; -1 beyond K."""
    norms = jnp.diagonal(gram)
    distances = jnp.maximum(norms[:, None] - 2 * gram + norms[None, :], 0.0)
    distances = jnp.where(valid[:, None] & valid[None, :], distances, 0.0)
    trials = 2 + int(math.log(max_clusters))
    uniform = jax.random.uniform(key, (max_clusters, restarts, trials))

    first = jnp.minimum((uniform[0, :, 0] * valid.sum()).astype(jnp.int32), valid.sum() - 1)
    centres = (
        jnp.full((restarts, max_clusters), -1).at[:, 0].set(jnp.where(clusters > 0, first, -1))
    )

    def add_centre(k, state):
        centres, closest = state
        mass = jnp.cumsum(closest, axis=-1)
        drawn = uniform[k][:, :, None] * mass[:, None, -1:]
        candidates = jnp.sum(mass[:, None, :] <= drawn, -1)
        candidates = jnp.minimum(candidates, valid.sum() - 1)
        after = jnp.minimum(closest[:, None, :], distances[candidates])
        chosen = jnp.argmin(after.sum(-1), axis=-1)[:, None]
        centre = jnp.take_along_axis(candidates, chosen, axis=1)[:, 0]
        closest = jnp.take_along_axis(after, chosen[:, :, None], axis=1)[:, 0]
        return centres.at[:, k].set(jnp.where(k < clusters, centre, -1)), closest

    return jax.lax.fori_loop(1, max_clusters, add_centre, (centres, distances[first]))[0]


def _lloyd(
    gram: Float[Array, "b n n"],
    valid: Array,
    clusters: Int[Array, "b"],
    centres: Int[Array, "b r k"],
    max_iterations: int,
) -> tuple[Int[Array, "b r n"], Float[Array, "b r"]]:
    """Lloyd's iterations of all restarts until no label changes: labels and inertia."""
    batch, restarts, max_clusters = centres.shape
    width = gram.shape[1]
    norms = jnp.diagonal(gram, axis1=1, axis2=2)
    exists = jnp.arange(max_clusters) < clusters[:, None]

    def assign(members):
        """Nearest centroid of each concept and its squared distance; `members` is [b, n, r, k]."""
        size = members.sum(1)
        share = 1 / jnp.maximum(size, 1)
        to_members = jnp.matmul(
            gram, members.reshape(batch, width, -1), precision=jax.lax.Precision.HIGHEST
        ).reshape(members.shape)
        spread = (to_members * members).sum(1) * share**2
        distance = norms[:, :, None, None] - 2 * to_members * share[:, None] + spread[:, None]
        usable = exists[:, None, :] & (size > 0)
        distance = jnp.where(usable[:, None], distance, jnp.inf)
        return jnp.argmin(distance, -1), jnp.where(valid[:, :, None], distance.min(-1), 0.0)

    def membership(labels):
        chosen = labels[..., None] == jnp.arange(max_clusters)
        return (chosen & valid[:, :, None, None]).astype(jnp.float32)

    def fill_empty(labels, distance):
        """Gives the first empty cluster, if any, the concept farthest from its centroid."""
        empty = (membership(labels).sum(1) == 0) & exists[:, None, :]
        farthest = jnp.argmax(distance, axis=1)
        moves = empty.any(-1) & (distance.max(1) > 1e-6)
        taken = (jnp.arange(width)[:, None] == farthest[:, None]) & moves[:, None]
        return jnp.where(taken, jnp.argmax(empty, -1)[:, None], labels)

    def step(state):
        iteration, labels, _, _ = state
        nearest, distance = assign(membership(labels))
        nearest = fill_empty(nearest, distance)
        return iteration + 1, nearest, distance.sum(1), (nearest != labels).any()

    seeds = (jnp.arange(width)[:, None, None] == centres[:, None]).astype(jnp.float32)
    labels, distance = assign(seeds)
    state = (0, fill_empty(labels, distance), distance.sum(1), jnp.array(True))
    unfinished = lambda state: (state[0] < max_iterations) & state[3]  # noqa: E731
    _, labels, inertia, _ = jax.lax.while_loop(unfinished, step, state)
    return labels.transpose(0, 2, 1), inertia


def _in_order_of_appearance(labels: Int[Array, "b n"]) -> Int[Array, "b n"]:
    """Renumbers labels so that a new number is always the next one."""
    width = labels.shape[1]
    same = labels[:, :, None] == labels[:, None, :]
    first = jnp.argmax(same, axis=-1)  # position of the first concept with the same label
    opens = first == jnp.arange(width)
    return jnp.take_along_axis(jnp.cumsum(opens, axis=1) - 1, first, axis=1).astype(jnp.int32)
