"""GroupViT: an image tower that groups patches into segments, a text tower, and two projectors.

Published by Xu et al., 2022 (arXiv 2202.11094). CoCu (arXiv 2309.13505) trains the same model.

Checkpoint layout:

    GroupViT    image, text (text.TextTransformer), image_projector, text_projector
                (layers.Projector), log_scale, multi_label_log_scale (scalars); with the sigmoid
                loss also logit_bias, multi_label_logit_bias (scalars)
    ImageTower  patch_embed (Dense; input axis = patch row, patch column, channel), patch_norm,
                position_embedding [patches, width], stages (list of 3), final_norm
    Stage       blocks (list of layers.Block); stages 0 and 1 also group_tokens [groups, width] and
                grouping (grouping.GroupingBlock); stage 1 also projector_norm and projector_mlp,
                which add stage 0's group tokens to its own
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from cocu_jax.models.grouping import GroupingBlock, mix_tokens
from cocu_jax.models.keys import fold_in_each, split_each
from cocu_jax.models.layers import (
    Block,
    BlockInits,
    Dense,
    Mlp,
    Projector,
    layer_norm,
    truncated_normal,
)
from cocu_jax.models.losses import INITIAL_SCALARS, Loss
from cocu_jax.models.position import extract_patches, resize_positions
from cocu_jax.models.row_major import row_major
from cocu_jax.models.text import TextConfig, TextTransformer
from cocu_jax.settings import (
    Amount,
    Count,
    Flag,
    PositiveAmount,
    PositiveCount,
    ShareBelowOne,
    only_its_fields,
)


@only_its_fields
@dataclass(frozen=True)
class GroupViTConfig:
    """Settings of a GroupViT; the defaults are the published GroupViT-S.

    The last four fields are for small models.

    Attributes:
        depths: number of blocks of the three stages; may be 0.
        groups: number of group tokens, and of segments, of stages one and two.
        drop_path: rate of stochastic depth of the last block; it increases linearly from 0 over all
            blocks.
        loss: form of both losses: "softmax" as published, or "sigmoid" as in SigLIP.
        dtype: "float32" or "bfloat16", the type of matrix products.
        remat: whether the backward pass recomputes each block, and the activation of other MLPs,
            instead of storing them.
        fused_attention: whether to train with the attention kernel for TPUs (`fused_attention.py`).
            Programs other than the training step, such as evaluation, do not use it.
        dense_init_std: standard deviation of the initial kernels and position embedding of the
            image tower.
        assign_init_std: standard deviation of the initial value and output projections of the
            assignments.
        assign_logit_scale: factor on the assignment logits. In small models they are lost in the
            Gumbel noise at 1.
        group_token_init_std: standard deviation of the initial group tokens of stage one.
    """

    image_size: PositiveCount = 224
    patch_size: PositiveCount = 16
    width: PositiveCount = 384
    heads: PositiveCount = 6
    mlp_ratio: PositiveAmount = 4.0
    depths: tuple[Count, Count, Count] = (6, 3, 3)
    groups: tuple[PositiveCount, PositiveCount] = (64, 8)
    drop_path: ShareBelowOne = 0.1
    projection_hidden: PositiveCount = 4096
    projection_dim: PositiveCount = 256
    text: TextConfig = TextConfig()
    layer_norm_eps: PositiveAmount = 1e-5
    loss: Loss = "softmax"
    dtype: Literal["float32", "bfloat16"] = "float32"
    remat: Flag = False
    fused_attention: Flag = False
    dense_init_std: Amount = 0.02
    assign_init_std: Amount = 0.02
    assign_logit_scale: PositiveAmount = 1.0
    group_token_init_std: Amount = 0.02


class ImageEncoding(NamedTuple):
    """Output of the image tower for a batch, all float32.

    Attributes:
        feature: [b, p] projected image feature, not normalised.
        segments: [b, g, p] projected segment tokens, not normalised; None in training.
        assignments: soft assignments of patches [b, s1, n] and of stage-one segments [b, s2, s1];
            each column is a distribution over segments.
    """

    feature: Float[Array, "b p"]
    segments: Float[Array, "b g p"] | None
    assignments: tuple[Float[Array, "b s n"], Float[Array, "b g s"]]


class Stage(nnx.Module):
    """Transformer blocks over tokens and group tokens, then a grouping block.

    The last stage has neither group tokens nor a grouping block.
    """

    def __init__(self, config: GroupViTConfig, index: int, *, rngs: nnx.Rngs):
        first = sum(config.depths[:index])
        last = max(sum(config.depths) - 1, 1)
        self.blocks = nnx.List(
            Block(
                config.width,
                config.heads,
                round(config.width * config.mlp_ratio),
                inits=BlockInits.uniform(truncated_normal(config.dense_init_std)),
                activation="gelu",
                eps=config.layer_norm_eps,
                drop_path=config.drop_path * (first + i) / last,
                remat=config.remat,
                fused=config.fused_attention,
                dtype=config.dtype,
                rngs=rngs,
            )
            for i in range(config.depths[index])
        )
        if index < len(config.groups):
            self._add_grouping(config, index, rngs)

    def _add_grouping(self, config: GroupViTConfig, index: int, rngs: nnx.Rngs) -> None:
        """Adds group tokens, the projector of the previous stage's group tokens, and the block."""
        width, groups = config.width, config.groups[index]
        init = truncated_normal(config.dense_init_std)
        shared = dict(dtype=config.dtype, rngs=rngs)
        if index == 0:
            group_init = truncated_normal(config.group_token_init_std)
        else:
            group_init = nnx.initializers.zeros
            before = config.groups[index - 1]
            self.projector_norm = layer_norm(width, config.layer_norm_eps, **shared)
            mlp = dict(init_in=init, init_out=init, activation="gelu", **shared)
            mlp |= dict(remat=config.remat, flat=not config.fused_attention)
            self.projector_mlp = Mlp(before, width // 2, groups, **mlp)
        self.group_tokens = nnx.Param(group_init(rngs.params(), (groups, width), jnp.float32))
        self.grouping = GroupingBlock(
            width,
            config.heads,
            round(width * config.mlp_ratio),
            groups,
            groups,
            init=init,
            init_value=truncated_normal(config.assign_init_std),
            logit_scale=config.assign_logit_scale,
            eps=config.layer_norm_eps,
            remat=config.remat,
            fused=config.fused_attention,
            **shared,
        )

    def __call__(
        self,
        x: Float[Array, "b n d"],
        previous: Float[Array, "b g d"] | None,
        keys: Key[Array, "b"] | None,
        gumbel: Float[Array, "b s n"] | None,
    ):
        """Returns tokens or segments, group tokens, soft assignment; the last stage only tokens."""
        grouped = hasattr(self, "grouping")
        if grouped:
            tokens = jnp.broadcast_to(
                self.group_tokens[...].astype(x.dtype), (x.shape[0], *self.group_tokens.shape)
            )
            if previous is not None:
                tokens = tokens + mix_tokens(self.projector_mlp, self.projector_norm(previous))
            x = jnp.concatenate([x, tokens], axis=1)
        x = row_major(x)
        for i, block in enumerate(self.blocks):
            x = block(x, None if keys is None else fold_in_each(keys, i))
        if not grouped:
            return x, None, None
        count = self.group_tokens.shape[0]
        x, tokens = x[:, :-count], x[:, -count:]
        segments, soft = self.grouping(x, tokens, gumbel)
        return segments, tokens, soft


class ImageTower(nnx.Module):
    """Patches -> segments in three stages (GroupViT, section 3)."""

    def __init__(self, config: GroupViTConfig, *, rngs: nnx.Rngs):
        self.patch_size = config.patch_size
        self.dtype = config.dtype
        init = truncated_normal(config.dense_init_std)
        width, shared = config.width, dict(dtype=config.dtype, rngs=rngs)
        self.patch_embed = Dense(
            3 * config.patch_size**2,
            width,
            kernel_init=init,
            flat=not config.fused_attention,
            **shared,
        )
        self.patch_norm = layer_norm(width, config.layer_norm_eps, **shared)
        patches = (config.image_size // config.patch_size) ** 2
        self.position_embedding = nnx.Param(init(rngs.params(), (patches, width), jnp.float32))
        self.stages = nnx.List(Stage(config, i, rngs=rngs) for i in range(len(config.depths)))
        self.final_norm = layer_norm(width, config.layer_norm_eps, **shared)

    def __call__(
        self,
        images: Float[Array, "b h w 3"],
        keys: Key[Array, "b"] | None = None,
        gumbel: tuple[Float[Array, "b s n"], ...] | None = None,
    ) -> tuple[Float[Array, "b g d"], tuple[Float[Array, "b s n"], ...]]:
        """Returns the normed segments of the last stage and the soft assignments.

        Args:
            images: normalised pixels of any size that is a multiple of the patch size.
            keys: in training, a random key of every image for stochastic depth; None: no dropping.
            gumbel: in training, Gumbel noise of each grouping block; None: argmax.
        """
        patches, grid = extract_patches(images, self.patch_size)
        x = self.patch_norm(self.patch_embed(patches))
        x = x + resize_positions(self.position_embedding[...], grid).astype(x.dtype)
        groups, assignments = None, []
        for i, stage in enumerate(self.stages):
            stage_keys = None if keys is None else fold_in_each(keys, i)
            noise = gumbel[i] if gumbel is not None and i < len(gumbel) else None
            x, groups, soft = stage(x, groups, stage_keys, noise)
            assignments.append(soft)
        return self.final_norm(x), tuple(assignments[:-1])


class GroupViT(nnx.Module):
    """The two towers, their projectors and the two temperatures."""

    def __init__(self, config: GroupViTConfig, *, rngs: nnx.Rngs):
        self.config = config
        project = dict(hidden=config.projection_hidden, out=config.projection_dim)
        shared = dict(dtype=config.dtype, rngs=rngs)
        self.image = ImageTower(config, rngs=rngs)
        programs = dict(remat=config.remat, fused=config.fused_attention)
        self.text = TextTransformer(config.text, **programs, **shared)
        self.image_projector = Projector(config.width, **project, **shared)
        self.text_projector = Projector(config.text.width, **project, **shared)
        for name in ("", "multi_label_"):
            for scalar, value in INITIAL_SCALARS[config.loss].items():
                setattr(self, name + scalar, nnx.Param(jnp.array(value)))

    def encode_image(
        self,
        images: Float[Array, "b h w 3"],
        *,
        train: bool = False,
        keys: Key[Array, "b"] | None = None,
        gumbel: tuple[Float[Array, "b s n"], Float[Array, "b g s"]] | None = None,
    ) -> ImageEncoding:
        """Encodes normalised images of any size that is a multiple of the patch size.

        Args:
            images: pixels, normalised with the mean and standard deviation of training.
            train: whether to use batch statistics, Gumbel noise and stochastic depth.
            keys: in training, a random key of every image; may be None if `gumbel` is given, which
                disables stochastic depth.
            gumbel: Gumbel(0, 1) noise for training, in place of noise drawn from `keys`.

        Raises:
            ValueError: neither keys nor noise in training, or one of them otherwise.
        """
        if train == (keys is None and gumbel is None):
            raise ValueError("encode_image takes keys or Gumbel noise in training, and only then")
        if train and gumbel is None:
            keys, noise_keys = split_each(keys)
            gumbel = self.draw_gumbel(noise_keys, images.shape)
        tokens, assignments = self.image(images, keys, gumbel)
        feature = self.image_projector(tokens.astype(jnp.float32).mean(1), train=train)
        segments = None if train else self.image_projector(tokens, train=False)
        return ImageEncoding(feature, segments, assignments)

    def draw_gumbel(
        self, keys: Key[Array, "b"], images: tuple[int, ...]
    ) -> tuple[Float[Array, "b s n"], Float[Array, "b g s"]]:
        """Gumbel(0, 1) noise of both grouping blocks for images of shape (b, h, w, 3)."""
        _, height, width, _ = images
        patches = (height // self.config.patch_size) * (width // self.config.patch_size)
        first, second = self.config.groups

        def draw(key: Key[Array, ""]) -> tuple[Array, Array]:
            one, two = jax.random.split(key)
            return (
                jax.random.gumbel(one, (first, patches)),
                jax.random.gumbel(two, (second, first)),
            )

        return jax.vmap(draw)(keys)

    def encode_text(
        self, tokens: Int[Array, "*b t"], *, train: bool = False
    ) -> Float[Array, "*b p"]:
        """Encodes token ids of any static length up to the context (see `text.trim_tokens`).

        In training all texts of a call share one batch normalisation, so captions and prompts of a
        step must be passed together, as one [batch * (1 + prompts), t] array or to `encode_texts`.
        """
        return self.encode_texts((tokens,), train=train)[0]

    def encode_texts(
        self, texts: tuple[Int[Array, "..."], ...], *, train: bool = False
    ) -> tuple[Float[Array, "..."], ...]:
        """Encodes token arrays of different lengths as one batch.

        The result is the same as if all were padded to one length, but each array costs only its
        own length: captions have 77 positions, prompts about 10. Returns one [..., p] array per
        [..., t] array.
        """
        flat = [tokens.reshape(-1, tokens.shape[-1]) for tokens in texts]
        ends = list(np.cumsum([len(tokens) for tokens in flat])[:-1])
        if len({tokens.shape[1] for tokens in flat}) == 1:  # one larger batch is faster than two
            flat = [jnp.concatenate(flat)]
        features = jnp.concatenate([self.text(tokens) for tokens in flat])
        projected = self.text_projector(features, train=train)
        return tuple(
            part.reshape(*tokens.shape[:-1], -1)
            for part, tokens in zip(jnp.split(projected, ends), texts, strict=True)
        )
