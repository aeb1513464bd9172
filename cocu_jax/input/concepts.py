"""Samples the concepts that a sample's prompts are made of (CoCu, section 3.4), batched."""

import tensorflow as tf
from jaxtyping import Float, Float64, Int

from cocu_jax.input.draws import uniforms

CAPTION = -1  # in place of a concept: the sample has too few, and its caption is used instead

_CLUSTER_DRAW, _MEMBER_DRAW, _CAPTION_DRAW = 101, 102, 103


def sample_top(concepts: tf.RaggedTensor, count: int) -> Int[tf.Tensor, "b count"]:
    """The best-scored concepts, padded with `CAPTION`.

    Args:
        concepts: int64 ids [b, (n)] in ranked order.
        count: number of concepts to choose.
    """
    return concepts[:, :count].to_tensor(CAPTION, shape=[None, count])


def sample_clusters(
    stream: Int[tf.Tensor, "b"],
    concepts: tf.RaggedTensor,
    scores: tf.RaggedTensor,
    clusters: tf.RaggedTensor,
    count: int,
) -> Int[tf.Tensor, "b count"]:
    """Cluster-guided sampling: draws `count` clusters with replacement, and a concept from each.

    Clusters are drawn from a softmax of their mean scores, concepts from a softmax of the scores
    within the cluster. Samples without clusters get `sample_top`.

    Args:
        stream: one random stream per sample.
        concepts: int64 ids [b, (n)] in ranked order.
        scores: float32 scores [b, (n)].
        clusters: int64 cluster labels [b, (n)], from 0; all -1 if the concepts of the sample were
            not clustered.
        count: number of concepts to choose.
    """
    ids = _padded(concepts, CAPTION)
    # In float64, so that padding, which changes the order of summation, does not change a draw.
    score = _padded(tf.cast(scores, tf.float64), 0)
    label = _padded(clusters, -1)
    labels = tf.range(tf.shape(ids)[1], dtype=label.dtype)
    member = label[:, None, :] == labels[None, :, None]  # [b, clusters, n]
    sizes = tf.reduce_sum(tf.cast(member, tf.float64), axis=-1)
    totals = tf.reduce_sum(tf.where(member, score[:, None, :], 0), axis=-1)
    chosen = _choose(
        tf.math.divide_no_nan(totals, sizes)[:, None, :],
        (sizes > 0)[:, None, :],
        uniforms(stream, _CLUSTER_DRAW, count),
    )
    place = _choose(
        score[:, None, :],
        tf.gather(member, chosen, batch_dims=1),
        uniforms(stream, _MEMBER_DRAW, count),
    )
    clustered = tf.reduce_any(label >= 0, axis=-1, keepdims=True)
    return tf.where(clustered, tf.gather(ids, place, batch_dims=1), sample_top(concepts, count))


def sample_caption(
    stream: Int[tf.Tensor, "b"], concepts: tf.RaggedTensor, count: int
) -> Int[tf.Tensor, "b count"]:
    """Concepts of the caption, drawn uniformly without replacement, padded with `CAPTION`.

    Args:
        stream: one random stream per sample.
        concepts: int64 ids [b, (n)].
        count: number of concepts to choose.
    """
    ids = tf.pad(concepts.to_tensor(CAPTION), [[0, 0], [0, count]], constant_values=CAPTION)
    rank = uniforms(stream, _CAPTION_DRAW, tf.shape(ids)[1])
    order = tf.argsort(tf.where(ids == CAPTION, 1.0, rank), axis=-1, stable=True)
    return tf.gather(ids, order[:, :count], batch_dims=1)


def _choose(
    logits: Float64[tf.Tensor, "b r n"], allowed: tf.Tensor, uniform: Float[tf.Tensor, "b k"]
) -> Int[tf.Tensor, "b k"]:
    """Draws indices from a softmax over the allowed ones, by inverse transform sampling."""
    weights = tf.where(allowed, tf.exp(logits - tf.reduce_max(logits, axis=-1, keepdims=True)), 0)
    cumulative = tf.cumsum(weights, axis=-1)
    target = tf.cast(uniform, tf.float64)[..., None] * cumulative[..., -1:]
    index = tf.reduce_sum(tf.cast(cumulative <= target, tf.int32), axis=-1)
    return tf.minimum(index, tf.shape(weights)[-1] - 1)  # matters only if nothing is allowed


def _padded(values: tf.RaggedTensor, fill) -> tf.Tensor:
    """Dense [b, n + 1]; the last column is always `fill`, so that no sample is empty."""
    dense = values.to_tensor(fill)
    return tf.pad(dense, [[0, 0], [0, 1]], constant_values=tf.cast(fill, dense.dtype))
