"""Pixel-adaptive mask refinement against a loop over pixels in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pamr_oracle import pamr_oracle

from eval.pamr import affinities, refine

DILATIONS, STEPS = (1, 3), 3


@pytest.fixture(scope="module")
def example():
    rng = np.random.default_rng(0)
    image = np.kron(rng.uniform(0, 255, (4, 5, 3)), np.ones((4, 4, 1)))[:13, :18]
    image += rng.normal(size=image.shape)
    return image.astype(np.float32), rng.normal(size=(13, 18, 5)).astype(np.float32)


def refined(image, scores, size):
    @jax.jit
    def program(image, scores, size):
        weights = affinities(image, size, DILATIONS)
        return refine(scores, weights, size, DILATIONS, STEPS)

    return np.asarray(program(jnp.array(image), jnp.array(scores), jnp.array(size)))


def test_refinement_equals_the_formula_pixel_by_pixel(example):
    image, scores = example

    ours = refined(image, scores, image.shape[:2])

    theirs = pamr_oracle(image, scores, DILATIONS, STEPS)
    assert np.abs(ours - theirs).max() < 1e-5 * np.abs(theirs).max()
    assert np.abs(theirs - scores).mean() > 0.1


def test_padding_does_not_affect_the_refinement(example):
    image, scores = example
    height, width = 9, 14
    image[height:], image[:, width:] = np.nan, np.nan
    scores[height:], scores[:, width:] = np.nan, np.nan

    ours = refined(image, scores, (height, width))[:height, :width]

    theirs = pamr_oracle(image[:height, :width], scores[:height, :width], DILATIONS, STEPS)
    assert np.abs(ours - theirs).max() < 1e-5 * np.abs(theirs).max()
