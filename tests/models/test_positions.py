"""Positions are resized as torch does it; images are cut into patches as a convolution does."""

import numpy as np
import pytest
import torch

from cocu_jax.errors import UserError
from cocu_jax.models.position import extract_patches, resize_positions


@pytest.mark.parametrize("side, grid", [(14, (28, 28)), (14, (14, 21)), (7, (3, 19)), (2, (5, 1))])
def test_resize_is_torch_bicubic(side, grid):
    table = np.random.default_rng(0).standard_normal((side * side, 10), dtype=np.float32)
    square = torch.from_numpy(table).reshape(1, side, side, 10).permute(0, 3, 1, 2)
    resized = torch.nn.functional.interpolate(square, grid, mode="bicubic", align_corners=False)
    expected = resized.permute(0, 2, 3, 1).reshape(-1, 10).numpy()
    np.testing.assert_allclose(resize_positions(table, grid), expected, rtol=1e-5, atol=1e-5)


def test_patches_times_matrix_is_a_strided_convolution():
    rng = np.random.default_rng(0)
    images = rng.standard_normal((2, 8, 12, 3), dtype=np.float32)
    kernel = rng.standard_normal((5, 3, 4, 4), dtype=np.float32)
    patches, grid = extract_patches(images, 4)
    convolved = torch.nn.functional.conv2d(
        torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(kernel), stride=4
    )
    expected = convolved.flatten(2).transpose(1, 2).numpy()
    actual = patches @ kernel.transpose(2, 3, 1, 0).reshape(-1, 5)
    assert grid == (2, 3)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


def test_a_fraction_of_a_patch_is_refused():
    with pytest.raises(UserError, match="30 x 32 pixels: not a multiple of patch size 8"):
        extract_patches(np.zeros((1, 30, 32, 3)), 8)
