"""The attention kernel for TPUs, interpreted on CPU, against float64 formulas in NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from cocu_jax.models.fused_attention import fused_attention

# Queries, keys, width, heads, causal: self-attention of both towers, and a grouping block's.
SHAPES = [(29, 29, 48, 6, False), (21, 21, 32, 4, True), (8, 37, 48, 6, False)]


def arrays(batch, n, m, width, dtype):
    rng = np.random.default_rng(n)
    shapes = [(batch, n, width), (batch, m, width), (batch, m, width), (batch, n, width)]
    return [rng.normal(size=shape).astype(dtype) for shape in shapes]


def oracle(q, k, v, g, heads, causal):
    """Attention and its three gradients for the output's gradient `g`, in float64."""

    def split(x):
        x = np.asarray(x, np.float64)
        return x.reshape(*x.shape[:2], heads, -1).transpose(0, 2, 1, 3)

    def join(x):
        return x.transpose(0, 2, 1, 3).reshape(len(x), x.shape[2], -1)

    q, k, v, g = map(split, (q, k, v, g))
    scale = q.shape[-1] ** -0.5
    logits = q @ k.swapaxes(2, 3) * scale
    if causal:
        logits = np.where(np.tri(*logits.shape[2:], dtype=bool), logits, -np.inf)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    pulled = g @ v.swapaxes(2, 3)
    pulled = weights * (pulled - (weights * pulled).sum(-1, keepdims=True)) * scale
    results = weights @ v, pulled @ k, pulled.swapaxes(2, 3) @ q, weights.swapaxes(2, 3) @ g
    return [join(x) for x in results]


@functools.partial(jax.jit, static_argnums=(4, 5))
def attention_and_gradients(q, k, v, g, heads, causal):
    out, pull = jax.vjp(lambda *inputs: fused_attention(*inputs, heads, causal), q, k, v)
    return out, *pull(g)


def error(ours, theirs):
    return np.linalg.norm(np.asarray(ours, np.float64) - theirs) / np.linalg.norm(theirs)


@pytest.mark.parametrize(("n", "m", "width", "heads", "causal"), SHAPES)
def test_values_and_gradients_equal_the_formula(n, m, width, heads, causal):
    inputs = arrays(2, n, m, width, np.float32)

    with pltpu.force_tpu_interpret_mode():
        ours = attention_and_gradients(*inputs, heads, causal)

    for value, expected in zip(ours, oracle(*inputs, heads, causal), strict=True):
        assert value.dtype == jnp.float32
        assert error(value, expected) < 1e-6


@pytest.mark.slow
def test_bfloat16_is_as_close_as_the_compilers_own_attention():
    n, m, width, heads, causal = SHAPES[0]
    inputs = [jnp.asarray(x, jnp.bfloat16) for x in arrays(2, n, m, width, np.float32)]

    def reference(q, k, v):
        q, k, v = (x.reshape(*x.shape[:2], heads, -1) for x in (q, k, v))
        return jax.nn.dot_product_attention(q, k, v, is_causal=causal).reshape(*inputs[0].shape)

    out, pull = jax.vjp(reference, *inputs[:3])
    with pltpu.force_tpu_interpret_mode():
        ours = attention_and_gradients(*inputs, heads, causal)

    theirs = out, *pull(inputs[3])
    for value, other, expected in zip(ours, theirs, oracle(*inputs, heads, causal), strict=True):
        assert value.dtype == jnp.bfloat16
        assert error(value, expected) < 1.1 * error(other, expected)


def test_every_device_of_a_mesh_attends_to_its_own_examples():
    n, m, width, heads, causal = SHAPES[1]
    inputs = arrays(8, n, m, width, np.float32)
    mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("data", "fsdp"))
    place = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))

    @functools.partial(jax.jit, in_shardings=place, out_shardings=place)
    def sharded(*inputs):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return attention_and_gradients(*inputs, heads, causal)

    with pltpu.force_tpu_interpret_mode():
        text = sharded.lower(*inputs).compile().as_text()
        ours = sharded(*inputs)

    assert "all-gather" not in text
    for value, expected in zip(ours, oracle(*inputs, heads, causal), strict=True):
        assert error(value, expected) < 1e-6
