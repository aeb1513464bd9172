"""On CUDA devices the residual stream of every tower and its gradient are row-major."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from cocu_jax.models.groupvit import GroupViT, GroupViTConfig
from cocu_jax.models.keys import Keys
from cocu_jax.models.row_major import row_major
from cocu_jax.models.text import TextConfig

CONFIG = GroupViTConfig(
    image_size=32,
    width=16,
    heads=2,
    depths=(1, 1, 1),
    groups=(4, 2),
    text=TextConfig(vocab_size=64, context_length=8, width=16, heads=2, layers=2),
)


@pytest.mark.parametrize(("platform", "constraints"), [("cuda", 4), ("tpu", 0), ("cpu", 0)])
def test_stream_and_gradient_of_every_stage_and_text_are_row_major_on_cuda(platform, constraints):
    graph, state = nnx.split(nnx.eval_shape(lambda: GroupViT(CONFIG, rngs=Keys(0))))

    def loss(state, images, tokens):
        model = nnx.merge(graph, state)
        return model.image(images)[0].sum() + model.text(tokens).sum()

    images = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    tokens = jax.ShapeDtypeStruct((2, 8), jnp.int32)
    traced = jax.jit(jax.grad(loss, allow_int=True)).trace(state, images, tokens)
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert text.count("@LayoutConstraint") == 2 * constraints  # and as many for gradients


def test_values_and_gradients_are_unchanged():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 3, 4), np.float32))
    np.testing.assert_array_equal(row_major(x), x)
    gradient = jax.grad(lambda x: (row_major(x) ** 3).sum())(x)
    np.testing.assert_array_equal(gradient, jax.grad(lambda x: (x**3).sum())(x))
