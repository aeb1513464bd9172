"""Divides images into patches, and resizes learned position embeddings to any grid.

The published models are resized with PyTorch's bicubic interpolation (a = -0.75, half-pixel
centres, clamped borders, no antialiasing); `jax.image.resize` uses a = -0.5 and antialiasing.
Resizing is linear and separable, so it is a product with two small matrices, which are built in
NumPy at trace time.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from cocu_jax.errors import UserError

CUBIC_A = -0.75


def extract_patches(
    images: Float[Array, "b h w c"], patch: int
) -> tuple[Float[Array, "b n i"], tuple[int, int]]:
    """Divides images into flat patches, in row-major order; also returns the grid (rows, columns).

    With flat patches a strided convolution is a matrix product. The last axis of a patch is (row,
    column, channel), flattened.

    Raises:
        UserError: height or width is not a multiple of the patch size.
    """
    batch, height, width, channels = images.shape
    if height % patch or width % patch:
        raise UserError(
            f"image of {height} x {width} pixels: not a multiple of patch size {patch}; resize it"
        )
    grid = height // patch, width // patch
    split = images.reshape(batch, grid[0], patch, grid[1], patch, channels)
    return split.swapaxes(2, 3).reshape(batch, grid[0] * grid[1], -1), grid


def cubic_kernel(distance: np.ndarray) -> np.ndarray:
    """Keys' cubic convolution kernel (Keys, 1981, eq. 4) with PyTorch's a = -0.75."""
    d = np.abs(distance)
    near = ((CUBIC_A + 2) * d - (CUBIC_A + 3)) * d**2 + 1
    far = ((CUBIC_A * d - 5 * CUBIC_A) * d + 8 * CUBIC_A) * d - 4 * CUBIC_A
    return np.where(d <= 1, near, np.where(d < 2, far, 0.0))


def bicubic_matrix(size_in: int, size_out: int) -> Float[np.ndarray, "size_out size_in"]:
    """The matrix of a one-dimensional bicubic resize; its rows sum to one."""
    centres = (np.arange(size_out) + 0.5) * (size_in / size_out) - 0.5
    taps = np.floor(centres)[:, None] + np.arange(-1, 3)
    weights = cubic_kernel(centres[:, None] - taps)
    columns = np.clip(taps, 0, size_in - 1).astype(int)
    matrix = np.zeros((size_out, size_in))
    np.add.at(matrix, (np.arange(size_out)[:, None], columns), weights)
    return matrix


def resize_positions(positions: Float[Array, "n d"], grid: tuple[int, int]) -> Float[Array, "m d"]:
    """Resizes position embeddings of a square grid to `grid` = (rows, columns) of patches.

    Args:
        positions: one embedding per patch of a square grid, in row-major order.
        grid: the new grid; m = rows * columns.
    """
    side = round(positions.shape[0] ** 0.5)
    if grid == (side, side):
        return positions
    rows, columns = (jnp.asarray(bicubic_matrix(side, n), positions.dtype) for n in grid)
    square = positions.reshape(side, side, -1)
    resized = jnp.einsum("hi,wj,ijd->hwd", rows, columns, square, precision="highest")
    return resized.reshape(grid[0] * grid[1], -1)
