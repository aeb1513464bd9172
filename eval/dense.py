"""Dense CLIP: each pixel gets the class whose words are most similar to its patches.

The cosine similarities of patches and words are upsampled to the window, averaged over windows, and
resized to the image. A softmax over the words of all classes gives the probabilities of a pixel,
and a class has the probability of its best word. Source: NACLIP (arXiv 2404.08181), section 4, and
its published inference rule.
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
from eval.decoding import (
    CLASSES_PER_BLOCK,
    resize_canvas,
    scan_pixels,
    sum_windows,
    tile_affinities,
    upsample_patches,
)
from eval.pamr import refine
from eval.protocol import Protocol
from eval.tiles import TileLayout, TileShape


@dataclasses.dataclass(frozen=True)
class DenseMethod:
    """The method for a CLIP; `eval.segmenter` describes what a method is.

    Attributes:
        protocol: the settings.

    Raises:
        UserError: `protocol.dense` is not one of the variants.
    """

    protocol: Protocol

    def __post_init__(self) -> None:
        if (dense := self.protocol.dense) not in VARIANTS:
            raise UserError(f"dense={dense!r}: choose one of {', '.join(VARIANTS)}")

    def embed(
        self, model: nnx.Module, classes: tuple[str, ...], tokenizer: Tokenizer
    ) -> ClassEmbeddings:
        """Unit-norm embeddings of the words of all classes."""
        words = class_words(classes, self.protocol.has_background)
        names = tuple(word for _, word in words)
        return ClassEmbeddings(
            embed_classes(model, names, self.protocol.templates, tokenizer, unit_prompts=True),
            np.array([class_id for class_id, _ in words], np.int32),
            np.float32(self.protocol.bg_thresh or 0),
        )

    def encode(
        self,
        model: nnx.Module,
        embeddings: ClassEmbeddings,
        windows: UInt8[Array, "n crop crop 3"],
    ) -> Float[Array, "n w y x"]:
        """Cosine similarity of every patch and every word."""
        mean, std = (jnp.array(x) * 255 for x in (self.protocol.mean, self.protocol.std))
        images = (windows.astype(jnp.float32) - mean) / std
        features = normalize(dense_features(model, images, self.protocol.dense))
        return jnp.einsum("nyxp,wp->nwyx", features, embeddings.vectors, precision="highest")

    def decode(
        self,
        outputs: Float[Array, "n w y x"],
        embeddings: ClassEmbeddings,
        layout: TileLayout,
        shape: TileShape,
    ) -> Int[Array, "th tw"]:
        """Class of every pixel of a tile, from blocks of words, keeping the best score so far."""
        class_ids, tile_size = embeddings.class_ids, shape.size
        words, crop = len(class_ids), self.protocol.crop
        weights = None
        if self.protocol.pamr:
            weights = tile_affinities(layout, self.protocol, shape.canvas, tile_size)

        def decode_block(block: Array, running: tuple[Array, ...]) -> tuple[Array, ...]:
            ids = block * CLASSES_PER_BLOCK + jnp.arange(CLASSES_PER_BLOCK)
            exists, ids = ids < words, jnp.minimum(ids, words - 1)
            chosen, own = outputs[:, ids], class_ids[ids]
            exists = exists & (own >= 0)

            def pixels(window: Array) -> Float[Array, "h w k"]:
                values = upsample_patches(chosen[window], layout, crop, shape.canvas)
                return values.transpose(1, 2, 0)

            def update(running: tuple[Array, ...], values: Array) -> tuple[Array, ...]:
                best, label, total = running
                values = jnp.where(exists, values * self.protocol.logit_scale, -jnp.inf)
                score = values.max(-1)
                found = own[values.argmax(-1)]
                better = score > best  # strict: the lower word wins a tie, as in argmax
                total = jnp.logaddexp(total, jax.nn.logsumexp(values, -1))
                return jnp.maximum(score, best), jnp.where(better, found, label), total

            total = sum_windows(pixels, CLASSES_PER_BLOCK, layout, shape.canvas)
            if not self.protocol.pamr:
                return scan_pixels(total, layout, update, running)
            mean = resize_canvas(total, layout, tile_size)
            return update(running, refine(mean, weights, layout.size, self.protocol.pamr_dilations))

        lowest = jnp.full(tile_size, -jnp.inf)
        running = lowest, jnp.zeros(tile_size, jnp.int32), lowest
        blocks = -(-words // CLASSES_PER_BLOCK)
        best, label, total = jax.lax.fori_loop(0, blocks, decode_block, running)
        if not self.protocol.has_background:
            return label
        return jnp.where(jnp.exp(best - total) < embeddings.threshold, 0, label)


def class_words(classes: tuple[str, ...], has_background: bool) -> list[tuple[int, str]]:
    """Class number and word, for every word of every class.

    A background class that is named just `background` has no word: it is assigned where all other
    classes score low. A background class that is named `sky, wall, floor` has three words.
    """
    plain = has_background and classes[0] == "background"
    return [
        (number, word)
        for number, name in enumerate(classes)
        if not (plain and number == 0)
        for word in words_of(name)
    ]
