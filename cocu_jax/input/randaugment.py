"""RandAugment `rand-m9-mstd0.5-inc1` as timm defines it (Cubuk et al., 2020), in the input graph.

Two of fifteen operations are drawn with replacement. Each is applied with probability 0.5, at a
magnitude drawn from N(9, 0.5) and clipped to [0, 10]; "inc" means that every operation becomes
stronger with its magnitude. An operation is a function of (image, level, sign): `image` is float32
[s, s, 3] with integer values from 0 to 255, `level` is the magnitude, and `sign` is +1 or -1, the
direction of operations that have two. Results equal those of Pillow's operation of the same name.
Geometric operations are bilinear and fill with the mean colour of ImageNet.

This runs on the host. An operation gathers 50,176 pixels per image and neighbour, which is slow on
a TPU: compiled for v5e, the affine operation alone moves 13 GB per image. TPU hosts have enough
cores for it. Each layer is one function compiled by XLA; TensorFlow's own kernels take three times
as long.
"""

import math

import numpy as np
import tensorflow as tf
from jaxtyping import Float, Int, UInt8

_LAYERS = 2
_PROBABILITY = 0.5
_MAGNITUDE, _DEVIATION, _MAX_LEVEL = 9.0, 0.5, 10.0
_FILL = (124.0, 116.0, 104.0)
NUM_DRAWS = 4 * _LAYERS

Image = Float[tf.Tensor, "s s 3"]
Scalar = Float[tf.Tensor, ""]


def randaugment(
    image: UInt8[tf.Tensor, "s s 3"], draws: Float[tf.Tensor, "d"]
) -> UInt8[tf.Tensor, "s s 3"]:
    """Applies the two layers.

    Args:
        image: a square image.
        draws: `NUM_DRAWS` draws from [0, 1).
    """
    applied, operation, level, sign = plan(draws)
    for layer in range(_LAYERS):
        image = tf.cond(
            applied[layer],
            lambda image=image, layer=layer: apply(
                image, operation[layer], level[layer], sign[layer]
            ),
            lambda image=image: image,
        )
    return image


def plan(draws: Float[tf.Tensor, "*b d"]) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
    """For each layer whether it is applied, its operation, level and sign, all [*b, 2]."""
    applied, operation, level, sign = tf.split(draws, 4, axis=-1)
    deviate = tf.math.ndtri(tf.clip_by_value(level, 2.0**-24, 1 - 2.0**-24))
    return (
        applied < _PROBABILITY,
        tf.cast(operation * len(OPERATIONS), tf.int32),
        tf.clip_by_value(_MAGNITUDE + _DEVIATION * deviate, 0.0, _MAX_LEVEL),
        tf.where(sign < 0.5, -1.0, 1.0),
    )


@tf.function(jit_compile=True, autograph=False)
def apply(
    image: UInt8[tf.Tensor, "s s 3"], operation: Int[tf.Tensor, ""], level: Scalar, sign: Scalar
) -> UInt8[tf.Tensor, "s s 3"]:
    """Applies one operation, given by its index in `OPERATIONS`."""

    def branch(function):
        return lambda: tf.cast(function(tf.cast(image, tf.float32), level, sign), tf.uint8)

    return tf.switch_case(operation, [branch(function) for function in OPERATIONS])


def auto_contrast(image: Image, level: Scalar, sign: Scalar) -> Image:
    """Stretches every channel to the full range."""
    values = tf.range(256)
    present = _histogram(image) > 0
    low = tf.reduce_min(tf.where(present, values, 255), axis=1, keepdims=True)
    high = tf.reduce_max(tf.where(present, values, 0), axis=1, keepdims=True)
    stretched = (values - low) * 255 // tf.maximum(high - low, 1)
    return _look_up(tf.where(high > low, tf.clip_by_value(stretched, 0, 255), values), image)


def equalize(image: Image, level: Scalar, sign: Scalar) -> Image:
    """Flattens the histogram of every channel."""
    values = tf.range(256)
    histogram = _histogram(image)
    below = tf.cumsum(histogram, axis=1, exclusive=True)
    brightest = tf.reduce_max(tf.where(histogram > 0, values, 0), axis=1)
    step = tf.gather(below, brightest, batch_dims=1)[:, None] // 255
    flattened = tf.minimum((step // 2 + below) // tf.maximum(step, 1), 255)
    return _look_up(tf.where(step > 0, flattened, values), image)


def invert(image: Image, level: Scalar, sign: Scalar) -> Image:
    """The negative."""
    return 255.0 - image


def posterize(image: Image, level: Scalar, sign: Scalar) -> Image:
    """Keeps the upper 4 bits (level 0) to none (level 10) of every value."""
    step = 2.0 ** (4.0 + tf.floor(level / _MAX_LEVEL * 4.0))
    return tf.floor(image / step) * step


def solarize(image: Image, level: Scalar, sign: Scalar) -> Image:
    """Inverts values at or above a threshold: 256 at level 0, 0 at level 10."""
    threshold = 256.0 - tf.floor(level / _MAX_LEVEL * 256.0)
    return tf.where(image < threshold, image, 255.0 - image)


def solarize_add(image: Image, level: Scalar, sign: Scalar) -> Image:
    """Adds up to 110 to the values of the darker half."""
    added = tf.minimum(image + tf.floor(level / _MAX_LEVEL * 110.0), 255.0)
    return tf.where(image < 128.0, added, image)


def color(image: Image, level: Scalar, sign: Scalar) -> Image:
    """Moves towards (sign -1) or away from grey."""
    return _blend(_grey(image), image, level, sign)


def contrast(image: Image, level: Scalar, sign: Scalar) -> Image:
    """Moves towards or away from the image's mean grey."""
    return _blend(tf.floor(tf.reduce_mean(_grey(image)) + 0.5), image, level, sign)


def brightness(image: Image, level: Scalar, sign: Scalar) -> Image:
    """Moves towards or away from black."""
    return _blend(0.0, image, level, sign)


def sharpness(image: Image, level: Scalar, sign: Scalar) -> Image:
    """Moves towards or away from a smoothed image; the border of one pixel is not smoothed."""
    rows = image[:-2] + image[1:-1] + image[2:]
    nine = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]
    inner = tf.floor((nine + 4.0 * image[1:-1, 1:-1]) / 13.0 + 0.5)
    smooth = tf.concat([image[1:-1, :1], inner, image[1:-1, -1:]], axis=1)
    smooth = tf.concat([image[:1], smooth, image[-1:]], axis=0)
    return _blend(smooth, image, level, sign)


def rotate(image: Image, level: Scalar, sign: Scalar) -> Image:
    """Rotates counter-clockwise by up to 30 degrees about the centre."""
    angle = sign * level / _MAX_LEVEL * math.radians(30.0)
    cos, sin = tf.cos(angle), tf.sin(angle)
    half = image.shape[0] / 2
    return _affine(image, (cos, -sin, half * (1 - cos + sin)), (sin, cos, half * (1 - cos - sin)))


def shear_x(image: Image, level: Scalar, sign: Scalar) -> Image:
    """Moves every row by up to 0.3 of its distance from the top."""
    rows = np.arange(image.shape[0], dtype=np.float32) + 0.5
    return _move_rows(image, sign * level / _MAX_LEVEL * 0.3 * rows)


def shear_y(image: Image, level: Scalar, sign: Scalar) -> Image:
    """Moves every column by up to 0.3 of its distance from the left."""
    return _transpose(shear_x(_transpose(image), level, sign))


def translate_x(image: Image, level: Scalar, sign: Scalar) -> Image:
    """Moves sideways by up to 0.45 of the width."""
    offset = sign * level / _MAX_LEVEL * 0.45 * image.shape[1]
    return _move_rows(image, tf.fill(image.shape[:1], offset))


def translate_y(image: Image, level: Scalar, sign: Scalar) -> Image:
    """Moves up or down by up to 0.45 of the height."""
    return _transpose(translate_x(_transpose(image), level, sign))


OPERATIONS = (
    auto_contrast,
    equalize,
    invert,
    rotate,
    posterize,
    solarize,
    solarize_add,
    color,
    contrast,
    brightness,
    sharpness,
    shear_x,
    shear_y,
    translate_x,
    translate_y,
)


def _grey(image: Image) -> Float[tf.Tensor, "s s 1"]:
    """ITU-R 601 luma in Pillow's fixed-point arithmetic, exact in float32."""
    weighted = image * tf.constant([19595.0, 38470.0, 7471.0])
    return tf.floor((tf.reduce_sum(weighted, -1, keepdims=True) + 32768.0) / 65536.0)


def _blend(degenerate, image: Image, level: Scalar, sign: Scalar) -> Image:
    """Pillow's ImageEnhance with a factor of 1 +- 0.9 at level 10, at least 0.1."""
    factor = tf.maximum(0.1, 1.0 + sign * level / _MAX_LEVEL * 0.9)
    return tf.floor(tf.clip_by_value(degenerate + factor * (image - degenerate), 0.0, 255.0))


def _histogram(image: Image) -> Int[tf.Tensor, "3 256"]:
    values = tf.reshape(tf.cast(image, tf.int32), [-1, 3])
    ones = tf.ones(values.shape[0], tf.int32)
    # With tf.math.bincount XLA would compile the function again for every image.
    channels = [tf.math.unsorted_segment_sum(ones, values[:, channel], 256) for channel in range(3)]
    return tf.stack(channels)


def _look_up(table: Int[tf.Tensor, "3 256"], image: Image) -> Image:
    places = tf.cast(image, tf.int32) + 256 * tf.range(3)
    return tf.cast(tf.gather(tf.reshape(table, [-1]), places), tf.float32)


def _transpose(image: Image) -> Image:
    return tf.transpose(image, [1, 0, 2])


def _move_rows(image: Image, offset: Float[tf.Tensor, "s"]) -> Image:
    """Bilinear: the pixel at x of row y is read at x + offset[y]."""
    height, width = image.shape[:2]
    x = np.arange(width, dtype=np.float32) + 0.5 + offset[:, None]
    left = tf.floor(x - 0.5)
    share = (x - 0.5 - left)[..., None]

    def read(column):
        column = tf.cast(tf.clip_by_value(column, 0.0, width - 1.0), tf.int32)
        place = width * np.arange(height, dtype=np.int32)[:, None] + column
        return tf.gather(tf.reshape(image, [-1, 3]), place)

    mixed = tf.floor(read(left) * (1 - share) + read(left + 1) * share)
    return tf.where(((x >= 0) & (x < width))[..., None], mixed, tf.constant(_FILL))


def _affine(image: Image, x_row, y_row) -> Image:
    """Bilinear `Image.transform(AFFINE)`: pixel (x, y) is read at (a x + b y + c, d x + e y + f).

    Coordinates are those of pixel centres; a pixel whose source lies outside gets the fill colour.
    """
    height, width = image.shape[:2]
    x = np.arange(width, dtype=np.float32)[None, :] + 0.5
    y = np.arange(height, dtype=np.float32)[:, None] + 0.5
    u = x_row[0] * x + x_row[1] * y + x_row[2]
    v = y_row[0] * x + y_row[1] * y + y_row[2]
    inside = (u >= 0) & (u < width) & (v >= 0) & (v < height)
    left, top = tf.floor(u - 0.5), tf.floor(v - 0.5)
    right_share, bottom_share = (u - 0.5 - left)[..., None], (v - 0.5 - top)[..., None]

    def read(row, column):
        row = tf.cast(tf.clip_by_value(row, 0.0, height - 1.0), tf.int32)
        column = tf.cast(tf.clip_by_value(column, 0.0, width - 1.0), tf.int32)
        return tf.gather(tf.reshape(image, [-1, 3]), row * width + column)

    upper = read(top, left) * (1 - right_share) + read(top, left + 1) * right_share
    lower = read(top + 1, left) * (1 - right_share) + read(top + 1, left + 1) * right_share
    mixed = tf.floor(upper * (1 - bottom_share) + lower * bottom_share)
    return tf.where(inside[..., None], mixed, tf.constant(_FILL))
