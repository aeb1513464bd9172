"""Pixel-adaptive mask refinement (Araslanov and Roth, 2020, arXiv 2005.08104), in a program.

Every step replaces the scores of a pixel by a mean over its neighbours, weighted by how similar in
colour they are: score maps of coarse patches come to follow the edges of the image.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

DILATIONS = (1, 2, 4, 8, 12, 24)
STEPS = 10

_AROUND = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if (y, x) != (0, 0)]


def affinities(
    image: Float[Array, "h w c"], size: Int[Array, "2"], dilations: tuple[int, ...] = DILATIONS
) -> Float[Array, "p h w"]:
    """How much of every neighbour a pixel takes; they add up to 1.

    A softmax over the neighbours of -|difference| / (0.1 deviation), a mean over the channels. The
    deviation is that of all neighbours and, once for each dilation, the pixel itself.

    Args:
        image: the pixels; their scale does not matter.
        size: height and width of the part that counts. Outside it the border is repeated.
        dilations: distances of the neighbours, eight at each.
    """
    total = squares = jnp.zeros_like(image)
    for y, x in _neighbours(dilations):
        difference = _shift(image, y, x, size) - image
        total, squares = total + difference, squares + difference**2
    count = 9 * len(dilations)
    deviation = jnp.sqrt(jnp.maximum(squares - total**2 / count, 0) / (count - 1))
    logits = [
        -(jnp.abs(image - _shift(image, y, x, size)) / (1e-8 + 0.1 * deviation)).mean(-1)
        for y, x in _neighbours(dilations)
    ]
    return jax.nn.softmax(jnp.stack(logits), 0)


def refine(
    scores: Float[Array, "h w k"],
    weights: Float[Array, "p h w"],
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

    def step(_, scores: Array) -> Array:
        shifted = zip(weights, _neighbours(dilations), strict=True)
        return sum(w[..., None] * _shift(scores, y, x, size) for w, (y, x) in shifted)

    return jax.lax.fori_loop(0, steps, step, scores)


def _neighbours(dilations: tuple[int, ...]) -> list[tuple[int, int]]:
    return [(d * y, d * x) for d in dilations for y, x in _AROUND]


def _shift(x: Float[Array, "h w c"], down: int, across: int, size: Int[Array, "2"]) -> Array:
    """The neighbour of every pixel; beyond the border, the pixel at the border."""
    rows = jnp.clip(jnp.arange(x.shape[0]) + down, 0, size[0] - 1)
    columns = jnp.clip(jnp.arange(x.shape[1]) + across, 0, size[1] - 1)
    return x[rows][:, columns]
