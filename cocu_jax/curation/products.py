"""Inner products of float16 embeddings, as accurate as float32 allows, by the platform's fast way.

The product of two float16 values is exact in float32, so only the sum is rounded. The choice is
made when a program is lowered, as for `models.attention`:

    CPU     float32 operands
    CUDA    float16 operands and a float32 sum, which is what tensor cores compute
    TPU     float16 = bfloat16 + bfloat16 exactly (11 bits of significand in 8 + 3), hence four
            bfloat16 products, summed in float32 by one product of four times the width. The six
            that `Precision.HIGHEST` takes are for operands of 24 bits.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float16


def inner_products(a: Float16[Array, "n d"], b: Float16[Array, "m d"]) -> Float[Array, "n m"]:
    """a b^T in float32; off the exact sum by no more than a float32 sum's rounding."""
    return jax.lax.platform_dependent(a, b, cpu=_float32, cuda=_float16, default=_bfloat16_parts)


def _float32(a: Array, b: Array) -> Array:
    highest = jax.lax.Precision.HIGHEST
    return jnp.matmul(a.astype(jnp.float32), b.astype(jnp.float32).T, precision=highest)


def _float16(a: Array, b: Array) -> Array:
    default = jax.lax.Precision.DEFAULT  # whatever float32 products are set to
    return jnp.matmul(a, b.T, precision=default, preferred_element_type=jnp.float32)


def _bfloat16_parts(a: Array, b: Array) -> Array:
    (a_high, a_low), (b_high, b_low) = _parts(a), _parts(b)
    left = jnp.concatenate([a_low, a_low, a_high, a_high], axis=1)
    right = jnp.concatenate([b_low, b_high, b_low, b_high], axis=1)
    default = jax.lax.Precision.DEFAULT
    return jnp.matmul(left, right.T, precision=default, preferred_element_type=jnp.float32)


def _parts(x: Array) -> tuple[Array, Array]:
    """The nearest bfloat16 and the rest, which has at most three bits."""
    x = x.astype(jnp.float32)
    # Not a pair of casts, which XLA may drop as excess precision.
    high = jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)
    return high.astype(jnp.bfloat16), (x - high).astype(jnp.bfloat16)
