"""Random crops have torchvision's distribution; decoding a crop is cropping the decoded image."""

import io

import numpy as np
import pytest
import tensorflow as tf
from miniature_corpus import encode, picture
from PIL import Image
from scipy import stats

from cocu_jax.input.crop import NUM_DRAWS, crop_window, random_crop, resize, whole_image

AREA = (0.08, 1.0)


@tf.function
def windows(height, width, draws):
    return tf.map_fn(lambda d: crop_window(height, width, d, AREA), draws, tf.int32)


def draws(count, seed=0):
    return tf.constant(np.random.default_rng(seed).random((count, NUM_DRAWS), np.float32))


def test_windows_are_inside_with_uniform_area_ratio_and_place():
    top, left, height, width = windows(4000, 4000, draws(3000)[:, :-1]).numpy().T
    assert top.min() >= 0 and left.min() >= 0
    assert (top + height).max() <= 4000 and (left + width).max() <= 4000
    # Attempts that do not fit are drawn again, which is why only small parts are exactly uniform.
    share = height * width / 4000**2
    assert share.min() > AREA[0] - 1e-3
    small = share < 0.7  # such a part fits at any ratio
    uniform = stats.uniform(AREA[0], 0.7 - AREA[0])
    assert stats.kstest(share[small], uniform.cdf).pvalue > 1e-4
    ratio = np.log(width / height)[small]
    bound = np.log(4 / 3)
    assert stats.kstest(ratio, stats.uniform(-bound, 2 * bound).cdf).pvalue > 1e-4
    assert stats.kstest(top[small] / (4000 - height[small]), "uniform").pvalue > 1e-4
    assert stats.kstest(left[small] / (4000 - width[small]), "uniform").pvalue > 1e-4
    assert abs(np.corrcoef(share[small], ratio)[0, 1]) < 0.06


def test_an_image_too_long_for_any_attempt_gives_its_centre():
    for size in ((20, 2000), (2000, 20)):
        top, left, height, width = windows(*size, draws(20)[:, :-1]).numpy().T
        fallback = height * width > 0.012 * 20 * 2000  # 20 x 27 pixels
        assert fallback.any()
        assert set(zip(height[fallback], width[fallback], strict=True)) <= {(20, 27), (27, 20)}
        assert set(np.maximum(top, left)[fallback]) == {986}


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_crop_is_the_resized_part_of_the_decoded_image(kind):
    encoded = encode(picture(1, 60, 80), kind)
    decoded = np.asarray(Image.open(io.BytesIO(encoded)))
    flips = 0
    for row in draws(12).numpy():
        top, left, height, width = crop_window(60, 80, row[:-1], AREA).numpy()
        part = resize(decoded[top : top + height, left : left + width], 32).numpy()
        flips += row[-1] >= 0.5
        want = part[:, ::-1] if row[-1] >= 0.5 else part
        np.testing.assert_array_equal(random_crop(encoded, row, 32, AREA).numpy(), want)
    assert 2 < flips < 10


@pytest.mark.parametrize("shape", [(20, 31), (33, 48), (100, 130)])
def test_resize_equals_pillow(shape):
    """Pillow filters every reduction; up to a fifth ours does not, which moves values by little."""
    pixels = picture(2, *shape)
    want = np.asarray(Image.fromarray(pixels).resize((32, 32), Image.BILINEAR)).astype(int)
    assert np.abs(resize(tf.constant(pixels), 32).numpy() - want).max() <= 2


def test_grey_palette_and_transparent_files_become_rgb():
    grey = Image.fromarray(picture(3)).convert("L")
    for image in (grey, grey.convert("RGBA"), grey.convert("P")):
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        got = whole_image(buffer.getvalue(), 24).numpy()
        assert got.shape == (24, 24, 3)
        np.testing.assert_array_equal(got[..., 0], got[..., 2])
