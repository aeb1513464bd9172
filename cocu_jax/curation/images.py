"""Encoded images to a model's pixels in tf.data; images that cannot be read become a flag."""

import os
from collections.abc import Sequence

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from cocu_jax.errors import UserError
from cocu_jax.input.corpus import Corpus
from cocu_jax.input.rows import rows_of
from cocu_jax.models.weights.image_processing import ImageProcessing

# Pillow's names of the interpolations and TensorFlow's.
_KERNELS = {"bicubic": "keyscubic", "bilinear": "triangle", "lanczos": "lanczos3", "box": "box"}

MAX_PIXELS = 64_000_000  # a larger image is refused from its header: decoded it takes > 190 MB

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
        return rows_of(blocks).padded_batch(batch, shapes, padding)

    files = [corpus.shard_files[shard] for shard in shards]
    lengths = [corpus.shard_lengths[shard] for shard in shards]
    sources = tf.data.Dataset.from_tensor_slices((files, np.int64(lengths)))
    return sources.flat_map(read_shard).prefetch(2)


def check_processing(processing: ImageProcessing, source: str) -> None:
    """Refuses an interpolation that we do not have.

    Raises:
        UserError: with `source`, the checkpoint, in its message.
    """
    if processing.resample not in _KERNELS:
        raise UserError(
            f"{source}: images resized with {processing.resample!r}; "
            f"supported: {', '.join(_KERNELS)}"
        )


def square_pixels(encoded: tf.Tensor, processing: ImageProcessing) -> tf.Tensor:
    """Hugging Face's image processing up to the normalisation: uint8 [size, size, 3].

    Short side to `size` with antialiasing, rounded to bytes, then the centre. Only the centre is
    computed: one resampling with the crop as its offset. Pillow also rounds between the two axes,
    which takes twice the time here and changes pictures by a grey level.

    Raises:
        tf.errors.InvalidArgumentError: in the graph, where the image cannot be read.
    """
    height, width = declared_size(encoded)
    small = tf.debugging.Assert(height * width <= MAX_PIXELS, ["too many pixels"])
    with tf.control_dependencies([small]):
        image = tf.io.decode_image(encoded, channels=3, expand_animations=False)
    image = tf.ensure_shape(image, (None, None, 3))
    shape = tf.cast(tf.shape(image)[:2], tf.int64)
    resized = tf.constant([processing.size] * 2, tf.int64)
    if processing.keep_aspect:
        resized = resized * shape // tf.reduce_min(shape)
    pixels = tf.raw_ops.ScaleAndTranslate(
        images=image[None],
        size=[processing.size] * 2,
        scale=tf.cast(resized / shape, tf.float32),
        translation=-tf.cast((resized - processing.size) // 2, tf.float32),
        kernel_type=_KERNELS[processing.resample],
        antialias=True,
    )[0]
    return tf.cast(tf.clip_by_value(tf.round(pixels), 0, 255), tf.uint8)


def declared_size(encoded: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """(height, width) int64 from the header of a JPEG, PNG, GIF, BMP or WebP, without decoding.

    Raises:
        tf.errors.InvalidArgumentError: in the graph, for any other or a truncated header.
    """

    def number(position: int, count: int, big_endian: bool = False) -> tf.Tensor:
        digits = tf.io.decode_raw(tf.strings.substr(encoded, position, count), tf.uint8)
        digits = tf.cast(digits if big_endian else digits[::-1], tf.int64)
        return tf.reduce_sum(digits * [256 ** (count - 1 - i) for i in range(count)])

    def starts(prefix: bytes, position: int = 0) -> tf.Tensor:
        return tf.equal(tf.strings.substr(encoded, position, len(prefix)), prefix)

    def jpeg():
        shape = tf.cast(tf.io.extract_jpeg_shape(encoded), tf.int64)
        return shape[0], shape[1]

    def webp():
        def lossless():
            bits = number(21, 4)
            return 1 + bits // 2**14 % 2**14, 1 + bits % 2**14

        return tf.case(
            [
                (starts(b"VP8X", 12), lambda: (number(27, 3) + 1, number(24, 3) + 1)),
                (starts(b"VP8L", 12), lossless),
            ],
            default=lambda: (number(28, 2) % 2**14, number(26, 2) % 2**14),
        )

    def unknown():
        with tf.control_dependencies([tf.debugging.Assert(False, ["unknown image format"])]):
            return tf.constant(0, tf.int64), tf.constant(0, tf.int64)

    return tf.case(
        [
            (starts(b"\xff\xd8\xff"), jpeg),
            (starts(b"\x89PNG"), lambda: (number(20, 4, True), number(16, 4, True))),
            (starts(b"GIF8"), lambda: (number(8, 2), number(6, 2))),
            (starts(b"BM"), lambda: (number(22, 4), number(18, 4))),
            (starts(b"RIFF"), webp),
        ],
        default=unknown,
    )


def damaged_file(corpus: Corpus, shard: int, error: tf.errors.OpError) -> UserError:
    """What to tell about a shard whose records themselves cannot be read."""
    reason = error.message.splitlines()[0]
    return UserError(
        f"{corpus.shard_files[shard]}: damaged TFRecord file ({reason}); copy or prepare it again"
    )
