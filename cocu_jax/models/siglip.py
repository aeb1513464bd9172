"""SigLIP and SigLIP 2 as Hugging Face's `SiglipModel` computes them.

Zhai et al., 2023 (arXiv 2303.15343); Tschannen et al., 2025 (arXiv 2502.14786). Only the models for
a fixed image resolution are supported, not those for variable resolution (NaFlex).

Checkpoint layout:

    Siglip       image (SiglipImageTower), text (SiglipTextTower), log_scale and bias (scalars)
    ImageTower   patch_embed (Dense; input axis = patch row, patch column, channel),
                 position_embedding [patches, width], blocks (list of layers.Block), post_norm,
                 pooling (AttentionPooling)
    Pooling      probe [width], attention, norm, mlp
    TextTower    token_embedding [vocabulary, width], position_embedding [context, width],
                 blocks, final_norm, head (Dense)
"""

import math
from dataclasses import dataclass

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from cocu_jax.errors import UserError
from cocu_jax.models.layers import Attention, Block, BlockInits, Dense, Mlp, layer_norm
from cocu_jax.models.position import extract_patches, resize_positions
from cocu_jax.models.text import TextConfig


@dataclass(frozen=True)
class SiglipConfig:
    """Settings of a SigLIP with Vision Transformers; the defaults are the published base model's.

    Attributes:
        text: settings of the text tower. It attends to all positions, so texts are always padded to
            `context_length`.
        dtype: "float32" or "bfloat16", the type of matrix products.
        remat: whether the backward pass recomputes each block instead of storing its activations.
    """

    image_size: int = 224
    patch_size: int = 16
    vision_width: int = 768
    vision_layers: int = 12
    vision_heads: int = 12
    vision_mlp_ratio: float = 4
    text: TextConfig = TextConfig(
        vocab_size=32_000,
        context_length=64,
        width=768,
        heads=12,
        activation="gelu_tanh",
        layer_norm_eps=1e-6,
    )
    projection_dim: int = 768
    activation: str = "gelu_tanh"
    layer_norm_eps: float = 1e-6
    dtype: str = "float32"
    remat: bool = False


class AttentionPooling(nnx.Module):
    """The MAP head: one learned query attends to all tokens, followed by a residual MLP."""

    def __init__(self, config: SiglipConfig, *, rngs: nnx.Rngs):
        width, init = config.vision_width, nnx.initializers.xavier_uniform()
        shared = dict(dtype=config.dtype, rngs=rngs)
        self.probe = nnx.Param(nnx.initializers.normal(width**-0.5)(rngs.params(), (width,)))
        self.attention = Attention(
            width, config.vision_heads, init_in=init, init_out=init, **shared
        )
        self.norm = layer_norm(width, config.layer_norm_eps, **shared)
        hidden = round(width * config.vision_mlp_ratio)
        self.mlp = Mlp(
            width,
            hidden,
            width,
            init_in=init,
            init_out=init,
            activation=config.activation,
            **shared,
        )

    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b d"]:
        """Pools tokens to one feature."""
        probe = jnp.broadcast_to(self.probe[...].astype(x.dtype), (x.shape[0], 1, x.shape[2]))
        pooled = self.attention(probe, x)
        return (pooled + self.mlp(self.norm(pooled)))[:, 0]


class SiglipImageTower(nnx.Module):
    """Vision Transformer without a class token."""

    def __init__(self, config: SiglipConfig, *, rngs: nnx.Rngs):
        self.patch_size = config.patch_size
        width, normal = config.vision_width, nnx.initializers.normal
        shared = dict(dtype=config.dtype, rngs=rngs)
        self.patch_embed = Dense(
            3 * config.patch_size**2, width, kernel_init=normal(0.02), **shared
        )
        patches = (config.image_size // config.patch_size) ** 2
        self.position_embedding = nnx.Param(normal(width**-0.5)(rngs.params(), (patches, width)))
        self.blocks = _blocks(
            width,
            config.vision_heads,
            config.vision_mlp_ratio,
            config.vision_layers,
            config.activation,
            config.layer_norm_eps,
            config,
            rngs,
        )
        self.post_norm = layer_norm(width, config.layer_norm_eps, **shared)
        self.pooling = AttentionPooling(config, rngs=rngs)

    def __call__(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b d"]:
        """Features of normalised images; pixels beyond the last whole patch are ignored."""
        side = self.patch_size
        height, width = (size // side * side for size in images.shape[1:3])
        patches, grid = extract_patches(images[:, :height, :width], side)
        x = self.patch_embed(patches)
        x = x + resize_positions(self.position_embedding[...], grid).astype(x.dtype)
        for block in self.blocks:
            x = block(x)
        return self.pooling(self.post_norm(x))


class SiglipTextTower(nnx.Module):
    """A bidirectional text transformer whose feature is that of the last position."""

    def __init__(self, config: SiglipConfig, *, rngs: nnx.Rngs):
        self.config, self.dtype = config.text, config.dtype
        text, normal = config.text, nnx.initializers.normal
        self.token_embedding = nnx.Param(normal(0.02)(rngs.params(), (text.vocab_size, text.width)))
        self.position_embedding = nnx.Param(
            normal(0.01)(rngs.params(), (text.context_length, text.width))
        )
        self.blocks = _blocks(
            text.width,
            text.heads,
            text.mlp_ratio,
            text.layers,
            text.activation,
            text.layer_norm_eps,
            config,
            rngs,
        )
        self.final_norm = layer_norm(text.width, text.layer_norm_eps, config.dtype, rngs)
        self.head = Dense(text.width, config.projection_dim, dtype=config.dtype, rngs=rngs)

    def __call__(self, tokens: Int[Array, "*b t"]) -> Float[Array, "*b d"]:
        """Features of texts that are padded to the context length.

        Raises:
            UserError: `tokens` are of another length.
        """
        length, context = tokens.shape[-1], self.config.context_length
        if length != context:
            raise UserError(
                f"text of {length} tokens: this model needs {context}, padding included"
            )
        texts = tokens.reshape(-1, length)
        x = (self.token_embedding[...][texts] + self.position_embedding[...]).astype(self.dtype)
        for block in self.blocks[:-1]:
            x = block(x)
        last = self.blocks[-1].output_at(x, jnp.full(len(texts), length - 1))
        return self.head(self.final_norm(last)).reshape(*tokens.shape[:-1], -1)


class Siglip(nnx.Module):
    """The two towers, the temperature and the bias of the sigmoid loss."""

    def __init__(self, config: SiglipConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.image = SiglipImageTower(config, rngs=rngs)
        self.text = SiglipTextTower(config, rngs=rngs)
        self.log_scale = nnx.Param(jnp.array(math.log(10.0)))
        self.bias = nnx.Param(jnp.array(-10.0))

    def encode_image(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b p"]:
        """Image features, float32, not normalised.

        The images must be normalised as in the model's image processing.
        """
        return self.image(images).astype(jnp.float32)

    def encode_text(self, tokens: Int[Array, "*b t"]) -> Float[Array, "*b p"]:
        """Text features, float32, not normalised, of tokens padded to the context length."""
        return self.text(tokens).astype(jnp.float32)


def _blocks(
    width: int,
    heads: int,
    mlp_ratio: float,
    layers: int,
    activation: str,
    eps: float,
    config: SiglipConfig,
    rngs: nnx.Rngs,
) -> nnx.List:
    return nnx.List(
        Block(
            width,
            heads,
            round(width * mlp_ratio),
            inits=BlockInits.uniform(nnx.initializers.xavier_uniform()),
            activation=activation,
            eps=eps,
            dtype=config.dtype,
            remat=config.remat,
            rngs=rngs,
        )
        for _ in range(layers)
    )
