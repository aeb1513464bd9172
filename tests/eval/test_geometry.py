"""Window positions, coverage and resampling, against loops over pixels and torch."""

import dataclasses
from fractions import Fraction

import numpy as np
import pytest
import tensorflow as tf
import torch
from scipy import ndimage

from eval import geometry
from eval.images import EvaluatedImage, resize_uint8
from eval.protocol import Protocol
from eval.tiles import cut_tiles, tile_shape
from eval.window_queue import cut_windows, queue_windows

SIZES = [(8, 8), (8, 9), (9, 20), (12, 13), (16, 31), (40, 8), (5, 8), (3, 30)]
PROTOCOL = Protocol(crop=8, stride=4, resize_long_short=None)


def starts_by_hand(length: int, crop: int, stride: int) -> list[int]:
    """Slide by `stride` until the end is covered; pull the last window back to the border."""
    starts = [0]
    while starts[-1] + crop < length:
        starts.append(min(starts[-1] + stride, length - crop))
    return starts


def random_image(size, key="x"):
    pixels = np.random.default_rng(sum(size)).integers(0, 255, (*size, 3), dtype=np.uint8)
    return EvaluatedImage(key, pixels, size)


@pytest.mark.parametrize("size", SIZES)
def test_windows_slide_and_the_last_one_ends_at_the_border(size):
    image = random_image(size)
    corners = [(y, x) for y in starts_by_hand(size[0], 8, 4) for x in starts_by_hand(size[1], 8, 4)]
    padded = np.empty((max(size[0], 8), max(size[1], 8), 3), np.uint8)
    padded[:] = 124, 116, 104  # ImageNet's mean
    padded[: size[0], : size[1]] = image.image
    for window, (y, x) in zip(cut_windows(image, PROTOCOL), corners, strict=True):
        np.testing.assert_array_equal(window, padded[y : y + 8, x : x + 8])
    assert geometry.count_windows(*size, PROTOCOL) == len(corners)


def test_the_queue_holds_all_windows_in_order_and_only_its_end_is_padded():
    images = [random_image(size, str(number)) for number, size in enumerate(SIZES)]
    expected = np.stack([window for image in images for window in cut_windows(image, PROTOCOL)])
    blocks = list(queue_windows(images, PROTOCOL, 7))
    found = np.concatenate([block.windows for block in blocks])
    np.testing.assert_array_equal(found[: len(expected)], expected)
    assert len(found) == -(-len(expected) // 7) * 7
    assert [image.key for block in blocks for image, _ in block.images] == [i.key for i in images]
    assert sum(count for block in blocks for _, count in block.images) == len(expected)


@pytest.mark.parametrize("length", [5, 8, 9, 12, 13, 31])
@pytest.mark.parametrize("target", [4, 31, 77])
@pytest.mark.parametrize("crop,stride", [(8, 4), (8, 8), (8, 3)])
def test_an_axis_resizes_the_mean_over_windows_as_torch_does(length, target, crop, stride):
    axis = geometry.sample_axis(length, target, target, crop, stride)
    sums, count = np.zeros(max(length, crop), np.float32), np.zeros(max(length, crop))
    rng = np.random.default_rng(0)
    for start in starts_by_hand(length, crop, stride):
        sums[start : start + crop] += rng.normal(size=crop)
        count[start : start + crop] += 1
    mean = torch.from_numpy((sums / count)[:length].astype(np.float32))[None, None]
    expected = torch.nn.functional.interpolate(mean, target, mode="linear")[0, 0]
    found = sums[axis.low] * axis.low_weight + sums[axis.high] * axis.high_weight
    # float32 positions of up to 77 pixels in torch: its mixing weights are good to 77 * 2**-24
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("length,target", [(7, 7), (7, 20), (30, 11), (1, 9)])
def test_nearest_takes_the_pixel_under_the_centre(length, target):
    expected = [int(Fraction(2 * i + 1, 2) * Fraction(length, target)) for i in range(target)]
    np.testing.assert_array_equal(geometry.nearest(length, target), expected)


@pytest.mark.parametrize("target,shown", [(10, 10), (10, 37), (999, 2500)])
def test_enlarged_label_maps_repeat_pixels_as_torch_does(target, shown):
    once = geometry.sample_axis(50, target, target, 8, 4)
    larger = geometry.sample_axis(50, target, shown, 8, 4)
    rows = torch.arange(target, dtype=torch.float64)[None, None]
    rows = torch.nn.functional.interpolate(rows, shown, mode="nearest")[0, 0].long().numpy()
    np.testing.assert_array_equal(larger.low, once.low[rows])
    np.testing.assert_array_equal(larger.high_weight, once.high_weight[rows])


@pytest.mark.parametrize(
    "size,shown,resize",
    [
        ((9, 30), (60, 41), None),
        ((60, 25), (7, 9), None),
        ((3, 70), (5, 99), None),
        ((9, 70), (12, 90), (70, 9)),  # longer than the canvas
        ((3, 70), (3, 70), (70, 4)),
    ],
)
def test_tiles_cover_every_pixel_once_and_include_all_overlapping_windows(size, shown, resize):
    image = EvaluatedImage("x", np.zeros((*size, 3), np.uint8), shown)
    protocol = dataclasses.replace(PROTOCOL, resize_long_short=resize)
    shape = tile_shape(protocol, portrait=False, tile_size=(16, 32))
    assert resize is None or shape.canvas[1] < 2.5 * max(resize[1], protocol.crop)
    covered = np.zeros(shown, int)
    for tile in cut_tiles(image, protocol, shape):
        (top, left), (height, width) = tile.corner, tile.size
        covered[top : top + height, left : left + width] += 1
        count = int(tile.layout.windows)
        assert count == len(tile.windows) <= shape.windows
        corners = tile.layout.corners[:count]
        assert (corners >= 0).all() and (corners + 8 <= shape.canvas).all()
        inside = np.zeros(shape.canvas, bool)
        for y, x in corners:
            inside[y : y + 8, x : x + 8] = True
        rows = np.concatenate([tile.layout.rows.low[:height], tile.layout.rows.high[:height]])
        columns = tile.layout.columns.low[:width], tile.layout.columns.high[:width]
        assert inside[rows][:, np.concatenate(columns)].all()
    assert (covered == 1).all() and tile.last


@pytest.mark.parametrize(
    "size,target", [((37, 50), (44, 60)), ((80, 61), (40, 30)), ((9, 9), (9, 9))]
)
def test_uint8_resize_is_rounded_bilinear_without_smoothing(size, target):
    image = np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)
    found = resize_uint8(tf.constant(image), tf.constant(target)).numpy()
    centres = [(np.arange(t) + 0.5) * s / t - 0.5 for s, t in zip(size, target, strict=True)]
    at = np.meshgrid(*centres, indexing="ij")
    channels = [
        ndimage.map_coordinates(image[..., c].astype(float), at, order=1, mode="nearest")
        for c in range(3)
    ]
    exact = np.stack(channels, -1)
    assert np.abs(found - exact).max() <= 0.5 + 1e-3  # rounding, and float32 at a tie
