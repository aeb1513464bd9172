"""The endless order in which examples are read: any place in it is found without reading up to it.

The work is dealt to *lanes*, virtual readers whose number does not depend on the hosts. In every
epoch the shards of a corpus are permuted and lane `l` of `L` reads the examples from position
`l N / L` to `(l + 1) N / L` of that permutation, so a lane has the same number of examples in every
epoch, whatever the sizes of the shards, and each example belongs to exactly one lane. Inside its
range a lane permutes windows of neighbouring records. A lane that has finished its part of an epoch
goes on with its part of the next one: nothing is dropped and nothing is read twice in an epoch.

Where a lane stands after `n` examples follows from `n` alone. Finding that place reads no shard
but the one it is in, passes over its records without parsing them, and replays one window at most.
"""

import dataclasses

import tensorflow as tf
from jaxtyping import Int

from cocu_jax.input.corpus import Corpus
from cocu_jax.input.draws import mix
from cocu_jax.input.rows import rows_of

_FOREVER = 2**62


@dataclasses.dataclass(frozen=True)
class Order:
    """How one corpus is read.

    Attributes:
        corpus: the image-text corpus.
        annotations: its sidecar with the same shards, or None.
        seed: changes every permutation.
        lanes: number of virtual readers of all hosts together.
        window: raw records of a lane that are permuted among each other (held in memory, twice).
    """

    corpus: Corpus
    annotations: Corpus | None
    seed: int
    lanes: int
    window: int

    def read(self, lane: Int[tf.Tensor, ""], done: Int[tf.Tensor, ""]) -> tf.data.Dataset:
        """Records of one lane, endless, after the `done` it has already read.

        Returns:
            A dataset of (epoch int64, record, annotation record); the last one is empty when there
            are no annotations.
        """
        first, last = self._range(lane)
        first_epoch, offset = done // (last - first), done % (last - first)

        def one_epoch(epoch):
            skip = tf.where(epoch == first_epoch, offset, tf.zeros_like(offset))
            records = self._read_epoch(lane, epoch, skip)
            return records.map(lambda *record: (epoch, *record))

        return tf.data.Dataset.range(first_epoch, _FOREVER).flat_map(one_epoch)

    def _range(self, lane):
        """First and last (exclusive) position of the lane in every epoch's permutation."""
        examples = self.corpus.num_examples
        return lane * examples // self.lanes, (lane + 1) * examples // self.lanes

    def _read_epoch(self, lane, epoch, skip):
        first, last = self._range(lane)
        window = skip // self.window

        def permute(index, record, annotation):
            stream = mix(self.seed, epoch, lane, index)
            order = _permutation(tf.shape(record)[0], stream)
            return tf.gather(record, order), tf.gather(annotation, order)

        windows = (
            self._read_range(epoch, first + window * self.window, last)
            .batch(self.window)
            .enumerate(window)
            .map(lambda index, records: permute(index, *records))
            .prefetch(1)
        )
        return rows_of(windows).skip(skip - window * self.window)

    def _read_range(self, epoch, first, last):
        """Records of positions [first, last) of the epoch's permutation of shards, in order."""
        shards = _permutation(self.corpus.num_shards, mix(self.seed, epoch))
        lengths = tf.gather(tf.constant(self.corpus.shard_lengths, tf.int64), shards)
        ends = tf.cumsum(lengths)
        starts = ends - lengths
        begin = tf.searchsorted(ends, [first], side="right", out_type=tf.int64)[0]
        end = tf.searchsorted(starts, [last], side="left", out_type=tf.int64)[0]

        def read(position):
            skip = tf.maximum(first - starts[position], 0)
            take = tf.minimum(last, ends[position]) - starts[position] - skip
            return self._read_shard(shards[position], skip, take)

        return tf.data.Dataset.range(begin, end).flat_map(read)

    def _read_shard(self, shard, skip, take):
        def read(corpus):
            file = tf.gather(tf.constant(corpus.shard_files), shard)
            return tf.data.TFRecordDataset(file).skip(skip).take(take)

        if self.annotations is None:
            return read(self.corpus).map(lambda record: (record, ""))
        return tf.data.Dataset.zip((read(self.corpus), read(self.annotations)))


def _permutation(count, stream):
    """A permutation of range(count) drawn from a uint64 stream."""
    seed = tf.bitcast(tf.stack([stream, mix(stream, 1)]), tf.int64)
    return tf.random.experimental.stateless_shuffle(tf.range(count), seed, alg="philox")
