"""Bilinear and nearest resampling between sizes that are traced values.

Pixel centres are at half coordinates and corners are not aligned, as in OpenCV and in
`torch.nn.functional.interpolate(align_corners=False)`; nothing is smoothed when shrinking.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped


def resize_rows(
    x: Float[Array, "h *rest"], size: Int[Array, ""], target: Int[Array, ""], padded: int
) -> Float[Array, "padded *rest"]:
    """Linear interpolation along the first axis.

    Whole rows are taken and mixed. That is a small share of the work of multiplying with a matrix
    of weights, which is zero but for two entries a row.

    Args:
        x: values; those from row `size` on are padding and never read.
        size: true length of the axis.
        target: length to resize to.
        padded: static length of the result; rows from `target` on are meaningless but finite.
    """
    centre = (jnp.arange(padded) + 0.5) * (size / target) - 0.5
    centre = jnp.clip(centre, 0, size - 1)
    low = centre.astype(jnp.int32)
    high = jnp.minimum(low + 1, size - 1)
    share = (centre - low).reshape(-1, *(1,) * (x.ndim - 1))
    return x[low] * (1 - share) + x[high] * share


def resize_bilinear(
    x: Float[Array, "h w c"],
    size: Int[Array, "2"],
    target: Int[Array, "2"],
    padded: tuple[int, int],
) -> Float[Array, "ph pw c"]:
    """Bilinear interpolation of the top left `size` part of `x` to `target` pixels.

    Args:
        x: values, padded.
        size: true height and width.
        target: height and width to resize to.
        padded: static height and width of the result.
    """
    x = resize_rows(x, size[0], target[0], padded[0]).swapaxes(0, 1)
    return resize_rows(x, size[1], target[1], padded[1]).swapaxes(0, 1)


def resize_nearest(
    x: Shaped[Array, "h w"],
    size: Int[Array, "2"],
    target: Int[Array, "2"],
    padded: tuple[int, int],
) -> Shaped[Array, "ph pw"]:
    """The pixel under each target pixel's centre; arguments as in `resize_bilinear`."""
    for axis in (0, 1):
        centre = (jnp.arange(padded[axis]) + 0.5) * (size[axis] / target[axis])
        x = jnp.take(x, jnp.clip(centre.astype(jnp.int32), 0, size[axis] - 1), axis=axis)
    return x
