"""The hand count of operations against the operations of the traced model."""

import math

import jax
import jax.extend
import jax.numpy as jnp
import pytest
from flax import nnx

from cocu_jax.models.clip import CLIP, CLIPConfig
from cocu_jax.models.groupvit import GroupViT, GroupViTConfig
from cocu_jax.models.keys import Keys
from cocu_jax.models.text import TextConfig
from cocu_jax.training.flops import step_flops

TEXT = TextConfig(vocab_size=64, context_length=16, width=64, heads=2, layers=2)
GROUPVIT = GroupViTConfig(
    image_size=64, patch_size=8, width=96, heads=4, depths=(2, 1, 1), groups=(16, 4),
    projection_hidden=128, projection_dim=32, text=TEXT,
)  # fmt: skip
CLIP_CONFIG = CLIPConfig(
    image_size=64, patch_size=8, vision_width=96, vision_layers=2, vision_heads=4,
    projection_dim=32, text=TEXT,
)  # fmt: skip


def counted_products(jaxpr: jax.extend.core.Jaxpr) -> float:
    """Two operations per multiply-add of every matrix product of a traced function."""
    total = 0.0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            total += 2.0 * equation.outvars[0].aval.size * math.prod(shape[i] for i in contracted)
        inner = [counted_products(part) for part in jax.core.jaxprs_in_params(equation.params)]
        # Attention is written once per platform; one of them runs.
        total += max(inner) if equation.primitive.name == "cond" else sum(inner)
    return total


@pytest.mark.parametrize(("model", "config"), [(GroupViT, GROUPVIT), (CLIP, CLIP_CONFIG)])
def test_hand_count_is_that_of_the_traced_forward_pass(model, config):
    graphdef, state = nnx.split(nnx.eval_shape(lambda: model(config, rngs=Keys(0))))

    def forward(state, images, tokens):
        net = nnx.merge(graphdef, state)
        keys = jax.random.split(jax.random.key(0), 8)
        train = {"train": True, "keys": keys} if model is GroupViT else {}
        image = net.encode_image(images, **train)
        return getattr(image, "feature", image) @ net.encode_text(tokens).T

    arguments = jnp.zeros((8, 64, 64, 3)), jnp.zeros((8, 16), jnp.int32)
    traced = jax.make_jaxpr(forward)(state, *arguments)
    assert step_flops(config, 8, (16,)) / 3 == pytest.approx(counted_products(traced.jaxpr))
