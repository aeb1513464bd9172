"""Makes a square uint8 image of an encoded one: random resized crop and flip, or only a resize."""

import math

import tensorflow as tf
from jaxtyping import Float, Int, UInt8

from cocu_jax.input import image_graph

_ATTEMPTS = 10
_RATIO = (3 / 4, 4 / 3)
_FILTER_BELOW = 0.8
NUM_DRAWS = 4 * _ATTEMPTS + 1


def random_crop(
    encoded: tf.Tensor, draws: Float[tf.Tensor, "d"], size: int, area: tuple[float, float]
) -> UInt8[tf.Tensor, "size size 3"]:
    """A random crop of the image, resized to a square and flipped with probability 1/2.

    Args:
        encoded: an image file; of a JPEG only the crop is decoded.
        draws: `NUM_DRAWS` draws from [0, 1).
        size: side of the result in pixels.
        area: smallest and largest area of the crop, as a share of the image.
    """

    def window(height, width):
        return crop_window(height, width, draws[:-1], area)

    image = resize(image_graph.decode(encoded, window), size)
    # tf.where would take several times as long as decoding.
    return tf.cond(draws[-1] < 0.5, lambda: image, lambda: tf.reverse(image, [1]))


def whole_image(encoded: tf.Tensor, size: int) -> UInt8[tf.Tensor, "size size 3"]:
    """The image, resized to a square without keeping its aspect ratio."""
    return resize(image_graph.decode(encoded), size)


def crop_window(
    height: Int[tf.Tensor, ""],
    width: Int[tf.Tensor, ""],
    draws: Float[tf.Tensor, "d"],
    area: tuple[float, float],
) -> Int[tf.Tensor, "4"]:
    """Top, left, height and width of a random crop, drawn as in torchvision's RandomResizedCrop.

    The area is uniform in `area`, the logarithm of the aspect ratio (width / height) is uniform
    between those of 3/4 and 4/3, and the place is uniform. The first of ten attempts that fits in
    the image is used; otherwise the largest centred crop with an allowed ratio.
    """
    share, ratio, down, right = tf.unstack(tf.reshape(draws, [4, _ATTEMPTS]))
    tall, wide = tf.cast(height, tf.float32), tf.cast(width, tf.float32)
    pixels = tall * wide * (area[0] + (area[1] - area[0]) * share)
    low, high = (math.log(bound) for bound in _RATIO)
    aspect = tf.exp(low + (high - low) * ratio)
    heights = tf.round(tf.sqrt(pixels / aspect))
    widths = tf.round(tf.sqrt(pixels * aspect))
    tops = tf.floor(down * (tall - heights + 1))
    lefts = tf.floor(right * (wide - widths + 1))
    fits = (heights >= 1) & (heights <= tall) & (widths >= 1) & (widths <= wide)
    first = tf.argmax(fits)
    attempt = tf.stack([tops, lefts, heights, widths])[:, first]
    h = tf.minimum(tall, tf.round(wide / _RATIO[0]))
    w = tf.minimum(wide, tf.round(tall * _RATIO[1]))
    centre = tf.stack([(tall - h) // 2, (wide - w) // 2, h, w])
    return tf.cast(tf.where(fits[first], attempt, centre), tf.int32)


def resize(image: UInt8[tf.Tensor, "h w 3"], size: int) -> UInt8[tf.Tensor, "size size 3"]:
    """Bilinear resize with half-pixel centres; with antialiasing if the image shrinks a lot.

    Corpora are stored at 256 x 256, so crops are rarely reduced in size, and then only a little;
    these take the fast path. A larger reduction is antialiased as in Pillow.
    """
    scale = size / tf.cast(tf.shape(image)[:2], tf.float32)
    images = tf.cast(image, tf.float32)[None]  # the kernel for uint8 takes twice as long

    def plain():
        return tf.raw_ops.ResizeBilinear(images=images, size=[size, size], half_pixel_centers=True)

    def filtered():
        return tf.raw_ops.ScaleAndTranslate(
            images=images,
            size=[size, size],
            scale=scale,
            translation=[0.0, 0.0],
            kernel_type="triangle",
        )

    resized = tf.cond(tf.reduce_min(scale) < _FILTER_BELOW, filtered, plain)
    return tf.ensure_shape(tf.cast(resized[0] + 0.5, tf.uint8), [size, size, 3])
