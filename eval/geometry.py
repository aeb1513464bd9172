"""Positions of the windows and pixels of an image, computed on the host with NumPy.

Everything that depends on the size of an image is computed here and passed to the compiled programs
as index arrays, so that one program serves images of all sizes.

Pixel centres are at half coordinates and corners are not aligned, as in OpenCV and in
`torch.nn.functional.interpolate(align_corners=False)`. There is no anti-aliasing.
"""

import dataclasses
import functools

import numpy as np
from jaxtyping import Float32, Int32

from eval.protocol import Protocol


@dataclasses.dataclass(frozen=True)
class Axis:
    """Linear interpolation along one axis, and the windows that cover the source pixels.

    Attributes:
        starts: first source pixel of every window.
        crop: side of a window.
        low: source pixel on the left of each target pixel.
        high: source pixel on the right of each target pixel.
        low_weight: interpolation weight of `low`, divided by the number of windows that cover it.
        high_weight: interpolation weight of `high`, divided likewise.
    """

    starts: Int32[np.ndarray, "n"]
    crop: int
    low: Int32[np.ndarray, "p"]
    high: Int32[np.ndarray, "p"]
    low_weight: Float32[np.ndarray, "p"]
    high_weight: Float32[np.ndarray, "p"]

    def overlapping(self, start: int, stop: int) -> range:
        """Windows that cover a source of the target pixels `start` to `stop - 1`; at least one."""
        first, last = self.low[start:stop].min(), self.high[start:stop].max()
        windows = np.flatnonzero((self.starts + self.crop > first) & (self.starts <= last))
        return range(int(windows[0]), int(windows[-1]) + 1)

    def span(self, start: int, stop: int) -> int:
        """Number of source pixels from the first of these windows to the end of the last."""
        windows = self.overlapping(start, stop)
        return int(self.starts[windows[-1]] - self.starts[windows[0]]) + self.crop


def window_count(length: int, crop: int, stride: int) -> int:
    """Number of windows along an axis of `length` pixels; the last one ends at the border."""
    return max(length - crop + stride - 1, 0) // stride + 1


def window_starts(length: int, crop: int, stride: int) -> Int32[np.ndarray, "n"]:
    """First pixel of every window. A side shorter than the window has one window, padded."""
    steps = np.arange(window_count(length, crop, stride)) * stride
    return np.minimum(steps, max(length - crop, 0)).astype(np.int32)


def count_windows(height: int, width: int, protocol: Protocol) -> int:
    """Number of windows of an image, given its size after resizing."""
    sides = (window_count(side, *protocol.windows(side)) for side in (height, width))
    return int(np.prod(list(sides)))


@functools.lru_cache(maxsize=4096)
def sample_axis(length: int, target: int, label_length: int, crop: int, stride: int) -> Axis:
    """Interpolation of window scores to the pixels of a label map, along one axis.

    Args:
        length: pixels of the evaluated image.
        target: pixels that the scores are resized to, bilinearly.
        label_length: pixels of the label map. If it differs from `target`, labels are repeated as
            in the nearest interpolation of OpenCV and PyTorch: pixel `i` has the label of
            `floor(i * target / label_length)`.
        crop: side of a window.
        stride: step of the windows.
    """
    starts = window_starts(length, crop, stride)
    pixels = np.arange(length)[:, None]
    coverage = ((pixels >= starts) & (pixels < starts + crop)).sum(1)
    centre = np.clip((np.arange(target) + 0.5) * (length / target) - 0.5, 0, length - 1)
    low = centre.astype(np.int32)
    high = np.minimum(low + 1, length - 1).astype(np.int32)
    share = centre - low
    low_weight = ((1 - share) / coverage[low]).astype(np.float32)
    high_weight = (share / coverage[high]).astype(np.float32)
    source = np.arange(label_length) * target // label_length
    return Axis(starts, crop, *(x[source] for x in (low, high, low_weight, high_weight)))


def nearest(length: int, target: int) -> Int32[np.ndarray, "target"]:
    """The source pixel under the centre of each target pixel."""
    return ((2 * np.arange(target) + 1) * length // (2 * target)).astype(np.int32)


def nearest_window(
    length: int, crop: int, stride: int
) -> tuple[Int32[np.ndarray, "length"], Int32[np.ndarray, "length"]]:
    """For every pixel of an axis: the window with the nearest centre, and the pixel within it."""
    starts = window_starts(length, crop, stride)
    pixels = np.arange(length, dtype=np.int32)
    window = np.abs(pixels[:, None] - starts - (crop - 1) / 2).argmin(-1).astype(np.int32)
    return window, pixels - starts[window]
