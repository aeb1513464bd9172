"""Predictions for single images: label maps, assembled from tiles, and group maps."""

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
from eval.segmenter import DecodedTiles, Segmenter


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The prediction for one image.

    Attributes:
        key: key of the image.
        image: the evaluated image (resized by the protocol).
        labels: class of every pixel, at the original size.
        outputs: the outputs of the method for the windows of the image.
        protocol: the settings.
    """

    key: str
    image: UInt8[np.ndarray, "h w 3"]
    labels: UInt16[np.ndarray, "oh ow"]
    outputs: Any
    protocol: Protocol

    @property
    def groups(self) -> Int[np.ndarray, "h w"] | None:
        """Group of every pixel of `image`, see `group_map`; None if the method has no groups."""
        return self._group_map("assignment")

    @property
    def first_groups(self) -> Int[np.ndarray, "h w"] | None:
        """The same after the first grouping stage; None unless the method returns that stage."""
        return self._group_map("first_assignment")

    def _group_map(self, field: str) -> Int[np.ndarray, "h w"] | None:
        soft = getattr(self.outputs, field) if isinstance(self.outputs, Groups) else None
        return None if soft is None else group_map(soft, self.image.shape[:2], self.protocol)


def predict(segmenter: Segmenter, images: Iterable[EvaluatedImage]) -> Iterator[Prediction]:
    """Segments images. Landscape and portrait images are each returned in their order."""
    unfinished = {}
    for decoded in segmenter.decode(segmenter.encode(images)):
        yield from assemble(decoded, segmenter.protocol, unfinished)


def assemble(decoded: DecodedTiles, protocol: Protocol, unfinished: dict) -> Iterator[Prediction]:
    """Copies tiles into label maps, and returns the images that are complete.

    Args:
        decoded: some tiles.
        protocol: the settings.
        unfinished: label maps of incomplete images; updated in place. Pass the same dict to all
            calls.
    """
    labels = np.asarray(decoded.labels)
    for (tile, encoded), part in zip(decoded.tiles, labels, strict=False):
        image = tile.image
        if id(image) not in unfinished:
            unfinished[id(image)] = np.empty(image.label_shape, np.uint16)
        (top, left), (height, width) = tile.corner, tile.size
        target = unfinished[id(image)][top : top + height, left : left + width]
        target[:] = part[:height, :width]
        if tile.last:
            label_map = unfinished.pop(id(image))
            yield Prediction(image.key, image.image, label_map, encoded.outputs, protocol)


def group_map(
    soft: np.ndarray, size: tuple[int, int], protocol: Protocol
) -> Int[np.ndarray, "h w"]:
    """Group of every pixel, taken from the window with the nearest centre.

    Groups of different windows are unrelated, so they get different numbers: the result is
    `window * groups + group`.

    Args:
        soft: [n, g, y, x] soft assignment of the patches of each window.
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
