"""Our CLIP computes what transformers' CLIPModel does on torch, in float32."""

import pytest

from benchmarks import parity
from benchmarks import transformers_oracle as oracle

SMALL = {
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
}
TOKENS = oracle.random_tokens((5, 77), (2, 77))


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
@pytest.mark.parametrize("size", [(32, 32), (48, 64)])
def test_features_with_either_activation_at_any_resolution(activation, size):
    activation = {"hidden_act": activation}
    theirs = oracle.random_clip(
        vision={**SMALL, **activation, "image_size": 32, "patch_size": 8},
        text={**SMALL, **activation},
        projection_dim=24,
    )
    errors = parity.clip_errors(theirs, oracle.random_images((3, *size)), TOKENS)
    assert max(errors.values()) <= parity.FORWARD_GOAL


@pytest.mark.slow
@pytest.mark.parametrize("name", parity.CLIPS)
def test_published_sizes(name):
    vision, text, other = parity.CLIPS[name]
    theirs = oracle.random_clip(vision=vision, text=text, **other)
    errors = parity.clip_errors(theirs, oracle.random_images((2, 224, 224)), TOKENS)
    assert max(errors.values()) <= parity.FORWARD_GOAL
