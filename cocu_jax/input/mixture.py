"""Mixes several corpora in fixed proportions, with known counts at any position."""

import dataclasses

import numpy as np
import tensorflow as tf
from jaxtyping import Int

from cocu_jax.input.order import Order

_PERIOD = 1 << 14
_STRIDE = 10125  # the golden section of the period, so that lanes start at scattered places


@dataclasses.dataclass(frozen=True)
class Mixture:
    """A fixed sequence that determines which corpus the n-th example of a lane comes from.

    The sequence has a period of 16,384 examples. Within a period the examples of each corpus are
    evenly spread; their number is the corpus's share, rounded, and at least one. Lanes start at
    scattered places of the period, so that every batch has nearly the proportions of the mixture.

    Attributes:
        orders: the order of reading of each corpus.
        choices: index of the corpus for every place of the period.
    """

    orders: tuple[Order, ...]
    choices: Int[np.ndarray, "period"]

    @property
    def lanes(self) -> int:
        """Number of virtual readers of all processes together."""
        return self.orders[0].lanes

    def read(self, lane: Int[tf.Tensor, ""], done: Int[tf.Tensor, ""]) -> tf.data.Dataset:
        """The endless records of one lane: (corpus int64, epoch int64, record, annotation record).

        Args:
            lane: index of the virtual reader.
            done: number of examples, of all corpora together, that are skipped.
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
    """Mixes corpora.

    Args:
        orders: the order of reading of each corpus; all have the same number of lanes.
        weights: relative share of each corpus; 0 stands for its number of examples, so that without
            weights all examples are read equally often.
    """
    shares = [
        weight or order.corpus.num_examples for order, weight in zip(orders, weights, strict=True)
    ]
    counts = _whole_counts(np.asarray(shares, np.float64) / np.sum(shares))
    places = np.concatenate([(np.arange(count) + 0.5) / count for count in counts])
    corpus = np.repeat(np.arange(len(counts)), counts)
    return Mixture(orders, corpus[np.argsort(places, kind="stable")])


def _whole_counts(shares):
    """Rounds shares of the period to integers by largest remainder, to at least one each."""
    exact = shares * _PERIOD
    counts = np.maximum(np.floor(exact).astype(np.int64), 1)
    for index in np.argsort(counts - exact, kind="stable")[: max(_PERIOD - counts.sum(), 0)]:
        counts[index] += 1
    counts[np.argmax(counts)] += _PERIOD - counts.sum()
    return counts


def _count(cumulative, place):
    """Number of examples of the corpus among the first `place` of the periodic sequence."""
    return place // _PERIOD * cumulative[-1] + tf.gather(cumulative, place % _PERIOD)
