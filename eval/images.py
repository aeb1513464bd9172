"""Benchmark images and their masks, resized by the protocol on the host.

Images are resized to uint8, as OpenCV does for the published evaluation (bilinear, half-pixel
centres, no anti-aliasing, rounded). On the host, tf.data resizes them in parallel, and the devices
receive a quarter of the bytes that float32 would need.
"""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
import tensorflow as tf
from jaxtyping import UInt8, UInt16

from cocu_jax.errors import UserError
from cocu_jax.input.corpus import Corpus, parse_example
from eval.confusion import IGNORE
from eval.protocol import Protocol


@dataclasses.dataclass(frozen=True)
class EvaluatedImage:
    """One image, ready for the model.

    Attributes:
        key: name of the image.
        image: pixels, resized by the protocol.
        size: height and width at which labels are decided; usually those before resizing.
        labels: true classes, or `IGNORE`; None for images without a mask. If the mask is larger
            than `size`, the predicted labels are enlarged to its size (nearest).
        index: position in the corpus.
    """

    key: str
    image: UInt8[np.ndarray, "h w 3"]
    size: tuple[int, int]
    labels: UInt16[np.ndarray, "oh ow"] | None = None
    index: int = 0

    @property
    def label_shape(self) -> tuple[int, int]:
        """Height and width of the label map."""
        return self.size if self.labels is None else self.labels.shape


def read_images(
    corpus: Corpus,
    protocol: Protocol,
    process_index: int,
    process_count: int,
    limit: int | None = None,
    skip: Sequence[int] = (),
) -> Iterator[EvaluatedImage]:
    """Reads the images of this process, in the order of the corpus, resized by the protocol.

    Args:
        corpus: a segmentation dataset (key, image, segmentation).
        protocol: settings of the benchmark.
        process_index: number of this process.
        process_count: number of processes.
        limit: read only the first `limit` images of the corpus.
        skip: positions of images to leave out.

    Raises:
        UserError: an image cannot be read, or a mask holds a value that is not a class.
    """
    records = own_records(corpus, process_index, process_count, limit, skip)

    def decode(index, record):
        example = parse_example(corpus.features, record, decode_images=True)
        image, labels = example["image"], example["segmentation"]
        shape = tf.shape(image)[:2]
        size = tf.numpy_function(
            lambda s: np.array(protocol.label_size(*s.tolist()), np.int32), (shape,), tf.int32
        )
        target = tf.numpy_function(
            lambda s: np.array(protocol.input_size(*s.tolist()), np.int32), (size,), tf.int32
        )
        smaller = tf.reduce_any(size != shape)
        image = tf.cond(smaller, lambda: resize_uint8(image, size), lambda: image)
        resized = resize_uint8(image, target)
        return (
            index,
            example["key"],
            resized,
            size,
            tf.cast(labels[..., 0], tf.int32),
        )

    num_classes = len(corpus.metadata["classes"])
    ignore = corpus.metadata["ignore_label"]
    first = corpus.metadata.get("ignored_classes", 0)  # 1 for voc20: class 0 is ignored
    decoded = records.map(decode, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    decoded = decoded.prefetch(tf.data.AUTOTUNE).as_numpy_iterator()
    for index, key, image, size, labels in report_damage(decoded, corpus):
        key = key.decode()
        ignored = (labels == ignore) | (labels < first)
        if (wrong := labels[~ignored & (labels >= first + num_classes)]).size:
            raise UserError(
                f"{corpus.directory}: mask of {key} holds {wrong[0]}, but there are "
                f"{first + num_classes} classes; prepare the dataset again"
            )
        labels = np.where(ignored, IGNORE, labels - first).astype(np.uint16)
        yield EvaluatedImage(key, image, tuple(size.tolist()), labels, int(index))


def own_records(
    corpus: Corpus, process_index: int, process_count: int, limit: int | None, skip: Sequence[int]
) -> tf.data.Dataset:
    """Records of this process with their positions in the corpus; arguments as `read_images`."""
    records = tf.data.TFRecordDataset(list(corpus.shard_files)).enumerate()
    records = records.take(-1 if limit is None else limit).shard(process_count, process_index)
    if not len(skip):
        return records
    wanted = np.ones(corpus.num_examples, bool)
    wanted[skip] = False
    wanted = tf.constant(wanted)
    return records.filter(lambda position, record: wanted[position])


def report_damage(examples: Iterator[tuple], corpus: Corpus) -> Iterator[tuple]:
    """Passes on the examples of a corpus.

    Raises:
        UserError: an image or a file of the corpus cannot be read.
    """
    read = 0
    try:
        for example in examples:
            yield example
            read += 1
    except tf.errors.OpError as error:
        reason = error.message.partition("\n")[0]
        raise UserError(
            f"{corpus.directory}: cannot be read after {read} images of this process ({reason}); "
            "prepare the dataset again"
        ) from None


def resize_uint8(image: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
    """Resizes a uint8 image bilinearly, without anti-aliasing, and rounds to uint8."""
    floats = tf.cast(image, tf.float32)  # the kernel for uint8 takes twice as long
    resized = tf.image.resize(floats, size, antialias=False)
    return tf.cast(tf.clip_by_value(tf.round(resized), 0, 255), tf.uint8)
