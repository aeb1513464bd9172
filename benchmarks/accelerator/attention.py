"""Attention of the towers' shapes: each kernel's error and time, forwards and backwards."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch

from benchmarks.accelerator.measure import (
    card,
    seconds_of,
    torch_device,
    wait_for_jax,
    wait_for_torch,
)
from benchmarks.figures import print_figure, print_line
from cocu_jax.models import attention as ours
from cocu_jax.training.hardware import chip_of


class Shape(NamedTuple):
    """Of one layer's attention over itself; heads are 64 wide."""

    name: str
    batch: int
    length: int
    heads: int
    causal: bool


SHAPES = (
    Shape("image, stage 1", 256, 260, 6, False),
    Shape("image, stage 2", 256, 72, 6, False),
    Shape("captions", 256, 77, 4, True),
    Shape("prompts", 768, 32, 4, True),
)
TINY = (Shape("toy", 2, 13, 2, True),)
_WIDTH = 64

Kernel = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


@card()
def attention(tiny: bool) -> None:
    """Prints every kernel's figures for every shape; one that fails prints why."""
    for shape in TINY if tiny else SHAPES:
        inputs = _draw(shape)
        exact = _gradients(_reference(shape))(*(x.astype(jnp.float32) for x in inputs))
        _print_roofline(shape)
        for name, kernel in _kernels(shape).items():
            try:
                _measure(f"attention, {shape.name}: {name}", kernel, inputs, exact, tiny)
            except Exception as error:  # whatever a kernel's compiler raises
                reason = str(error).strip().splitlines()[0][:200]
                print_line({"metric": f"attention, {shape.name}: {name}", "error": reason})
        _measure_torch(shape, inputs, tiny)


def _draw(shape: Shape) -> list[jax.Array]:
    size = (3, shape.batch, shape.length, shape.heads, _WIDTH)
    drawn = np.random.default_rng(0).standard_normal(size, np.float32)
    return list(jnp.asarray(drawn, jnp.bfloat16))


def _kernels(shape: Shape) -> dict[str, Kernel]:
    kernels = {
        "XLA": functools.partial(ours._xla_attention, is_causal=shape.causal),
        "Triton": functools.partial(_triton, causal=shape.causal),
    }
    if jax.default_backend() == "gpu":
        kernels["cuDNN"] = functools.partial(ours._cudnn_attention, causal=shape.causal)
    return kernels


def _triton(q: jax.Array, k: jax.Array, v: jax.Array, *, causal: bool) -> jax.Array:
    """The flash kernel that JAX brings, over sequences that are padded to its blocks."""
    from jax.experimental.pallas.ops.gpu import attention as pallas_attention

    length = q.shape[1]
    block = 64 if length > 32 else 32
    pad = -length % block
    q, k, v = (jnp.pad(x, ((0, 0), (0, pad), (0, 0), (0, 0))) for x in (q, k, v))
    segments = jnp.broadcast_to(jnp.arange(length + pad) < length, (q.shape[0], length + pad))
    sizes = pallas_attention.BlockSizes(
        block_q=block,
        block_k=block,
        block_q_dkv=block,
        block_kv_dkv=block,
        block_q_dq=block,
        block_kv_dq=block,
    )
    out = pallas_attention.mha(
        q,
        k,
        v,
        segment_ids=segments.astype(jnp.int32),
        sm_scale=_WIDTH**-0.5,
        causal=causal,
        block_sizes=sizes,
        interpret=jax.default_backend() == "cpu",
    )
    return out[:, :length]


def _reference(shape: Shape) -> Kernel:
    def kernel(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        """softmax(q k^T / 8) v as it is written, for float32."""
        multiply = functools.partial(jnp.einsum, precision="highest")
        logits = multiply("bnhd,bmhd->bhnm", q, k) * _WIDTH**-0.5
        if shape.causal:
            logits = jnp.where(jnp.tri(shape.length, dtype=bool), logits, -jnp.inf)
        return multiply("bhnm,bmhd->bnhd", jax.nn.softmax(logits), v)

    return kernel


def _gradients(kernel: Kernel) -> Callable:
    """(q, k, v) -> output, and gradients of its product with itself detached."""

    def run(q, k, v):
        out, backward = jax.vjp(kernel, q, k, v)
        return out, *backward(out)

    return jax.jit(run)


def _measure(name: str, kernel: Kernel, inputs, exact, tiny: bool) -> None:
    forward, both = jax.jit(kernel), _gradients(kernel)
    found = both(*inputs)
    errors = [_error(mine, true) for mine, true in zip(found, exact, strict=True)]
    print_figure(f"{name}, error", errors[0], "relative", better="lower")
    print_figure(f"{name}, error of the gradients", max(errors[1:]), "relative", better="lower")
    seconds = seconds_of(lambda: forward(*inputs), wait_for_jax, tiny)
    print_figure(f"{name}, forward", 1e6 * seconds, "us", better="lower")
    seconds = seconds_of(lambda: both(*inputs), wait_for_jax, tiny)
    print_figure(f"{name}, forward and backward", 1e6 * seconds, "us", better="lower")


def _error(mine: jax.Array, true: jax.Array) -> float:
    """Norm of the difference over that of the true values."""
    return float(jnp.linalg.norm(mine.astype(jnp.float32) - true) / jnp.linalg.norm(true))


def _measure_torch(shape: Shape, inputs, tiny: bool) -> None:
    q, k, v = (
        torch.from_numpy(np.asarray(x, np.float32))
        .to(torch_device(), torch.bfloat16)
        .transpose(1, 2)
        .requires_grad_()
        for x in inputs
    )
    attend = torch.nn.functional.scaled_dot_product_attention

    def forward():
        with torch.no_grad():
            return attend(q, k, v, is_causal=shape.causal)

    def both():
        out = attend(q, k, v, is_causal=shape.causal)
        return torch.autograd.grad(out, (q, k, v), out.detach())

    for part, run in {"forward": forward, "forward and backward": both}.items():
        seconds = seconds_of(run, wait_for_torch, tiny)
        name = f"attention, {shape.name}: torch, {part}"
        print_figure(name, 1e6 * seconds, "us", better="lower")


def _print_roofline(shape: Shape) -> None:
    """Least time: seven products (two forwards, five backwards), and each array moved once."""
    chip = chip_of(jax.devices()[0].device_kind)
    if not chip:
        return
    product = 2 * shape.batch * shape.heads * shape.length**2 * _WIDTH / (1 + shape.causal)
    array = 2 * shape.batch * shape.length * shape.heads * _WIDTH  # bytes
    for part, products, arrays in (("forward", 2, 4), ("forward and backward", 7, 12)):
        least = max(products * product / chip.flops, arrays * array / chip.bandwidth)
        name = f"attention, {shape.name}: roofline, {part}"
        print_figure(name, 1e6 * least, "us", better="lower")
