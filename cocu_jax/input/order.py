"""The endless order in which examples are read, with random access to any position.

The work is divided among *lanes*, virtual readers whose number does not depend on the hosts. In
every epoch the shards of a corpus are permuted and lane `l` of `L` owns the examples from position
`l N / L` to `(l + 1) N / L` of that permutation, so a lane has the same number of examples in every
epoch, whatever the sizes of the shards, and each example belongs to exactly one lane. A lane that
has finished its part of an epoch continues with its part of the next one: in every epoch each
example is read exactly once.

Shards keep the order of their source, where neighbours are similar. They must not meet in a batch
more often than by chance, because the loss is contrastive. Each lane therefore cuts its part into
*segments* of a few neighbouring records, permutes all segments, and takes the records of many
segments in turn: two records of a segment are further apart than the number of examples that the
lane contributes to a batch.

The position of a lane after `n` examples is a function of `n`. Finding it reads only the segments
of one window.
"""

import dataclasses

import tensorflow as tf
from jaxtyping import Int

from cocu_jax.input.corpus import Corpus
from cocu_jax.input.draws import mix
from cocu_jax.input.offsets import GRID, Offsets
from cocu_jax.input.unbatch import unbatch

_FOREVER = 2**62
_SEGMENT_DRAW, _WINDOW_DRAW = 1, 2
_ORDER_DRAW, _RECORD_DRAW = 3, 4
_READS_AT_ONCE = 8  # concurrent reads per lane from a bucket; from a disk one at a time suffices
_BUFFER = 256 * 1024


@dataclasses.dataclass(frozen=True)
class Order:
    """The order in which one corpus is read.

    Attributes:
        corpus: the image-text corpus.
        offsets: byte offsets of its records.
        annotations: the dataset of its annotations, with the same shards, or None.
        annotation_offsets: byte offsets of the annotations' records, or None.
        seed: seed of all permutations.
        lanes: number of virtual readers of all processes together.
        per_batch: number of examples that a lane contributes to a batch.
        window: number of records of a lane that are shuffled together (two windows are held in
            memory). It is increased where that is necessary to keep neighbours apart.
    """

    corpus: Corpus
    offsets: Offsets
    annotations: Corpus | None
    annotation_offsets: Offsets | None
    seed: int
    lanes: int
    per_batch: int
    window: int

    def read(self, lane: Int[tf.Tensor, ""], done: Int[tf.Tensor, ""]) -> tf.data.Dataset:
        """The endless records of one lane, from number `done` on.

        Returns:
            A dataset of (epoch int64, record, annotation record); the last one is empty if there
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
        """The lane's part of an epoch, without its first `skip` records."""
        first, last = self._range(lane)
        # Segments per window: one more than `per_batch`, because the last segment may be short.
        at_once = self.per_batch + 1
        size = tf.clip_by_value((last - first) // at_once, 1, max(self.window // at_once, 1))
        complete = (last - first) // size
        # Every segment has `size` records, except that the last one may be short.
        segments = tf.concat(
            [
                _permutation(complete, mix(self.seed, epoch, lane, _SEGMENT_DRAW)),
                tf.range(complete, complete + tf.cast((last - first) % size > 0, tf.int64)),
            ],
            axis=0,
        )
        windows = tf.maximum(complete // at_once, 1)
        # The first `more` windows have one segment more than the others.
        each, more = tf.size(segments, tf.int64) // windows, tf.size(segments, tf.int64) % windows
        starts = tf.range(windows + 1) * each + tf.minimum(tf.range(windows + 1), more)
        begin = tf.searchsorted(starts[:-1] * size, [skip], side="right", out_type=tf.int64)[0] - 1
        place, pieces = self._pieces(epoch, first, last, size, segments)
        ends = tf.searchsorted(place, starts, out_type=tf.int64)

        # Each dataset function takes milliseconds when the dataset is opened, so all windows of the
        # same size share one.
        def read_windows(from_, to, count):
            part = tuple(numbers[ends[from_] : ends[to]] for numbers in pieces)
            records = self._read_pieces(tf.data.Dataset.from_tensor_slices(part))
            return records.batch(count * size)

        def take_turns(window, records):
            stream = mix(self.seed, epoch, lane, _WINDOW_DRAW, window)
            return _take_turns(records, size, stream)

        larger = read_windows(tf.minimum(begin, more), more, each + 1)
        others = read_windows(tf.maximum(begin, more), windows, each)
        read = larger.concatenate(others).enumerate(begin).map(take_turns).prefetch(1)
        return unbatch(read).skip(skip - starts[begin] * size)

    def _pieces(self, epoch, first, last, size, segments):
        """Divides positions [first, last) of the epoch into pieces that each lie in one shard.

        Returns:
            For every piece, in the order of reading: the place of its segment in `segments`, and
            (shard, first record, number of records).
        """
        shards = _permutation(self.corpus.num_shards, mix(self.seed, epoch))
        lengths = tf.gather(tf.constant(self.corpus.shard_lengths, tf.int64), shards)
        ends = tf.cumsum(lengths)
        cuts = tf.sort(tf.concat([tf.range(first, last, size), ends], axis=0))
        cuts = tf.unique(tf.boolean_mask(cuts, (cuts >= first) & (cuts < last))).y
        take = tf.concat([cuts[1:], [last]], axis=0) - cuts
        position = tf.searchsorted(ends, cuts, side="right", out_type=tf.int64)
        skip = cuts - tf.gather(ends - lengths, position)
        place = tf.gather(tf.argsort(segments), (cuts - first) // size)
        order = tf.argsort(place, stable=True)
        pieces = tf.gather(shards, position), skip, take
        in_order = [tf.gather(part, order) for part in pieces]
        return tf.cast(tf.gather(place, order), tf.int64), in_order

    def _read_pieces(self, pieces: tf.data.Dataset) -> tf.data.Dataset:
        """Records and annotation records of pieces (shard, first record, number of records)."""

        def read(shard, skip, take):
            records = _records_from(self.corpus, self.offsets, shard, skip)
            if self.annotations is None:
                return records.take(take)
            annotations = _records_from(self.annotations, self.annotation_offsets, shard, skip)
            return tf.data.Dataset.zip((records, annotations)).take(take)

        if "://" in self.corpus.directory:
            block = dict(cycle_length=_READS_AT_ONCE, block_length=max(self.window, 1))
            records = pieces.interleave(
                read, **block, num_parallel_calls=_READS_AT_ONCE, deterministic=True
            )
        else:
            records = pieces.flat_map(read)
        return records if self.annotations else records.map(lambda record: (record, ""))


def _records_from(corpus: Corpus, offsets: Offsets, shard, skip) -> tf.data.Dataset:
    """The records of a shard from index `skip` on."""
    place = tf.gather(offsets.first, shard) + skip // GRID
    records = tf.data.experimental.from_variant(
        # The operation behind `tf.data.TFRecordDataset`, which has no argument for the offset.
        tf.raw_ops.TFRecordDatasetV2(
            filenames=tf.gather(tf.constant(corpus.shard_files), shard)[None],
            compression_type="",
            buffer_size=tf.constant(_BUFFER, tf.int64),
            byte_offsets=tf.gather(offsets.bytes, place)[None],
        ),
        tf.TensorSpec([], tf.string),
    )
    return records.skip(skip % GRID)


def _take_turns(records, size, stream):
    """Reorders the records of consecutive segments: one record of each segment in turn.

    All rounds visit the segments in the same order, so two records of a segment are as far apart as
    there are segments. The order of the records within a segment is random.
    """
    count = tf.size(records[0], tf.int64)
    segments = (count + size - 1) // size
    order = _permutation(segments, mix(stream, _ORDER_DRAW))
    seed = tf.bitcast(tf.stack([mix(stream, _RECORD_DRAW), mix(stream, 1)]), tf.int64)
    draws = tf.random.stateless_uniform([segments, size], seed)
    turns = order[:, None] * size + tf.cast(tf.argsort(draws, axis=1), tf.int64)
    turns = tf.reshape(tf.transpose(turns), [-1])
    turns = tf.boolean_mask(turns, turns < count)
    return tuple(tf.gather(part, turns) for part in records)


def _permutation(count, stream):
    """A permutation of range(count) drawn from a uint64 stream."""
    seed = tf.bitcast(tf.stack([stream, mix(stream, 1)]), tf.int64)
    return tf.random.experimental.stateless_shuffle(
        tf.range(tf.cast(count, tf.int64)), seed, alg="philox"
    )
