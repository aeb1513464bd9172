"""Several corpora in fixed proportions, as one endless sequence with a known count at any place."""

import dataclasses

import numpy as np
import tensorflow as tf
from jaxtyping import Int

from cocu_jax.input.order import Order

_PERIOD = 1 << 14
_STRIDE = 10125  # the golden section of the period: starts of lanes never fall into step


@dataclasses.dataclass(frozen=True)
class Mixture:
    """Which corpus the n-th example of a lane comes from.

    The sequence has a period of 16,384 examples in which every corpus has its share (rounded to a
    whole number, at least one), spread evenly. Lanes walk through it from scattered places, so that
    every batch has nearly the proportions of the mixture.

    Attributes:
        orders: how each corpus is read.
        choices: corpus of every place of the period.
    """

    orders: tuple[Order, ...]
    choices: Int[np.ndarray, "period"]

    @property
    def lanes(self) -> int:
        """Number of virtual readers of all processes together."""
        return self.orders[0].lanes

    def read(self, lane: Int[tf.Tensor, ""], done: Int[tf.Tensor, ""]) -> tf.data.Dataset:
        """Records of one lane, endless: (corpus int64, epoch int64, record, annotation record).

        Args:
            lane: which virtual reader.
            done: how many examples, of all corpora together, it has already read.
        """
        start = lane * _STRIDE % _PERIOD
        parts = []
        for index, order in enumerate(self.orders):
            count = tf.constant(np.concatenate([[0], np.cumsum(self.choices == index)]))
            before = _count(count, start + done) - _count(count, start)
            corpus = tf.constant(index, tf.int64)
            parts.append(order.read(lane, before).map(lambda *x, corpus=corpus: (corpus, *x)))
        if len(parts) == 1:
            return parts[0]
        choices = tf.constant(self.choices)
        places = tf.data.Dataset.counter(start + done)
        return tf.data.Dataset.choose_from_datasets(
            parts, places.map(lambda place: choices[place % _PERIOD])
        )


def mix_corpora(orders: tuple[Order, ...], weights: tuple[float, ...]) -> Mixture:
    """Interleaves corpora.

    Args:
        orders: how each corpus is read; all have the same lanes.
        weights: relative share of each; 0 stands for its number of examples, so that without
            weights every example of every corpus is seen equally often.
    """
    shares = [
        weight or order.corpus.num_examples for order, weight in zip(orders, weights, strict=True)
    ]
    counts = _whole_counts(np.asarray(shares, np.float64) / np.sum(shares))
    places = np.concatenate([(np.arange(count) + 0.5) / count for count in counts])
    corpus = np.repeat(np.arange(len(counts)), counts)
    return Mixture(orders, corpus[np.argsort(places, kind="stable")])


def _whole_counts(shares):
    """Largest-remainder rounding of shares of the period, at least one each."""
    exact = shares * _PERIOD
    counts = np.maximum(np.floor(exact).astype(np.int64), 1)
    for index in np.argsort(counts - exact, kind="stable")[: max(_PERIOD - counts.sum(), 0)]:
        counts[index] += 1
    counts[np.argmax(counts)] += _PERIOD - counts.sum()
    return counts


def _count(cumulative, place):
    """How many of the first `place` examples of the periodic sequence belong to the corpus."""
    return place // _PERIOD * cumulative[-1] + tf.gather(cumulative, place % _PERIOD)
