"""Features of the patches of an image from a CLIP, without further training.

The attention of CLIP's last block mixes distant patches of similar content, which blurs
localisation. Each variant replaces this attention, softmax(q k^T / sqrt(d)) v, and some also omit
the residual connection and the feed-forward part:

    variant    attention weights                   residual and feed-forward  source
    clip       softmax(q k^T)                      yes                        arXiv 2103.00020
    maskclip   identity: a patch's own value       yes                        arXiv 2112.01071
    sclip      softmax(q q^T) + softmax(k k^T)     yes                        arXiv 2312.01597
    clearclip  softmax(q q^T)                      no                         arXiv 2407.12442
    naclip     softmax(k k^T + Gaussian)           no                         arXiv 2404.08181

All products are scaled by 1 / sqrt(d) before the softmax; NACLIP's Gaussian of the distance
between patches is not.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from cocu_jax.models.attention import precision_of
from cocu_jax.models.clip import CLIP
from cocu_jax.models.layers import Attention, Block

VARIANTS = ("clip", "maskclip", "sclip", "clearclip", "naclip")

_GAUSSIAN_STD = 5.0  # patches; NACLIP's published value


def dense_features(
    model: CLIP, images: Float[Array, "b h w 3"], variant: str
) -> Float[Array, "b y x p"]:
    """Projected features of the patches, float32, not normalised.

    Args:
        model: a CLIP.
        images: normalised images of any size that is a multiple of the patch size.
        variant: one of `VARIANTS`.
    """
    x, grid = model.image.before_last_block(images)
    x = model.image.post_norm(_last_block(model.image.blocks[-1], x, grid, variant))
    features = model.image_projection(x[:, 1:]).astype(jnp.float32)
    return features.reshape(len(images), *grid, -1)


def _last_block(
    block: Block, x: Float[Array, "b n d"], grid: tuple[int, int], variant: str
) -> Float[Array, "b n d"]:
    if variant == "clip":
        return block(x)
    attention = block.attention
    normed = block.norm1(x)
    value = attention.value(normed)
    if variant == "maskclip":
        mixed = value
    else:
        weights = _weights(attention, normed, grid, variant)
        heads = _split(value, attention.heads)
        multiply = functools.partial(jnp.einsum, precision=precision_of(value.dtype))
        mixed = multiply("bhnm,bmhd->bnhd", weights.astype(value.dtype), heads)
        mixed = mixed.reshape(value.shape)
    mixed = attention.out(mixed)
    if variant in ("clearclip", "naclip"):
        return mixed
    x = x + mixed
    return x + block.mlp(block.norm2(x))


def _weights(
    attention: Attention, normed: Float[Array, "b n d"], grid: tuple[int, int], variant: str
) -> Float[Array, "b h n n"]:
    """Attention weights of each patch over all others, in float32."""

    def similarity(y: Float[Array, "b n d"]) -> Float[Array, "b h n n"]:
        y = _split(y, attention.heads)
        products = jnp.einsum(
            "bnhd,bmhd->bhnm",
            y,
            y,
            precision=precision_of(y.dtype),
            preferred_element_type=jnp.float32,
        )
        return products * y.shape[-1] ** -0.5

    if variant == "sclip":
        queries, keys = attention.query(normed), attention.key(normed)
        return jax.nn.softmax(similarity(queries), -1) + jax.nn.softmax(similarity(keys), -1)
    if variant == "clearclip":
        return jax.nn.softmax(similarity(attention.query(normed)), -1)
    return jax.nn.softmax(similarity(attention.key(normed)) + neighbourhood(grid), -1)


def neighbourhood(grid: tuple[int, int]) -> Float[np.ndarray, "n n"]:
    """exp(-distance^2 / (2 std^2)) between patches of the grid; 0 from and to the class token."""
    rows, columns = (np.arange(length) for length in grid)
    places = np.stack(np.meshgrid(rows, columns, indexing="ij"), -1).reshape(-1, 2)
    squares = ((places[:, None] - places) ** 2).sum(-1)
    return np.pad(np.exp(-squares / (2 * _GAUSSIAN_STD**2)), (1, 0)).astype(np.float32)


def _split(x: Float[Array, "b n w"], heads: int) -> Float[Array, "b n h d"]:
    return x.reshape(*x.shape[:2], heads, -1)
