"""Sliding windows over images of different sizes in one padded batch.

Sizes are traced values: one compiled program serves all images that fit its padded shape. Shapes
come from a short ladder, the numbers of windows down and across.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt8

from eval.protocol import Protocol

_EXACT_COUNTS = 10  # longer sides are rare: there a few windows are wasted to save programs


def window_count(length, crop: int, stride: int):
    """Windows along one axis: `length` pixels are covered, the last window ends at the border.

    Works on numbers and on arrays. A side shorter than the window takes one (and padding).
    """
    excess = length - crop + stride - 1
    return excess * (excess > 0) // stride + 1


def padded_length(length: int, crop: int, stride: int) -> int:
    """The bucket of a side of this length: the padded length that its images share."""
    count = window_count(length, crop, stride)
    if count > _EXACT_COUNTS:
        count += -count % 4
    return crop + (count - 1) * stride


def window_starts(length: Int[Array, ""], count: int, crop: int, stride: int) -> Int[Array, "n"]:
    """First pixel of each of `count` windows along an axis; windows past the last repeat it."""
    return jnp.minimum(jnp.arange(count) * stride, jnp.maximum(length - crop, 0))


def window_exists(
    size: Int[Array, "2"], rows: int, columns: int, protocol: Protocol
) -> Bool[Array, "n"]:
    """Which windows of the padded grid, row by row, an image of this size has."""
    counts = window_count(size, protocol.crop, protocol.stride)
    down, across = jnp.arange(rows) < counts[0], jnp.arange(columns) < counts[1]
    return (down[:, None] & across[None, :]).reshape(-1)


def window_grid(height: int, width: int, protocol: Protocol) -> tuple[int, int]:
    """Windows down and across of a padded shape."""
    return tuple(window_count(side, protocol.crop, protocol.stride) for side in (height, width))


def window_corners(
    size: Int[Array, "2"], height: int, width: int, protocol: Protocol
) -> Int[Array, "n 2"]:
    """First row and column of every window of the padded grid, row by row."""
    rows, columns = window_grid(height, width, protocol)
    top = window_starts(size[0], rows, protocol.crop, protocol.stride)
    left = window_starts(size[1], columns, protocol.crop, protocol.stride)
    return jnp.stack(jnp.meshgrid(top, left, indexing="ij"), axis=-1).reshape(-1, 2)


def cut_windows(
    image: UInt8[Array, "h w c"], size: Int[Array, "2"], protocol: Protocol
) -> UInt8[Array, "n crop crop c"]:
    """All windows of one padded image, row by row."""
    corners = window_corners(size, *image.shape[:2], protocol)
    shape = (protocol.crop, protocol.crop, image.shape[2])
    return jax.vmap(lambda corner: jax.lax.dynamic_slice(image, (*corner, 0), shape))(corners)


def coverage(length: Int[Array, ""], padded: int, crop: int, stride: int) -> Float[Array, "padded"]:
    """How many windows cover each pixel of an axis, at least 1 (padding is covered by none)."""
    count = window_count(padded, crop, stride)
    starts = window_starts(length, count, crop, stride)
    exists = jnp.arange(count) < window_count(length, crop, stride)
    pixels = jnp.arange(padded)[:, None]
    covered = (pixels >= starts) & (pixels < starts + crop) & exists
    return jnp.maximum(covered.sum(1), 1).astype(jnp.float32)
