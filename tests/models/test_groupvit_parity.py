"""Our GroupViT computes what transformers' does on torch, forwards and backwards, in float32."""

import jax
import numpy as np
import pytest
from flax import nnx

from benchmarks import parity
from benchmarks import transformers_oracle as oracle
from cocu_jax.models.groupvit import GroupViT

VISION = {
    "image_size": 64,
    "patch_size": 8,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_attention_heads": 3,
    "depths": [2, 1, 1],
    "num_hidden_layers": 4,
    "num_group_tokens": [12, 5, 0],
    "num_output_groups": [12, 5, 5],
}
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
}


@pytest.fixture(scope="module")
def small():
    theirs = oracle.random_groupvit(
        vision=VISION, text=TEXT, projection_dim=24, projection_intermediate_dim=80
    )
    return oracle.converted(theirs), theirs


@pytest.fixture(scope="module")
def published():
    theirs = oracle.random_groupvit()
    return oracle.converted(theirs), theirs


def assert_all_below(errors: dict[str, float], tolerance: float):
    too_large = {name: error for name, error in errors.items() if not error <= tolerance}
    assert errors and not too_large


@pytest.mark.parametrize("size", [(64, 64), (128, 128), (48, 96), (64, 136)])
def test_image_features_and_assignments_at_any_resolution(small, size):
    images = oracle.random_images((3, *size))
    assert_all_below(parity.image_errors(*small, images), parity.FORWARD_GOAL)


def test_text_features(small):
    tokens = oracle.random_tokens((9, 77), (2, 77))
    assert_all_below(parity.text_errors(*small, tokens), parity.FORWARD_GOAL)


def test_loss_and_every_gradient_with_the_same_gumbel_noise(small):
    batch = (
        oracle.random_images((6, 64, 64)),
        oracle.random_tokens((6, 77), (3, 77)),
        oracle.random_tokens((6, 3, 77), (3, 9), seed=1),
    )
    errors = parity.gradient_errors(*small, batch)
    assert len(errors) == 1 + len(jax.tree.leaves(nnx.state(small[0], nnx.Param)))
    assert_all_below({"loss": errors.pop("loss")}, parity.FORWARD_GOAL)
    assert_all_below(errors, parity.GRADIENT_GOAL)


def test_published_size(published):
    images, tokens = oracle.random_images((2, 224, 224)), oracle.random_tokens((4, 77), (3, 77))
    assert_all_below(parity.image_errors(*published, images), parity.FORWARD_GOAL)
    assert_all_below(parity.text_errors(*published, tokens), parity.FORWARD_GOAL)


@pytest.mark.slow
@pytest.mark.parametrize("size", [(448, 448), (224, 336)])
def test_published_size_at_other_resolutions(published, size):
    images = oracle.random_images((2, *size), seed=1)
    assert_all_below(parity.image_errors(*published, images), parity.FORWARD_GOAL)


@pytest.mark.slow
def test_published_size_in_bfloat16(published):
    images, tokens = oracle.random_images((4, 224, 224)), oracle.random_tokens((4, 77), (3, 77))
    cosines = parity.bfloat16_cosines(published[0], images, tokens)
    assert min(cosines.values()) >= parity.COSINE_GOAL


@pytest.mark.slow
def test_published_size_logits_and_gradients(published):
    images, tokens = oracle.random_images((8, 224, 224)), oracle.random_tokens((8, 77), (3, 77))
    assert_all_below(parity.logit_errors(*published, images, tokens), parity.FORWARD_GOAL)
    prompts = oracle.random_tokens((8, 3, 77), (5, 16), seed=1)
    errors = parity.gradient_errors(*published, (images, tokens, prompts))
    assert_all_below(errors, parity.GRADIENT_GOAL)


def test_inference_assigns_by_argmax_and_training_by_noise(small):
    model, _ = small
    images = oracle.random_images((2, 64, 64))
    shapes = [a.shape for a in nnx.eval_shape(GroupViT.encode_image, model, images).assignments]
    silent = tuple(np.zeros(shape, np.float32) for shape in shapes)
    noise = tuple(np.random.default_rng(0).gumbel(size=s).astype(np.float32) for s in shapes)

    @nnx.jit
    def tokens(model, gumbel=None):
        return model.image(images, None, gumbel)[0]

    np.testing.assert_allclose(tokens(model, silent), tokens(model), atol=1e-5)
    assert parity.relative_error(tokens(model, noise), tokens(model)) > 0.05
