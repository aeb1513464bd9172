"""What one device paints at once: a piece of an image's label map, in arrays of fixed shape.

A piece takes the windows that its pixels need, lays them on a canvas of the evaluated image, and
paints up to a tile of the label map. An image of usual size is one piece; a large one is several,
so that no array ever has the size of the image times a number of classes.
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
_TILE = 1024, 2048  # short and long side of a piece of the label map


@dataclasses.dataclass(frozen=True)
class PieceShape:
    """The fixed shapes of a program that paints pieces.

    Attributes:
        canvas: height and width of the canvas, in pixels of the evaluated image.
        tile: height and width of the largest piece of a label map; multiples of 64 and 512 are
            fast.
        windows: how many windows a canvas can hold.
        patch: side of the model's patches if it sees whole images, of any shape; None if it sees
            windows of one shape.
    """

    canvas: tuple[int, int]
    tile: tuple[int, int]
    windows: int
    patch: int | None = None

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches of the largest whole image."""
        return self.canvas[0] // self.patch, self.canvas[1] // self.patch


class Sampling(NamedTuple):
    """Target pixels of an axis as mixtures of two canvas pixels each, see `geometry.Axis`."""

    low: Int[Array, "p"]
    high: Int[Array, "p"]
    low_weight: Float[Array, "p"]
    high_weight: Float[Array, "p"]


class Place(NamedTuple):
    """Where the windows and the pixels of a piece are.

    Attributes:
        windows: how many windows there are; those behind them are padding.
        corners: first canvas row and column of every window.
        size: height and width of the piece; what lies below and to the right is padding.
        rows: sampling of the canvas rows; the division by the windows' number is in its weights.
        columns: sampling of the canvas columns.
        pixels: the evaluated image on the canvas; None unless the protocol refines labels by it.
        grid: sampling of a whole image's patches by the canvas, rows and columns; None for windows.
    """

    windows: Int[Array, ""]
    corners: Int[Array, "n 2"]
    size: Int[Array, "2"]
    rows: Sampling
    columns: Sampling
    pixels: UInt8[Array, "h w 3"] | None = None
    grid: tuple[Sampling, Sampling] | None = None


@dataclasses.dataclass(frozen=True)
class Piece:
    """A piece of one image.

    Attributes:
        image: the image.
        corner: first row and column in the label map.
        size: height and width.
        windows: numbers of the image's windows that it needs.
        place: arrays for the program.
        truth: true classes, padded with `IGNORE`; None for images without a mask.
        canvas_truth: the same in canvas pixels.
        last: whether it is the image's last one.
    """

    image: EvaluatedImage
    corner: tuple[int, int]
    size: tuple[int, int]
    windows: Int[np.ndarray, "n"]
    place: Place
    truth: np.ndarray | None
    canvas_truth: np.ndarray | None
    last: bool


def piece_shape(
    protocol: Protocol, portrait: bool, tile: tuple[int, int] | None = None, patch: int = 1
) -> PieceShape:
    """The shapes for all images of an orientation: two programs serve a benchmark.

    A canvas is at most twice as long as wide: few images are longer, and they become several
    pieces. Whole images need one that is as long as the longest, and refined ones get it.

    Args:
        protocol: the settings.
        portrait: whether images are higher than wide.
        tile: short and long side of the largest piece of a label map; None takes the default.
        patch: side of the model's patches.
    """
    tile = (tile or _TILE)[:: -1 if portrait else 1]
    if protocol.mode == "whole":
        canvas = tuple(sorted(protocol.resize_long_short, reverse=portrait))
        return PieceShape(canvas, tile, 1, patch)
    crop, most = protocol.crop, [max(side, 2 * protocol.crop) for side in _LARGEST_CANVAS]
    short, long = sorted(protocol.resize_long_short or most)
    wanted = long if protocol.pamr else min(long, 2 * max(short, crop))  # holds any one pixel
    sides = max(min(short, most[0]), crop), max(min(wanted, most[1]), crop)
    part = sides[0] < short or sides[1] < long
    down, across = (window_count(side, crop, protocol.stride) + part for side in sides)
    return PieceShape(sides[:: -1 if portrait else 1], tile, down * across)


def cut_pieces(image: EvaluatedImage, protocol: Protocol, shape: PieceShape) -> Iterator[Piece]:
    """All pieces of an image's label map."""
    sides = zip(image.image.shape[:2], image.size, image.shown, strict=True)
    down, across = (sample_axis(*side, *protocol.windows(side[0])) for side in sides)
    limits = zip((down, across), image.shown, shape.tile, shape.canvas, strict=True)
    rows, columns = (_parts(*limit) for limit in limits)
    corners = [(row, column) for row in rows for column in columns]
    for row, column in corners:
        last = (row, column) == corners[-1]
        yield _cut(image, down, across, row, column, shape, last, protocol.pamr)


def empty_piece(piece: Piece) -> Piece:
    """A piece of the same shapes without windows and pixels: fills up a batch."""
    place = piece.place._replace(windows=np.int32(0), size=np.zeros(2, np.int32))
    nothing = None if piece.truth is None else np.full_like(piece.truth, IGNORE)
    return dataclasses.replace(piece, windows=piece.windows[:0], place=place, truth=nothing)


def _parts(axis: Axis, length: int, limit: int, canvas: int) -> list[range]:
    """Cuts an axis so that every part fits the tile, and its windows the canvas."""
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
    shape: PieceShape,
    last: bool,
    with_pixels: bool,
) -> Piece:
    places = [axis.touched(r.start, r.stop) for axis, r in ((down, rows), (across, columns))]
    top, left = (int(a.starts[p[0]]) for a, p in zip((down, across), places, strict=True))
    corners = np.zeros((shape.windows, 2), np.int32)
    grid = np.meshgrid(down.starts[places[0]] - top, across.starts[places[1]] - left, indexing="ij")
    numbers = np.array(places[0])[:, None] * len(across.starts) + np.array(places[1])
    corners[: numbers.size] = np.stack(grid, -1).reshape(-1, 2)
    place = Place(
        windows=np.int32(numbers.size),
        corners=corners,
        size=np.array([len(rows), len(columns)], np.int32),
        rows=_sampling(down, rows, top, shape.tile[0]),
        columns=_sampling(across, columns, left, shape.tile[1]),
        pixels=_canvas_pixels(image, top, left, shape) if with_pixels else None,
        grid=_patch_sampling(image, shape) if shape.patch else None,
    )
    truth = canvas_truth = None
    if image.labels is not None:
        truth = np.full(shape.tile, IGNORE, np.uint16)
        part = image.labels[rows.start : rows.stop, columns.start : columns.stop]
        truth[: part.shape[0], : part.shape[1]] = part
        canvas_truth = _canvas_truth(image, top, left, shape)
    return Piece(
        image=image,
        corner=(rows.start, columns.start),
        size=(len(rows), len(columns)),
        windows=numbers.reshape(-1),
        place=place,
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


def _patch_sampling(image: EvaluatedImage, shape: PieceShape) -> tuple[Sampling, Sampling]:
    """How the patches of a whole image become its pixels; they are stretched over all of it."""
    down, across = (
        _sampling(sample_axis(patches, side, side, patches, patches), range(side), 0, padded)
        for side, padded in zip(image.image.shape[:2], shape.canvas, strict=True)
        for patches in [max(side // shape.patch, 1)]
    )
    return down, across


def _canvas_pixels(image: EvaluatedImage, top: int, left: int, shape: PieceShape) -> np.ndarray:
    """The evaluated image as far as the canvas reaches; what lies beyond the image stays zero."""
    pixels = np.zeros((*shape.canvas, 3), np.uint8)
    part = image.image[top:, left:][: shape.canvas[0], : shape.canvas[1]]
    pixels[: part.shape[0], : part.shape[1]] = part
    return pixels


def _canvas_truth(image: EvaluatedImage, top: int, left: int, shape: PieceShape) -> np.ndarray:
    """True classes of the evaluated image's pixels (nearest), as far as the canvas reaches."""
    truth = np.full(shape.canvas, IGNORE, np.uint16)
    size, shown = image.image.shape[:2], image.shown
    down, across = (nearest(*sides) for sides in zip(shown, size, strict=True))
    down, across = down[top:][: shape.canvas[0]], across[left:][: shape.canvas[1]]
    truth[: len(down), : len(across)] = image.labels[down][:, across]
    return truth
