"""From the groups of an image's windows to one label map at the image's original size."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt8

from eval.protocol import Protocol
from eval.resampling import resize_bilinear
from eval.windows import coverage, window_corners, window_exists, window_grid

_CLASSES_PER_BLOCK = 16


def paint_labels(
    maps: UInt8[Array, "n crop crop"],
    scores: Float[Array, "n g c"],
    size: Int[Array, "2"],
    original: Int[Array, "2"],
    shape: tuple[int, int],
    original_shape: tuple[int, int],
    protocol: Protocol,
) -> tuple[Int[Array, "oh ow"], Float[Array, "oh ow"]]:
    """Best class of every pixel: scores averaged over windows, resized bilinearly, argmax.

    A full score volume would take up to 1.2 GB for one image of 301 classes. But a window scores
    nothing but its few image-level classes, so most classes are zero all over the image, and only
    the others are looked at, a block at a time, with a running best.

    Args:
        maps: group of each pixel of each window of the padded grid, row by row.
        scores: class scores of each group of each window.
        size: true height and width of the resized image.
        original: true height and width to paint.
        shape: padded height and width of the resized image.
        original_shape: padded height and width of the result.
        protocol: crop and stride.

    Returns:
        Class of every pixel, and its score.
    """
    exists = window_exists(size, *window_grid(*shape, protocol), protocol)
    scores = jnp.where(exists[:, None, None], scores, 0)
    num_classes = scores.shape[-1]
    occurs = (scores > 0).any((0, 1))
    classes = jnp.argsort(~occurs, stable=True)  # those that occur first, in order
    classes = jnp.pad(classes, (0, -num_classes % _CLASSES_PER_BLOCK), mode="edge")
    corners = window_corners(size, *shape, protocol)
    count = (
        coverage(size[0], shape[0], protocol.crop, protocol.stride)[:, None]
        * coverage(size[1], shape[1], protocol.crop, protocol.stride)[None, :]
    )

    def paint_block(block, best):
        best_score, best_class = best
        start = block * _CLASSES_PER_BLOCK
        ids = jax.lax.dynamic_slice(classes, (start,), (_CLASSES_PER_BLOCK,))
        total = _sum_windows(maps, scores[:, :, ids], corners, shape)
        resized = resize_bilinear(total / count[..., None], size, original, original_shape)
        score = resized.max(-1)
        better = score > best_score  # strict: the lower class wins a tie, as in argmax
        label = ids[resized.argmax(-1)]
        return jnp.where(better, score, best_score), jnp.where(better, label, best_class)

    blocks = (occurs.sum() + _CLASSES_PER_BLOCK - 1) // _CLASSES_PER_BLOCK
    nothing = jnp.full(original_shape, -1.0), jnp.zeros(original_shape, jnp.int32)
    best_score, best_class = jax.lax.fori_loop(0, blocks, paint_block, nothing)
    return best_class, best_score


def _sum_windows(
    maps: UInt8[Array, "n crop crop"],
    scores: Float[Array, "n g k"],
    corners: Int[Array, "n 2"],
    shape: tuple[int, int],
) -> Float[Array, "h w k"]:
    """Adds every window's pixel scores at its place."""
    groups, classes = scores.shape[1:]

    def add_window(window, total):
        corner = (*corners[window], 0)
        member = maps[window][..., None] == jnp.arange(groups, dtype=maps.dtype)
        pixels = sum(member[..., g, None] * scores[window, g] for g in range(groups))
        before = jax.lax.dynamic_slice(total, corner, pixels.shape)
        return jax.lax.dynamic_update_slice(total, before + pixels, corner)

    return jax.lax.fori_loop(0, len(maps), add_window, jnp.zeros((*shape, classes)))


def paint_groups(
    maps: UInt8[Array, "n crop crop"],
    groups: int,
    size: Int[Array, "2"],
    original: Int[Array, "2"],
    shape: tuple[int, int],
    original_shape: tuple[int, int],
    protocol: Protocol,
) -> Int[Array, "oh ow"]:
    """Group of every pixel, as the window with the nearest centre sees it.

    Groups of different windows have nothing to do with each other: the result is
    `window * groups + group`. Arguments as in `paint_labels`.
    """
    rows, columns = window_grid(*shape, protocol)
    corners = window_corners(size, *shape, protocol).reshape(rows, columns, 2)

    def nearest(axis: int, starts: Int[Array, "n"]) -> tuple[Int[Array, "p"], Int[Array, "p"]]:
        """For every target pixel of an axis: its window, and its place in there."""
        pixels = (jnp.arange(original_shape[axis]) + 0.5) * (size[axis] / original[axis])
        pixels = jnp.clip(pixels.astype(jnp.int32), 0, size[axis] - 1)
        distance = jnp.abs(pixels[:, None] - starts - (protocol.crop - 1) / 2)
        window = distance.argmin(-1)  # windows past the last stand where it stands: never first
        return window, pixels - starts[window]

    row, y = nearest(0, corners[:, 0, 0])
    column, x = nearest(1, corners[0, :, 1])
    window = row[:, None] * columns + column
    return window * groups + maps[window, y[:, None], x]
