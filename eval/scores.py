"""Scores of all classes for every pixel of an image. Evaluation itself does not need them."""

import functools

import jax
import numpy as np
from jaxtyping import Array, Float, Float16

from eval.dense import DenseMethod
from eval.geometry import window_starts
from eval.groups import Groups, hard_map
from eval.prediction import Prediction
from eval.segmenter import Segmenter


def class_scores(segmenter: Segmenter, prediction: Prediction) -> Float16[np.ndarray, "c h w"]:
    """Scores of every class at the size of `prediction.image`, averaged over windows.

    For a GroupViT, these are the class scores of the groups; for a CLIP, the probability of the
    best word of each class. The labels follow from them after resizing to the original size, and
    after refinement if the protocol has it.
    """
    outputs, protocol = prediction.outputs, prediction.protocol
    size = prediction.image.shape[:2]
    sides = [protocol.windows(side) for side in size]
    crop = sides[0][0], sides[1][0]
    total, count = 0, np.zeros(np.maximum(size, crop), np.float32)
    starts = [window_starts(side, *window) for side, window in zip(size, sides, strict=True)]
    corners = [(top, left) for top in starts[0] for left in starts[1]]
    for window, (top, left) in enumerate(corners):
        pixels = _pixel_scores(jax.tree.map(lambda x, w=window: x[w], outputs), crop)
        if window == 0:
            total = np.zeros((len(pixels), *count.shape), np.float32)
        inside = slice(top, top + crop[0]), slice(left, left + crop[1])
        total[:, *inside] += pixels
        count[inside] += 1
    total /= count
    return _class_scores(segmenter, total[:, : size[0], : size[1]]).astype(np.float16)


def _pixel_scores(
    outputs: Groups | np.ndarray, size: tuple[int, int]
) -> Float[np.ndarray, "k h w"]:
    """Scores of the pixels of one window: per class for groups, per word for a CLIP."""
    if isinstance(outputs, Groups):
        return np.asarray(outputs.scores).T[:, np.asarray(_hard_map(outputs.assignment, size=size))]
    return np.asarray(_upsample(outputs, size=size))


def _class_scores(segmenter: Segmenter, mean: Float[np.ndarray, "k h w"]) -> np.ndarray:
    """Scores of the classes, from mean scores of classes or words."""
    method = segmenter.method
    if not isinstance(method, DenseMethod):
        return mean[: segmenter.num_classes]
    class_ids = np.asarray(segmenter.embeddings.class_ids)
    mean, class_ids = mean[class_ids >= 0], class_ids[class_ids >= 0]
    words = np.exp(method.protocol.logit_scale * (mean - mean.max(0)))
    words /= words.sum(0)
    scores = np.zeros((segmenter.num_classes, *mean.shape[1:]), np.float32)
    for word, class_id in zip(words, class_ids.tolist(), strict=True):
        np.maximum(scores[class_id], word, out=scores[class_id])
    return scores


_hard_map = functools.partial(jax.jit, static_argnames="size")(hard_map)


@functools.partial(jax.jit, static_argnames="size")
def _upsample(outputs: Float[Array, "k y x"], size: tuple[int, int]) -> Float[Array, "k h w"]:
    with jax.default_matmul_precision("highest"):
        return jax.image.resize(outputs, (len(outputs), *size), "bilinear")
