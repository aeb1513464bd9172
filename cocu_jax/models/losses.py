"""The two training losses of GroupViT (arXiv 2202.11094, section 3.2), which CoCu keeps, and
SigLIP's in their place.

All are written on global arrays: `b` counts the rows of the whole batch. Under `jax.jit` over a
mesh the rows may be sharded any way; XLA gathers the one factor of each product that it needs.
"""

import math
import types
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

MAX_SCALE = 100.0
Loss = Literal["softmax", "sigmoid"]

# Learned scalars of a loss and what they begin with: as CLIP's, and as SigLIP's.
INITIAL_SCALARS = types.MappingProxyType({
    "softmax": {"log_scale": math.log(1 / 0.07)},
    "sigmoid": {"log_scale": math.log(10.0), "logit_bias": -10.0},
})  # fmt: skip


def normalize(x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
    """Rows divided by their Euclidean norm; a zero row stays zero, with a finite gradient."""
    square = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    return x / jnp.sqrt(jnp.maximum(square, 1e-24))


def temperature_scale(log_scale: Float[Array, ""]) -> Float[Array, ""]:
    """The inverse temperature: exp(log_scale), at most 100 (Radford et al., 2021, section 2.5)."""
    return jnp.minimum(jnp.exp(log_scale), MAX_SCALE)


def multi_label_loss(
    image: Float[Array, "b d"], prompts: Float[Array, "b k d"], log_scale: Float[Array, ""]
) -> Float[Array, ""]:
    """Images against all prompts, target 1/k on their own k, and prompts against all images.

    The mean of the two cross-entropies (GroupViT, section 3.2). Prompts of other images that
    happen to name the same concept are not masked. With k = 1 this is the contrastive loss of
    images and captions (Radford et al., 2021, fig. 3).

    Args:
        image: unit-norm image features of the global batch.
        prompts: unit-norm prompt features, `prompts[i]` belong to image i.
        log_scale: log of the inverse temperature; its exponential is clamped at 100.
    """
    scale = temperature_scale(log_scale)
    # Reduced precision would round products that are about to be multiplied by up to 100.
    logits = scale * jnp.einsum("id,jkd->ijk", image, prompts, precision="highest")
    own = scale * jnp.einsum("id,ikd->ik", image, prompts, precision="highest").mean()
    over_prompts = jax.nn.logsumexp(logits, axis=(1, 2)).mean()
    over_images = jax.nn.logsumexp(logits, axis=0).mean()
    return (over_prompts + over_images) / 2 - own


def sigmoid_loss(
    image: Float[Array, "b d"],
    prompts: Float[Array, "b k d"],
    log_scale: Float[Array, ""],
    bias: Float[Array, ""],
) -> Float[Array, ""]:
    """Every pair of an image and a prompt judged by itself: does it belong together?

    Binary cross-entropy summed over the prompts of all images, divided by k, mean over images. With
    k = 1 this is SigLIP's loss (Zhai et al., 2023, arXiv 2303.15343, algorithm 1), but for the
    clamp of its scale, which the evaluation shares.

    Args:
        image: unit-norm image features of the global batch.
        prompts: unit-norm prompt features, `prompts[i]` belong to image i.
        log_scale: log of the inverse temperature; its exponential is clamped at 100.
        bias: added to the scaled similarities; far below zero it stands for how few pairs match.
    """
    rows, per_image, _ = prompts.shape
    scale = temperature_scale(log_scale)
    logits = scale * jnp.einsum("id,jkd->ijk", image, prompts, precision="highest") + bias
    own = jnp.eye(rows, dtype=bool)[:, :, None]
    # -log sigmoid(x) = softplus(-x)
    return jax.nn.softplus(jnp.where(own, -logits, logits)).sum() / (rows * per_image)
