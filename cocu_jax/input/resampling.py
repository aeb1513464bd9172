"""Pillow's resampling of uint8 images as TensorFlow operations, in the same integer arithmetic."""

import math
from typing import NamedTuple

import tensorflow as tf
from jaxtyping import Int, UInt8

_PRECISION = 22  # fractional bits of Pillow's fixed-point weights

_TAPS_AT_ONCE = 4  # one iteration of a loop takes as long as one or two taps of a small image


def _sinc(x):
    return tf.where(x == 0, tf.ones_like(x), tf.sin(math.pi * x) / (math.pi * x))


def _bicubic(x):
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return tf.where(x < 1, near, far)


# Support and weight at distance x >= 0 within the support, by Pillow's name of the interpolation.
_KERNELS = {
    "box": (0.5, tf.ones_like),
    "bilinear": (1.0, lambda x: 1 - x),
    "hamming": (1.0, lambda x: _sinc(x) * (0.54 + 0.46 * tf.cos(math.pi * x))),
    "bicubic": (2.0, _bicubic),
    "lanczos": (3.0, lambda x: _sinc(x) * _sinc(x / 3)),
}
KERNELS = tuple(_KERNELS)


def resize_and_cut(
    image: UInt8[tf.Tensor, "h w 3"],
    size: Int[tf.Tensor, "2"],
    corner: Int[tf.Tensor, "2"],
    side: int,
    resample: str,
) -> UInt8[tf.Tensor, "side side 3"]:
    """A square crop of the resized image, bit-identical to Pillow's; only the crop is computed.

    A reduction is antialiased. As in Pillow, columns are resampled before rows, and intermediate
    values are rounded and clipped to bytes; without that, pixels at strong edges would differ by up
    to eight grey levels.

    Args:
        image: the image.
        size: height and width of the whole resized image.
        corner: top and left of the square in the resized image.
        side: side of the square.
        resample: Pillow's name of the interpolation, one of `KERNELS`.
    """
    shape = tf.shape(image)
    rows = _Weights.of(shape[0], size[0], corner[0], side, resample)
    columns = _Weights.of(shape[1], size[1], corner[1], side, resample)
    # Only the rows that contribute to the square.
    first, last = tf.reduce_min(rows.places), tf.reduce_max(rows.places) + 1
    used = tf.cast(image[first:last], tf.int32)
    wide = columns.apply(tf.transpose(used, [1, 0, 2]))
    square = rows._replace(places=rows.places - first).apply(tf.transpose(wide, [1, 0, 2]))
    return tf.ensure_shape(tf.cast(square, tf.uint8), (side, side, 3))


class _Weights(NamedTuple):
    """Positions and weights of the input pixels that make up each output pixel along one axis."""

    places: Int[tf.Tensor, "side taps"]
    weights: Int[tf.Tensor, "side taps"]

    @classmethod
    def of(cls, length, resized, corner, side: int, resample: str) -> "_Weights":
        """Computes them as Pillow's `precompute_coeffs` and `normalize_coeffs_8bpc` do."""
        reach, kernel = _KERNELS[resample]
        length = tf.cast(length, tf.float64)
        step = length / tf.cast(resized, tf.float64)
        stretch = tf.maximum(step, 1.0)
        centre = (tf.cast(tf.range(side) + tf.cast(corner, tf.int32), tf.float64) + 0.5) * step
        first = tf.maximum(tf.floor(centre - reach * stretch + 0.5), 0.0)
        end = tf.minimum(tf.floor(centre + reach * stretch + 0.5), length)
        taps = tf.math.ceil(tf.reduce_max(end - first) / _TAPS_AT_ONCE) * _TAPS_AT_ONCE
        place = first[:, None] + tf.range(taps, dtype=tf.float64)
        distance = tf.abs(place - centre[:, None] + 0.5) / stretch
        used = (place < end[:, None]) & (distance <= reach)
        weights = tf.where(used, kernel(distance), tf.zeros_like(distance))
        weights /= tf.reduce_sum(weights, axis=1, keepdims=True)
        whole = tf.sign(weights) * tf.floor(tf.abs(weights) * 2.0**_PRECISION + 0.5)
        places = tf.cast(tf.minimum(place, length - 1), tf.int32)
        return cls(places, tf.cast(whole, tf.int32))

    def apply(self, image: Int[tf.Tensor, "n m 3"]) -> Int[tf.Tensor, "side m 3"]:
        """Resamples the first axis; integers from 0 to 255 in and out."""
        side, taps = tf.unstack(tf.shape(self.places))
        shape = tf.shape(image)
        values = tf.reshape(image, [shape[0], -1])

        def add_taps(tap, total):
            for place in range(_TAPS_AT_ONCE):
                taken = tf.gather(values, self.places[:, tap + place])
                total += taken * self.weights[:, tap + place, None]
            return tap + _TAPS_AT_ONCE, total

        half = tf.fill([side, tf.shape(values)[1]], 2 ** (_PRECISION - 1))
        _, total = tf.while_loop(lambda tap, _: tap < taps, add_taps, (0, half))
        mixed = tf.clip_by_value(tf.bitwise.right_shift(total, _PRECISION), 0, 255)
        return tf.reshape(mixed, [side, shape[1], 3])
