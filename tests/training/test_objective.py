"""Text features of a training step against torch: captions that stand in for prompts."""

import jax
import numpy as np
import pytest
import torch
from flax import nnx

from benchmarks import transformers_oracle as oracle
from benchmarks.parity import relative_error
from cocu_jax.training.objective import groupvit_features

PROMPT_LENGTH = 12


@pytest.fixture(scope="module")
def models():
    theirs = oracle.random_groupvit(
        vision={
            "image_size": 16,
            "patch_size": 8,
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_attention_heads": 2,
            "depths": [1, 1, 1],
            "num_hidden_layers": 3,
            "num_group_tokens": [4, 2, 0],
            "num_output_groups": [4, 2, 2],
        },
        text={"hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 2},
        projection_dim=8,
        projection_intermediate_dim=16,
    )
    return oracle.converted(theirs), theirs.double()


def test_a_caption_that_stands_in_for_a_prompt_counts_in_full(models):
    ours, theirs = models
    captions = oracle.random_tokens((6, 77), (30, 77))  # all are longer than a prompt
    prompts = oracle.random_tokens((6, 3, 77), (3, PROMPT_LENGTH), seed=1)
    stands_in = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 1], [1, 1, 1], [0, 0, 1], [0, 0, 0]], bool)
    whole = np.where(stands_in[..., None], captions[:, None], prompts)
    texts = np.concatenate([captions[:, None], whole], axis=1)
    weights = np.random.default_rng(0).normal(size=(6, 4, 32))

    pooled = theirs.text_model(torch.from_numpy(texts).long().reshape(-1, 77)).pooler_output
    (pooled.reshape(6, 4, 32) * torch.from_numpy(weights)).sum().backward()
    embedding = theirs.text_model.embeddings.token_embedding.weight

    batch = {
        "image": oracle.random_images((6, 16, 16)),
        "caption": captions,
        "prompts": np.where(stands_in[..., None], 0, prompts[..., :PROMPT_LENGTH]),
    }

    @nnx.jit
    def gradient(model):
        def total(model):
            features = groupvit_features(model, batch, jax.random.split(jax.random.key(0), 6))[0]
            return (features.texts * weights).sum(), features.texts

        (_, texts), gradients = nnx.value_and_grad(total, has_aux=True)(model)
        return texts, gradients["text"]["token_embedding"][...]

    features, gradients = gradient(ours)
    assert relative_error(features, pooled.detach().numpy().reshape(6, 4, 32)) <= 1e-5
    assert relative_error(gradients, embedding.grad.numpy()) <= 1e-5
