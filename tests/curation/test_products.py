import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cocu_jax.curation import products
from cocu_jax.curation.products import inner_products

WAYS = [products._float32, products._float16, products._bfloat16_parts]


def test_two_bfloat16_parts_are_every_float16():
    values = np.arange(2**16, dtype=np.uint16).view(np.float16)
    values = values[np.isfinite(values)]
    high, low = (np.asarray(part, np.float64) for part in jax.jit(products._parts)(values))
    np.testing.assert_array_equal(high + low, values.astype(np.float64))


@pytest.mark.parametrize("way", WAYS)
def test_single_products_are_exact(way):
    """No sum, no rounding: three of the four bfloat16 products would be off by 2^-18."""
    rng = np.random.default_rng(0)
    a, b = (rng.normal(size=(300, 1)).astype(np.float16) for _ in range(2))
    exact = a.astype(np.float64) @ b.astype(np.float64).T
    np.testing.assert_array_equal(np.asarray(jax.jit(way)(a, b), np.float64), exact)


@pytest.mark.parametrize("way", WAYS)
def test_products_equal_float64_within_the_rounding_of_a_float32_sum(way):
    rng = np.random.default_rng(1)
    a, b = (rng.normal(size=(200, 512)) + 0.5 for _ in range(2))
    a, b = ((x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float16) for x in (a, b))
    wide_a, wide_b = a.astype(np.float64), b.astype(np.float64)
    exact, sizes = wide_a @ wide_b.T, abs(wide_a) @ abs(wide_b).T
    error = np.abs(np.asarray(jax.jit(way)(a, b), np.float64) - exact) / sizes
    # A sum of n terms is off by up to n eps / 2 of the terms' sizes (Higham, 2002, section 4.2),
    # and by about its root where errors are random, which three of four parts would not reach.
    assert error.max() < 512**0.5 * 2**-24


@pytest.mark.parametrize(
    ("platform", "operands", "depth"),
    [("cpu", "f32", 64), ("cuda", "f16", 64), ("tpu", "bf16", 256)],
)
def test_each_platform_is_lowered_to_its_own_product(platform, operands, depth):
    shape = jax.ShapeDtypeStruct((128, 64), jnp.float16)
    traced = jax.jit(inner_products).trace(shape, shape)
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    (line,) = (line for line in text.splitlines() if "dot_general" in line)
    assert f"(tensor<128x{depth}x{operands}>" in line and "-> tensor<128x128xf32>" in line
