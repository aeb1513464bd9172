"""Label maps and group maps of single images, for pictures and for people."""

import dataclasses
import functools
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np
from jaxtyping import Int, UInt8, UInt16

from eval.geometry import nearest_window, window_count
from eval.groups import Groups, hard_map
from eval.images import EvaluatedImage
from eval.protocol import Protocol
from eval.segmenter import Painted, Segmenter


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What the model makes of one image.

    Attributes:
        key: of the image.
        image: the image as evaluated (resized by the protocol).
        labels: class of every pixel, at the original size.
        said: what the method said of the image's windows.
        protocol: the settings.
    """

    key: str
    image: UInt8[np.ndarray, "h w 3"]
    labels: UInt16[np.ndarray, "oh ow"]
    said: Any
    protocol: Protocol

    @property
    def groups(self) -> Int[np.ndarray, "h w"] | None:
        """Group of every pixel of `image`, see `show_groups`; None if the method has no groups."""
        return self._show("soft")

    @property
    def first_groups(self) -> Int[np.ndarray, "h w"] | None:
        """The same after the first grouping stage; None unless the method was asked for it."""
        return self._show("first")

    def _show(self, field: str) -> Int[np.ndarray, "h w"] | None:
        soft = getattr(self.said, field) if isinstance(self.said, Groups) else None
        return None if soft is None else show_groups(soft, self.image.shape[:2], self.protocol)


def predict(segmenter: Segmenter, images: Iterable[EvaluatedImage]) -> Iterator[Prediction]:
    """Segments images; landscape and portrait ones come back each in their order."""
    unfinished = {}
    for painted in segmenter.paint(segmenter.read(images)):
        yield from finish(painted, segmenter.protocol, unfinished)


def finish(painted: Painted, protocol: Protocol, unfinished: dict) -> Iterator[Prediction]:
    """The images whose last piece is among the painted ones.

    Args:
        painted: some pieces.
        protocol: the settings.
        unfinished: label maps of the other images; filled here, one dict for all calls.
    """
    labels = np.asarray(painted.labels)
    for (piece, reading), part in zip(painted.pieces, labels, strict=False):
        image = piece.image
        if id(image) not in unfinished:
            unfinished[id(image)] = np.empty(image.shown, np.uint16)
        (top, left), (height, width) = piece.corner, piece.size
        target = unfinished[id(image)][top : top + height, left : left + width]
        target[:] = part[:height, :width]
        if piece.last:
            whole = unfinished.pop(id(image))
            yield Prediction(image.key, image.image, whole, reading.said, protocol)


def show_groups(
    soft: np.ndarray, size: tuple[int, int], protocol: Protocol
) -> Int[np.ndarray, "h w"]:
    """Group of every pixel, as the window with the nearest centre sees it.

    Groups of different windows have nothing to do with each other: the result is
    `window * groups + group`.

    Args:
        soft: [n, g, y, x] soft assignment of each window's patches.
        size: height and width of the evaluated image.
        protocol: the settings.
    """
    sides = [protocol.windows(side) for side in size]
    crop = sides[0][0], sides[1][0]
    maps = np.stack([np.asarray(_hard_map(window, size=crop)) for window in soft])
    axes = (nearest_window(side, *window) for side, window in zip(size, sides, strict=True))
    (row, y), (column, x) = axes
    across = window_count(size[1], *sides[1])
    window = row[:, None] * across + column
    return window * soft.shape[1] + maps[window, y[:, None], x]


_hard_map = functools.partial(jax.jit, static_argnames="size")(hard_map)
