"""Resampling between traced sizes, against torch and SciPy at the true sizes."""

import jax
import numpy as np
import pytest
import tensorflow as tf
import torch
from scipy import ndimage

from eval.batches import resize_uint8
from eval.resampling import resize_bilinear, resize_nearest

SIZES = [
    ((7, 9), (7, 9)),
    ((7, 9), (20, 31)),
    ((30, 17), (11, 40)),
    ((1, 5), (9, 3)),
    ((6, 8), (12, 4)),
]


@pytest.mark.parametrize("size,target", SIZES)
def test_bilinear_equals_torch_whatever_the_padding_holds(size, target):
    rng = np.random.default_rng(0)
    x = np.full((32, 24, 5), np.nan, np.float32)
    x[: size[0], : size[1]] = rng.normal(size=(*size, 5))
    resize = jax.jit(resize_bilinear, static_argnums=3)
    found = np.asarray(resize(x, np.array(size), np.array(target), (33, 45)))
    chw = torch.from_numpy(x[: size[0], : size[1]]).permute(2, 0, 1)[None]
    expected = torch.nn.functional.interpolate(chw, target, mode="bilinear", align_corners=False)
    expected = expected[0].permute(1, 2, 0).numpy()
    # float32 positions of up to 45 pixels: the mixing weights are good to 45 * 2**-24
    np.testing.assert_allclose(found[: target[0], : target[1]], expected, atol=1e-5)


@pytest.mark.parametrize("size,target", SIZES)
def test_nearest_takes_the_pixel_under_the_centre(size, target):
    x = np.random.default_rng(0).integers(0, 1000, (32, 24))
    found = np.asarray(resize_nearest(x, np.array(size), np.array(target), (33, 45)))
    rows = np.minimum((np.arange(target[0]) + 0.5) * size[0] // target[0], size[0] - 1).astype(int)
    columns = np.minimum((np.arange(target[1]) + 0.5) * size[1] // target[1], size[1] - 1).astype(
        int
    )
    np.testing.assert_array_equal(found[: target[0], : target[1]], x[rows][:, columns])


@pytest.mark.parametrize(
    "size,target", [((37, 50), (44, 60)), ((80, 61), (40, 30)), ((9, 9), (9, 9))]
)
def test_uint8_resize_is_rounded_bilinear_without_smoothing(size, target):
    image = np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)
    found = resize_uint8(tf.constant(image), tf.constant(target)).numpy()
    centres = [(np.arange(t) + 0.5) * s / t - 0.5 for s, t in zip(size, target, strict=True)]
    at = np.meshgrid(*centres, indexing="ij")
    channels = [
        ndimage.map_coordinates(image[..., c].astype(float), at, order=1, mode="nearest")
        for c in range(3)
    ]
    exact = np.stack(channels, -1)
    assert np.abs(found - exact).max() <= 0.5 + 1e-3  # rounding, and float32 at a tie
