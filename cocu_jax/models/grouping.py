"""The grouping block, which merges tokens into segments (GroupViT, arXiv 2202.11094, section 3.1).

Checkpoint layout:

    GroupingBlock    norm_tokens, norm_x, mlp_tokens (over the token axis), norm_post_tokens,
                     cross_attention, assign, norm_out, mlp_out
    CrossAttention   attention, norm2, mlp, norm_post
    Assignment       query, key, value, out
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from cocu_jax.models.attention import precision_of
from cocu_jax.models.layers import Attention, Dense, Initializer, Mlp, layer_norm


def mix_tokens(mlp: Mlp, x: Float[Array, "b n d"]) -> Float[Array, "b m d"]:
    """Applies an MLP over the token axis (the token mixing of Tolstikhin et al., 2021)."""
    return mlp(x.swapaxes(1, 2)).swapaxes(1, 2)


def hard_assignment(
    logits: Float[Array, "b s n"], gumbel: Float[Array, "b s n"] | None = None
) -> Float[Array, "b s n"]:
    """Assigns each token (last axis) to its best segment, as a one-hot column.

    Args:
        logits: similarity of each segment and token.
        gumbel: in training, Gumbel(0, 1) noise. The assignment is then a sample of the softmax, and
            the gradient is that of the noisy softmax (straight-through Gumbel-softmax; Jang et al.,
            2017, tau = 1).
    """
    segments = logits.shape[1]
    if gumbel is None:
        return jax.nn.one_hot(logits.argmax(1), segments, axis=1, dtype=logits.dtype)
    soft = jax.nn.softmax(logits + gumbel, axis=1)
    hard = jax.nn.one_hot(soft.argmax(1), segments, axis=1, dtype=soft.dtype)
    return soft + jax.lax.stop_gradient(hard - soft)


class CrossAttention(nnx.Module):
    """Segment tokens attend to the image tokens, with a norm after the block."""

    def __init__(
        self,
        width: int,
        heads: int,
        hidden: int,
        *,
        init: Initializer,
        eps: float,
        dtype: str,
        rngs: nnx.Rngs,
        remat: bool = False,
        fused: bool = False,
    ):
        self.attention = Attention(
            width, heads, init_in=init, init_out=init, fused=fused, dtype=dtype, rngs=rngs
        )
        self.norm2 = layer_norm(width, eps, dtype, rngs)
        self.mlp = Mlp(
            width,
            hidden,
            width,
            init_in=init,
            init_out=init,
            activation="gelu",
            remat=remat,
            flat=not fused,
            dtype=dtype,
            rngs=rngs,
        )
        self.norm_post = layer_norm(width, eps, dtype, rngs)

    def __call__(
        self, queries: Float[Array, "b s d"], x: Float[Array, "b n d"]
    ) -> Float[Array, "b s d"]:
        """Attention and MLP, each with its residual, then the post norm."""
        queries = queries + self.attention(queries, x)
        queries = queries + self.mlp(self.norm2(queries))
        return self.norm_post(queries)


class Assignment(nnx.Module):
    """One-head assignment of tokens to segments; a segment is the mean of its tokens' values."""

    def __init__(
        self,
        width: int,
        *,
        init: Initializer,
        init_value: Initializer,
        logit_scale: float,
        dtype: str,
        rngs: nnx.Rngs,
        flat: bool = True,
    ):
        self.logit_scale = logit_scale * width**-0.5
        shared = dict(dtype=dtype, flat=flat, rngs=rngs)
        self.query, self.key = (Dense(width, width, kernel_init=init, **shared) for _ in range(2))
        self.value, self.out = (
            Dense(width, width, kernel_init=init_value, **shared) for _ in range(2)
        )

    def __call__(
        self,
        segments: Float[Array, "b s d"],
        x: Float[Array, "b n d"],
        gumbel: Float[Array, "b s n"] | None,
    ) -> tuple[Float[Array, "b s d"], Float[Array, "b s n"]]:
        """Returns the segments' new content, and the soft assignment (float32, without noise)."""
        q, k, v = self.query(segments), self.key(x), self.value(x)
        multiply = functools.partial(
            jnp.matmul, precision=precision_of(v.dtype), preferred_element_type=jnp.float32
        )
        logits = self.logit_scale * multiply(q, k.swapaxes(1, 2))
        hard = hard_assignment(logits, gumbel)
        total = multiply(hard.astype(v.dtype), v)
        # One more than the number of tokens, so that an empty segment does not divide by zero.
        mean = total / (hard.sum(-1, keepdims=True) + 1)
        return self.out(mean.astype(v.dtype)), jax.nn.softmax(logits, axis=1)


class GroupingBlock(nnx.Module):
    """Merges N image tokens into S segment tokens, with the help of G group tokens."""

    def __init__(
        self,
        width: int,
        heads: int,
        hidden: int,
        group_tokens: int,
        segments: int,
        *,
        init: Initializer,
        init_value: Initializer,
        logit_scale: float,
        eps: float,
        dtype: str,
        rngs: nnx.Rngs,
        remat: bool = False,
        fused: bool = False,
    ):
        shared = dict(dtype=dtype, rngs=rngs)
        flat = not fused
        mlp = dict(init_in=init, init_out=init, activation="gelu", remat=remat, flat=flat, **shared)
        self.norm_tokens = layer_norm(width, eps, **shared)
        self.norm_x = layer_norm(width, eps, **shared)
        self.mlp_tokens = Mlp(group_tokens, width // 2, segments, **mlp)
        self.norm_post_tokens = layer_norm(width, eps, **shared)
        self.cross_attention = CrossAttention(
            width, heads, hidden, init=init, eps=eps, remat=remat, fused=fused, **shared
        )
        self.assign = Assignment(
            width, init=init, init_value=init_value, logit_scale=logit_scale, flat=flat, **shared
        )
        self.norm_out = layer_norm(width, eps, **shared)
        self.mlp_out = Mlp(width, 4 * width, width, **mlp)

    def __call__(
        self,
        x: Float[Array, "b n d"],
        group_tokens: Float[Array, "b g d"],
        gumbel: Float[Array, "b s n"] | None = None,
    ) -> tuple[Float[Array, "b s d"], Float[Array, "b s n"]]:
        """Returns segment tokens and the soft assignment; `gumbel` is given in training only."""
        x = self.norm_x(x)
        segments = mix_tokens(self.mlp_tokens, self.norm_tokens(group_tokens))
        segments = self.cross_attention(self.norm_post_tokens(segments), x)
        content, soft = self.assign(segments, x, gumbel)
        out = content + segments
        return out + self.mlp_out(self.norm_out(out)), soft
