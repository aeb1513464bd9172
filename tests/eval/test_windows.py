"""Window positions and coverage, against loops over pixels."""

import jax
import numpy as np
import pytest

from eval import windows
from eval.protocol import Protocol

SIZES = [(8, 8), (8, 9), (9, 20), (12, 13), (16, 31), (40, 8), (5, 8), (3, 30)]
PROTOCOL = Protocol(crop=8, stride=4, resize_long_short=None)


def starts_by_hand(length: int, crop: int, stride: int) -> list[int]:
    """Slide by `stride` until the end is covered; pull the last window back to the border."""
    starts = [0]
    while starts[-1] + crop < length:
        starts.append(min(starts[-1] + stride, length - crop))
    return starts


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("extra", [0, 8])
def test_windows_are_those_of_a_slide_with_the_last_pulled_back(size, extra):
    shape = tuple(windows.padded_length(side + extra, 8, 4) for side in size)
    rows, columns = windows.window_grid(*shape, PROTOCOL)
    exists = np.asarray(windows.window_exists(np.array(size), rows, columns, PROTOCOL))
    corners = np.asarray(windows.window_corners(np.array(size), *shape, PROTOCOL))[exists]
    expected = [
        (y, x) for y in starts_by_hand(size[0], 8, 4) for x in starts_by_hand(size[1], 8, 4)
    ]
    assert [tuple(corner) for corner in corners] == expected


@pytest.mark.parametrize("length", [5, 8, 9, 12, 13, 31])
@pytest.mark.parametrize("crop,stride", [(8, 4), (8, 8), (8, 3)])
def test_coverage_counts_the_windows_over_each_pixel(length, crop, stride):
    padded = windows.padded_length(length, crop, stride)
    counted = np.asarray(windows.coverage(length, padded, crop, stride))
    expected = np.zeros(max(length, crop))
    for start in starts_by_hand(length, crop, stride):
        expected[start : start + crop] += 1
    np.testing.assert_array_equal(counted[:length], expected[:length])
    assert (counted >= 1).all()


def test_cut_windows_hold_the_pixels_at_their_corners():
    size = np.array([11, 18])
    shape = tuple(windows.padded_length(side, 8, 4) for side in size)
    image = np.random.default_rng(0).integers(0, 255, (*shape, 3), dtype=np.uint8)
    cut = np.asarray(jax.jit(windows.cut_windows, static_argnums=2)(image, size, PROTOCOL))
    for window, (y, x) in zip(cut, windows.window_corners(size, *shape, PROTOCOL), strict=True):
        np.testing.assert_array_equal(window, image[y : y + 8, x : x + 8])


def test_images_share_few_shapes_and_always_fit():
    lengths = range(448, 2049)
    padded = {length: windows.padded_length(length, 448, 224) for length in lengths}
    assert all(padded[length] >= length for length in lengths)
    assert len(set(padded.values())) <= 10
