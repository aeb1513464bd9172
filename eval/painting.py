"""From what a method says about windows to the labels of one piece, in a compiled program.

A painter lays the scores of some classes on a canvas (`sum_windows`), resizes the canvas to the
piece, and updates a running result (`visit_pixels`): scores of all classes at full size would take
gigabytes. All loops run as often as the image needs, not as often as the arrays are long.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt8

from eval.pamr import affinities
from eval.pieces import Place, Sampling
from eval.protocol import Protocol

CLASSES_PER_BLOCK = 16
_ROWS, _COLUMNS = 64, 512  # pixels that are resized at once


def sum_windows(
    pixels: Callable[[Int[Array, ""]], Float[Array, "crop crop k"]],
    classes: int,
    place: Place,
    canvas: tuple[int, int],
) -> Float[Array, "h w k"]:
    """Adds every window's pixel scores at its place.

    Args:
        pixels: number of a window -> its pixels' scores.
        classes: how many scores a pixel has.
        place: where the windows are.
        canvas: shape of the result.
    """

    def add_window(window: Array, total: Array) -> Array:
        corner = (*place.corners[window], 0)
        scores = pixels(window)
        before = jax.lax.dynamic_slice(total, corner, scores.shape)
        return jax.lax.dynamic_update_slice(total, before + scores, corner)

    return jax.lax.fori_loop(0, place.windows, add_window, jnp.zeros((*canvas, classes)))


def enlarge(
    patches: Float[Array, "k y x"], place: Place, crop: int, canvas: tuple[int, int]
) -> Float[Array, "k h w"]:
    """Bilinear upsampling of patches to the pixels of their window, or of the whole image.

    A whole image fills the canvas from its corner; what lies beyond the image is not looked at.
    """
    if place.grid is None:
        with jax.default_matmul_precision("highest"):
            return jax.image.resize(patches, (len(patches), crop, crop), "bilinear")
    rows, columns = place.grid
    return _mix(_mix(patches, rows, 0, canvas[0], 1), columns, 0, canvas[1], 2)


def visit_pixels(
    total: Float[Array, "h w k"],
    place: Place,
    update: Callable[[Any, Float[Array, "r c k"]], Any],
    state: Any,
) -> Any:
    """Resizes the canvas to the piece, block by block, dividing by the number of windows.

    Args:
        total: sums over the windows.
        place: where the pixels are.
        update: state and mean scores of a block of pixels -> their new state.
        state: tree of arrays [tile height, tile width].
    """
    across_first = total.shape[0] <= total.shape[1]  # mixes fewer of the pixels that no one needs
    outer, inner = (1, 0) if across_first else (0, 1)
    tile = jax.tree.leaves(state)[0].shape[:2]
    steps = math.gcd(_ROWS, tile[0]), math.gcd(_COLUMNS, tile[1])  # no pixel is visited twice
    axes = place.rows, place.columns

    def visit_outer(i: Array, state: Any) -> Any:
        start = i * steps[outer]
        mixed = _mix(total, axes[outer], start, steps[outer], outer)

        def visit_inner(j: Array, state: Any) -> Any:
            other = j * steps[inner]
            values = _mix(mixed, axes[inner], other, steps[inner], inner)
            corner = (other, start) if across_first else (start, other)
            before = jax.tree.map(lambda x: jax.lax.dynamic_slice(x, corner, steps), state)
            after = update(before, values)
            return jax.tree.map(
                lambda x, y: jax.lax.dynamic_update_slice(x, y, corner), state, after
            )

        return jax.lax.fori_loop(0, -(-place.size[inner] // steps[inner]), visit_inner, state)

    return jax.lax.fori_loop(0, -(-place.size[outer] // steps[outer]), visit_outer, state)


def resize_canvas(
    total: Float[Array, "h w k"], place: Place, tile: tuple[int, int]
) -> Float[Array, "th tw k"]:
    """The whole canvas resized to the piece at once, divided by the number of windows."""
    return _mix(_mix(total, place.rows, 0, tile[0], 0), place.columns, 0, tile[1], 1)


def piece_affinities(
    place: Place, protocol: Protocol, canvas: tuple[int, int], tile: tuple[int, int]
) -> Float[Array, "th tw p"]:
    """Weights of `pamr.refine` from the pixels of the evaluated image, resized to the piece."""
    window = canvas if place.grid else (protocol.crop, protocol.crop)
    one = jnp.ones((*window, 1))
    windows = sum_windows(lambda _: one, 1, place, canvas)  # which resizing divides by
    pixels = resize_canvas(place.pixels * windows, place, tile)
    return affinities(pixels, place.size, protocol.pamr_dilations)


def _mix(x: Array, axis: Sampling, start: Array, count: int, dimension: int) -> Array:
    """Linear interpolation of `count` target pixels along a dimension.

    Whole rows are taken and mixed. That is a small share of the work of multiplying with a matrix
    of weights, which is zero but for two entries a row.
    """
    low, high, low_weight, high_weight = (
        jax.lax.dynamic_slice(field, (start,), (count,)) for field in axis
    )
    shape = [1] * x.ndim
    shape[dimension] = count
    first, second = (jnp.take(x, index, axis=dimension) for index in (low, high))
    return first * low_weight.reshape(shape) + second * high_weight.reshape(shape)


def paint_groups(
    maps: UInt8[Array, "n h w"],
    scores: Float[Array, "n g c"],
    place: Place,
    canvas: tuple[int, int],
    tile: tuple[int, int],
    softmax: bool = False,
    refine: Callable[[Float[Array, "th tw k"]], Float[Array, "th tw k"]] | None = None,
) -> tuple[Int[Array, "th tw"], Float[Array, "th tw"]]:
    """Best class of every pixel: scores averaged over windows, resized bilinearly, argmax.

    A window scores nothing but its few image-level classes, so most classes are zero all over the
    image, and only the others are looked at, a block at a time, with a running best.

    Args:
        maps: group of each pixel of each window.
        scores: class scores of each group of each window.
        place: where windows and pixels are.
        canvas: shape of the canvas.
        tile: shape of the result.
        softmax: take a float32 softmax over the classes before the argmax, see `Protocol`.
        refine: what becomes of the scores of some classes, once they are resized.

    Returns:
        Class of every pixel, and its score (before the softmax).
    """
    exists = jnp.arange(len(scores)) < place.windows
    scores = jnp.where(exists[:, None, None], scores, 0)
    groups, num_classes = scores.shape[1:]
    occurs = (scores > 0).any((0, 1))
    classes = jnp.argsort(~occurs, stable=True)  # those that occur first, in order
    classes = jnp.pad(classes, (0, -num_classes % CLASSES_PER_BLOCK), mode="edge")

    def visit_classes(update: Callable, state: Any) -> Any:
        """Calls `update` with the state, scores and ids of each block of pixels and classes."""

        def visit_block(block: Array, state: Any) -> Any:
            start = block * CLASSES_PER_BLOCK
            ids = jax.lax.dynamic_slice(classes, (start,), (CLASSES_PER_BLOCK,))
            ids = jnp.where(start + jnp.arange(CLASSES_PER_BLOCK) < occurs.sum(), ids, num_classes)
            chosen = scores.at[:, :, ids].get(mode="fill", fill_value=0)

            def pixels(window: Array) -> Array:
                member = maps[window][..., None] == jnp.arange(groups, dtype=maps.dtype)
                return sum(member[..., g, None] * chosen[window, g] for g in range(groups))

            total = sum_windows(pixels, CLASSES_PER_BLOCK, place, canvas)
            if refine is not None:
                return update(state, refine(resize_canvas(total, place, tile)), ids)
            return visit_pixels(total, place, lambda s, v: update(s, v, ids), state)

        blocks = (occurs.sum() + CLASSES_PER_BLOCK - 1) // CLASSES_PER_BLOCK
        return jax.lax.fori_loop(0, blocks, visit_block, state)

    nothing = jnp.zeros(tile), jnp.zeros(tile, jnp.int32)
    score, label = visit_classes(_keep_best, nothing)
    if softmax:
        label = _settle_ties(visit_classes, score, label, occurs)
    return label, score


def _keep_best(best: tuple[Array, Array], values: Array, ids: Array) -> tuple[Array, Array]:
    score = values.max(-1)
    better = score > best[0]  # strict: the lower class wins a tie, as in argmax
    label = ids[values.argmax(-1)]
    return jnp.where(better, score, best[0]), jnp.where(better, label, best[1])


def _settle_ties(
    visit_classes: Callable, score: Array, label: Array, occurs: Bool[Array, "c"]
) -> Int[Array, "th tw"]:
    """The lowest class whose float32 softmax is that of the best one."""
    num_classes = len(occurs)

    def add(total: Array, values: Array, ids: Array) -> Array:
        return total + jnp.where(ids < num_classes, jnp.exp(values), 0).sum(-1)

    def lower(state: tuple[Array, ...], values: Array, ids: Array) -> tuple[Array, ...]:
        score, label, total = state
        ties = jnp.exp(values - score[..., None]) / total[..., None] >= (1 / total)[..., None]
        lowest = jnp.where(ties & (ids < num_classes), ids, num_classes).min(-1)
        return score, jnp.minimum(label, lowest), total

    absent = (~occurs).sum()  # classes that score zero everywhere
    total = visit_classes(add, jnp.zeros_like(score)) + absent
    total = total * jnp.exp(-score)
    label = visit_classes(lower, (score, label, total))[1]
    ties = (absent > 0) & (jnp.exp(-score) / total >= 1 / total)
    return jnp.where(ties, jnp.minimum(label, jnp.argmin(occurs)), label)
