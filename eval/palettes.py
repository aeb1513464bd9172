"""Colours of classes and groups."""

import colorsys

import numpy as np
from jaxtyping import UInt8

_GOLDEN_TURN = 0.381966  # steps of this share of the colour circle stay apart for long

# Cityscapes' own colours of its 19 classes (cityscapesScripts, labels.py).
_CITYSCAPES = (
    (128, 64, 128), (244, 35, 232), (70, 70, 70), (102, 102, 156), (190, 153, 153),
    (153, 153, 153), (250, 170, 30), (220, 220, 0), (107, 142, 35), (152, 251, 152),
    (70, 130, 180), (220, 20, 60), (255, 0, 0), (0, 0, 142), (0, 0, 70),
    (0, 60, 100), (0, 80, 100), (0, 0, 230), (119, 11, 32),
)  # fmt: skip


def voc_colours(count: int) -> UInt8[np.ndarray, "n 3"]:
    """PASCAL VOC's colours: the bits of a number, dealt out to the channels from the top."""
    numbers = np.arange(count)[:, None]
    colours = np.zeros((count, 3), np.int64)
    for bit in range(8):
        channels = (numbers >> (3 * bit + np.arange(3))) & 1
        colours |= channels << (7 - bit)
    return colours.astype(np.uint8)


def class_colours(benchmark: str, count: int) -> UInt8[np.ndarray, "n 3"]:
    """Colours of a benchmark's classes: Cityscapes has its own, all others take VOC's."""
    return np.array(_CITYSCAPES, np.uint8) if benchmark == "cityscapes" else voc_colours(count)


def distinct_colours(count: int, start: float = 0.58) -> UInt8[np.ndarray, "n 3"]:
    """Colours that are easy to tell apart on a photograph, and side by side in a legend.

    Args:
        count: how many.
        start: hue of the first, 0..1.
    """
    lightness, saturation = (0.55, 0.68, 0.42), (0.85, 0.75, 0.8)
    colours = [
        colorsys.hls_to_rgb((start + i * _GOLDEN_TURN) % 1, lightness[i % 3], saturation[i % 3])
        for i in range(count)
    ]
    return (np.array(colours).reshape(count, 3) * 255).round().astype(np.uint8)
