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
from jaxtyping import Array, Bool, Float, Int

RESTARTS = 5
MAX_ITERATIONS = 100
_COINCIDE = 1e-6  # squared distances of unit vectors below this are rounding errors


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

    Initialised by greedy k-means++ (Arthur and Vassilvitskii, 2007: the best of 2 + ln K candidates
    per centre, K of the widest archive), then Lloyd's iterations; the restart of least inertia
    wins. An empty cluster takes the concept farthest from its centroid.

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
    distances = jnp.maximum(_squared_distances(local), 0.0)
    most = (width + 1) // 2
    candidates = 2 + int(math.log(most))
    uniform = _uniform(seed, anchor, (most, restarts, candidates))
    nearest = jax.vmap(_plus_plus)(uniform, distances, valid, clusters)
    exists = jnp.arange(most) < clusters[:, None]
    labels, inertia = _lloyd(local, valid, exists, nearest, max_iterations)
    best = jnp.argmin(inertia, axis=1)
    labels = jnp.take_along_axis(labels, best[:, None, None], axis=1)[:, 0]
    return jnp.where(valid & (sizes > 2)[:, None], _in_order_of_appearance(labels), -1)


def _squared_distances(gram: Float[Array, "b n n"]) -> Float[Array, "b n n"]:
    norms = jnp.diagonal(gram, axis1=1, axis2=2)
    return norms[:, :, None] - 2 * gram + norms[:, None, :]


def _uniform(
    seed: int, anchor: Int[Array, "b"], shape: tuple[int, ...]
) -> Float[Array, "b *shape"]:
    """Numbers in [0, 1) that follow from seed, anchor and position: MurmurHash3's mixing function.

    Drawing centres asks little of randomness, and `jax.random` would take most of the time here, to
    compile and to run.
    """

    def mix(x):
        x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
        x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
        return x ^ (x >> 16)

    stream = mix(anchor.astype(jnp.uint32) + mix(jnp.uint32(seed) + jnp.uint32(1)))
    position = jnp.arange(math.prod(shape), dtype=jnp.uint32) * jnp.uint32(0x9E3779B9)
    bits = mix(stream[:, None] + mix(position + jnp.uint32(1)))
    return (bits >> 8).astype(jnp.float32).reshape(-1, *shape) * 2.0**-24


def _plus_plus(
    uniform: Float[Array, "k r c"],
    distances: Float[Array, "n n"],
    valid: Bool[Array, "n"],
    clusters: Int[Array, ""],
) -> Int[Array, "r n"]:
    """Which of the initial centres of one archive is nearest to each concept, for each restart.

    `uniform` decides the centres, c candidates for each of at most k.
    """
    width, size = len(valid), valid.sum()
    most, restarts, _ = uniform.shape
    distances = jnp.where(valid[:, None] & valid[None, :], distances, 0.0)
    first = jnp.minimum((uniform[0, :, 0] * size).astype(jnp.int32), size - 1)
    prefix = jnp.triu(jnp.ones((width, width)))  # a product with it is a cumulative sum

    def add_centre(k, state):
        nearest, closest = state
        mass = jnp.dot(closest, prefix, precision=jax.lax.Precision.HIGHEST)
        drawn = uniform[k][:, :, None] * mass[:, None, -1:]
        candidates = jnp.sum(mass[:, None, :] <= drawn, -1)
        candidates = jnp.minimum(candidates, size - 1)
        after = jnp.minimum(closest[:, None, :], distances[candidates])
        chosen = jnp.argmin(after.sum(-1), axis=-1)[:, None]
        after = jnp.take_along_axis(after, chosen[:, :, None], axis=1)[:, 0]
        return jnp.where((after < closest) & (k < clusters), k, nearest), after

    state = jnp.zeros((restarts, width), jnp.int32), distances[first]
    return jax.lax.fori_loop(1, most, add_centre, state)[0]


def _lloyd(
    gram: Float[Array, "b n n"],
    valid: Bool[Array, "b n"],
    exists: Bool[Array, "b k"],
    labels: Int[Array, "b r n"],
    max_iterations: int,
) -> tuple[Int[Array, "b r n"], Float[Array, "b r"]]:
    """Lloyd's iterations of all restarts until no label changes: labels and inertia.

    Arrays are laid out with the concepts last, where reductions over clusters vectorise.
    """
    batch, restarts, width = labels.shape
    norms = jnp.diagonal(gram, axis1=1, axis2=2)[:, None, :]
    numbers = jnp.arange(exists.shape[1])[:, None]

    def assign(members):
        """Next labels, given who is in which cluster [b, r, k, n], and the inertia before."""
        size = members.sum(-1)
        share = 1 / jnp.maximum(size, 1)
        to_members = jnp.matmul(
            members.reshape(batch, -1, width), gram, precision=jax.lax.Precision.HIGHEST
        ).reshape(members.shape)
        spread = (to_members * members).sum(-1) * share**2
        offset = jnp.where(exists[:, None] & (size > 0), spread, jnp.inf)
        distance = offset[..., None] - 2 * to_members * share[..., None]
        labels = jnp.argmin(distance, axis=2)
        nearest = jnp.where(valid[:, None], norms + distance.min(2), 0.0)
        return fill_empty(labels, nearest, exists[:, None] & (size == 0)), nearest.sum(-1)

    def fill_empty(labels, nearest, empty):
        """Gives the first empty cluster, if any, the concept farthest from its centroid."""
        farthest = jnp.argmax(nearest, axis=-1)[..., None]
        moves = empty.any(-1) & (nearest.max(-1) > _COINCIDE)
        taken = (jnp.arange(width) == farthest) & moves[..., None]
        return jnp.where(taken, jnp.argmax(empty, -1)[..., None], labels)

    def step(state):
        iteration, labels, _, _ = state
        members = (labels[:, :, None] == numbers) & valid[:, None, None]
        following, inertia = assign(members.astype(jnp.float32))
        return iteration + 1, following, inertia, (following != labels).any()

    state = (0, labels, jnp.zeros((batch, restarts)), jnp.array(True))
    unfinished = lambda state: (state[0] < max_iterations) & state[3]  # noqa: E731
    _, labels, inertia, _ = jax.lax.while_loop(unfinished, step, state)
    return labels, inertia


def _in_order_of_appearance(labels: Int[Array, "b n"]) -> Int[Array, "b n"]:
    """Renumbers labels so that a new number is always the next one."""
    width = labels.shape[1]
    same = labels[:, :, None] == labels[:, None, :]
    first = jnp.argmax(same, axis=-1)  # position of the first concept with the same label
    opens = first == jnp.arange(width)
    return jnp.take_along_axis(jnp.cumsum(opens, axis=1) - 1, first, axis=1).astype(jnp.int32)
