"""RandAugment's operations are Pillow's, drawn as timm's `rand-m9-mstd0.5-inc1` says."""

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageEnhance, ImageOps
from scipy import stats

from cocu_jax.input.randaugment import NUM_DRAWS, OPERATIONS, apply, plan, randaugment

SIZE = 96
FILL = (124, 116, 104)
NAMES = [operation.__name__ for operation in OPERATIONS]


@pytest.fixture(scope="module")
def photograph():
    """Smooth areas, edges, noise, and a range that does not fill 0 to 255."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8))
    pixels = np.asarray(coarse.resize((SIZE, SIZE), Image.BICUBIC)) * 0.8 + 10
    pixels[20:40, 30:70] = (240, 20, 60)
    return np.clip(pixels + rng.normal(0, 10, pixels.shape), 0, 255).astype(np.uint8)


def pillow(name, image, level, sign):
    """The operation as timm defines it, made with Pillow."""

    def affine(*matrix):
        return image.transform(
            image.size, Image.AFFINE, matrix, resample=Image.BILINEAR, fillcolor=FILL
        )

    part = level / 10
    factor = max(0.1, 1 + sign * 0.9 * part)
    add = min(128, int(part * 110))
    return {
        "auto_contrast": lambda: ImageOps.autocontrast(image),
        "equalize": lambda: ImageOps.equalize(image),
        "invert": lambda: ImageOps.invert(image),
        "rotate": lambda: image.rotate(sign * part * 30, resample=Image.BILINEAR, fillcolor=FILL),
        "posterize": lambda: ImageOps.posterize(image, 4 - int(part * 4)),
        "solarize": lambda: ImageOps.solarize(image, 256 - min(256, int(part * 256))),
        "solarize_add": lambda: image.point(
            [min(255, v + add) if v < 128 else v for v in range(256)] * 3
        ),
        "color": lambda: ImageEnhance.Color(image).enhance(factor),
        "contrast": lambda: ImageEnhance.Contrast(image).enhance(factor),
        "brightness": lambda: ImageEnhance.Brightness(image).enhance(factor),
        "sharpness": lambda: ImageEnhance.Sharpness(image).enhance(factor),
        "shear_x": lambda: affine(1, sign * part * 0.3, 0, 0, 1, 0),
        "shear_y": lambda: affine(1, 0, 0, sign * part * 0.3, 1, 0),
        "translate_x": lambda: affine(1, 0, sign * part * 0.45 * SIZE, 0, 1, 0),
        "translate_y": lambda: affine(1, 0, 0, 0, 1, sign * part * 0.45 * SIZE),
    }[name]()


def ours(pixels, name, level, sign):
    operation = tf.constant(NAMES.index(name))
    return apply(tf.constant(pixels), operation, tf.constant(level), tf.constant(sign)).numpy()


@pytest.mark.parametrize("name", NAMES)
def test_operation_equals_pillow(name, photograph):
    """No operation needs an exception: all pixels are within 2 of 255."""
    for level in (0.0, 3.3, 7.7, 9.0, 9.9):
        for sign in (-1.0, 1.0):
            want = np.asarray(pillow(name, Image.fromarray(photograph), level, sign)).astype(int)
            difference = np.abs(ours(photograph, name, level, sign) - want)
            assert difference.max() <= 2, (level, sign)


def test_tone_operations_equal_pillow_on_flat_and_extreme_images():
    flat = np.full((SIZE, SIZE, 3), (0, 128, 255), np.uint8)
    halves = flat.copy()
    halves[: SIZE // 2] = (255, 127, 0)
    for pixels in (flat, halves):
        for name in NAMES[:3] + NAMES[4:11]:
            want = np.asarray(pillow(name, Image.fromarray(pixels), 9.0, 1.0)).astype(int)
            assert np.abs(ours(pixels, name, 9.0, 1.0) - want).max() <= 2, name


def test_posterize_keeps_nothing_at_the_highest_level(photograph):
    """timm asks for 0 bits there, which current Pillow refuses; earlier ones gave black."""
    assert ours(photograph, "posterize", 10.0, 1.0).max() == 0


def test_operations_and_magnitudes_are_distributed_as_specified():
    draws = tf.constant(np.random.default_rng(0).random((30_000, NUM_DRAWS), np.float32))
    applied, operation, level, sign = (value.numpy() for value in plan(draws))
    assert stats.chisquare(np.bincount(operation.ravel(), minlength=15)).pvalue > 1e-4
    pairs = np.bincount(operation[:, 0] * 15 + operation[:, 1], minlength=225)
    assert stats.chisquare(pairs).pvalue > 1e-4  # with replacement, independent
    assert abs(applied.mean() - 0.5) < 0.01 and abs((sign > 0).mean() - 0.5) < 0.01
    assert abs((applied[:, 0] & applied[:, 1]).mean() - 0.25) < 0.01
    assert level.max() == 10  # 2.3% of N(9, 0.5) are clipped there
    assert abs((level == 10).mean() - stats.norm.sf(2)) < 0.003
    below = level[level < 10]
    truncated = stats.truncnorm(-np.inf, 2, loc=9, scale=0.5)
    assert stats.kstest(below.ravel(), truncated.cdf).pvalue > 1e-4


def test_both_layers_are_applied_in_turn(photograph):
    rng = np.random.default_rng(1)
    seen = set()
    for _ in range(8):
        draws = tf.constant(rng.random(NUM_DRAWS, np.float32))
        applied, operation, level, sign = (value.numpy() for value in plan(draws))
        want = photograph
        for layer in range(2):
            if applied[layer]:
                want = ours(want, NAMES[operation[layer]], level[layer], sign[layer])
        np.testing.assert_array_equal(randaugment(tf.constant(photograph), draws), want)
        seen.add(tuple(applied.tolist()))
    assert len(seen) == 4


def test_an_image_is_not_compiled_for(photograph):
    """XLA must see images as arguments: as constants, every image would cost a second."""
    text = apply.experimental_get_compiler_ir(
        tf.constant(photograph), tf.constant(1), tf.constant(9.0), tf.constant(1.0)
    )(stage="hlo")
    assert f"u8[{SIZE},{SIZE},3]" in text.split("entry_computation_layout")[1].split("->")[0]
