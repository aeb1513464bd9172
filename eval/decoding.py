"""From the outputs of a method to the labels of one tile, inside a compiled program.

The scores of all classes at full size would take gigabytes. So a method adds up the scores of a few
classes on a canvas (`sum_windows`), resizes the canvas to the tile, and updates a running result
(`scan_pixels`). The number of loop iterations depends on the image, not on the size of the arrays.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt8

from eval.pamr import affinities
from eval.protocol import Protocol
from eval.tiles import Sampling, TileLayout

CLASSES_PER_BLOCK = 16
_ROWS, _COLUMNS = 64, 512  # size of the blocks of pixels that are resized at once


def sum_windows(
    pixels: Callable[[Int[Array, ""]], Float[Array, "crop crop k"]],
    classes: int,
    layout: TileLayout,
    canvas: tuple[int, int],
) -> Float[Array, "h w k"]:
    """Adds up the pixel scores of all windows on a canvas.

    Args:
        pixels: number of a window -> scores of its pixels.
        classes: number of scores per pixel.
        layout: positions of the windows.
        canvas: height and width of the canvas.
    """

    def add_window(window: Array, total: Array) -> Array:
        corner = (*layout.corners[window], 0)
        scores = pixels(window)
        before = jax.lax.dynamic_slice(total, corner, scores.shape)
        return jax.lax.dynamic_update_slice(total, before + scores, corner)

    return jax.lax.fori_loop(0, layout.windows, add_window, jnp.zeros((*canvas, classes)))


def upsample_patches(
    patches: Float[Array, "k y x"], layout: TileLayout, crop: int, canvas: tuple[int, int]
) -> Float[Array, "k h w"]:
    """Bilinear upsampling of patches to the pixels of their window, or of the whole image.

    A whole image starts at the corner of the canvas; pixels outside the image are not used.
    """
    if layout.grid is None:
        with jax.default_matmul_precision("highest"):
            return jax.image.resize(patches, (len(patches), crop, crop), "bilinear")
    rows, columns = layout.grid
    return _interpolate(_interpolate(patches, rows, 0, canvas[0], 1), columns, 0, canvas[1], 2)


def scan_pixels(
    total: Float[Array, "h w k"],
    layout: TileLayout,
    update: Callable[[Any, Float[Array, "r c k"]], Any],
    state: Any,
) -> Any:
    """Resizes the canvas to the tile and updates a state, one block of pixels at a time.

    Args:
        total: sums of the scores over windows.
        layout: positions of the windows and pixels.
        update: called with the state and the mean scores of a block of pixels; returns the new
            state of these pixels.
        state: tree of arrays [tile height, tile width].

    Returns:
        The state after all pixels have been visited.
    """
    across_first = total.shape[0] <= total.shape[1]  # interpolates fewer pixels outside the tile
    outer, inner = (1, 0) if across_first else (0, 1)
    tile_size = jax.tree.leaves(state)[0].shape[:2]
    # Divisors of the sides of the tile, so that no pixel is visited twice.
    steps = math.gcd(_ROWS, tile_size[0]), math.gcd(_COLUMNS, tile_size[1])
    axes = layout.rows, layout.columns

    def visit_outer(i: Array, state: Any) -> Any:
        start = i * steps[outer]
        mixed = _interpolate(total, axes[outer], start, steps[outer], outer)

        def visit_inner(j: Array, state: Any) -> Any:
            other = j * steps[inner]
            values = _interpolate(mixed, axes[inner], other, steps[inner], inner)
            corner = (other, start) if across_first else (start, other)
            before = jax.tree.map(lambda x: jax.lax.dynamic_slice(x, corner, steps), state)
            after = update(before, values)
            return jax.tree.map(
                lambda x, y: jax.lax.dynamic_update_slice(x, y, corner), state, after
            )

        return jax.lax.fori_loop(0, -(-layout.size[inner] // steps[inner]), visit_inner, state)

    return jax.lax.fori_loop(0, -(-layout.size[outer] // steps[outer]), visit_outer, state)


def resize_canvas(
    total: Float[Array, "h w k"], layout: TileLayout, tile_size: tuple[int, int]
) -> Float[Array, "th tw k"]:
    """Resizes the whole canvas to the tile at once, and divides by the number of windows."""
    rows = _interpolate(total, layout.rows, 0, tile_size[0], 0)
    return _interpolate(rows, layout.columns, 0, tile_size[1], 1)


def tile_affinities(
    layout: TileLayout, protocol: Protocol, canvas: tuple[int, int], tile_size: tuple[int, int]
) -> Float[Array, "th tw p"]:
    """Weights for `pamr.refine`, from the evaluated image resized to the tile."""
    window = canvas if layout.grid else (protocol.crop, protocol.crop)
    one = jnp.ones((*window, 1))
    windows = sum_windows(lambda _: one, 1, layout, canvas)  # resizing divides by their number
    pixels = resize_canvas(layout.pixels * windows, layout, tile_size)
    return affinities(pixels, layout.size, protocol.pamr_dilations)


def _interpolate(x: Array, axis: Sampling, start: Array, count: int, dimension: int) -> Array:
    """Linear interpolation of `count` target pixels along a dimension.

    Gathering the two source rows of a target row is much cheaper than a product with a matrix of
    weights, which has only two non-zero entries per row.
    """
    low, high, low_weight, high_weight = (
        jax.lax.dynamic_slice(field, (start,), (count,)) for field in axis
    )
    shape = [1] * x.ndim
    shape[dimension] = count
    first, second = (jnp.take(x, index, axis=dimension) for index in (low, high))
    return first * low_weight.reshape(shape) + second * high_weight.reshape(shape)


def decode_groups(
    maps: UInt8[Array, "n h w"],
    scores: Float[Array, "n g c"],
    layout: TileLayout,
    canvas: tuple[int, int],
    tile_size: tuple[int, int],
    softmax: bool = False,
    refine: Callable[[Float[Array, "th tw k"]], Float[Array, "th tw k"]] | None = None,
) -> tuple[Int[Array, "th tw"], Float[Array, "th tw"]]:
    """Best class of every pixel: scores averaged over windows, resized bilinearly, argmax.

    A window has non-zero scores for a few classes only. Classes that are zero in the whole image
    are skipped; the others are computed in blocks, keeping the best score so far.

    Args:
        maps: group of each pixel of each window.
        scores: class scores of each group of each window.
        layout: positions of the windows and pixels.
        canvas: height and width of the canvas.
        tile_size: height and width of the result.
        softmax: take a float32 softmax over the classes before the argmax, see `Protocol`.
        refine: optional function that is applied to the resized scores of a block of classes.

    Returns:
        Class of every pixel, and its score (before the softmax).
    """
    exists = jnp.arange(len(scores)) < layout.windows
    scores = jnp.where(exists[:, None, None], scores, 0)
    groups, num_classes = scores.shape[1:]
    occurs = (scores > 0).any((0, 1))
    classes = jnp.argsort(~occurs, stable=True)  # classes that occur come first, in order
    classes = jnp.pad(classes, (0, -num_classes % CLASSES_PER_BLOCK), mode="edge")

    def visit_classes(update: Callable, state: Any) -> Any:
        """Calls `update` with the state, scores and class ids of each block."""

        def visit_block(block: Array, state: Any) -> Any:
            start = block * CLASSES_PER_BLOCK
            ids = jax.lax.dynamic_slice(classes, (start,), (CLASSES_PER_BLOCK,))
            ids = jnp.where(start + jnp.arange(CLASSES_PER_BLOCK) < occurs.sum(), ids, num_classes)
            chosen = scores.at[:, :, ids].get(mode="fill", fill_value=0)

            def pixels(window: Array) -> Array:
                member = maps[window][..., None] == jnp.arange(groups, dtype=maps.dtype)
                return sum(member[..., g, None] * chosen[window, g] for g in range(groups))

            total = sum_windows(pixels, CLASSES_PER_BLOCK, layout, canvas)
            if refine is not None:
                return update(state, refine(resize_canvas(total, layout, tile_size)), ids)
            return scan_pixels(total, layout, lambda s, v: update(s, v, ids), state)

        blocks = (occurs.sum() + CLASSES_PER_BLOCK - 1) // CLASSES_PER_BLOCK
        return jax.lax.fori_loop(0, blocks, visit_block, state)

    initial = jnp.zeros(tile_size), jnp.zeros(tile_size, jnp.int32)
    score, label = visit_classes(_keep_best, initial)
    if softmax:
        label = _break_ties(visit_classes, score, label, occurs)
    return label, score


def _keep_best(best: tuple[Array, Array], values: Array, ids: Array) -> tuple[Array, Array]:
    score = values.max(-1)
    better = score > best[0]  # strict: the lower class wins a tie, as in argmax
    label = ids[values.argmax(-1)]
    return jnp.where(better, score, best[0]), jnp.where(better, label, best[1])


def _break_ties(
    visit_classes: Callable, score: Array, label: Array, occurs: Bool[Array, "c"]
) -> Int[Array, "th tw"]:
    """The lowest class whose float32 softmax equals that of the best class."""
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
