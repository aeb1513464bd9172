"""Concepts are drawn with the probabilities of the method, computed here with NumPy alone."""

import itertools

import numpy as np
import tensorflow as tf
from scipy import stats

from cocu_jax.input.concepts import CAPTION, sample_caption, sample_clusters, sample_top
from cocu_jax.input.draws import example_streams, uniforms

DRAWS = 20_000


def streams(count=DRAWS, seed=0, epoch=0):
    keys = tf.strings.as_string(tf.range(count))
    return example_streams(seed, tf.fill([count], tf.constant(epoch, tf.int64)), keys)


def repeated(values, dtype, count=DRAWS):
    return tf.RaggedTensor.from_uniform_row_length(tf.constant(values * count, dtype), len(values))


def fits(observed, probabilities):
    """Chi-square test at a level where one in ten thousand fixed seeds would fail."""
    return stats.chisquare(observed, np.asarray(probabilities) * np.sum(observed)).pvalue > 1e-4


def softmax(values):
    weights = np.exp(np.asarray(values, np.float64) - np.max(values))
    return weights / weights.sum()


def test_cluster_guided_draws_follow_both_softmaxes_and_are_independent():
    concepts, scores, clusters = [7, 3, 9, 4, 8], [2.5, 2.0, 1.5, 1.0, 0.2], [1, 0, 1, 2, 0]
    drawn = sample_clusters(
        streams(),
        repeated(concepts, tf.int64),
        repeated(scores, tf.float32),
        repeated(clusters, tf.int64),
        3,
    ).numpy()
    members = [[i for i, c in enumerate(clusters) if c == label] for label in range(3)]
    of_cluster = softmax([np.mean([scores[i] for i in group]) for group in members])
    probability = np.zeros(5)
    for weight, group in zip(of_cluster, members, strict=True):
        probability[group] = weight * softmax([scores[i] for i in group])
    places = np.array([[concepts.index(c) for c in row] for row in drawn])
    for draw in places.T:
        assert fits(np.bincount(draw, minlength=5), probability)
    for left, right in itertools.combinations(places.T, 2):  # with replacement, independent
        joint = np.bincount(left * 5 + right, minlength=25)
        assert fits(joint, np.outer(probability, probability).ravel())


def test_samples_without_clusters_take_the_best_and_then_the_caption():
    rows = [[5, 6], [], [4, 2, 1], [1]]
    concepts = tf.ragged.constant(rows, tf.int64, row_splits_dtype=tf.int32)
    scores = tf.ragged.constant([[1.0] * len(row) for row in rows], row_splits_dtype=tf.int32)
    clusters = tf.ragged.constant(
        [[-1] * len(row) for row in rows], tf.int64, row_splits_dtype=tf.int32
    )
    drawn = sample_clusters(streams(4), concepts, scores, clusters, 3).numpy()
    expected = [[5, 6, CAPTION], [CAPTION] * 3, [4, 2, 1], [1, CAPTION, CAPTION]]
    assert drawn.tolist() == expected
    assert sample_top(concepts, 3).numpy().tolist() == expected


def test_no_concepts_in_the_whole_batch_leaves_the_captions():
    concepts = tf.ragged.constant([[], []], tf.int64, ragged_rank=1, row_splits_dtype=tf.int32)
    scores = tf.ragged.constant([[], []], tf.float32, ragged_rank=1, row_splits_dtype=tf.int32)
    assert np.all(sample_clusters(streams(2), concepts, scores, concepts, 3) == CAPTION)
    assert np.all(sample_caption(streams(2), concepts, 3) == CAPTION)
    assert np.all(sample_top(concepts, 3) == CAPTION)


def test_a_draw_does_not_depend_on_the_rest_of_the_batch():
    rows = [[5, 6, 7], list(range(40)), [1, 2, 3, 4]]

    def draw(chosen):
        ragged = [
            tf.ragged.constant([rows[i] for i in chosen], t, row_splits_dtype=tf.int32)
            for t in (tf.int64, tf.float32)
        ]
        labels = tf.ragged.constant(
            [[v % 2 for v in rows[i]] for i in chosen], tf.int64, row_splits_dtype=tf.int32
        )
        stream = tf.gather(streams(3), chosen)
        return np.concatenate(
            [
                sample_clusters(stream, ragged[0], ragged[1], labels, 3),
                sample_caption(stream, ragged[0], 3),
            ],
            1,
        )

    together = draw([0, 1, 2])
    for index in range(3):
        np.testing.assert_array_equal(draw([index])[0], together[index])


def test_caption_concepts_are_drawn_uniformly_without_replacement():
    drawn = sample_caption(streams(), repeated([3, 5, 8, 9], tf.int64), 3).numpy()
    orders = list(itertools.permutations([3, 5, 8, 9], 3))
    observed = [np.sum(np.all(drawn == order, axis=1)) for order in orders]
    assert sum(observed) == DRAWS
    assert fits(observed, np.full(24, 1 / 24))
    few = sample_caption(streams(50), repeated([3, 5], tf.int64, 50), 3).numpy()
    assert np.all(np.sort(few, axis=1) == [CAPTION, 3, 5])
    assert np.all(few[:, 2] == CAPTION)


def test_draws_are_uniform_and_change_with_seed_epoch_purpose_and_key():
    first = uniforms(streams(), 1, 4).numpy()
    assert stats.kstest(first.ravel(), "uniform").pvalue > 1e-4
    assert first.min() >= 0 and first.max() < 1
    others = [
        uniforms(streams(seed=1), 1, 4),
        uniforms(streams(epoch=1), 1, 4),
        uniforms(streams(), 2, 4),
    ]
    for other in others:
        assert abs(np.corrcoef(first.ravel(), np.ravel(other))[0, 1]) < 0.02
    assert abs(np.corrcoef(first[:-1].ravel(), first[1:].ravel())[0, 1]) < 0.02
    np.testing.assert_array_equal(first, uniforms(streams(), 1, 6)[:, :4])
