"""Where the windows and the pixels of one image lie: plain arithmetic on the host, in NumPy.

Everything that depends on an image's size is worked out here and handed to the compiled programs as
index arrays of fixed length, so that one program serves images of all sizes.

Pixel centres are at half coordinates and corners are not aligned, as in OpenCV and in
`torch.nn.functional.interpolate(align_corners=False)`; nothing is smoothed when shrinking.
"""

import dataclasses
import functools

import numpy as np
from jaxtyping import Float32, Int32

from eval.protocol import Protocol


@dataclasses.dataclass(frozen=True)
class Axis:
    """Linear interpolation along one axis, and the windows that cover its source.

    Attributes:
        starts: first source pixel of every window.
        crop: side of a window.
        low: the first of the two source pixels that each target pixel lies between.
        high: the second.
        low_weight: weight of the first, divided by the number of windows that cover it.
        high_weight: weight of the second, likewise.
    """

    starts: Int32[np.ndarray, "n"]
    crop: int
    low: Int32[np.ndarray, "p"]
    high: Int32[np.ndarray, "p"]
    low_weight: Float32[np.ndarray, "p"]
    high_weight: Float32[np.ndarray, "p"]

    def touched(self, start: int, stop: int) -> range:
        """Windows that target pixels `start` to `stop - 1` need; there is at least one."""
        first, last = self.low[start:stop].min(), self.high[start:stop].max()
        touched = np.flatnonzero((self.starts + self.crop > first) & (self.starts <= last))
        return range(int(touched[0]), int(touched[-1]) + 1)

    def span(self, start: int, stop: int) -> int:
        """Source pixels from the first of those windows to the end of the last."""
        windows = self.touched(start, stop)
        return int(self.starts[windows[-1]] - self.starts[windows[0]]) + self.crop


def window_count(length: int, crop: int, stride: int) -> int:
    """Windows along one axis: `length` pixels are covered, the last window ends at the border."""
    return max(length - crop + stride - 1, 0) // stride + 1


def window_starts(length: int, crop: int, stride: int) -> Int32[np.ndarray, "n"]:
    """First pixel of every window. A side shorter than the window takes one (and padding)."""
    steps = np.arange(window_count(length, crop, stride)) * stride
    return np.minimum(steps, max(length - crop, 0)).astype(np.int32)


def count_windows(height: int, width: int, protocol: Protocol) -> int:
    """Windows of an image of this size, as evaluated."""
    sides = (window_count(side, *protocol.windows(side)) for side in (height, width))
    return int(np.prod(list(sides)))


@functools.lru_cache(maxsize=4096)
def sample_axis(length: int, target: int, shown: int, crop: int, stride: int) -> Axis:
    """How an axis of window scores becomes an axis of labels.

    Args:
        length: pixels of the evaluated image.
        target: pixels to resize to, bilinearly.
        shown: pixels of the result; if it is not `target`, those are repeated as the nearest
            interpolation of OpenCV and PyTorch does: pixel `i` shows `floor(i * target / shown)`.
        crop: side of a window.
        stride: distance of windows.
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
    chosen = np.arange(shown) * target // shown
    return Axis(starts, crop, *(x[chosen] for x in (low, high, low_weight, high_weight)))


def nearest(length: int, target: int) -> Int32[np.ndarray, "target"]:
    """The source pixel under the centre of each target pixel."""
    return ((2 * np.arange(target) + 1) * length // (2 * target)).astype(np.int32)


def nearest_window(
    length: int, crop: int, stride: int
) -> tuple[Int32[np.ndarray, "length"], Int32[np.ndarray, "length"]]:
    """For every pixel of an axis: the window with the nearest centre, and its pixel."""
    starts = window_starts(length, crop, stride)
    pixels = np.arange(length, dtype=np.int32)
    window = np.abs(pixels[:, None] - starts - (crop - 1) / 2).argmin(-1).astype(np.int32)
    return window, pixels - starts[window]
