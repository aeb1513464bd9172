"""Label maps without the score volume, against the score volume."""

import functools

import jax
import numpy as np
import pytest
import torch

from eval.painting import paint_groups, paint_labels
from eval.protocol import Protocol
from eval.windows import padded_length, window_corners, window_exists, window_grid

PROTOCOL = Protocol(crop=16, stride=8, resize_long_short=None)


def random_groups(size, classes, extra):
    rng = np.random.default_rng(sum(size))
    shape = tuple(padded_length(side + extra, 16, 8) for side in size)
    windows = int(np.prod(window_grid(*shape, PROTOCOL)))
    maps = rng.integers(0, 4, (windows, 16, 16), dtype=np.uint8)
    maps = np.kron(maps[:, ::4, ::4], np.ones((1, 4, 4), np.uint8))  # patches, so that areas matter
    scores = np.zeros((windows, 4, classes), np.float32)
    for window in scores:  # a window names few classes, as the image-level rule has it
        window[:, rng.choice(classes, min(5, classes), replace=False)] = rng.random(
            (4, min(5, classes))
        )
    return shape, maps, scores


def score_volume(size, original, shape, maps, scores):
    """[c, h, w]: sum over windows, divide by their number, interpolate."""
    total = np.zeros((scores.shape[-1], *np.maximum(size, 16)))
    count = np.zeros(total.shape[1:])
    exists = window_exists(np.array(size), *window_grid(*shape, PROTOCOL), PROTOCOL)
    corners = window_corners(np.array(size), *shape, PROTOCOL)
    for window in np.flatnonzero(exists):
        y, x = corners[window]
        total[:, y : y + 16, x : x + 16] += scores[window][maps[window]].transpose(2, 0, 1)
        count[y : y + 16, x : x + 16] += 1
    mean = torch.from_numpy((total / count)[:, : size[0], : size[1]])[None]
    return torch.nn.functional.interpolate(mean, original, mode="bilinear")[0].numpy()


@pytest.mark.parametrize(
    "size,original,classes,extra",
    [
        ((16, 16), (16, 16), 3, 0),
        ((16, 29), (30, 55), 40, 0),
        ((40, 20), (21, 12), 40, 24),
        ((33, 48), (64, 80), 40, 0),
        ((9, 30), (20, 61), 3, 24),
    ],
)
def test_labels_are_the_argmax_of_the_score_volume_in_any_bucket(size, original, classes, extra):
    shape, maps, scores = random_groups(size, classes, extra)
    fixed = dict(shape=shape, original_shape=(64, 96), protocol=PROTOCOL)
    paint = jax.jit(functools.partial(paint_labels, **fixed))
    painted = paint(maps, scores, np.array(size), np.array(original))
    painted, score = (np.asarray(x)[: original[0], : original[1]] for x in painted)
    volume = score_volume(size, original, shape, maps, scores)
    # float32 positions of up to 80 pixels: the mixing weights are good to 80 * 2**-24
    np.testing.assert_allclose(score, volume.max(0), atol=1e-5)
    chosen = np.take_along_axis(volume, painted[None], 0)[0]
    assert (volume.max(0) - chosen).max() < 1e-6  # float32 against float64: only ties may differ
    assert (painted == volume.argmax(0)).mean() > 0.999


def test_groups_come_from_the_nearest_window():
    size = original = (16, 24)
    shape, maps, _ = random_groups(size, 3, 0)
    painted = paint_groups(maps, 4, np.array(size), np.array(original), shape, original, PROTOCOL)
    expected = np.concatenate([maps[0][:, :12], 4 + maps[1][:, 4:]], axis=1)
    np.testing.assert_array_equal(painted, expected)
