"""The layers of all towers: dense layer, attention, MLP, pre-norm block, projector.

Attribute names are the names in a checkpoint; kernels are [in, out]:

    Attention  query, key, value, out          Dense each, with bias
    Mlp        fc1, fc2                        Dense each
    Block      norm1, attention, norm2, mlp    pre-norm residual block
    Projector  dense1, norm, dense2            Dense -> BatchNorm -> ReLU -> Dense
    BatchNorm  scale, bias (Param), mean, var (BatchStat)

Parameters are always float32; `dtype` is the type of matrix products. Softmax, norms and the output
of a tower are float32. Products in float32 request full precision, which is not the default of TPUs
and of GPUs with TF32.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from cocu_jax.models.attention import dot_product_attention, precision_of
from cocu_jax.models.fused_attention import fused_attention, is_fusible
from cocu_jax.models.keys import split_each

Initializer = Callable[..., Array]


def truncated_normal(std: float) -> Initializer:
    """Normal distribution truncated at the values -2 and 2, as in the published models.

    The bounds are absolute values, not multiples of `std`.
    """
    return nnx.initializers.truncated_normal(std, lower=-2 / std, upper=2 / std)


@dataclass(frozen=True)
class BlockInits:
    """Kernel initialisers of a block: the input and output layers of its attention and MLP."""

    attention_in: Initializer
    attention_out: Initializer
    mlp_in: Initializer
    mlp_out: Initializer

    @classmethod
    def uniform(cls, init: Initializer) -> "BlockInits":
        """The same initialiser for all kernels, as in the image tower."""
        return cls(init, init, init, init)

    @classmethod
    def clip(cls, width: int, layers: int) -> "BlockInits":
        """CLIP's depth-aware normals (Radford et al., 2021, released code)."""
        normal = nnx.initializers.normal
        out = width**-0.5 * (2 * layers) ** -0.5
        return cls(normal(width**-0.5), normal(out), normal((2 * width) ** -0.5), normal(out))


def activate(x: Float[Array, "*b d"], activation: str) -> Float[Array, "*b d"]:
    """`gelu` (exact, with erf), `gelu_tanh`, `quick_gelu` (x * sigmoid(1.702 x))."""
    if activation == "gelu":
        # jax.nn.gelu uses erfc, which is three times slower on XLA's CPU.
        return 0.5 * x * (1 + jax.lax.erf(x * 0.5**0.5))
    if activation == "gelu_tanh":
        return jax.nn.gelu(x, approximate=True)
    if activation == "quick_gelu":
        return x * jax.nn.sigmoid(1.702 * x)
    raise ValueError(f"activation {activation!r} is none of gelu, gelu_tanh, quick_gelu")


class Dense(nnx.Linear):
    """`nnx.Linear` on one flat [vectors, features] matrix, which is much faster on XLA's CPU."""

    def __init__(
        self,
        width_in: int,
        width_out: int,
        *,
        dtype: str,
        rngs: nnx.Rngs,
        flat: bool = True,
        **options,
    ):
        """Creates the layer.

        Args:
            width_in: number of input features.
            width_out: number of output features.
            dtype: type of the product.
            rngs: random keys.
            flat: whether leading axes are merged. On TPUs that makes a copy, because they pad the
                last but one axis of an array to a multiple of 8.
            **options: other arguments of `nnx.Linear`.
        """
        self.flat = flat
        precision = precision_of(dtype)
        super().__init__(
            width_in, width_out, dtype=dtype, precision=precision, rngs=rngs, **options
        )

    def __call__(self, x: Float[Array, "*b i"]) -> Float[Array, "*b o"]:
        """Applies the layer to the last axis."""
        if not self.flat:
            return super().__call__(x)
        flat = super().__call__(x.reshape(-1, x.shape[-1]))
        return flat.reshape(*x.shape[:-1], flat.shape[-1])


def layer_norm(width: int, eps: float, dtype: str, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """Layer norm in float32 with a two-pass variance; the output is of type `dtype`."""
    return nnx.LayerNorm(
        width,
        epsilon=eps,
        dtype=dtype,
        use_fast_variance=False,
        promote_dtype=_promote_to_float32,
        rngs=rngs,
    )


def _promote_to_float32(arrays: tuple[Array, ...], *, dtype: str) -> tuple[Array, ...]:
    """Replaces Flax's promotion, which would round input, scale and bias to `dtype`."""
    return tuple(x.astype(jnp.float32) for x in arrays)


class Attention(nnx.Module):
    """Multi-head self- or cross-attention (Vaswani et al., 2017)."""

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        init_in: Initializer,
        init_out: Initializer,
        dtype: str,
        rngs: nnx.Rngs,
        causal: bool = False,
        fused: bool = False,
    ):
        """Creates the layer.

        Args:
            width: number of features.
            heads: number of heads, which must divide the width.
            init_in: initialiser of query, key and value.
            init_out: initialiser of the output layer.
            dtype: type of matrix products.
            rngs: random keys.
            causal: whether a position attends only to earlier ones and itself.
            fused: whether to use the TPU kernel of `fused_attention` where it is applicable.
        """
        if width % heads:
            raise ValueError(f"width {width} is not a multiple of heads {heads}")
        self.heads = heads
        self.causal = causal
        self.fused = fused
        shared = dict(dtype=dtype, flat=not fused, rngs=rngs)
        self.query, self.key, self.value = (
            Dense(width, width, kernel_init=init_in, **shared) for _ in range(3)
        )
        self.out = Dense(width, width, kernel_init=init_out, **shared)

    def __call__(
        self,
        x: Float[Array, "b n d"],
        context: Float[Array, "b m d"] | None = None,
        positions: Int[Array, "#b n"] | None = None,
    ) -> Float[Array, "b n d"]:
        """Attends from every position of `x` to `context`, or to `x` itself without `context`.

        If the layer is causal and `x` is only some positions of `context`, `positions` gives their
        indices in it.
        """
        context = x if context is None else context
        q, k, v = self.query(x), self.key(context), self.value(context)
        if self.fused and positions is None and is_fusible(q.shape[1], k.shape[1]):
            return self.out(fused_attention(q, k, v, self.heads, self.causal))
        q, k, v = (y.reshape(*y.shape[:2], self.heads, -1) for y in (q, k, v))
        if self.causal and positions is not None:
            mask = positions[:, None, :, None] >= jnp.arange(context.shape[1])
            attended = dot_product_attention(q, k, v, mask=mask)
        else:
            attended = dot_product_attention(q, k, v, causal=self.causal)
        return self.out(attended.reshape(x.shape))


class Mlp(nnx.Module):
    """Dense -> activation -> Dense over the last axis."""

    def __init__(
        self,
        width_in: int,
        hidden: int,
        width_out: int,
        *,
        init_in: Initializer,
        init_out: Initializer,
        activation: str,
        dtype: str,
        rngs: nnx.Rngs,
        remat: bool = False,
        flat: bool = True,
    ):
        """Creates the MLP.

        Args:
            width_in: number of input features.
            hidden: number of hidden features.
            width_out: number of output features.
            init_in: initialiser of the first layer.
            init_out: initialiser of the second layer.
            activation: see `activate`.
            dtype: type of matrix products.
            rngs: random keys.
            remat: whether the backward pass recomputes the activation instead of storing it.
            flat: see `Dense`.
        """
        self.activation = activation
        self.remat = remat
        shared = dict(dtype=dtype, flat=flat, rngs=rngs)
        self.fc1 = Dense(width_in, hidden, kernel_init=init_in, **shared)
        self.fc2 = Dense(hidden, width_out, kernel_init=init_out, **shared)

    def __call__(self, x: Float[Array, "*b i"]) -> Float[Array, "*b o"]:
        """Applies the MLP to the last axis."""

        def activate_and_project(hidden: Float[Array, "*b h"]) -> Float[Array, "*b o"]:
            return self.fc2(activate(hidden, self.activation))

        second = jax.checkpoint(activate_and_project) if self.remat else activate_and_project
        return second(self.fc1(x))


def drop_path(
    x: Float[Array, "b n d"], rate: float, keys: Key[Array, "b"] | None
) -> Float[Array, "b n d"]:
    """Stochastic depth: drops a residual branch per sample (Huang et al., 2016).

    Args:
        x: output of the branch.
        rate: probability of dropping.
        keys: a random key for every sample; None: nothing is dropped.
    """
    if keys is None or rate == 0:
        return x
    keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate, (1, 1)))(keys)
    return jnp.where(keep, x / (1 - rate), 0).astype(x.dtype)


class Block(nnx.Module):
    """Pre-norm transformer block with stochastic depth."""

    def __init__(
        self,
        width: int,
        heads: int,
        hidden: int,
        *,
        inits: BlockInits,
        activation: str,
        eps: float,
        dtype: str,
        rngs: nnx.Rngs,
        causal: bool = False,
        drop_path: float = 0.0,
        remat: bool = False,
        fused: bool = False,
    ):
        self.drop_path = drop_path
        self.remat = remat
        self.norm1 = layer_norm(width, eps, dtype, rngs)
        self.attention = Attention(
            width,
            heads,
            init_in=inits.attention_in,
            init_out=inits.attention_out,
            causal=causal,
            fused=fused,
            dtype=dtype,
            rngs=rngs,
        )
        self.norm2 = layer_norm(width, eps, dtype, rngs)
        self.mlp = Mlp(
            width,
            hidden,
            width,
            init_in=inits.mlp_in,
            init_out=inits.mlp_out,
            activation=activation,
            remat=remat,
            flat=not fused,
            dtype=dtype,
            rngs=rngs,
        )

    def __call__(
        self, x: Float[Array, "b n d"], keys: Key[Array, "b"] | None = None
    ) -> Float[Array, "b n d"]:
        """Applies the block; `keys`, one for each sample, enable stochastic depth.

        With `remat` the backward pass recomputes the block instead of storing its activations.
        """
        return nnx.remat(Block.residuals)(self, x, keys) if self.remat else self.residuals(x, keys)

    def output_at(
        self, x: Float[Array, "b n d"], positions: Int[Array, " b"]
    ) -> Float[Array, "b d"]:
        """The block's output at one position per sequence, without computing the others.

        It is used for the last block of a tower whose feature is that of a class or end token.
        """
        normed = self.norm1(x)
        x, query = (jnp.take_along_axis(y, positions[:, None, None], axis=1) for y in (x, normed))
        x = x + self.attention(query, normed, positions[:, None])
        return (x + self.mlp(self.norm2(x)))[:, 0]

    def residuals(
        self, x: Float[Array, "b n d"], keys: Key[Array, "b"] | None
    ) -> Float[Array, "b n d"]:
        """x + attention(norm(x)), then x + mlp(norm(x))."""
        first, second = (None, None) if keys is None else split_each(keys)
        x = x + drop_path(self.attention(self.norm1(x)), self.drop_path, first)
        return x + drop_path(self.mlp(self.norm2(x)), self.drop_path, second)


class BatchNorm(nnx.Module):
    """Batch normalisation over the global batch (Ioffe and Szegedy, 2015), as PyTorch computes it.

    Unlike in `nnx.BatchNorm`, the running variance is the unbiased one. The input may be sharded in
    any way; the statistics are those of the whole array.
    """

    def __init__(self, width: int, *, momentum: float = 0.1, eps: float = 1e-5):
        self.momentum = momentum
        self.eps = eps
        self.scale = nnx.Param(jnp.ones(width))
        self.bias = nnx.Param(jnp.zeros(width))
        self.mean = nnx.BatchStat(jnp.zeros(width))
        self.var = nnx.BatchStat(jnp.ones(width))

    def __call__(self, x: Float[Array, "n d"], *, train: bool) -> Float[Array, "n d"]:
        """Normalises in float32; in training by batch statistics, which update the running ones."""
        x = x.astype(jnp.float32)
        mean, var = self.mean[...], self.var[...]
        if train:
            mean, var = x.mean(0), x.var(0)
            self._track(mean, var * (x.shape[0] / max(x.shape[0] - 1, 1)))
        return (x - mean) * (jax.lax.rsqrt(var + self.eps) * self.scale) + self.bias

    def _track(self, mean: Float[Array, " d"], var: Float[Array, " d"]) -> None:
        for running, value in ((self.mean, mean), (self.var, var)):
            value = jax.lax.stop_gradient(value)
            running[...] = (1 - self.momentum) * running[...] + self.momentum * value


class Projector(nnx.Module):
    """Dense -> BatchNorm -> ReLU -> Dense into the joint space (GroupViT, section 4.1).

    The paper does not specify the initialisation; kernels are uniform in +-1/sqrt(inputs), which is
    PyTorch's default.
    """

    def __init__(self, width: int, hidden: int, out: int, *, dtype: str, rngs: nnx.Rngs):
        init = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
        self.dense1 = Dense(width, hidden, kernel_init=init, dtype=dtype, rngs=rngs)
        self.norm = BatchNorm(hidden)
        self.dense2 = Dense(hidden, out, kernel_init=init, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "*b d"], *, train: bool) -> Float[Array, "*b p"]:
        """Projects the last axis; float32 output. Batch statistics are over all other axes."""
        hidden = self.norm(self.dense1(x.reshape(-1, x.shape[-1])), train=train)
        out = self.dense2(jax.nn.relu(hidden)).astype(jnp.float32)
        return out.reshape(*x.shape[:-1], out.shape[-1])
