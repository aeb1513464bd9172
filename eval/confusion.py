"""The confusion matrix, and the scores that follow from it."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

IGNORE = 65535  # label of pixels that are not counted, including padding
_BLOCK = 64, 512  # size of the blocks of pixels that are counted at once


def confusion_matrix(
    labels: Int[Array, "h w"],
    predictions: Int[Array, "h w"],
    size: Int[Array, "2"],
    num_classes: int,
) -> Int[Array, "c c"]:
    """Number of pixels of true class i (row) and predicted class j (column).

    Args:
        labels: true classes, padded; `IGNORE` is not counted.
        predictions: predicted classes, all below `num_classes`.
        size: height and width without the padding below and to the right.
        num_classes: number of classes, including background.
    """
    steps = tuple(math.gcd(most, side) for most, side in zip(_BLOCK, labels.shape, strict=True))

    def count_row(i: Array, cells: Array) -> Array:
        def count_block(j: Array, cells: Array) -> Array:
            corner = i * steps[0], j * steps[1]
            true, found = (jax.lax.dynamic_slice(x, corner, steps) for x in (labels, predictions))
            cell = true.astype(jnp.int32) * num_classes + found
            cell = jnp.where(true == IGNORE, num_classes**2, cell)
            return cells.at[cell.reshape(-1)].add(1)

        return jax.lax.fori_loop(0, -(-size[1] // steps[1]), count_block, cells)

    empty = jnp.zeros(num_classes**2 + 1, jnp.int32)
    cells = jax.lax.fori_loop(0, -(-size[0] // steps[0]), count_row, empty)
    return cells[:-1].reshape(num_classes, num_classes)


def group_label_counts(
    labels: Int[Array, "*p"], groups: Int[Array, "*p"], num_groups: int, num_classes: int
) -> Int[Array, "g c"]:
    """Number of pixels of each true class in each group; `IGNORE` is not counted."""
    cell = groups.astype(jnp.int32) * num_classes + labels
    cell = jnp.where(labels == IGNORE, num_groups * num_classes, cell)
    counts = jnp.bincount(cell.reshape(-1), length=num_groups * num_classes + 1)
    return counts[:-1].reshape(num_groups, num_classes)


def iou(confusion: Int[np.ndarray, "c c"]) -> Float[np.ndarray, "c"]:
    """TP / (TP + FP + FN) of each class; NaN for a class without true or predicted pixels."""
    hits = np.diagonal(confusion).astype(np.float64)
    union = confusion.sum(0) + confusion.sum(1) - hits
    return np.divide(hits, union, out=np.full(len(hits), np.nan), where=union > 0)


def class_accuracy(confusion: Int[np.ndarray, "c c"]) -> Float[np.ndarray, "c"]:
    """Recall of each class: TP / (TP + FN); NaN for a class without true pixels."""
    hits, total = np.diagonal(confusion).astype(np.float64), confusion.sum(1)
    return np.divide(hits, total, out=np.full(len(hits), np.nan), where=total > 0)


def pixel_accuracy(confusion: Int[np.ndarray, "c c"]) -> float:
    """Share of the counted pixels whose predicted class is correct; NaN if there are none."""
    total = confusion.sum()
    return float(np.trace(confusion) / total) if total else float("nan")


def mean_iou(confusion: Int[np.ndarray, "c c"]) -> float:
    """Mean IoU over the classes that occur; NaN if there are none."""
    scores = iou(confusion)
    return float(np.nanmean(scores)) if np.isfinite(scores).any() else float("nan")


def constant_mean_iou(confusion: Int[np.ndarray, "c c"]) -> float:
    """Mean IoU of predicting the most frequent true class everywhere; NaN without pixels."""
    pixels = confusion.sum(1)
    present = np.count_nonzero(pixels)
    return float(pixels.max() / pixels.sum() / present) if present else float("nan")
