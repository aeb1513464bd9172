"""Scores of all classes for every pixel, for people; evaluation never has them all at once."""

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

    They are what labels are decided by, before the resizing to the original size: a GroupViT's
    scores; a CLIP's probability of each class's best word.
    """
    said, protocol = prediction.said, prediction.protocol
    size = prediction.image.shape[:2]
    sides = [protocol.windows(side) for side in size]
    crop = sides[0][0], sides[1][0]
    total, count = 0, np.zeros(np.maximum(size, crop), np.float32)
    starts = [window_starts(side, *window) for side, window in zip(size, sides, strict=True)]
    corners = [(top, left) for top in starts[0] for left in starts[1]]
    for window, (top, left) in enumerate(corners):
        pixels = _window_pixels(jax.tree.map(lambda x, w=window: x[w], said), crop)
        if window == 0:
            total = np.zeros((len(pixels), *count.shape), np.float32)
        inside = slice(top, top + crop[0]), slice(left, left + crop[1])
        total[:, *inside] += pixels
        count[inside] += 1
    total /= count
    return _of_classes(segmenter, total[:, : size[0], : size[1]]).astype(np.float16)


def _window_pixels(said: Groups | np.ndarray, size: tuple[int, int]) -> Float[np.ndarray, "k h w"]:
    if isinstance(said, Groups):
        return np.asarray(said.scores).T[:, np.asarray(_hard_map(said.soft, size=size))]
    return np.asarray(_enlarge(said, size=size))


def _of_classes(segmenter: Segmenter, mean: Float[np.ndarray, "k h w"]) -> np.ndarray:
    method = segmenter.method
    if not isinstance(method, DenseMethod):
        return mean[: segmenter.num_classes]
    owners = np.asarray(segmenter.texts.owners)
    mean, owners = mean[owners >= 0], owners[owners >= 0]
    words = np.exp(method.protocol.logit_scale * (mean - mean.max(0)))
    words /= words.sum(0)
    scores = np.zeros((segmenter.num_classes, *mean.shape[1:]), np.float32)
    for word, owner in zip(words, owners.tolist(), strict=True):
        np.maximum(scores[owner], word, out=scores[owner])
    return scores


_hard_map = functools.partial(jax.jit, static_argnames="size")(hard_map)


@functools.partial(jax.jit, static_argnames="size")
def _enlarge(said: Float[Array, "k y x"], size: tuple[int, int]) -> Float[Array, "k h w"]:
    with jax.default_matmul_precision("highest"):
        return jax.image.resize(said, (len(said), *size), "bilinear")
