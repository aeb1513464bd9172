"""Benchmark images as padded batches of few static shapes.

Images are resized here, on the host, to uint8, as OpenCV does for the published rule (bilinear,
half-pixel centres, no smoothing when shrinking, rounded): tf.data does it in parallel, and a
quarter of the bytes goes to the device.
"""

import collections
import dataclasses
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf
from jaxtyping import Int32, UInt8, UInt16

from cocu_jax.errors import UserError
from cocu_jax.input.corpus import Corpus
from eval.confusion import IGNORE
from eval.protocol import Protocol
from eval.windows import padded_length


@dataclasses.dataclass(frozen=True)
class Batch:
    """Images that share a padded shape. Rows past the last image are all `IGNORE`.

    Attributes:
        keys: of the images; fewer than rows if the batch is not full.
        images: resized images, padded below and to the right.
        sizes: true height and width of each.
        labels: true classes at the original size, padded with `IGNORE`.
        originals: true original height and width of each.
    """

    keys: tuple[str, ...]
    images: UInt8[np.ndarray, "b h w 3"]
    sizes: Int32[np.ndarray, "b 2"]
    labels: UInt16[np.ndarray, "b oh ow"]
    originals: Int32[np.ndarray, "b 2"]


@dataclasses.dataclass(frozen=True)
class LabelledImage:
    """One image before batching; fields as in `Batch`."""

    key: str
    image: UInt8[np.ndarray, "h w 3"]
    labels: UInt16[np.ndarray, "oh ow"]


def read_images(
    corpus: Corpus,
    protocol: Protocol,
    process_index: int,
    process_count: int,
    limit: int | None = None,
) -> Iterator[LabelledImage]:
    """This process's share of the images, in the corpus's order, resized by the protocol.

    Args:
        corpus: a segmentation dataset (key, image, segmentation).
        protocol: for the size.
        process_index: which share.
        process_count: number of shares.
        limit: only the first so many images of the corpus.

    Raises:
        UserError: a mask holds a value that is no class.
    """
    records = tf.data.TFRecordDataset(list(corpus.shard_files))
    records = records.take(-1 if limit is None else limit).shard(process_count, process_index)

    def decode(record):
        example = corpus.features.deserialize_example(record)
        image, labels = example["image"], example["segmentation"]
        height, width = tf.shape(image)[0], tf.shape(image)[1]
        size = tf.numpy_function(
            lambda h, w: np.array(protocol.resized(h, w), np.int32), (height, width), tf.int32
        )
        return example["key"], resize_uint8(image, size), tf.cast(labels[..., 0], tf.int32)

    num_classes = len(corpus.metadata["classes"])
    ignore = corpus.metadata["ignore_label"]
    decoded = records.map(decode, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    for key, image, labels in decoded.prefetch(tf.data.AUTOTUNE).as_numpy_iterator():
        key = key.decode()
        ignored = labels == ignore
        if (wrong := labels[~ignored & (labels >= num_classes)]).size:
            raise UserError(
                f"{corpus.directory}: mask of {key} holds {wrong[0]}, but there are {num_classes} "
                "classes; prepare the dataset again"
            )
        yield LabelledImage(key, image, np.where(ignored, IGNORE, labels).astype(np.uint16))


def resize_uint8(image: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
    """Bilinear resize of a uint8 image, rounded back to uint8."""
    resized = tf.image.resize(image, size, antialias=False)
    return tf.cast(tf.clip_by_value(tf.round(resized), 0, 255), tf.uint8)


def batch_images(
    images: Iterator[LabelledImage], protocol: Protocol, rows: Callable[[int, int], int]
) -> Iterator[Batch]:
    """Gathers images of like shape; at the end come batches that are not full.

    Args:
        images: the images.
        protocol: for the shapes.
        rows: number of rows of a batch, by its padded height and width.
    """
    waiting = collections.defaultdict(list)
    for image in images:
        shape = _padded_shape(image, protocol)
        waiting[shape].append(image)
        if len(waiting[shape]) == rows(*shape[:2]):
            yield _stack(waiting.pop(shape), shape, rows(*shape[:2]), protocol)
    for shape, members in sorted(waiting.items(), key=lambda item: item[0]):
        yield _stack(members, shape, rows(*shape[:2]), protocol)


def _padded_shape(image: LabelledImage, protocol: Protocol) -> tuple[int, int, int, int]:
    height, width = image.image.shape[:2]
    return (
        padded_length(height, protocol.crop, protocol.stride),
        padded_length(width, protocol.crop, protocol.stride),
        *(_next_step(side) for side in image.labels.shape),
    )


def _next_step(length: int) -> int:
    """Smallest of 1, 2, 3, 4, 6, 8, 12, 16 ... that is not below `length`."""
    power = 1 << (length - 1).bit_length()
    return power * 3 // 4 if power >= 4 and power * 3 // 4 >= length else power


def _stack(
    members: list[LabelledImage], shape: tuple[int, int, int, int], rows: int, protocol: Protocol
) -> Batch:
    grey = np.round(np.array(protocol.mean) * 255).astype(np.uint8)  # zero, once normalised
    images = np.tile(grey, (rows, *shape[:2], 1))
    labels = np.full((rows, *shape[2:]), IGNORE, np.uint16)
    sizes = np.tile(np.array(shape[:2], np.int32), (rows, 1))
    originals = np.tile(np.array(shape[2:], np.int32), (rows, 1))
    for row, member in enumerate(members):
        sizes[row], originals[row] = member.image.shape[:2], member.labels.shape
        images[row, : sizes[row, 0], : sizes[row, 1]] = member.image
        labels[row, : originals[row, 0], : originals[row, 1]] = member.labels
    return Batch(tuple(m.key for m in members), images, sizes, labels, originals)
