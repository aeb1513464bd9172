"""Training losses: the two of GroupViT (arXiv 2202.11094, section 3.2), which CoCu also uses, and
SigLIP's sigmoid loss as a replacement for both.

The losses are defined on global arrays; `b` is the size of the global batch. Under `jax.jit` over a
mesh the arrays may be sharded in any way, and XLA gathers what each product needs.
"""

import math
import types
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

MAX_SCALE = 100.0
Loss = Literal["softmax", "sigmoid"]

# Initial values of the learned scalars of each loss, as in CLIP and SigLIP.
INITIAL_SCALARS = types.MappingProxyType({
    "softmax": {"log_scale": math.log(1 / 0.07)},
    "sigmoid": {"log_scale": math.log(10.0), "logit_bias": -10.0},
})  # fmt: skip


def normalize(x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
    """Divides vectors by their Euclidean norm; zero remains zero, with a finite gradient."""
    square = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    return x / jnp.sqrt(jnp.maximum(square, 1e-24))


def temperature_scale(log_scale: Float[Array, ""]) -> Float[Array, ""]:
    """The inverse temperature: exp(log_scale), at most 100 (Radford et al., 2021, section 2.5)."""
    return jnp.minimum(jnp.exp(log_scale), MAX_SCALE)


def multi_label_loss(
    image: Float[Array, "b d"], prompts: Float[Array, "b k d"], log_scale: Float[Array, ""]
) -> Float[Array, ""]:
    """Multi-label contrastive loss (GroupViT, section 3.2).

    The mean of two cross-entropies: of each image over all prompts, with target 1/k for each of its
    own k prompts, and of each prompt over all images. Prompts of other images with the same concept
    are not masked. With k = 1 this is the contrastive loss of images and captions (Radford et al.,
    2021, fig. 3).

    Args:
        image: unit-norm image features of the global batch.
        prompts: unit-norm prompt features, `prompts[i]` belong to image i.
        log_scale: log of the inverse temperature; its exponential is clamped at 100.
    """
    scale = temperature_scale(log_scale)
    # In full precision, because rounding errors are multiplied by up to 100.
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
    """Binary classification of every pair of an image and a prompt: do they belong together?

    The binary cross-entropy is summed over the prompts of all images, divided by k, and averaged
    over images. With k = 1 this is SigLIP's loss (Zhai et al., 2023, arXiv 2303.15343, algorithm
    1), except that the scale is clamped, as it is in evaluation.

    Args:
        image: unit-norm image features of the global batch.
        prompts: unit-norm prompt features, `prompts[i]` belong to image i.
        log_scale: log of the inverse temperature; its exponential is clamped at 100.
        bias: added to the scaled similarities; it is far below zero, because few pairs match.
    """
    batch, per_image, _ = prompts.shape
    scale = temperature_scale(log_scale)
    logits = scale * jnp.einsum("id,jkd->ijk", image, prompts, precision="highest") + bias
    own = jnp.eye(batch, dtype=bool)[:, :, None]
    # -log sigmoid(x) = softplus(-x)
    return jax.nn.softplus(jnp.where(own, -logits, logits)).sum() / (batch * per_image)
