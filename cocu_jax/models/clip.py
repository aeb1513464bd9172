"""CLIP (Radford et al., 2021, arXiv 2103.00020) as Hugging Face's `CLIPModel` computes it.

Checkpoint layout:

    CLIP         image (VisionTower), text (text.TextTransformer), image_projection,
                 text_projection (Dense without bias), log_scale (scalar); with the sigmoid loss
                 also logit_bias (scalar)
    VisionTower  patch_embed (Dense without bias; input axis = patch row, patch column, channel),
                 class_embedding [width], position_embedding [1 + patches, width] (class token
                 first), pre_norm, blocks (list of layers.Block), post_norm
"""

from dataclasses import dataclass
from typing import Literal

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from cocu_jax.models.layers import Block, BlockInits, Dense, layer_norm
from cocu_jax.models.losses import INITIAL_SCALARS, Loss
from cocu_jax.models.position import extract_patches, resize_positions
from cocu_jax.models.text import TextConfig, TextTransformer
from cocu_jax.settings import Flag, PositiveAmount, PositiveCount, only_its_fields


@only_its_fields
@dataclass(frozen=True)
class CLIPConfig:
    """A CLIP with a Vision Transformer; the defaults are OpenAI's ViT-B/32.

    Attributes:
        activation: activation of the vision tower, "quick_gelu" (OpenAI) or "gelu" (LAION); that of
            the text tower is in `text`.
        loss: "softmax" as published, or "sigmoid" as in SigLIP; used in training only.
        dtype: "float32" or "bfloat16", the type of matrix products.
        remat: whether the backward pass recomputes each block instead of storing its activations.
    """

    image_size: PositiveCount = 224
    patch_size: PositiveCount = 32
    vision_width: PositiveCount = 768
    vision_layers: PositiveCount = 12
    vision_heads: PositiveCount = 12
    vision_mlp_ratio: PositiveAmount = 4.0
    text: TextConfig = TextConfig(width=512, heads=8)
    projection_dim: PositiveCount = 512
    activation: Literal["quick_gelu", "gelu"] = "quick_gelu"
    layer_norm_eps: PositiveAmount = 1e-5
    loss: Loss = "softmax"
    dtype: Literal["float32", "bfloat16"] = "float32"
    remat: Flag = False


class VisionTower(nnx.Module):
    """Vision Transformer with a class token and a norm before the blocks."""

    def __init__(self, config: CLIPConfig, *, rngs: nnx.Rngs):
        self.patch_size = config.patch_size
        width, normal = config.vision_width, nnx.initializers.normal
        shared = dict(dtype=config.dtype, rngs=rngs)
        self.patch_embed = Dense(
            3 * config.patch_size**2, width, use_bias=False, kernel_init=normal(0.02), **shared
        )
        positions = 1 + (config.image_size // config.patch_size) ** 2
        init = normal(width**-0.5)
        self.class_embedding = nnx.Param(init(rngs.params(), (width,)))
        self.position_embedding = nnx.Param(init(rngs.params(), (positions, width)))
        self.pre_norm = layer_norm(width, config.layer_norm_eps, **shared)
        self.blocks = nnx.List(
            Block(
                width,
                config.vision_heads,
                round(width * config.vision_mlp_ratio),
                inits=BlockInits.clip(width, config.vision_layers),
                activation=config.activation,
                eps=config.layer_norm_eps,
                remat=config.remat,
                **shared,
            )
            for _ in range(config.vision_layers)
        )
        self.post_norm = layer_norm(width, config.layer_norm_eps, **shared)

    def __call__(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b d"]:
        """The class token; images may have any size that is a multiple of the patch size."""
        x, _ = self.before_last_block(images)
        return self.post_norm(self.blocks[-1].output_at(x, jnp.zeros(x.shape[0], int)))

    def before_last_block(
        self, images: Float[Array, "b h w 3"]
    ) -> tuple[Float[Array, "b n d"], tuple[int, int]]:
        """The input of the last block (class token, then patches), and the grid of patches."""
        patches, grid = extract_patches(images, self.patch_size)
        positions = self.position_embedding[...]
        x = self.patch_embed(patches)
        x = x + resize_positions(positions[1:], grid).astype(x.dtype)
        start = (self.class_embedding[...] + positions[0]).astype(x.dtype)
        start = jnp.broadcast_to(start, (x.shape[0], 1, x.shape[2]))
        x = self.pre_norm(jnp.concatenate([start, x], axis=1))
        for block in self.blocks[:-1]:
            x = block(x)
        return x, grid


class CLIP(nnx.Module):
    """The two towers, their linear projections and the temperature."""

    def __init__(self, config: CLIPConfig, *, rngs: nnx.Rngs):
        self.config = config
        shared = dict(dtype=config.dtype, rngs=rngs)
        self.image = VisionTower(config, rngs=rngs)
        self.text = TextTransformer(config.text, remat=config.remat, **shared)
        self.image_projection, self.text_projection = (
            Dense(
                width,
                config.projection_dim,
                use_bias=False,
                kernel_init=nnx.initializers.normal(width**-0.5),
                **shared,
            )
            for width in (config.vision_width, config.text.width)
        )
        for scalar, value in INITIAL_SCALARS[config.loss].items():
            setattr(self, scalar, nnx.Param(jnp.array(value)))

    def encode_image(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b p"]:
        """Image features, float32, not normalised.

        The images must be normalised with CLIP's mean and standard deviation.
        """
        return self.image_projection(self.image(images)).astype(jnp.float32)

    def encode_text(self, tokens: Int[Array, "*b t"]) -> Float[Array, "*b p"]:
        """Text features, float32, not normalised, of tokens of any length up to the context."""
        return self.text_projection(self.text(tokens)).astype(jnp.float32)
