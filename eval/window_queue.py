"""One queue of windows across images of all shapes: the model sees blocks of windows only."""

import collections
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
    images: Iterable[EvaluatedImage], protocol: Protocol, rows: int, patch: int = 1
) -> Iterator[WindowBlock]:
    """Windows of all images, row by row and image by image, in blocks of `rows`.

    Args:
        images: the images.
        protocol: the settings.
        rows: windows of a block.
        patch: side of the model's patches; whole images are cut down to a multiple of it.
    """
    if protocol.mode == "whole":
        yield from _queue_whole(images, protocol, rows, patch)
        return
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


def _queue_whole(
    images: Iterable[EvaluatedImage], protocol: Protocol, rows: int, patch: int
) -> Iterator[WindowBlock]:
    """Whole images; those of one shape wait for one another."""
    waiting = collections.defaultdict(list)

    def block(members: list[tuple[EvaluatedImage, np.ndarray]]) -> WindowBlock:
        windows = np.stack([pixels for _, pixels in members])
        windows = np.pad(windows, ((0, rows - len(members)), (0, 0), (0, 0), (0, 0)))
        return WindowBlock(windows, len(members), tuple((image, 1) for image, _ in members))

    for image in images:
        pixels = _fill(image.image, patch, protocol)
        height, width = (side // patch * patch for side in pixels.shape[:2])
        members = waiting[height, width]
        members.append((image, pixels[:height, :width]))
        if len(members) == rows:
            yield block(waiting.pop((height, width)))
    yield from map(block, waiting.values())


def cut_windows(
    image: EvaluatedImage, protocol: Protocol
) -> Iterator[UInt8[np.ndarray, "crop crop 3"]]:
    """All windows of one image, row by row; what lies outside is filled up with the mean colour."""
    crop, (height, width) = protocol.crop, image.image.shape[:2]
    pixels = _fill(image.image, crop, protocol)
    for top in window_starts(height, crop, protocol.stride):
        for left in window_starts(width, crop, protocol.stride):
            yield pixels[top : top + crop, left : left + crop]


def _fill(
    pixels: UInt8[np.ndarray, "h w 3"], least: int, protocol: Protocol
) -> UInt8[np.ndarray, "fh fw 3"]:
    """The pixels, with the mean colour beyond them where a side is shorter than `least`."""
    height, width = pixels.shape[:2]
    if height >= least and width >= least:
        return pixels
    filled = np.empty((max(height, least), max(width, least), 3), np.uint8)
    filled[:] = np.round(np.array(protocol.mean) * 255)  # zero, once normalised
    filled[:height, :width] = pixels
    return filled
