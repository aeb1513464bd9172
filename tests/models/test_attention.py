"""Attention is torch's in the program of every platform, and follows the platform it is for."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from cocu_jax.models.attention import batch_first_attention, dot_product_attention

SHAPE = (2, 7, 3, 8)
LONG = (3, 200, 5, 8)  # the CPU's program takes them some heads at a time
ROWS = np.array([2, 6])
PROGRAMS = {"cpu": batch_first_attention, "accelerator": jax.nn.dot_product_attention}


def arrays(shape=SHAPE):
    rng = np.random.default_rng(0)
    return [rng.standard_normal(shape, dtype=np.float32) for _ in range(4)]


@pytest.mark.parametrize("shape", [SHAPE, LONG])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("program", PROGRAMS)
def test_attention_and_its_gradient_are_torchs(program, causal, shape):
    *inputs, direction = arrays(shape)
    flag = {"cpu": "causal", "accelerator": "is_causal"}[program]
    actual, pull = jax.vjp(functools.partial(PROGRAMS[program], **{flag: causal}), *inputs)
    theirs = [torch.tensor(x, requires_grad=True) for x in inputs]
    expected = torch.nn.functional.scaled_dot_product_attention(
        *(x.transpose(1, 2) for x in theirs), is_causal=causal
    ).transpose(1, 2)
    np.testing.assert_allclose(actual, expected.detach().numpy(), rtol=1e-5, atol=1e-6)
    expected.backward(torch.from_numpy(direction))
    for ours, x in zip(pull(jnp.asarray(direction)), theirs, strict=True):
        np.testing.assert_allclose(ours, x.grad.numpy(), rtol=1e-4, atol=1e-6)


def test_one_masked_row_is_the_row_of_causal_attention():
    q, k, v, _ = arrays()
    every = dot_product_attention(q, k, v, causal=True)
    mask = ROWS[:, None, None, None] >= np.arange(SHAPE[1])
    one = dot_product_attention(q[np.arange(2), ROWS][:, None], k, v, mask=jnp.asarray(mask))
    np.testing.assert_allclose(one[:, 0], every[np.arange(2), ROWS], rtol=1e-5, atol=1e-6)


def test_program_follows_the_platform_it_is_compiled_for():
    """Weights [n, m] are divided one by one in XLA's attention, and after the product on CPU."""
    q, k, v, _ = arrays()

    def loss(q, k, v):
        return dot_product_attention(q, k, v).sum()

    traced = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).trace(q, k, v)
    divided = {
        platform: "7x7xf32" in "".join(re.findall("divide .*", program.as_text()))
        for platform in ("cpu", "tpu", "cuda")
        for program in [traced.lower(lowering_platforms=(platform,))]
    }
    assert divided == {"cpu": False, "tpu": True, "cuda": True}
