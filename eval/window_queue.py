"""One queue of windows across images of all shapes, from which the model gets equal blocks."""

import collections
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from eval.geometry import window_starts
from eval.images import EvaluatedImage
from eval.protocol import Protocol


class WindowBlock(NamedTuple):
    """Windows of one or more images, as many as the model processes at once.

    Attributes:
        windows: pixels, padded with zeros after the last window.
        filled: number of windows without the padding.
        images: images whose last window is in this block, in order, and their numbers of windows.
    """

    windows: UInt8[np.ndarray, "n crop crop 3"]
    filled: int
    images: tuple[tuple[EvaluatedImage, int], ...]


def queue_windows(
    images: Iterable[EvaluatedImage], protocol: Protocol, block_size: int, patch: int = 1
) -> Iterator[WindowBlock]:
    """Collects the windows of all images, in order, in blocks of `block_size`.

    Args:
        images: the images.
        protocol: the settings.
        block_size: number of windows per block.
        patch: side of the model's patches; whole images are cropped to a multiple of it.
    """
    if protocol.mode == "whole":
        yield from _queue_whole_images(images, protocol, block_size, patch)
        return
    shape = (block_size, protocol.crop, protocol.crop, 3)
    block, filled, ended = np.zeros(shape, np.uint8), 0, []
    for image in images:
        count = 0
        for window in cut_windows(image, protocol):
            if filled == block_size:
                yield WindowBlock(block, filled, tuple(ended))
                block, filled, ended = np.zeros(shape, np.uint8), 0, []
            block[filled] = window
            filled, count = filled + 1, count + 1
        ended.append((image, count))
    if filled:
        yield WindowBlock(block, filled, tuple(ended))


def _queue_whole_images(
    images: Iterable[EvaluatedImage], protocol: Protocol, block_size: int, patch: int
) -> Iterator[WindowBlock]:
    """Collects whole images; a block has images of one shape."""
    waiting = collections.defaultdict(list)

    def block(members: list[tuple[EvaluatedImage, np.ndarray]]) -> WindowBlock:
        windows = np.stack([pixels for _, pixels in members])
        windows = np.pad(windows, ((0, block_size - len(members)), (0, 0), (0, 0), (0, 0)))
        return WindowBlock(windows, len(members), tuple((image, 1) for image, _ in members))

    for image in images:
        pixels = _pad(image.image, patch, protocol)
        height, width = (side // patch * patch for side in pixels.shape[:2])
        members = waiting[height, width]
        members.append((image, pixels[:height, :width]))
        if len(members) == block_size:
            yield block(waiting.pop((height, width)))
    yield from map(block, waiting.values())


def cut_windows(
    image: EvaluatedImage, protocol: Protocol
) -> Iterator[UInt8[np.ndarray, "crop crop 3"]]:
    """Cuts an image into windows, row by row; a small image is padded with the mean colour."""
    crop, (height, width) = protocol.crop, image.image.shape[:2]
    pixels = _pad(image.image, crop, protocol)
    for top in window_starts(height, crop, protocol.stride):
        for left in window_starts(width, crop, protocol.stride):
            yield pixels[top : top + crop, left : left + crop]


def _pad(
    pixels: UInt8[np.ndarray, "h w 3"], least: int, protocol: Protocol
) -> UInt8[np.ndarray, "ph pw 3"]:
    """Pads sides that are shorter than `least` pixels with the mean colour."""
    height, width = pixels.shape[:2]
    if height >= least and width >= least:
        return pixels
    padded = np.empty((max(height, least), max(width, least), 3), np.uint8)
    padded[:] = np.round(np.array(protocol.mean) * 255)  # zero after normalisation
    padded[:height, :width] = pixels
    return padded
