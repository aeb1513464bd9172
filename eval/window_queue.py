"""One queue of windows across images of all shapes: the model sees blocks of windows only."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from eval.geometry import window_starts
from eval.images import EvaluatedImage
from eval.protocol import Protocol


class WindowBlock(NamedTuple):
    """Windows of one or more images, as many as the model takes at once.

    Attributes:
        windows: pixels; rows past the last window are zero.
        filled: how many windows there are.
        images: the images whose last window is here, in order, with their number of windows.
    """

    windows: UInt8[np.ndarray, "n crop crop 3"]
    filled: int
    images: tuple[tuple[EvaluatedImage, int], ...]


def queue_windows(
    images: Iterable[EvaluatedImage], protocol: Protocol, rows: int
) -> Iterator[WindowBlock]:
    """Windows of all images, row by row and image by image, in blocks of `rows`."""
    shape = (rows, protocol.crop, protocol.crop, 3)
    block, filled, ended = np.zeros(shape, np.uint8), 0, []
    for image in images:
        count = 0
        for window in cut_windows(image, protocol):
            if filled == rows:
                yield WindowBlock(block, filled, tuple(ended))
                block, filled, ended = np.zeros(shape, np.uint8), 0, []
            block[filled] = window
            filled, count = filled + 1, count + 1
        ended.append((image, count))
    if filled:
        yield WindowBlock(block, filled, tuple(ended))


def cut_windows(
    image: EvaluatedImage, protocol: Protocol
) -> Iterator[UInt8[np.ndarray, "crop crop 3"]]:
    """All windows of one image, row by row; what lies outside is filled up with the mean colour."""
    pixels, crop = image.image, protocol.crop
    height, width = pixels.shape[:2]
    if height < crop or width < crop:
        padded = np.empty((max(height, crop), max(width, crop), 3), np.uint8)
        padded[:] = np.round(np.array(protocol.mean) * 255)  # zero, once normalised
        padded[:height, :width] = pixels
        pixels = padded
    for top in window_starts(height, crop, protocol.stride):
        for left in window_starts(width, crop, protocol.stride):
            yield pixels[top : top + crop, left : left + crop]
