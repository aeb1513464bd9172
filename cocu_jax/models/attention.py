"""softmax(q k^T / sqrt(d)) v, by the program that suits the platform it is compiled for.

The choice is made when a program is lowered, not where it is traced: a step that a CPU host
compiles for a TPU is the TPU's, and its gradient keeps nothing of the programs not chosen.

    CPU     batch axes first, as XLA's CPU wants its products
    CUDA    cuDNN's fused kernel, for half precision and where the GPU has one; else as TPU
    TPU     `jax.nn.dot_product_attention`, which XLA fuses. At the 260 tokens of an image a Pallas
            kernel that never writes the weights moves a third more memory, for it pads to 384.
"""

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
from absl import logging
from jaxtyping import Array, Bool, Float

_CACHE_BYTES = 2**21  # attention weights that stay near a CPU core
_SHORT_BYTES = 2**17  # weights of a head so small that a loop over heads costs more than it saves


def dot_product_attention(
    q: Float[Array, "b n h d"],
    k: Float[Array, "b m h d"],
    v: Float[Array, "b m h d"],
    *,
    causal: bool = False,
    mask: Bool[Array, "#b 1 n m"] | None = None,
) -> Float[Array, "b n h d"]:
    """Attention with a float32 softmax, over all keys or some.

    Args:
        q: queries, a row per head.
        k: keys.
        v: values.
        causal: query i sees keys 0..i only.
        mask: what each query sees, where it is neither everything nor causal; not fused on GPUs.
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
    """The precision of a matrix product of this type: full for float32, else the platform's own.

    By default TPUs multiply float32 in one pass of bfloat16, and GPUs in TF32.
    """
    return jax.lax.Precision.HIGHEST if jnp.dtype(dtype) == jnp.float32 else None


def _xla_attention(q: Array, k: Array, v: Array, **options) -> Array:
    """`jax.nn.dot_product_attention`, which has no argument for the precision of its products."""
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
    """`dot_product_attention` on CPU, where batched products are fast if the batch axes lead.

    Long sequences go a few heads at a time, as many as have their weights in the cache; the
    backward pass computes the weights again, which is faster there than to read them back.
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
    # Dividing by the sum of the softmax last spares passes over n x m numbers, there and back.
    weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(-1, keepdims=True)))
    out = multiply(weights.astype(v.dtype), v)
    return (out / weights.sum(-1, keepdims=True)).astype(v.dtype)


def _cudnn_attention(q: Array, k: Array, v: Array, *, causal: bool) -> Array:
    """`dot_product_attention` on GPUs; the kernel's gradient wants even lengths."""

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
    """Whether this process's GPUs have cuDNN's kernel and its gradient for heads of this shape.

    Tried once, for it depends on the GPU, and on the versions of CUDA and cuDNN; a refusal is
    logged.
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
        logging.warning("attention (%s): XLA's, for cuDNN's does not compile: %s", shape, reason)
        return False
    logging.info("attention (%s): cuDNN's kernel", shape)
    return True


# Answers whether cuDNN's kernel is used; takes the arguments of `cudnn_compiles`.
Chooser = Callable[[int, int, int, str, bool], bool]
_CHOOSER: contextvars.ContextVar[Chooser] = contextvars.ContextVar("cudnn", default=cudnn_compiles)


@contextlib.contextmanager
def choose_cudnn(chooser: Chooser) -> Iterator[None]:
    """While programs are traced inside, `chooser` decides in place of `cudnn_compiles`.

    For programs that several processes run together: they must take the same decisions.
    """
    token = _CHOOSER.set(chooser)
    try:
        yield
    finally:
        _CHOOSER.reset(token)
