"""The causal text transformer that GroupViT and CLIP share, and the text shortcut.

The tower is causal and its feature is that of the end token, so positions after the last end token
of a batch have no effect. Every static length that includes all end tokens gives the same features
as the full context. `trim_tokens` trims batches on the host to one of a few lengths, so that a
jitted function is compiled only once per length.

Checkpoint layout: token_embedding [vocabulary, width], position_embedding [context, width],
blocks (a list of layers.Block), final_norm.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from cocu_jax.errors import UserError
from cocu_jax.models.layers import Block, BlockInits, layer_norm
from cocu_jax.models.row_major import row_major
from cocu_jax.models.tokenizer import CONTEXT_LENGTH
from cocu_jax.settings import PositiveAmount, PositiveCount, only_its_fields


@only_its_fields
@dataclass(frozen=True)
class TextConfig:
    """A CLIP text transformer; the defaults are GroupViT's."""

    vocab_size: PositiveCount = 49408
    context_length: PositiveCount = CONTEXT_LENGTH
    width: PositiveCount = 256
    heads: PositiveCount = 4
    layers: PositiveCount = 12
    mlp_ratio: PositiveAmount = 4.0
    activation: Literal["quick_gelu", "gelu"] = "quick_gelu"
    layer_norm_eps: PositiveAmount = 1e-5


class TextTransformer(nnx.Module):
    """Token ids -> feature at the end token (Radford et al., 2021, section 2.4)."""

    def __init__(
        self,
        config: TextConfig,
        *,
        rngs: nnx.Rngs,
        dtype: str = "float32",
        remat: bool = False,
        fused: bool = False,
    ):
        self.config = config
        self.dtype = dtype
        normal = nnx.initializers.normal
        self.token_embedding = nnx.Param(
            normal(0.02)(rngs.params(), (config.vocab_size, config.width))
        )
        self.position_embedding = nnx.Param(
            normal(0.01)(rngs.params(), (config.context_length, config.width))
        )
        self.blocks = nnx.List(
            Block(
                config.width,
                config.heads,
                round(config.width * config.mlp_ratio),
                inits=BlockInits.clip(config.width, config.layers),
                activation=config.activation,
                eps=config.layer_norm_eps,
                causal=True,
                dtype=dtype,
                remat=remat,
                fused=fused,
                rngs=rngs,
            )
            for _ in range(config.layers)
        )
        self.final_norm = layer_norm(config.width, config.layer_norm_eps, dtype, rngs)

    def __call__(self, tokens: Int[Array, "*b t"]) -> Float[Array, "*b d"]:
        """Features at the end token, which has the largest id of each text.

        Raises:
            UserError: `tokens` are longer than the context.
        """
        length, context = tokens.shape[-1], self.config.context_length
        if length > context:
            raise UserError(f"text of {length} tokens: the context is {context}; truncate it first")
        texts = tokens.reshape(-1, length)
        x = self.token_embedding[...][texts] + self.position_embedding[:length]
        x = row_major(x.astype(self.dtype))
        for block in self.blocks[:-1]:
            x = block(x)
        end = self.blocks[-1].output_at(x, texts.argmax(-1))
        return self.final_norm(end).reshape(*tokens.shape[:-1], -1)


def trim_tokens(
    tokens: Int[np.ndarray, "*b c"], lengths: tuple[int, ...] = (16, 32, CONTEXT_LENGTH)
) -> Int[np.ndarray, "*b t"]:
    """Trims a batch on the host to the smallest of `lengths` that keeps every end token.

    Several processes must use the same length, which is that of the global batch or a fixed one.
    """
    needed = int(tokens.argmax(-1).max(initial=0)) + 1
    return tokens[..., : next((n for n in sorted(lengths) if n >= needed), tokens.shape[-1])]
