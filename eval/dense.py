"""Dense CLIP's method: each pixel goes to the class whose words are most similar to its patches.

Similarities of patches and words are upsampled to the window, averaged over windows, resized to the
image; a softmax over all words of all classes gives each pixel's probability, and a class has that
of its best word. Spec: NACLIP (arXiv 2404.08181), section 4, and its published inference rule.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, UInt8

from cocu_jax.errors import UserError
from cocu_jax.models.dense_clip import VARIANTS, dense_features
from cocu_jax.models.losses import normalize
from cocu_jax.models.tokenizer import Tokenizer
from eval.class_embeddings import ClassEmbeddings, embed_classes, words_of
from eval.painting import (
    CLASSES_PER_BLOCK,
    enlarge,
    piece_affinities,
    resize_canvas,
    sum_windows,
    visit_pixels,
)
from eval.pamr import refine
from eval.pieces import PieceShape, Place
from eval.protocol import Protocol


@dataclasses.dataclass(frozen=True)
class DenseMethod:
    """The method of a CLIP, see `eval.segmenter` for what a method is.

    Attributes:
        protocol: the settings.

    Raises:
        UserError: `protocol.dense` is none of the variants.
    """

    protocol: Protocol

    def __post_init__(self) -> None:
        if (dense := self.protocol.dense) not in VARIANTS:
            raise UserError(f"dense={dense!r}: choose one of {', '.join(VARIANTS)}")

    def embed(
        self, model: nnx.Module, classes: tuple[str, ...], tokenizer: Tokenizer
    ) -> ClassEmbeddings:
        """Embeddings of the words of all classes."""
        words = class_words(classes, self.protocol.has_background)
        names = tuple(word for _, word in words)
        return ClassEmbeddings(
            embed_classes(model, names, self.protocol.templates, tokenizer, unit_prompts=True),
            np.array([owner for owner, _ in words], np.int32),
            np.float32(self.protocol.bg_thresh or 0),
        )

    def read(
        self,
        model: nnx.Module,
        texts: ClassEmbeddings,
        windows: UInt8[Array, "n crop crop 3"],
    ) -> Float[Array, "n w y x"]:
        """Cosine similarity of every patch and word."""
        mean, std = (jnp.array(x) * 255 for x in (self.protocol.mean, self.protocol.std))
        images = (windows.astype(jnp.float32) - mean) / std
        features = normalize(dense_features(model, images, self.protocol.dense))
        return jnp.einsum("nyxp,wp->nwyx", features, texts.vectors, precision="highest")

    def paint(
        self,
        said: Float[Array, "n w y x"],
        texts: ClassEmbeddings,
        place: Place,
        shape: PieceShape,
    ) -> Int[Array, "th tw"]:
        """Class of every pixel of a piece, a block of words at a time with a running best."""
        owners, tile = texts.owners, shape.tile
        words, crop = len(owners), self.protocol.crop
        weights = None
        if self.protocol.pamr:
            weights = piece_affinities(place, self.protocol, shape.canvas, tile)

        def paint_block(block: Array, running: tuple[Array, ...]) -> tuple[Array, ...]:
            ids = block * CLASSES_PER_BLOCK + jnp.arange(CLASSES_PER_BLOCK)
            chosen, own = said[:, jnp.minimum(ids, words - 1)], owners[jnp.minimum(ids, words - 1)]
            exists = (ids < words) & (own >= 0)

            def pixels(window: Array) -> Float[Array, "h w k"]:
                return enlarge(chosen[window], place, crop, shape.canvas).transpose(1, 2, 0)

            def update(running: tuple[Array, ...], values: Array) -> tuple[Array, ...]:
                best, label, total = running
                values = jnp.where(exists, values * self.protocol.logit_scale, -jnp.inf)
                score = values.max(-1)
                found = own[values.argmax(-1)]
                better = score > best  # strict: the lower word wins a tie, as in argmax
                total = jnp.logaddexp(total, jax.nn.logsumexp(values, -1))
                return jnp.maximum(score, best), jnp.where(better, found, label), total

            total = sum_windows(pixels, CLASSES_PER_BLOCK, place, shape.canvas)
            if not self.protocol.pamr:
                return visit_pixels(total, place, update, running)
            mean = resize_canvas(total, place, tile)
            return update(running, refine(mean, weights, place.size, self.protocol.pamr_dilations))

        lowest = jnp.full(tile, -jnp.inf)
        running = lowest, jnp.zeros(tile, jnp.int32), lowest
        blocks = -(-words // CLASSES_PER_BLOCK)
        best, label, total = jax.lax.fori_loop(0, blocks, paint_block, running)
        if not self.protocol.has_background:
            return label
        return jnp.where(jnp.exp(best - total) < texts.threshold, 0, label)


def class_words(classes: tuple[str, ...], has_background: bool) -> list[tuple[int, str]]:
    """Class and word, for every word of every class.

    A background class that is called just `background` has none: it is where nothing else is. One
    that is called `sky, wall, floor` has three.
    """
    plain = has_background and classes[0] == "background"
    return [
        (number, word)
        for number, name in enumerate(classes)
        if not (plain and number == 0)
        for word in words_of(name)
    ]
