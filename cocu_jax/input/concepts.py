"""Choosing the concepts of a sample's prompts (CoCu, section 3.4), for a whole batch at once."""

import tensorflow as tf
from jaxtyping import Float, Float64, Int

from cocu_jax.input.draws import uniforms

CAPTION = -1  # stands for "the caption itself" where a sample has too few concepts

_CLUSTER_DRAW, _MEMBER_DRAW, _CAPTION_DRAW = 101, 102, 103


def sample_top(concepts: tf.RaggedTensor, count: int) -> Int[tf.Tensor, "b count"]:
    """The best-scored concepts; `CAPTION` where there are fewer.

    Args:
        concepts: int64 ids [b, (n)] in ranked order.
        count: how many to choose.
    """
    return concepts[:, :count].to_tensor(CAPTION, shape=[None, count])


def sample_clusters(
    stream: Int[tf.Tensor, "b"],
    concepts: tf.RaggedTensor,
    scores: tf.RaggedTensor,
    clusters: tf.RaggedTensor,
    count: int,
) -> Int[tf.Tensor, "b count"]:
    """Cluster-guided sampling: `count` clusters with replacement, one member of each.

    A cluster's weight is the softmax, over the sample's clusters, of its mean score; a member's is
    the softmax of the cluster's scores. Samples without clusters get `sample_top`.

    Args:
        stream: one random stream per sample.
        concepts: int64 ids [b, (n)] in ranked order.
        scores: float32 scores [b, (n)].
        clusters: int64 labels [b, (n)], from 0; all -1 where the archive was not clustered.
        count: how many to choose.
    """
    ids = _padded(concepts, CAPTION)
    # float64: the padding, and with it the order of summation, must not change a draw
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
    """Concepts of the caption, without replacement; `CAPTION` where there are fewer.

    Args:
        stream: one random stream per sample.
        concepts: int64 ids [b, (n)].
        count: how many to choose.
    """
    ids = tf.pad(concepts.to_tensor(CAPTION), [[0, 0], [0, count]], constant_values=CAPTION)
    rank = uniforms(stream, _CAPTION_DRAW, tf.shape(ids)[1])
    order = tf.argsort(tf.where(ids == CAPTION, 1.0, rank), axis=-1, stable=True)
    return tf.gather(ids, order[:, :count], batch_dims=1)


def _choose(
    logits: Float64[tf.Tensor, "b r n"], allowed: tf.Tensor, uniform: Float[tf.Tensor, "b k"]
) -> Int[tf.Tensor, "b k"]:
    """Index drawn with softmax weights among the allowed ones, by inverting the distribution."""
    weights = tf.where(allowed, tf.exp(logits - tf.reduce_max(logits, axis=-1, keepdims=True)), 0)
    cumulative = tf.cumsum(weights, axis=-1)
    target = tf.cast(uniform, tf.float64)[..., None] * cumulative[..., -1:]
    index = tf.reduce_sum(tf.cast(cumulative <= target, tf.int32), axis=-1)
    return tf.minimum(index, tf.shape(weights)[-1] - 1)  # only where nothing is allowed


def _padded(values: tf.RaggedTensor, fill) -> tf.Tensor:
    """Dense [b, n + 1]: the last column is never a value, so that even empty rows have a place."""
    dense = values.to_tensor(fill)
    return tf.pad(dense, [[0, 0], [0, 1]], constant_values=tf.cast(fill, dense.dtype))
