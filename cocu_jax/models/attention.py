"""softmax(q k^T / sqrt(d)) v, with a program for each platform.

The program is chosen when a computation is lowered for a platform, not when it is traced. A step
that a CPU host compiles for a TPU uses the TPU's program, and no residuals of the others are saved
for the gradient.

    CPU     batch axes first, because batched products are fastest on XLA's CPU in that layout
    CUDA    cuDNN's fused kernel in half precision, if the GPU supports it; otherwise as on a TPU
    TPU     `jax.nn.dot_product_attention`, which XLA fuses. For the 260 tokens of an image a
            Pallas kernel that never writes the weights moves a third more memory, because it pads
            to 384 tokens.
"""

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
from absl import logging
from jaxtyping import Array, Bool, Float

_CACHE_BYTES = 2**21  # attention weights that fit in a CPU core's cache
_SHORT_BYTES = 2**17  # below this size of a head's weights a loop over heads does not pay


def dot_product_attention(
    q: Float[Array, "b n h d"],
    k: Float[Array, "b m h d"],
    v: Float[Array, "b m h d"],
    *,
    causal: bool = False,
    mask: Bool[Array, "#b 1 n m"] | None = None,
) -> Float[Array, "b n h d"]:
    """Scaled dot-product attention with a float32 softmax (Vaswani et al., 2017).

    Args:
        q: queries of every head.
        k: keys.
        v: values.
        causal: whether query i attends only to keys 0 to i.
        mask: for other patterns, the keys that each query attends to; not fused on GPUs.
    """
    programs = {
        "cpu": functools.partial(batch_first_attention, causal=causal),
        "default": functools.partial(_xla_attention, is_causal=causal),
    }
    if mask is not None:
        programs = {name: functools.partial(f, mask=mask) for name, f in programs.items()}
    elif _CHOOSER.get()(q.shape[1], k.shape[1], q.shape[3], q.dtype.name, causal):
        programs["cuda"] = functools.partial(_cudnn_attention, causal=causal)
    return jax.lax.platform_dependent(q, k, v, **programs)


def precision_of(dtype: jax.typing.DTypeLike) -> jax.lax.Precision | None:
    """The precision of matrix products of this type: full for float32, else the default.

    By default TPUs multiply float32 in a single bfloat16 pass, and GPUs in TF32.
    """
    return jax.lax.Precision.HIGHEST if jnp.dtype(dtype) == jnp.float32 else None


def _xla_attention(q: Array, k: Array, v: Array, **options) -> Array:
    """`jax.nn.dot_product_attention`, whose precision can only be set by a context manager."""
    if precision_of(q.dtype) is None:
        return jax.nn.dot_product_attention(q, k, v, **options)
    with jax.default_matmul_precision("highest"):
        return jax.nn.dot_product_attention(q, k, v, **options)


def batch_first_attention(
    q: Float[Array, "b n h d"],
    k: Float[Array, "b m h d"],
    v: Float[Array, "b m h d"],
    *,
    causal: bool = False,
    mask: Bool[Array, "#b 1 n m"] | None = None,
) -> Float[Array, "b n h d"]:
    """`dot_product_attention` for CPUs, with batch axes first.

    Long sequences are processed a few heads at a time, so that the weights stay in the cache. The
    backward pass recomputes the weights, which is faster than reading them from memory.
    """
    heads_first = [x.transpose(0, 2, 1, 3) for x in (q, k, v)]
    batch, heads = q.shape[0], q.shape[2]
    weight_bytes = 4 * q.shape[1] * k.shape[1]
    if mask is None and weight_bytes > _SHORT_BYTES:
        most = max(1, _CACHE_BYTES // weight_bytes)
        size = next(n for n in range(most, 0, -1) if batch * heads % n == 0)
        chunks = tuple(x.reshape(-1, 1, size, *x.shape[2:]) for x in heads_first)
        attend = jax.checkpoint(functools.partial(_attend, causal=causal, mask=None))
        out = jax.lax.map(lambda chunk: attend(*chunk), chunks)
        out = out.reshape(batch, heads, *out.shape[3:])
    else:
        out = _attend(*heads_first, causal=causal, mask=mask)
    return out.transpose(0, 2, 1, 3)


def _attend(
    q: Float[Array, "b h n d"],
    k: Float[Array, "b h m d"],
    v: Float[Array, "b h m d"],
    *,
    causal: bool,
    mask: Bool[Array, "#b 1 n m"] | None,
) -> Float[Array, "b h n d"]:
    multiply = functools.partial(
        jnp.matmul, precision=precision_of(q.dtype), preferred_element_type="float32"
    )
    logits = multiply(q * q.shape[-1] ** -0.5, k.swapaxes(2, 3))
    if causal:
        mask = jnp.tri(*logits.shape[2:], dtype=bool)
    if mask is not None:
        logits = jnp.where(mask, logits, -jnp.inf)
    # Dividing by the softmax's sum last saves passes over n x m values, forward and backward.
    weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(-1, keepdims=True)))
    out = multiply(weights.astype(v.dtype), v)
    return (out / weights.sum(-1, keepdims=True)).astype(v.dtype)


def _cudnn_attention(q: Array, k: Array, v: Array, *, causal: bool) -> Array:
    """`dot_product_attention` by cuDNN; pads, because the gradient's kernel needs even lengths."""

    def even(x: Float[Array, "b n h d"]) -> Float[Array, "b n+1 h d"]:
        return jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, 0), (0, 0)))

    hides_padding = causal or k.shape[1] % 2 == 0
    lengths = None if hides_padding else jnp.full(len(k), k.shape[1], jnp.int32)
    out = jax.nn.dot_product_attention(
        even(q),
        even(k),
        even(v),
        is_causal=causal,
        key_value_seq_lengths=lengths,
        implementation="cudnn",
    )
    return out[:, : q.shape[1]]


@functools.cache
def cudnn_compiles(queries: int, keys: int, width: int, dtype: str, causal: bool) -> bool:
    """Whether cuDNN's attention and its gradient compile for this shape on this process's GPUs.

    This depends on the GPU and the versions of CUDA and cuDNN, so it is tried, once per shape; a
    failure is logged.
    """
    if jax.default_backend() != "gpu" or dtype not in ("bfloat16", "float16"):
        return False
    q, k = (jax.ShapeDtypeStruct((2, n, 2, width), dtype) for n in (queries, keys))

    def total(q, k, v):
        return _cudnn_attention(q, k, v, causal=causal).sum()

    shape = f"{queries} queries, {keys} keys, heads of {width}, {dtype}"
    try:
        jax.jit(jax.grad(total, argnums=(0, 1, 2))).lower(q, k, k).compile()
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().split("\n")[0][:200]
        logging.warning("attention (%s): XLA's; cuDNN's does not compile: %s", shape, reason)
        return False
    logging.info("attention (%s): cuDNN's kernel", shape)
    return True


# Decides whether cuDNN's kernel is used, from the arguments of `cudnn_compiles`.
Chooser = Callable[[int, int, int, str, bool], bool]
_CHOOSER: contextvars.ContextVar[Chooser] = contextvars.ContextVar("cudnn", default=cudnn_compiles)


@contextlib.contextmanager
def choose_cudnn(chooser: Chooser) -> Iterator[None]:
    """Context manager: `chooser` replaces `cudnn_compiles` for functions that are traced inside.

    Programs that several processes run together need it, because all must decide in the same way.
    """
    token = _CHOOSER.set(chooser)
    try:
        yield
    finally:
        _CHOOSER.reset(token)
