"""Attention as one Pallas kernel for TPUs; the weights never leave the chip's fast memory.

Each program of the grid processes the whole sequence of one example and loops over heads. It reads
queries, keys and values in the layout that the dense layers produce, [b, n, heads * d], without
padding or transposition. Only the inputs are stored for the backward pass, which recomputes the
weights. This is FlashAttention (Dao et al., 2022, arXiv 2205.14135) without tiling, which sequences
of this length do not need.

Under a mesh the kernel runs in `jax.shard_map`, every device on its own examples, because XLA
cannot partition a kernel. The mesh is the ambient one (`jax.sharding.use_abstract_mesh`).
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.sharding import AxisType, PartitionSpec
from jaxtyping import Array, Float

from cocu_jax.models.attention import precision_of

_LONGEST = 1024  # positions; three float32 copies of a head's weights must fit in fast memory


def is_fusible(queries: int, keys: int) -> bool:
    """Whether the kernel supports these lengths, and a mesh is set that it can be mapped over."""
    mesh = jax.sharding.get_abstract_mesh()
    automatic = all(kind == AxisType.Auto for kind in mesh.axis_types)
    return not mesh.empty and automatic and max(queries, keys) <= _LONGEST


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def fused_attention(
    q: Float[Array, "b n w"],
    k: Float[Array, "b m w"],
    v: Float[Array, "b m w"],
    heads: int,
    causal: bool,
) -> Float[Array, "b n w"]:
    """softmax(q k^T / sqrt(w / heads)) v of every head, with a float32 softmax.

    Args:
        q: queries; the last axis consists of the features of one head after the other.
        k: keys.
        v: values.
        heads: number of heads.
        causal: whether query i attends only to keys 0 to i.
    """
    return _per_device(functools.partial(_forward, heads=heads, causal=causal), q, k, v)


def _fused_forward(q, k, v, heads, causal):
    return fused_attention(q, k, v, heads, causal), (q, k, v)


def _fused_backward(heads, causal, inputs, gradient):
    return _per_device(functools.partial(_backward, heads=heads, causal=causal), *inputs, gradient)


fused_attention.defvjp(_fused_forward, _fused_backward)


def _per_device(function: Callable, *arrays: Array):
    """Calls `function` on every device's own examples."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return function(*arrays)
    batch = PartitionSpec(mesh.axis_names)
    return jax.shard_map(function, in_specs=batch, out_specs=batch, check_vma=False)(*arrays)


def _forward(q: Array, k: Array, v: Array, *, heads: int, causal: bool) -> Array:
    kernel = functools.partial(_forward_kernel, heads=heads, causal=causal)
    return _call(kernel, (q, k, v), outputs=(q,), products=2)[0]


def _backward(q: Array, k: Array, v: Array, g: Array, *, heads: int, causal: bool):
    kernel = functools.partial(_backward_kernel, heads=heads, causal=causal)
    return tuple(_call(kernel, (q, k, v, g), outputs=(q, k, v), products=5))


def _call(kernel, inputs: tuple, outputs: tuple, products: int) -> list[Array]:
    """Runs a kernel once per example.

    `products` is its number of matrix products of n x m x w, for the compiler's cost model.
    """

    def block(x: Array) -> pl.BlockSpec:
        return pl.BlockSpec((1, *x.shape[1:]), lambda example: (example, 0, 0))

    q, k = inputs[:2]
    (batch, n, width), m = q.shape, k.shape[1]
    heads = kernel.keywords["heads"]
    cost = pl.CostEstimate(
        flops=2 * products * batch * n * m * width,
        transcendentals=batch * heads * n * m,
        bytes_accessed=sum(x.size * x.dtype.itemsize for x in (*inputs, *outputs)),
    )
    return pl.pallas_call(
        kernel,
        grid=(batch,),
        in_specs=[block(x) for x in inputs],
        out_specs=[block(x) for x in outputs],
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in outputs],
        cost_estimate=cost,
    )(*inputs)


def _forward_kernel(q_ref, k_ref, v_ref, out_ref, *, heads: int, causal: bool):
    for head in _slices(q_ref.shape[-1], heads):
        q, k, v = (ref[0, :, head] for ref in (q_ref, k_ref, v_ref))
        weights = _weights(q, k, causal)
        out_ref[0, :, head] = _multiply(weights.astype(v.dtype), v, 1, 0).astype(out_ref.dtype)


def _backward_kernel(q_ref, k_ref, v_ref, g_ref, dq_ref, dk_ref, dv_ref, *, heads: int, causal):
    for head in _slices(q_ref.shape[-1], heads):
        q, k, v, g = (ref[0, :, head] for ref in (q_ref, k_ref, v_ref, g_ref))
        weights = _weights(q, k, causal)
        dv_ref[0, :, head] = _multiply(weights.astype(g.dtype), g, 0, 0).astype(dv_ref.dtype)
        dweights = _multiply(g, v, 1, 1)
        dlogits = weights * (dweights - (weights * dweights).sum(-1, keepdims=True))
        dproduct = (dlogits * q.shape[-1] ** -0.5).astype(q.dtype)  # gradient of q k^T
        dq_ref[0, :, head] = _multiply(dproduct, k, 1, 0).astype(dq_ref.dtype)
        dk_ref[0, :, head] = _multiply(dproduct, q, 0, 0).astype(dk_ref.dtype)


def _slices(width: int, heads: int) -> list[slice]:
    size = width // heads
    return [slice(i * size, (i + 1) * size) for i in range(heads)]


def _weights(q: Float[Array, "n d"], k: Float[Array, "m d"], causal: bool) -> Float[Array, "n m"]:
    logits = _multiply(q, k, 1, 1) * q.shape[-1] ** -0.5
    if causal:
        query, key = (jax.lax.broadcasted_iota(jnp.int32, logits.shape, i) for i in (0, 1))
        logits = jnp.where(query >= key, logits, -jnp.inf)
    weights = jnp.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def _multiply(a: Array, b: Array, axis_a: int, axis_b: int) -> Float[Array, "i j"]:
    """Matrix product that contracts `axis_a` with `axis_b`, accumulated in float32."""
    axes = (((axis_a,), (axis_b,)), ((), ()))
    return jax.lax.dot_general(
        a, b, axes, precision=precision_of(a.dtype), preferred_element_type=jnp.float32
    )
