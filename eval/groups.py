"""GroupViT's method: each pixel is assigned to a group, and each group gets class scores.

Source: GroupViT (arXiv 2202.11094), section 4, and its published inference rule.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, UInt8

from cocu_jax.models.losses import normalize, temperature_scale
from cocu_jax.models.tokenizer import Tokenizer
from eval.class_embeddings import ClassEmbeddings, embed_classes
from eval.confusion import group_label_counts
from eval.decoding import decode_groups, tile_affinities, upsample_patches
from eval.pamr import refine
from eval.protocol import Protocol
from eval.tiles import TileLayout, TileShape


class Groups(NamedTuple):
    """The groups of a batch of windows.

    Attributes:
        assignment: soft assignment of each patch to each group, after all grouping stages.
        scores: class scores of each group, including background.
        first_assignment: soft assignment after the first stage; None unless requested.
    """

    assignment: Float[Array, "n g y x"]
    scores: Float[Array, "n g c"]
    first_assignment: Float[Array, "n s y x"] | None


@dataclasses.dataclass(frozen=True)
class GroupMethod:
    """The method for a GroupViT; `eval.segmenter` describes what a method is.

    Attributes:
        protocol: the settings.
        with_first: also return the assignment of the first stage, for pictures.
    """

    protocol: Protocol
    with_first: bool = False

    def embed(
        self, model: nnx.Module, classes: tuple[str, ...], tokenizer: Tokenizer
    ) -> ClassEmbeddings:
        """One unit-norm embedding per class, without the background."""
        named = classes[1:] if self.protocol.has_background else classes
        return ClassEmbeddings(
            embed_classes(model, named, self.protocol.templates, tokenizer),
            np.arange(len(classes) - len(named), len(classes), dtype=np.int32),
            np.float32(self.protocol.bg_thresh or 0),
        )

    def encode(
        self,
        model: nnx.Module,
        embeddings: ClassEmbeddings,
        windows: UInt8[Array, "n crop crop 3"],
    ) -> Groups:
        """Encodes windows of uint8 pixels, and scores their groups for every class."""
        protocol = self.protocol
        mean, std = jnp.array(protocol.mean) * 255, jnp.array(protocol.std) * 255
        encoding = model.encode_image((windows.astype(jnp.float32) - mean) / std)
        first, second = encoding.assignments
        with jax.default_matmul_precision("highest"):  # an argmax follows
            scale = temperature_scale(model.log_scale[...])
            scores = group_scores(
                normalize(encoding.segments) @ embeddings.vectors.T * scale,
                normalize(encoding.feature) @ embeddings.vectors.T * scale,
                embeddings,
                protocol,
            )
            both = second @ first
        rows, columns = (side // model.config.patch_size for side in windows.shape[1:3])
        grid = lambda soft: soft.reshape(*soft.shape[:2], rows, columns)  # noqa: E731
        return Groups(grid(both), scores, grid(first) if self.with_first else None)

    def decode(
        self, outputs: Groups, embeddings: ClassEmbeddings, layout: TileLayout, shape: TileShape
    ) -> Int[Array, "th tw"]:
        """Class of every pixel of a tile."""
        protocol, sizes = self.protocol, (shape.canvas, shape.size)
        maps = hard_maps(outputs.assignment, layout, protocol.crop, shape.canvas)
        smooth = None
        if protocol.pamr:
            weights = tile_affinities(layout, protocol, *sizes)
            dilations = protocol.pamr_dilations
            smooth = lambda scores: refine(scores, weights, layout.size, dilations)  # noqa: E731
        return decode_groups(maps, outputs.scores, layout, *sizes, protocol.softmax, smooth)[0]

    def name_by_majority(
        self, outputs: Groups, layout: TileLayout, canvas_truth: Int[Array, "h w"]
    ) -> Groups:
        """The outputs with a score of 1 for the class that holds most pixels of each group."""
        maps = hard_maps(outputs.assignment, layout, self.protocol.crop, canvas_truth.shape)
        _, groups, classes = outputs.scores.shape

        def name(window: Array, scores: Array) -> Array:
            corner, size = layout.corners[window], maps.shape[1:]
            within = jax.lax.dynamic_slice(canvas_truth, corner, size)
            counts = group_label_counts(within, maps[window], groups, classes)
            return scores.at[window].set(jax.nn.one_hot(counts.argmax(-1), classes))

        named = jax.lax.fori_loop(0, layout.windows, name, jnp.zeros_like(outputs.scores))
        return outputs._replace(scores=named)


def hard_maps(
    soft: Float[Array, "n g y x"], layout: TileLayout, crop: int, canvas: tuple[int, int]
) -> UInt8[Array, "n h w"]:
    """Best group of every pixel of the windows, or of the whole image.

    Args:
        soft: soft assignment of the patches.
        layout: positions of the windows.
        crop: side of a window.
        canvas: height and width of the canvas.
    """
    size = canvas if layout.grid else (crop, crop)

    def assign_window(window: Array, maps: Array) -> Array:
        pixels = upsample_patches(soft[window], layout, crop, canvas)
        return maps.at[window].set(pixels.argmax(0).astype(jnp.uint8))

    empty = jnp.zeros((len(soft), *size), jnp.uint8)
    return jax.lax.fori_loop(0, layout.windows, assign_window, empty)


def hard_map(soft: Float[Array, "g y x"], size: tuple[int, int]) -> UInt8[Array, "h w"]:
    """Best group of every pixel of a window, from the soft assignment of its patches."""
    with jax.default_matmul_precision("highest"):
        pixels = jax.image.resize(soft, (len(soft), *size), "bilinear")
    return pixels.argmax(0).astype(jnp.uint8)


def group_scores(
    group_logits: Float[Array, "n g f"],
    image_logits: Float[Array, "n f"],
    embeddings: ClassEmbeddings,
    protocol: Protocol,
) -> Float[Array, "n g c"]:
    """Class scores of every group of every window.

    The score is the product of two softmaxes: one over all classes, and one over the few classes
    that are most similar to the window as a whole.

    Args:
        group_logits: scaled similarity of groups and classes.
        image_logits: scaled similarity of windows and classes.
        embeddings: `class_ids` marks padding classes. `threshold` defines the background: a group
            whose best score is below min(`threshold`, best score of the window) gets a score of 1
            for the background (class 0).
        protocol: `image_classes`, `has_background`.
    """
    num_classes, exists = image_logits.shape[-1], embeddings.class_ids >= 0
    group_logits, image_logits = (
        jnp.where(exists, logits, -jnp.inf) for logits in (group_logits, image_logits)
    )
    _, kept = jax.lax.top_k(image_logits, min(protocol.image_classes, num_classes))
    shown = jax.nn.one_hot(kept, num_classes, dtype=bool).any(-2)[:, None, :]
    masked = jnp.where(shown, group_logits, -jnp.inf)
    scores = jax.nn.softmax(masked, -1) * jax.nn.softmax(group_logits, -1)
    if not protocol.has_background:
        return scores
    best = scores.max(-1, keepdims=True)
    threshold = jnp.minimum(embeddings.threshold, best.max(-2, keepdims=True))
    return jnp.concatenate([(best < threshold).astype(scores.dtype), scores], -1)
