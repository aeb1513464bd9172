"""From an encoded image to a square of uint8: random resized crop and flip, or a plain resize."""

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
    """A random part of the image, resized to a square and flipped half of the time.

    Args:
        encoded: an image file; of a JPEG only the part is decoded.
        draws: `NUM_DRAWS` draws from [0, 1).
        size: side of the result in pixels.
        area: smallest and largest share of the image's area that the part takes.
    """

    def window(height, width):
        return crop_window(height, width, draws[:-1], area)

    image = resize(image_graph.decode(encoded, window), size)
    # Not tf.where: it is several times slower than decoding.
    return tf.cond(draws[-1] < 0.5, lambda: image, lambda: tf.reverse(image, [1]))


def whole_image(encoded: tf.Tensor, size: int) -> UInt8[tf.Tensor, "size size 3"]:
    """The image, resized to a square without keeping its aspect."""
    return resize(image_graph.decode(encoded), size)


def crop_window(
    height: Int[tf.Tensor, ""],
    width: Int[tf.Tensor, ""],
    draws: Float[tf.Tensor, "d"],
    area: tuple[float, float],
) -> Int[tf.Tensor, "4"]:
    """Top, left, height and width of a random part, as torchvision's RandomResizedCrop draws it.

    Area uniform in `area`, logarithm of the aspect ratio (width by height) uniform between those of
    3/4 and 4/3, place uniform; the first of ten attempts that fits into the image, else its largest
    centred part with an allowed ratio.
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
    """Bilinear resize, half-pixel centres, rounded; filtered against aliasing if it shrinks much.

    Corpora are stored at 256 x 256, so that parts of them seldom shrink, and then by little: those
    take the fast path. Larger images are resized as Pillow does it.
    """
    scale = size / tf.cast(tf.shape(image)[:2], tf.float32)
    images = image[None]

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
