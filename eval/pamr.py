"""Pixel-adaptive mask refinement (Araslanov and Roth, 2020, arXiv 2005.08104), in a program.

Every step replaces the scores of a pixel by a mean over its neighbours, weighted by how similar in
colour they are: score maps of coarse patches come to follow the edges of the image.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

DILATIONS = (1, 2, 4, 8, 12, 24)
STEPS = 10

_BLOCK = 64, 256  # pixels that are computed at once

_AROUND = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if (y, x) != (0, 0)]


def affinities(
    image: Float[Array, "h w c"], size: Int[Array, "2"], dilations: tuple[int, ...] = DILATIONS
) -> Float[Array, "h w p"]:
    """How much of every neighbour a pixel takes; they add up to 1.

    A softmax over the neighbours of -|difference| / (0.1 deviation), a mean over the channels. The
    deviation is that of all neighbours and, once for each dilation, the pixel itself.

    Args:
        image: the pixels; their scale does not matter.
        size: height and width of the part that counts. Outside it the border is repeated.
        dilations: distances of the neighbours, eight at each.
    """
    places, count = _neighbours(dilations), 9 * len(dilations)

    def block(look: Callable) -> Float[Array, "r c p"]:
        pixels = look(image, 0, 0)
        differences = [look(image, y, x) - pixels for y, x in places]
        total, squares = sum(differences), sum(d**2 for d in differences)
        deviation = jnp.sqrt(jnp.maximum(squares - total**2 / count, 0) / (count - 1))
        scale = 1 / (1e-8 + 0.1 * deviation)
        logits = [-(jnp.abs(difference) * scale).mean(-1) for difference in differences]
        return jax.nn.softmax(jnp.stack(logits, -1), -1)

    nothing = jnp.zeros((*image.shape[:2], len(places)), image.dtype)
    return _by_blocks(block, nothing, size)


def refine(
    scores: Float[Array, "h w k"],
    weights: Float[Array, "h w p"],
    size: Int[Array, "2"],
    dilations: tuple[int, ...] = DILATIONS,
    steps: int = STEPS,
) -> Float[Array, "h w k"]:
    """Averages the scores over the neighbours, `steps` times.

    Args:
        scores: of some classes; classes do not meet, so they can be refined a few at a time.
        weights: `affinities` for the same dilations.
        size: height and width of the part that counts.
        dilations: distances of the neighbours.
        steps: how often.
    """
    places = _neighbours(dilations)

    def step(_, scores: Array) -> Array:
        def block(look: Callable) -> Float[Array, "r c k"]:
            own = look(weights, 0, 0)
            return sum(own[..., i, None] * look(scores, y, x) for i, (y, x) in enumerate(places))

        return _by_blocks(block, scores, size)

    return jax.lax.fori_loop(0, steps, step, scores)


def _neighbours(dilations: tuple[int, ...]) -> list[tuple[int, int]]:
    return [(d * y, d * x) for d in dilations for y, x in _AROUND]


def _by_blocks(
    block: Callable[[Callable], Float[Array, "r c k"]],
    result: Float[Array, "h w k"],
    size: Int[Array, "2"],
) -> Float[Array, "h w k"]:
    """Computes only those blocks of the result that hold pixels of the image.

    Args:
        block: gets a function `look(x, down, across)`, which returns the block's neighbours of
            [h, w, ...] in that distance; beyond the border, the pixels at the border.
        result: where the blocks are written; blocks without pixels stay.
        size: height and width of the image.
    """
    height, width = (math.gcd(most, side) for most, side in zip(_BLOCK, result.shape, strict=False))

    def visit(number: Array, result: Array) -> Array:
        top, left = number // across * height, number % across * width

        def look(x: Array, down: int, right: int) -> Array:
            rows = jnp.clip(top + jnp.arange(height) + down, 0, size[0] - 1)
            columns = jnp.clip(left + jnp.arange(width) + right, 0, size[1] - 1)
            return x[rows[:, None], columns]

        return jax.lax.dynamic_update_slice(result, block(look), (top, left, 0))

    down, across = -(-size[0] // height), -(-size[1] // width)
    return jax.lax.fori_loop(0, down * across, visit, result)
