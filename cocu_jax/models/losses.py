"""The two training losses of GroupViT (arXiv 2202.11094, section 3.2), which CoCu keeps.

Both are written on global arrays: `b` counts the rows of the whole batch. Under `jax.jit` over a
mesh the rows may be sharded any way; XLA gathers the one factor of each product that it needs.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

MAX_SCALE = 100.0


def normalize(x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
    """Rows divided by their Euclidean norm; a zero row stays zero, with a finite gradient."""
    square = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    return x / jnp.sqrt(jnp.maximum(square, 1e-24))


def temperature_scale(log_scale: Float[Array, ""]) -> Float[Array, ""]:
    """The inverse temperature: exp(log_scale), at most 100 (Radford et al., 2021, section 2.5)."""
    return jnp.minimum(jnp.exp(log_scale), MAX_SCALE)


def contrastive_loss(
    image: Float[Array, "b d"], text: Float[Array, "b d"], log_scale: Float[Array, ""]
) -> Float[Array, ""]:
    """Symmetric cross-entropy between matching rows (Radford et al., 2021, fig. 3).

    Args:
        image: unit-norm image features of the global batch.
        text: unit-norm caption features, row i belongs to image i.
        log_scale: log of the inverse temperature; its exponential is clamped at 100.
    """
    return multi_label_loss(image, text[:, None], log_scale)


def multi_label_loss(
    image: Float[Array, "b d"], prompts: Float[Array, "b k d"], log_scale: Float[Array, ""]
) -> Float[Array, ""]:
    """Images against all prompts, target 1/k on their own k, and prompts against all images.

    The mean of the two cross-entropies (GroupViT, section 3.2). Prompts of other images that
    happen to name the same concept are not masked. With k = 1 this is the contrastive loss.

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
