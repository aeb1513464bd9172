"""Encoded images to a model's pixels in tf.data; images that cannot be read become a flag."""

import os
from collections.abc import Sequence

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from cocu_jax.errors import UserError
from cocu_jax.input import image_graph
from cocu_jax.input.corpus import Corpus
from cocu_jax.input.resampling import KERNELS, resize_and_cut
from cocu_jax.input.unbatch import unbatch
from cocu_jax.models.weights.image_processing import ImageProcessing

_BLOCK = 16  # images that are read together, and again one by one if one of them is damaged


def image_batches(
    corpus: Corpus, shards: Sequence[int], processing: ImageProcessing, batch: int
) -> tf.data.Dataset:
    """Batches of some shards in file order; a shard's last batch is smaller.

    Args:
        corpus: a TFDS image-text corpus.
        shards: which of its shards, one after the other.
        processing: how the model wants its images, except for the normalisation.
        batch: examples per batch.

    Returns:
        Dictionaries of key string [b], caption_concepts int32 [b, c] padded with -1, pixels uint8
        [b, size, size, 3] and readable bool [b]; the pixels of unreadable images are 0. Reading
        fails with a `tf.errors.OpError` where a file is damaged or has another number of records
        than the corpus says.
    """
    size = processing.size
    shapes = {"key": [], "caption_concepts": [None], "pixels": [size, size, 3], "readable": []}
    padding = {"key": b"", "caption_concepts": -1, "pixels": None, "readable": None}
    used = ("key", "image", "caption_concepts")
    features = tfds.features.FeaturesDict({name: corpus.features[name] for name in used})

    def parse(record):
        encoded = {"image": tfds.decode.SkipDecoding()}
        example = features.deserialize_example(record, decoders=encoded)
        return example.pop("image"), example

    def read(record):
        image, example = parse(record)
        return {**example, "pixels": square_pixels(image, processing), "readable": True}

    def read_or_flag(record):
        good = tf.data.Dataset.from_tensors(record).map(read).ignore_errors()
        blank = {"pixels": tf.zeros(shapes["pixels"], tf.uint8), "readable": False}
        flagged = tf.data.Dataset.from_tensors({**parse(record)[1], **blank})
        return good.concatenate(flagged).take(1)

    def read_block(records):
        # Errors are only told from images where a dataset of its own ignores them, which costs as
        # much as decoding a small image: hence whole blocks first.
        count = tf.size(records)
        source = tf.data.Dataset.from_tensor_slices(records)
        good = source.map(read).padded_batch(_BLOCK, shapes, padding).ignore_errors()
        good = good.filter(lambda block: tf.size(block["key"]) == count)
        flagged = source.flat_map(read_or_flag).padded_batch(_BLOCK, shapes, padding)
        return good.concatenate(flagged).take(1)

    def read_shard(file, length):
        records = tf.data.TFRecordDataset(file)
        records = records.apply(tf.data.experimental.assert_cardinality(length))
        blocks = records.batch(_BLOCK).interleave(
            read_block,
            cycle_length=2 * os.cpu_count(),
            num_parallel_calls=tf.data.AUTOTUNE,
            deterministic=True,
        )
        return unbatch(blocks).padded_batch(batch, shapes, padding)

    files = [corpus.shard_files[shard] for shard in shards]
    lengths = [corpus.shard_lengths[shard] for shard in shards]
    sources = tf.data.Dataset.from_tensor_slices((files, np.int64(lengths)))
    return sources.flat_map(read_shard).prefetch(2)


def check_processing(processing: ImageProcessing, source: str) -> None:
    """Refuses an interpolation that we do not have.

    Raises:
        UserError: with `source`, the checkpoint, in its message.
    """
    if processing.resample not in KERNELS:
        raise UserError(
            f"{source}: images resized with {processing.resample!r}; "
            f"supported: {', '.join(KERNELS)}"
        )


def square_pixels(encoded: tf.Tensor, processing: ImageProcessing) -> tf.Tensor:
    """Hugging Face's image processing up to the normalisation: uint8 [size, size, 3].

    The short side becomes `size` (the long one is cut down to whole pixels), then the centre.

    Raises:
        tf.errors.InvalidArgumentError: in the graph, where the image cannot be read.
    """
    image = image_graph.decode(encoded)
    shape = tf.cast(tf.shape(image)[:2], tf.int64)
    resized = tf.constant([processing.size] * 2, tf.int64)
    if processing.keep_aspect:
        resized = resized * shape // tf.reduce_min(shape)
    corner = (resized - processing.size) // 2
    return resize_and_cut(image, resized, corner, processing.size, processing.resample)


def damaged_file(corpus: Corpus, shard: int, error: tf.errors.OpError) -> UserError:
    """What to tell about a shard whose records themselves cannot be read."""
    reason = error.message.splitlines()[0]
    return UserError(
        f"{corpus.shard_files[shard]}: damaged TFRecord file ({reason}); copy or prepare it again"
    )
