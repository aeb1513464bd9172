"""Pixel-adaptive mask refinement (PAMR; Araslanov and Roth, 2020, arXiv 2005.08104).

Every step replaces the scores of a pixel by a mean over its neighbours, weighted by the similarity
of their colours. The score maps of coarse patches thereby follow the edges of the image.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

DILATIONS = (1, 2, 4, 8, 12, 24)
STEPS = 10

_BLOCK = 64, 256  # size of the blocks of pixels that are computed at once

_AROUND = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if (y, x) != (0, 0)]


def affinities(
    image: Float[Array, "h w c"], size: Int[Array, "2"], dilations: tuple[int, ...] = DILATIONS
) -> Float[Array, "h w p"]:
    """Weights of the neighbours of each pixel; they add up to 1.

    The weights are a softmax over the neighbours of -|difference| / (0.1 standard deviation),
    averaged over the channels. The standard deviation is that of all neighbours and, once per
    dilation, the pixel itself.

    Args:
        image: the pixels, in any scale.
        size: height and width of the image without padding. Beyond it, border pixels are repeated.
        dilations: distances of the neighbours; there are eight at each distance.
    """
    offsets, count = _neighbours(dilations), 9 * len(dilations)

    def block(shifted: Callable) -> Float[Array, "r c p"]:
        pixels = shifted(image, 0, 0)
        differences = [shifted(image, y, x) - pixels for y, x in offsets]
        total, squares = sum(differences), sum(d**2 for d in differences)
        deviation = jnp.sqrt(jnp.maximum(squares - total**2 / count, 0) / (count - 1))
        scale = 1 / (1e-8 + 0.1 * deviation)
        logits = [-(jnp.abs(difference) * scale).mean(-1) for difference in differences]
        return jax.nn.softmax(jnp.stack(logits, -1), -1)

    zeros = jnp.zeros((*image.shape[:2], len(offsets)), image.dtype)
    return _by_blocks(block, zeros, size)


def refine(
    scores: Float[Array, "h w k"],
    weights: Float[Array, "h w p"],
    size: Int[Array, "2"],
    dilations: tuple[int, ...] = DILATIONS,
    steps: int = STEPS,
) -> Float[Array, "h w k"]:
    """Replaces the scores by their weighted mean over the neighbours, `steps` times.

    Args:
        scores: scores of some classes. Classes are independent, so they can be refined in blocks.
        weights: `affinities` for the same dilations.
        size: height and width of the image without padding.
        dilations: distances of the neighbours.
        steps: number of steps.
    """
    offsets = _neighbours(dilations)

    def step(_, scores: Array) -> Array:
        def block(shifted: Callable) -> Float[Array, "r c k"]:
            own = shifted(weights, 0, 0)
            return sum(
                own[..., i, None] * shifted(scores, y, x) for i, (y, x) in enumerate(offsets)
            )

        return _by_blocks(block, scores, size)

    return jax.lax.fori_loop(0, steps, step, scores)


def _neighbours(dilations: tuple[int, ...]) -> list[tuple[int, int]]:
    return [(d * y, d * x) for d in dilations for y, x in _AROUND]


def _by_blocks(
    block: Callable[[Callable], Float[Array, "r c k"]],
    result: Float[Array, "h w k"],
    size: Int[Array, "2"],
) -> Float[Array, "h w k"]:
    """Computes the blocks of the result that contain pixels of the image.

    Args:
        block: called with a function `shifted(x, down, right)` that returns the pixels of `x` in
            the block, shifted by this offset; beyond the border, border pixels are repeated.
        result: array that the blocks are written to; blocks outside the image are unchanged.
        size: height and width of the image.
    """
    height, width = (math.gcd(most, side) for most, side in zip(_BLOCK, result.shape, strict=False))

    def visit(number: Array, result: Array) -> Array:
        top, left = number // across * height, number % across * width

        def shifted(x: Array, down: int, right: int) -> Array:
            rows = jnp.clip(top + jnp.arange(height) + down, 0, size[0] - 1)
            columns = jnp.clip(left + jnp.arange(width) + right, 0, size[1] - 1)
            return x[rows[:, None], columns]

        return jax.lax.dynamic_update_slice(result, block(shifted), (top, left, 0))

    down, across = -(-size[0] // height), -(-size[1] // width)
    return jax.lax.fori_loop(0, down * across, visit, result)
