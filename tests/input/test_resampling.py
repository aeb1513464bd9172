"""Resampling in the graph is Pillow's, bit by bit."""

import numpy as np
import pytest
import tensorflow as tf
from image_files import photograph
from PIL import Image

from cocu_jax.input.resampling import KERNELS, resize_and_cut

SHAPES = [(57, 83), (256, 256), (375, 500), (40, 40), (300, 33), (11, 200), (1, 1), (2, 3)]


def checkered(height, width):
    """Black and white pixels: sharp kernels overshoot everywhere."""
    pixels = np.random.default_rng(0).integers(0, 2, (height, width, 3)) * 255
    return pixels.astype(np.uint8)


@pytest.mark.parametrize("resample", KERNELS)
def test_a_cut_of_a_resized_image_is_pillows(resample):
    side = 40
    spec = tf.TensorSpec([2], tf.int64)
    signature = [tf.TensorSpec([None, None, 3], tf.uint8), spec, spec]

    @tf.function(input_signature=signature)
    def resize(image, size, corner):
        return resize_and_cut(image, size, corner, side, resample)

    for make in (photograph, checkered):
        for shape in SHAPES:
            pixels = make(*shape)
            size = np.array(shape) * side // min(shape)
            corner = (size - side) // 3
            kernel = Image.Resampling[resample.upper()]
            want = np.asarray(Image.fromarray(pixels).resize(size[::-1].tolist(), kernel))
            want = want[corner[0] : corner[0] + side, corner[1] : corner[1] + side]
            np.testing.assert_array_equal(resize(pixels, size, corner).numpy(), want)
