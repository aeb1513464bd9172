"""Positions after the longest end token change nothing."""

import numpy as np
import pytest
from flax import nnx

from benchmarks import transformers_oracle as oracle
from benchmarks.parity import relative_error
from cocu_jax.errors import UserError
from cocu_jax.models.groupvit import GroupViT, GroupViTConfig
from cocu_jax.models.keys import Keys
from cocu_jax.models.text import TextConfig, TextTransformer, trim_tokens

TEXT = TextConfig(width=32, heads=2, layers=2)


def test_any_static_length_equals_the_full_context():
    tower = TextTransformer(TEXT, rngs=Keys(0))
    tokens = oracle.random_tokens((2, 5, 77), (2, 14))
    full = nnx.jit(tower)(tokens)
    assert full.shape == (2, 5, 32)
    for length in (14, 32):
        assert relative_error(nnx.jit(tower)(tokens[..., :length]), full) <= 1e-5


def test_texts_of_two_lengths_are_one_batch_to_the_batch_norm():
    config = GroupViTConfig(
        image_size=16, patch_size=8, width=16, heads=2, depths=(0, 0, 0), groups=(2, 2),
        projection_hidden=24, projection_dim=8, text=TEXT,
    )  # fmt: skip
    captions = oracle.random_tokens((4, 77), (3, 30))
    prompts = oracle.random_tokens((4, 3, 77), (3, 12), seed=1)
    together = np.concatenate([captions[:, None], prompts], axis=1)
    separate, joint = (GroupViT(config, rngs=Keys(0)) for _ in range(2))
    train = nnx.jit(GroupViT.encode_texts, static_argnames="train")
    expected = train(joint, (together,), train=True)[0]
    actual = train(separate, (captions[:, :32], prompts[..., :16]), train=True)
    assert relative_error(actual[0], expected[:, 0]) <= 1e-5
    assert relative_error(actual[1], expected[:, 1:]) <= 1e-5
    np.testing.assert_allclose(
        separate.text_projector.norm.var[...], joint.text_projector.norm.var[...], rtol=1e-5
    )


@pytest.mark.parametrize("longest, cut", [(5, 16), (16, 16), (17, 32), (32, 32), (33, 77)])
def test_trim_keeps_every_end_token(longest, cut):
    tokens = oracle.random_tokens((6, 77), (3, longest))
    tokens[2] = oracle.random_tokens((77,), (longest, longest))
    trimmed = trim_tokens(tokens)
    assert trimmed.shape == (6, cut)
    assert (trimmed == oracle.END_OF_TEXT).sum() == 6


def test_longer_than_the_context_is_refused():
    tower = TextTransformer(TEXT, rngs=Keys(0))
    with pytest.raises(UserError, match="text of 78 tokens: the context is 77"):
        tower(np.zeros((1, 78), np.int32))
