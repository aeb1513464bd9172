"""Colours of classes and groups."""

import colorsys

import numpy as np
from jaxtyping import Float, UInt8

_HUES = 72
_TONES = ((0.55, 0.85), (0.72, 0.8), (0.38, 0.8), (0.62, 0.45), (0.3, 0.5))  # lightness, saturation
_TO_CONES = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
_TO_OKLAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)

# Cityscapes' own colours of its 19 classes (cityscapesScripts, labels.py).
_CITYSCAPES = (
    (128, 64, 128), (244, 35, 232), (70, 70, 70), (102, 102, 156), (190, 153, 153),
    (153, 153, 153), (250, 170, 30), (220, 220, 0), (107, 142, 35), (152, 251, 152),
    (70, 130, 180), (220, 20, 60), (255, 0, 0), (0, 0, 142), (0, 0, 70),
    (0, 60, 100), (0, 80, 100), (0, 0, 230), (119, 11, 32),
)  # fmt: skip


def voc_colours(count: int) -> UInt8[np.ndarray, "n 3"]:
    """PASCAL VOC's palette: the bits of a class number fill the channels from the highest bit."""
    numbers = np.arange(count)[:, None]
    colours = np.zeros((count, 3), np.int64)
    for bit in range(8):
        channels = (numbers >> (3 * bit + np.arange(3))) & 1
        colours |= channels << (7 - bit)
    return colours.astype(np.uint8)


def class_colours(benchmark: str, count: int) -> UInt8[np.ndarray, "n 3"]:
    """Colours of the classes of a benchmark: Cityscapes' own palette, or else VOC's."""
    return np.array(_CITYSCAPES, np.uint8) if benchmark == "cityscapes" else voc_colours(count)


def distinct_colours(count: int, start: float = 0.58) -> UInt8[np.ndarray, "n 3"]:
    """Colours that are easy to tell apart (greedy farthest points in Oklab).

    Args:
        count: number of colours; beyond a few hundred they repeat.
        start: hue of the first colour, 0..1.
    """
    hues = (start + np.arange(_HUES) / _HUES) % 1
    candidates = np.array([colorsys.hls_to_rgb(hue, *tone) for tone in _TONES for hue in hues])
    points = _oklab(candidates)
    chosen, nearest = [0], np.full(len(points), np.inf)
    while len(chosen) < min(count, len(points)):
        nearest = np.minimum(nearest, np.linalg.norm(points - points[chosen[-1]], axis=1))
        chosen.append(int(nearest.argmax()))
    return (candidates[np.resize(chosen, count)] * 255).round().astype(np.uint8)


def _oklab(colours: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 3"]:
    """sRGB (0..1) to Oklab (Ottosson, 2020), whose distances approximate perceived differences."""
    linear = np.where(colours > 0.04045, ((colours + 0.055) / 1.055) ** 2.4, colours / 12.92)
    return np.cbrt(linear @ _TO_CONES.T) @ _TO_OKLAB.T
