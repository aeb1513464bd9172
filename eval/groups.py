"""GroupViT's method: each pixel goes to a group, and groups are called by class names.

Spec: GroupViT (arXiv 2202.11094), section 4 and its published inference rule.
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
from eval.painting import enlarge, paint_groups, piece_affinities
from eval.pamr import refine
from eval.pieces import PieceShape, Place
from eval.protocol import Protocol


class Groups(NamedTuple):
    """What the model says about a batch of windows.

    Attributes:
        soft: how much each patch belongs to each group, after all grouping stages.
        scores: what a pixel scores for each class (background included), by its group.
        first: as `soft`, after the first stage alone; None unless asked for.
    """

    soft: Float[Array, "n g y x"]
    scores: Float[Array, "n g c"]
    first: Float[Array, "n s y x"] | None


@dataclasses.dataclass(frozen=True)
class GroupMethod:
    """The method of a GroupViT, see `eval.segmenter` for what a method is.

    Attributes:
        protocol: the settings.
        with_first: also return the groups of the first stage, for pictures.
    """

    protocol: Protocol
    with_first: bool = False

    def embed(
        self, model: nnx.Module, classes: tuple[str, ...], tokenizer: Tokenizer
    ) -> ClassEmbeddings:
        """One embedding for each class, background not among them."""
        named = classes[1:] if self.protocol.has_background else classes
        return ClassEmbeddings(
            embed_classes(model, named, self.protocol.templates, tokenizer),
            np.arange(len(classes) - len(named), len(classes), dtype=np.int32),
            np.float32(self.protocol.bg_thresh or 0),
        )

    def read(
        self,
        model: nnx.Module,
        texts: ClassEmbeddings,
        windows: UInt8[Array, "n crop crop 3"],
    ) -> Groups:
        """Encodes windows of uint8 pixels and names their groups."""
        protocol = self.protocol
        mean, std = jnp.array(protocol.mean) * 255, jnp.array(protocol.std) * 255
        encoding = model.encode_image((windows.astype(jnp.float32) - mean) / std)
        first, second = encoding.assignments
        with jax.default_matmul_precision("highest"):  # argmax follows: the default would flip ties
            scale = temperature_scale(model.log_scale[...])
            scores = group_scores(
                normalize(encoding.segments) @ texts.vectors.T * scale,
                normalize(encoding.feature) @ texts.vectors.T * scale,
                texts,
                protocol,
            )
            both = second @ first
        rows, columns = (side // model.config.patch_size for side in windows.shape[1:3])
        grid = lambda soft: soft.reshape(*soft.shape[:2], rows, columns)  # noqa: E731
        return Groups(grid(both), scores, grid(first) if self.with_first else None)

    def paint(
        self, said: Groups, texts: ClassEmbeddings, place: Place, shape: PieceShape
    ) -> Int[Array, "th tw"]:
        """Class of every pixel of a piece."""
        protocol, sizes = self.protocol, (shape.canvas, shape.tile)
        maps = hard_maps(said.soft, place, protocol.crop, shape.canvas)
        smooth = None
        if protocol.pamr:
            weights = piece_affinities(place, protocol, *sizes)
            dilations = protocol.pamr_dilations
            smooth = lambda scores: refine(scores, weights, place.size, dilations)  # noqa: E731
        return paint_groups(maps, said.scores, place, *sizes, protocol.softmax, smooth)[0]

    def rename(self, said: Groups, place: Place, canvas_truth: Int[Array, "h w"]) -> Groups:
        """The same with every group called by the class that holds most of its pixels."""
        maps = hard_maps(said.soft, place, self.protocol.crop, canvas_truth.shape)
        _, groups, classes = said.scores.shape

        def name(window: Array, scores: Array) -> Array:
            corner, size = place.corners[window], maps.shape[1:]
            within = jax.lax.dynamic_slice(canvas_truth, corner, size)
            counts = group_label_counts(within, maps[window], groups, classes)
            return scores.at[window].set(jax.nn.one_hot(counts.argmax(-1), classes))

        named = jax.lax.fori_loop(0, place.windows, name, jnp.zeros_like(said.scores))
        return said._replace(scores=named)


def hard_maps(
    soft: Float[Array, "n g y x"], place: Place, crop: int, canvas: tuple[int, int]
) -> UInt8[Array, "n h w"]:
    """Best group of every pixel of the windows, or of the whole image, that the place has."""
    size = canvas if place.grid else (crop, crop)

    def fill(window: Array, maps: Array) -> Array:
        pixels = enlarge(soft[window], place, crop, canvas)
        return maps.at[window].set(pixels.argmax(0).astype(jnp.uint8))

    empty = jnp.zeros((len(soft), *size), jnp.uint8)
    return jax.lax.fori_loop(0, place.windows, fill, empty)


def hard_map(soft: Float[Array, "g y x"], size: tuple[int, int]) -> UInt8[Array, "h w"]:
    """Soft assignment of a grid of patches -> best group of every pixel of a window."""
    with jax.default_matmul_precision("highest"):
        pixels = jax.image.resize(soft, (len(soft), *size), "bilinear")
    return pixels.argmax(0).astype(jnp.uint8)


def group_scores(
    group_logits: Float[Array, "n g f"],
    image_logits: Float[Array, "n f"],
    texts: ClassEmbeddings,
    protocol: Protocol,
) -> Float[Array, "n g c"]:
    """Class scores of every group of every window.

    Two softmaxes multiply: over all classes, and over those few that the window as a whole shows.

    Args:
        group_logits: scaled similarity of groups and classes.
        image_logits: scaled similarity of windows and classes.
        texts: which of the classes exist, and the background rule: where a group's best score is
            below min(`threshold`, best score of the window), background (class 0) gets 1.
        protocol: `image_classes`, `has_background`.
    """
    num_classes, exists = image_logits.shape[-1], texts.owners >= 0
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
    threshold = jnp.minimum(texts.threshold, best.max(-2, keepdims=True))
    return jnp.concatenate([(best < threshold).astype(scores.dtype), scores], -1)
