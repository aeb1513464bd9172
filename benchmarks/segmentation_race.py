"""Shared by the speed comparisons: images like those of a benchmark, and confusion matrices."""

import time
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from eval.images import EvaluatedImage
from eval.protocol import Protocol
from eval.segmenter import Segmenter

# Original sizes of the images to evaluate, by benchmark.
SIZES = {
    "voc": [(375, 500), (500, 375), (333, 500), (375, 500)],
    "imagenet_s_300": [(375, 500), (500, 375), (480, 640), (375, 500)],
    "ade20k": [(512, 683), (683, 512)],
    "coco_stuff": [(480, 640), (640, 480)],
    "cityscapes": [(1024, 2048)],
}


def make_images(name: str, protocol: Protocol, classes: int) -> list[EvaluatedImage]:
    """Smooth random images of the benchmark's sizes, resized, with random labels."""
    rng = np.random.default_rng(0)
    images = []
    for number, size in enumerate(SIZES[name]):
        blocks = rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)
        resized = tf.image.resize(blocks, protocol.input_size(*size)).numpy().astype(np.uint8)
        labels = rng.integers(0, classes, size, dtype=np.uint16)
        images.append(EvaluatedImage(str(number), resized, size, labels))
    return images


def count_images(segmenter: Segmenter, images: list[EvaluatedImage]) -> np.ndarray:
    """The confusion matrix of images in memory, by the evaluation of this project."""
    decoded = segmenter.decode(segmenter.encode(images))
    return sum(np.asarray(tiles.matrices).sum(0) for tiles in decoded)[0]


def count_one_by_one(
    segment: Callable[[np.ndarray, tuple[int, int]], np.ndarray],
    images: list[EvaluatedImage],
    classes: int,
) -> np.ndarray:
    """The confusion matrix of a function that segments one resized image at a time."""
    matrix = np.zeros(classes * classes, np.int64)
    for image in images:
        labels = segment(image.image, image.labels.shape)
        cells = image.labels.astype(np.int64) * classes + labels
        matrix += np.bincount(cells.reshape(-1), minlength=classes**2)
    return matrix.reshape(classes, classes)


def timed(function, *arguments) -> float:
    """Seconds that one call takes."""
    start = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - start
