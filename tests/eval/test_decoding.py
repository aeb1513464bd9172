"""Label maps without the score volume, against the score volume."""

import functools

import jax
import numpy as np
import pytest
import torch

from eval.decoding import decode_groups
from eval.geometry import nearest_window, window_starts
from eval.images import EvaluatedImage
from eval.protocol import Protocol
from eval.tiles import cut_tiles, tile_shape

PROTOCOL = Protocol(crop=16, stride=8, resize_long_short=(64, 40))


def random_groups(size, classes):
    rng = np.random.default_rng(sum(size))
    corners = [(y, x) for y in window_starts(size[0], 16, 8) for x in window_starts(size[1], 16, 8)]
    maps = rng.integers(0, 4, (len(corners), 16, 16), dtype=np.uint8)
    maps = np.kron(maps[:, ::4, ::4], np.ones((1, 4, 4), np.uint8))  # patches, so that areas matter
    scores = np.zeros((len(corners), 4, classes), np.float32)
    for window in scores:  # a window names few classes, as the image-level rule has it
        window[:, rng.choice(classes, min(5, classes), replace=False)] = rng.random(
            (4, min(5, classes))
        )
    return corners, maps, scores


def score_volume(size, original, corners, maps, scores):
    """[c, h, w]: sum over windows, divide by their number, interpolate."""
    total = np.zeros((scores.shape[-1], *np.maximum(size, 16)))
    count = np.zeros(total.shape[1:])
    for window, (y, x) in enumerate(corners):
        total[:, y : y + 16, x : x + 16] += scores[window][maps[window]].transpose(2, 0, 1)
        count[y : y + 16, x : x + 16] += 1
    mean = torch.from_numpy((total / count)[:, : size[0], : size[1]])[None]
    return torch.nn.functional.interpolate(mean, original, mode="bilinear")[0].numpy()


def decode(size, original, maps, scores, protocol, tile_size, softmax=False):
    image = EvaluatedImage("x", np.zeros((*size, 3), np.uint8), original)
    shape = tile_shape(protocol, size[0] > size[1], tile_size)
    decoded = np.full(original, -1), np.full(original, np.nan, np.float32)
    program = _program(shape.canvas, shape.size, softmax)
    for tile in cut_tiles(image, protocol, shape):
        padding = ((0, shape.windows - len(tile.windows)), (0, 0), (0, 0))
        chosen = (np.pad(x[tile.windows], padding, mode="edge") for x in (maps, scores))
        (top, left), (height, width) = tile.corner, tile.size
        for whole, part in zip(decoded, program(*chosen, tile.layout), strict=True):
            whole[top : top + height, left : left + width] = part[:height, :width]
    return decoded


@functools.cache
def _program(canvas, tile_size, softmax):
    fixed = dict(canvas=canvas, tile_size=tile_size, softmax=softmax)
    return jax.jit(functools.partial(decode_groups, **fixed))


@pytest.mark.parametrize(
    "size,original,classes",
    [
        ((16, 16), (16, 16), 3),
        ((16, 29), (30, 55), 40),
        ((40, 20), (21, 12), 40),
        ((33, 48), (64, 80), 40),
        ((9, 30), (20, 61), 3),
    ],
)
def test_labels_are_the_argmax_of_the_score_volume_in_one_tile_and_in_many(size, original, classes):
    corners, maps, scores = random_groups(size, classes)
    decoded, score = decode(size, original, maps, scores, PROTOCOL, (64, 128))
    volume = score_volume(size, original, corners, maps, scores)
    # torch's float32 positions of up to 80 pixels: the mixing weights are good to 80 * 2**-24
    np.testing.assert_allclose(score, volume.max(0), atol=1e-5)
    chosen = np.take_along_axis(volume, decoded[None], 0)[0]
    assert (volume.max(0) - chosen).max() < 1e-6  # float32 against float64: only ties may differ
    assert (decoded == volume.argmax(0)).mean() > 0.999
    in_pieces = decode(size, original, maps, scores, PROTOCOL, (8, 24))
    np.testing.assert_array_equal(in_pieces[0], decoded)
    np.testing.assert_array_equal(in_pieces[1], score)


@pytest.mark.parametrize("classes", [3, 40])
def test_a_softmax_before_the_argmax_ties_tiny_scores_as_in_torch(classes):
    size, original = (33, 48), (64, 80)
    corners, maps, scores = random_groups(size, classes)
    tiny = np.random.default_rng(1).random(scores.shape[:1]) < 0.7
    scores[tiny] *= 3e-8  # below half the spacing of float32 at 1: the softmax cannot tell them
    plain = decode(size, original, maps, scores, PROTOCOL, (64, 128))[0]
    found = decode(size, original, maps, scores, PROTOCOL, (64, 128), softmax=True)[0]
    volume = score_volume(size, original, corners, maps, scores)
    soft = torch.softmax(torch.from_numpy(volume.astype(np.float32)), 0).numpy()
    assert (plain == volume.argmax(0)).mean() > 0.999
    assert (found == soft.argmax(0)).mean() > 0.999
    assert (plain != found).mean() > 0.01


def test_pixels_belong_to_the_nearest_window():
    window, pixel = nearest_window(24, 16, 8)
    np.testing.assert_array_equal(window, [0] * 12 + [1] * 12)
    np.testing.assert_array_equal(pixel, [*range(12), *range(4, 16)])
