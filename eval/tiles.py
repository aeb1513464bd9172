"""The label map of an image in tiles: each device computes one tile at a time, in fixed shapes.

The scores of the windows that overlap a tile are added up on a canvas of the evaluated image, and
the canvas is resized to the pixels of the tile. Images of common sizes are one tile. A large image
is split into several, so that no array has the size of the image times a number of classes.
"""

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from eval.confusion import IGNORE
from eval.geometry import Axis, nearest, sample_axis, window_count
from eval.images import EvaluatedImage
from eval.protocol import Protocol

_LARGEST_CANVAS = 1024, 2048  # short and long side, unless a window is larger
_TILE_SIZE = 1024, 2048  # short and long side


@dataclasses.dataclass(frozen=True)
class TileShape:
    """The fixed array shapes of a program that decodes tiles.

    Attributes:
        canvas: height and width of the canvas, in pixels of the evaluated image.
        size: height and width of the largest tile of a label map; multiples of 64 and 512 are fast.
        windows: largest number of windows on a canvas.
        patch: side of the model's patches, if the model processes whole images of any shape; None
            if it processes windows of one shape.
    """

    canvas: tuple[int, int]
    size: tuple[int, int]
    windows: int
    patch: int | None = None

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches of the largest whole image."""
        return self.canvas[0] // self.patch, self.canvas[1] // self.patch


class Sampling(NamedTuple):
    """Linear interpolation along an axis: two canvas pixels per target pixel (`geometry.Axis`)."""

    low: Int[Array, "p"]
    high: Int[Array, "p"]
    low_weight: Float[Array, "p"]
    high_weight: Float[Array, "p"]


class TileLayout(NamedTuple):
    """Positions of the windows and pixels of a tile.

    Attributes:
        windows: number of valid windows; the rest is padding.
        corners: first canvas row and column of every window.
        size: height and width of the tile; the rest, below and to the right, is padding.
        rows: interpolation along the canvas rows; the weights include the division by the number of
            windows.
        columns: interpolation along the canvas columns.
        pixels: the evaluated image on the canvas; None unless the protocol refines labels.
        grid: interpolation of a whole image's patches to the canvas, along rows and columns; None
            for windows.
    """

    windows: Int[Array, ""]
    corners: Int[Array, "n 2"]
    size: Int[Array, "2"]
    rows: Sampling
    columns: Sampling
    pixels: UInt8[Array, "h w 3"] | None = None
    grid: tuple[Sampling, Sampling] | None = None


@dataclasses.dataclass(frozen=True)
class Tile:
    """One tile of the label map of an image.

    Attributes:
        image: the image.
        corner: first row and column in the label map.
        size: height and width.
        windows: numbers of the image's windows that overlap the tile.
        layout: arrays for the program.
        truth: true classes, padded with `IGNORE`; None for images without a mask.
        canvas_truth: true classes of the canvas pixels.
        last: whether this is the last tile of the image.
    """

    image: EvaluatedImage
    corner: tuple[int, int]
    size: tuple[int, int]
    windows: Int[np.ndarray, "n"]
    layout: TileLayout
    truth: np.ndarray | None
    canvas_truth: np.ndarray | None
    last: bool


def tile_shape(
    protocol: Protocol, portrait: bool, tile_size: tuple[int, int] | None = None, patch: int = 1
) -> TileShape:
    """The array shapes for all images of an orientation, so that two programs serve a benchmark.

    A canvas is at most twice as long as wide; the few longer images are split into several tiles.
    Whole images and refined ones need a canvas as long as the longest image.

    Args:
        protocol: the settings.
        portrait: whether the height of the images exceeds their width.
        tile_size: short and long side of the largest tile of a label map; None for the default.
        patch: side of the model's patches.
    """
    tile_size = (tile_size or _TILE_SIZE)[:: -1 if portrait else 1]
    if protocol.mode == "whole":
        canvas = tuple(sorted(protocol.resize_long_short, reverse=portrait))
        return TileShape(canvas, tile_size, 1, patch)
    crop, largest = protocol.crop, [max(side, 2 * protocol.crop) for side in _LARGEST_CANVAS]
    short, long = sorted(protocol.resize_long_short or largest)
    # A canvas of this length holds all windows of any one pixel.
    needed = long if protocol.pamr else min(long, 2 * max(short, crop))
    sides = max(min(short, largest[0]), crop), max(min(needed, largest[1]), crop)
    split = sides[0] < short or sides[1] < long
    down, across = (window_count(side, crop, protocol.stride) + split for side in sides)
    return TileShape(sides[:: -1 if portrait else 1], tile_size, down * across)


def cut_tiles(image: EvaluatedImage, protocol: Protocol, shape: TileShape) -> Iterator[Tile]:
    """Splits the label map of an image into tiles, row by row."""
    sides = zip(image.image.shape[:2], image.size, image.label_shape, strict=True)
    down, across = (sample_axis(*side, *protocol.windows(side[0])) for side in sides)
    limits = zip((down, across), image.label_shape, shape.size, shape.canvas, strict=True)
    rows, columns = (_split_axis(*limit) for limit in limits)
    corners = [(row, column) for row in rows for column in columns]
    for row, column in corners:
        last = (row, column) == corners[-1]
        yield _cut(image, down, across, row, column, shape, last, protocol.pamr)


def empty_tile(tile: Tile) -> Tile:
    """A tile of the same shapes without windows and pixels, to pad a batch."""
    layout = tile.layout._replace(windows=np.int32(0), size=np.zeros(2, np.int32))
    ignored = None if tile.truth is None else np.full_like(tile.truth, IGNORE)
    return dataclasses.replace(tile, windows=tile.windows[:0], layout=layout, truth=ignored)


def _split_axis(axis: Axis, length: int, limit: int, canvas: int) -> list[range]:
    """Splits an axis into parts of at most `limit` pixels whose windows fit on the canvas."""
    parts, start = [], 0
    while start < length:
        stop = min(start + limit, length)
        while axis.span(start, stop) > canvas:
            stop = start + (stop - start) // 2
        parts.append(range(start, stop))
        start = stop
    return parts


def _cut(
    image: EvaluatedImage,
    down: Axis,
    across: Axis,
    rows: range,
    columns: range,
    shape: TileShape,
    last: bool,
    with_pixels: bool,
) -> Tile:
    vertical = down.overlapping(rows.start, rows.stop)
    horizontal = across.overlapping(columns.start, columns.stop)
    top, left = int(down.starts[vertical[0]]), int(across.starts[horizontal[0]])
    corners = np.zeros((shape.windows, 2), np.int32)
    grid = np.meshgrid(down.starts[vertical] - top, across.starts[horizontal] - left, indexing="ij")
    numbers = np.array(vertical)[:, None] * len(across.starts) + np.array(horizontal)
    corners[: numbers.size] = np.stack(grid, -1).reshape(-1, 2)
    layout = TileLayout(
        windows=np.int32(numbers.size),
        corners=corners,
        size=np.array([len(rows), len(columns)], np.int32),
        rows=_sampling(down, rows, top, shape.size[0]),
        columns=_sampling(across, columns, left, shape.size[1]),
        pixels=_canvas_pixels(image, top, left, shape) if with_pixels else None,
        grid=_patch_sampling(image, shape) if shape.patch else None,
    )
    truth = canvas_truth = None
    if image.labels is not None:
        truth = np.full(shape.size, IGNORE, np.uint16)
        part = image.labels[rows.start : rows.stop, columns.start : columns.stop]
        truth[: part.shape[0], : part.shape[1]] = part
        canvas_truth = _canvas_truth(image, top, left, shape)
    return Tile(
        image=image,
        corner=(rows.start, columns.start),
        size=(len(rows), len(columns)),
        windows=numbers.reshape(-1),
        layout=layout,
        truth=truth,
        canvas_truth=canvas_truth,
        last=last,
    )


def _sampling(axis: Axis, part: range, origin: int, padded: int) -> Sampling:
    inside = slice(part.start, part.stop)
    arrays = (
        axis.low[inside] - origin,
        axis.high[inside] - origin,
        axis.low_weight[inside],
        axis.high_weight[inside],
    )
    return Sampling(*(np.pad(x, (0, padded - len(part)), mode="edge") for x in arrays))


def _patch_sampling(image: EvaluatedImage, shape: TileShape) -> tuple[Sampling, Sampling]:
    """Interpolation from the patches of a whole image to its pixels; they cover all of it."""
    down, across = (
        _sampling(sample_axis(patches, side, side, patches, patches), range(side), 0, padded)
        for side, padded in zip(image.image.shape[:2], shape.canvas, strict=True)
        for patches in [max(side // shape.patch, 1)]
    )
    return down, across


def _canvas_pixels(image: EvaluatedImage, top: int, left: int, shape: TileShape) -> np.ndarray:
    """The part of the evaluated image that the canvas covers, padded with zeros."""
    pixels = np.zeros((*shape.canvas, 3), np.uint8)
    part = image.image[top:, left:][: shape.canvas[0], : shape.canvas[1]]
    pixels[: part.shape[0], : part.shape[1]] = part
    return pixels


def _canvas_truth(image: EvaluatedImage, top: int, left: int, shape: TileShape) -> np.ndarray:
    """True classes (nearest) of the pixels of the evaluated image that the canvas covers."""
    truth = np.full(shape.canvas, IGNORE, np.uint16)
    size = image.image.shape[:2]
    down, across = (nearest(*sides) for sides in zip(image.label_shape, size, strict=True))
    down, across = down[top:][: shape.canvas[0]], across[left:][: shape.canvas[1]]
    truth[: len(down), : len(across)] = image.labels[down][:, across]
    return truth
