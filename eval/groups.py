"""One forward of the model over windows: which group each pixel is in, what each group is called.

Spec: GroupViT (arXiv 2202.11094), section 4 and its published inference rule.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, UInt8

from cocu_jax.models.losses import normalize, temperature_scale
from eval.protocol import Protocol


class Groups(NamedTuple):
    """What the model says about a batch of windows.

    Attributes:
        maps: hard group of each pixel, after all grouping stages.
        scores: what a pixel scores for each class (background included), by its group.
        first_maps: hard group of each pixel after the first stage alone; None unless asked for.
    """

    maps: UInt8[Array, "n crop crop"]
    scores: Float[Array, "n g c"]
    first_maps: UInt8[Array, "n crop crop"] | None


def read_groups(
    model: nnx.Module,
    windows: UInt8[Array, "n crop crop 3"],
    embeddings: Float[Array, "f p"],
    protocol: Protocol,
    with_first_maps: bool = False,
) -> Groups:
    """Encodes windows and names their groups.

    Args:
        model: a GroupViT.
        windows: uint8 pixels, not normalised.
        embeddings: unit-norm embeddings of the classes that have one.
        protocol: the benchmark's settings.
        with_first_maps: also return the first stage's groups.
    """
    mean, std = jnp.array(protocol.mean) * 255, jnp.array(protocol.std) * 255
    encoding = model.encode_image((windows.astype(jnp.float32) - mean) / std)
    first, second = encoding.assignments
    with jax.default_matmul_precision("highest"):  # argmax follows: TPU's default would flip ties
        patches = second @ first
        scale = temperature_scale(model.log_scale[...])
        scores = group_scores(
            normalize(encoding.segments) @ embeddings.T * scale,
            normalize(encoding.feature) @ embeddings.T * scale,
            protocol,
        )
        side = windows.shape[1]
        patch_side = side // model.config.patch_size
        first_maps = hard_map(first, patch_side, side) if with_first_maps else None
        return Groups(hard_map(patches, patch_side, side), scores, first_maps)


def hard_map(
    soft: Float[Array, "n g t"], patch_side: int, side: int
) -> UInt8[Array, "n side side"]:
    """Soft assignment of a square grid of patches -> best group of every pixel."""
    n, groups, _ = soft.shape
    soft = soft.reshape(n, groups, patch_side, patch_side)
    soft = jax.image.resize(soft, (n, groups, side, side), "bilinear")
    return soft.argmax(1).astype(jnp.uint8)


def group_scores(
    group_logits: Float[Array, "n g f"], image_logits: Float[Array, "n f"], protocol: Protocol
) -> Float[Array, "n g c"]:
    """Class scores of every group of every window.

    Two softmaxes multiply: over all classes, and over those few that the window as a whole shows.

    Args:
        group_logits: scaled similarity of groups and classes.
        image_logits: scaled similarity of windows and classes.
        protocol: `image_classes`, and the background rule: where a group's best score is below
            min(`bg_thresh`, best score of the window), background (class 0) gets 1.
    """
    num_classes = image_logits.shape[-1]
    _, kept = jax.lax.top_k(image_logits, min(protocol.image_classes, num_classes))
    shown = jax.nn.one_hot(kept, num_classes, dtype=bool).any(-2)[:, None, :]
    masked = jnp.where(shown, group_logits, -jnp.inf)
    scores = jax.nn.softmax(masked, -1) * jax.nn.softmax(group_logits, -1)
    if not protocol.has_background:
        return scores
    best = scores.max(-1, keepdims=True)
    threshold = jnp.minimum(protocol.bg_thresh, best.max(-2, keepdims=True))
    return jnp.concatenate([(best < threshold).astype(scores.dtype), scores], -1)
