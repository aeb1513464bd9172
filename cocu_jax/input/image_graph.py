"""The decoder of `images` as TensorFlow operations: the same limits, bit-identical pixels.

JPEGs and PNGs of 8 bits, which prepared corpora hold, are decoded without Python. The rest (CMYK,
16 bits, GIF, BMP, WebP, TIFF …) is handed to `images` one by one.
"""

from collections.abc import Callable

import numpy as np
import tensorflow as tf
from jaxtyping import Bool, Int, UInt8

from cocu_jax.input.images import MAX_BYTES, MAX_PIXELS, UnreadableImage, decode_image

# (height, width) of the upright image -> top, left, height and width of the part to decode.
WindowOf = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]

_ACCURATE = {"channels": 3, "dct_method": "INTEGER_ACCURATE"}
# Chroma is interpolated from the neighbouring sample, two pixels away, so a margin of two pixels
# around the part is decoded as well.
_MARGIN = 2
_ORIENTATION = 0x0112
_PILLOW = 0  # in place of an orientation: Pillow has to find it
# TensorFlow's regular expressions read UTF-8; \C matches any single byte.
_PNG_OF_8_BITS = r"\CPNG\r\n\x1a\n\C{4}IHDR\C{8}\x08\C*"
_PNG_METADATA = r"\C*(eXIf|tiff:Orientation|Raw profile type)\C*"  # may ask for a turn
_JFIF, _EXIF = b"\xff\xd8\xff\xe0\x00\x10", b"Exif\0\0"
_TABLES = (b"\xff\xdb", b"\xff\xc0", b"\xff\xc2", b"\xff\xc4", b"\xff\xda")


def decode(encoded: tf.Tensor, window_of: WindowOf | None = None) -> UInt8[tf.Tensor, "h w 3"]:
    """Upright RGB pixels of an image or a part of it; of a JPEG only the part is decoded.

    Args:
        encoded: a scalar string, the file.
        window_of: returns the part to decode; None: the whole image.

    Raises:
        tf.errors.InvalidArgumentError: when the graph is run and the image cannot be read.
    """
    with tf.control_dependencies([_check(tf.strings.length(encoded) <= MAX_BYTES, "bytes")]):
        encoded = tf.identity(encoded)

    @_rare
    def other():
        return tf.cond(
            tf.io.is_jpeg(encoded),
            lambda: _decode_jpeg(encoded, window_of, _jpeg_orientation),
            lambda: _part(_decode_other(encoded), window_of),
        )

    image = tf.cond(
        _is_plain_jpeg(encoded), lambda: _decode_jpeg(encoded, window_of, _upright), other
    )
    return tf.ensure_shape(image, (None, None, 3))


def _rare(branch):
    """A seldom taken branch of a `tf.cond`, kept out of the graph of the caller.

    TensorFlow inlines branches and visits every operation of one that is not taken, which costs a
    tenth of the time of decoding a small image.
    """
    if tf.executing_eagerly():
        return branch
    return tf.function(branch, autograph=False, experimental_attributes={"_noinline": True})


def _is_plain_jpeg(encoded):
    """Whether the tables follow the JFIF header directly, so that there is no EXIF orientation."""
    start = tf.strings.join([tf.strings.substr(encoded, 0, 22), b"\0" * 22])  # for short files
    return tf.reduce_all(tf.strings.substr(start, [0, 20], [6, 2]) == [_JFIF, _TABLES[0]])


def _upright(encoded):
    return tf.constant(1)


def _part(image, window_of):
    if window_of is None:
        return image
    top, left, height, width = tf.unstack(window_of(*tf.unstack(tf.shape(image)[:2])))
    return image[top : top + height, left : left + width]


def _decode_jpeg(encoded, window_of, orientation_of):
    height, width, channels = tf.unstack(tf.io.extract_jpeg_shape(encoded))
    with tf.control_dependencies([_check_size(height, width)]):
        encoded = tf.identity(encoded)
        turn = orientation_of(encoded)

    def as_stored():
        if window_of is None:
            return tf.io.decode_jpeg(encoded, **_ACCURATE)
        return _jpeg_part(encoded, height, width, window_of(height, width))

    @_rare
    def turned_or_by_pillow():
        return tf.cond(in_graph, turned, lambda: _part(_decode_by_pillow(encoded), window_of))

    def turned():
        swapped, upside_down, mirrored = (
            tf.reduce_any(turn == orientations)
            for orientations in ((5, 6, 7, 8), (3, 4, 7, 8), (2, 3, 6, 7))
        )
        if window_of is None:
            part = tf.io.decode_jpeg(encoded, **_ACCURATE)
        else:
            upright = tf.where(swapped, [width, height], [height, width])
            top, left, tall, wide = tf.unstack(window_of(*tf.unstack(upright)))
            top = tf.where(upside_down, upright[0] - tall - top, top)
            left = tf.where(mirrored, upright[1] - wide - left, left)
            window = tf.where(swapped, [left, top, wide, tall], [top, left, tall, wide])
            part = _jpeg_part(encoded, height, width, window)
        part = tf.cond(swapped, lambda: tf.transpose(part, [1, 0, 2]), lambda: part)
        axes = tf.boolean_mask([0, 1], [upside_down, mirrored])
        return tf.reverse(part, axes)

    in_graph = (channels != 4) & (turn != _PILLOW)
    return tf.cond(in_graph & (turn == 1), as_stored, turned_or_by_pillow)


def _jpeg_part(encoded, height, width, window):
    """A part of a JPEG, with exactly the pixels that decoding the whole image would give."""
    start, size = tf.split(window, 2)
    with_margin = tf.maximum(start - _MARGIN, 0)
    end = tf.minimum(start + size + _MARGIN, tf.stack([height, width]))
    box = tf.concat([with_margin, end - with_margin], 0)
    part = tf.image.decode_and_crop_jpeg(encoded, box, **_ACCURATE)
    return tf.slice(part, tf.pad(start - with_margin, [[0, 1]]), tf.concat([size, [3]], 0))


def _jpeg_orientation(encoded) -> Int[tf.Tensor, ""]:
    """The EXIF orientation, 1 to 8; `_PILLOW` if the metadata has an unusual form."""

    def marker(place):
        return tf.strings.substr(encoded, place, 2)

    def is_exif(place):
        exif = tf.equal(tf.strings.substr(encoded, place + 4, 6), _EXIF)
        return exif & tf.equal(marker(place), b"\xff\xe1")

    def other_segment(place):
        return ~tf.reduce_any(marker(place) == _TABLES) & ~is_exif(place)

    def next_segment(place):
        return [tf.minimum(place + 2 + _number(encoded, place + 2, 2, True), last)]

    last = tf.strings.length(encoded) - 12
    (place,) = tf.while_loop(lambda place: (place < last) & other_segment(place), next_segment, [2])
    # Pillow reads XMP if EXIF has no orientation.
    xmp = tf.strings.regex_full_match(encoded, r"\C*tiff:Orientation\C*")
    silent = tf.where(xmp, _PILLOW, 1)
    no_exif = tf.where(tf.reduce_any(marker(place) == _TABLES), silent, _PILLOW)
    return tf.cond(
        is_exif(place), lambda: _orientation_in_exif(encoded, place + 10, silent), lambda: no_exif
    )


def _orientation_in_exif(encoded, start, silent):
    big = tf.equal(tf.strings.substr(encoded, start, 4), b"MM\0*")
    little = tf.equal(tf.strings.substr(encoded, start, 4), b"II*\0")
    rest = tf.strings.length(encoded) - start

    def number(place, count):
        return tf.cond(
            big,
            lambda: _number(encoded, start + place, count, True),
            lambda: _number(encoded, start + place, count, False),
        )

    def directory():
        offset = number(4, 4)
        inside = (offset >= 8) & (offset < rest - 2)
        count = tf.cond(inside, lambda: number(offset, 2), lambda: 0)
        inside &= offset + 2 + 12 * count <= rest
        return tf.cond(inside, lambda: entries(offset + 2, count), lambda: _PILLOW)

    def entries(place, count):
        table = tf.strings.substr(encoded, start + place, 12 * count)
        table = tf.reshape(tf.cast(tf.io.decode_raw(table, tf.uint8), tf.int32), [-1, 12])
        table = tf.cond(big, lambda: table, lambda: tf.gather(table, _SWAPPED, axis=1))
        pairs = table[:, ::2] * 256 + table[:, 1::2]
        found = tf.boolean_mask(pairs, pairs[:, 0] == _ORIENTATION)
        return tf.cond(tf.shape(found)[0] == 1, lambda: value(found), lambda: none_or_odd(found))

    def value(found):  # tag, type 3 (SHORT), count 1 as two halves, value
        usual = tf.reduce_all(found[0, :4] == [_ORIENTATION, 3, *_ONE])
        known = (found[0, 4] >= 1) & (found[0, 4] <= 8)
        return tf.where(usual, tf.where(known, found[0, 4], 1), _PILLOW)

    def none_or_odd(found):
        return tf.where(tf.shape(found)[0] == 0, silent, _PILLOW)

    return tf.cond(big | little, directory, lambda: _PILLOW)


def _decode_other(encoded):
    png = tf.strings.regex_full_match(encoded, _PNG_OF_8_BITS)
    png &= ~tf.strings.regex_full_match(encoded, _PNG_METADATA)
    return tf.cond(png, lambda: _decode_png(encoded), lambda: _decode_by_pillow(encoded))


def _decode_png(encoded):
    width, height = (_number(encoded, place, 4, True) for place in (16, 20))
    with tf.control_dependencies([_check_size(height, width)]):
        image = tf.io.decode_png(encoded, channels=4)
    colours, alpha = image[..., :3], image[..., 3:]

    def on_white():
        opaque = tf.cast(alpha, tf.int32)
        mixed = tf.cast(colours, tf.int32) * opaque + 255 * (255 - opaque)
        return tf.cast((mixed + 127) // 255, tf.uint8)

    # Palettes may contain transparent colours, so the decoded alpha channel is checked.
    return tf.cond(tf.reduce_all(alpha == 255), lambda: colours, on_white)


def _decode_by_pillow(encoded):
    image, reason = tf.numpy_function(_pixels_or_reason, [encoded], [tf.uint8, tf.string])
    with tf.control_dependencies([tf.raw_ops.Assert(condition=reason == b"", data=[reason])]):
        return tf.ensure_shape(tf.identity(image), (None, None, 3))


def _pixels_or_reason(encoded: bytes | np.ndarray) -> tuple[np.ndarray, bytes]:
    # TensorFlow would log the traceback of a Python exception for every damaged file of a corpus.
    try:
        return decode_image(np.asarray(encoded, object).item()), b""  # eagerly it is an array
    except UnreadableImage as error:
        return np.zeros((0, 0, 3), np.uint8), str(error).encode()


def _check_size(height, width):
    height, width = tf.cast(height, tf.int64), tf.cast(width, tf.int64)
    return _check((height > 0) & (width > 0) & (height * width <= MAX_PIXELS), "pixels")


def _check(allowed: Bool[tf.Tensor, ""], what: str) -> tf.Operation:
    # tf.debugging.Assert adds a tf.cond, which costs more.
    return tf.raw_ops.Assert(condition=allowed, data=[f"no {what}, or too many"])


def _number(encoded, place, count: int, big_endian: bool) -> Int[tf.Tensor, ""]:
    """An unsigned integer of the file; a number of 4 bytes must be less than 2**31."""
    digits = tf.cast(tf.io.decode_raw(tf.strings.substr(encoded, place, count), tf.uint8), tf.int32)
    powers = [256**power for power in range(count)]
    return tf.reduce_sum(digits * (powers[::-1] if big_endian else powers))


_ONE = (0, 1)
_SWAPPED = (1, 0, 3, 2, 7, 6, 5, 4, 9, 8, 11, 10)  # tag, type, count, value from little endian
