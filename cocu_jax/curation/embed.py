"""CLIP embeddings of a corpus and of a gallery, under `jax.pmap` over the local devices."""

import dataclasses
import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import tensorflow as tf
from flax import nnx
from jaxtyping import Array, Float, Float16, Int, UInt8

from cocu_jax.curation.images import damaged_file, image_batches
from cocu_jax.curation.ragged import Ragged
from cocu_jax.input.corpus import Corpus
from cocu_jax.models.clip import CLIP
from cocu_jax.models.siglip import Siglip
from cocu_jax.models.weights.image_processing import ImageProcessing
from cocu_jax.models.weights.text_tokens import Tokenize


@dataclasses.dataclass(frozen=True)
class EmbeddedShard:
    """What the embedding stage knows of one shard, row by row in file order.

    Attributes:
        embeddings: unit-norm image embeddings; 0 where the image cannot be read.
        readable: whether the image could be read.
        keys: UTF-8 keys.
        concepts: ids of the caption's concepts.
    """

    embeddings: Float16[np.ndarray, "n d"]
    readable: np.ndarray
    keys: Ragged
    concepts: Ragged


class Encoder:
    """Both towers of a CLIP or SigLIP, copied to every local device.

    Calls take any number of rows; they are cut into batches of one size, `rows_per_device` on each
    device, the last padded, so that each tower compiles once.
    """

    def __init__(self, clip: CLIP | Siglip, processing: ImageProcessing, rows: int):
        """Args: the model, how it wants its images, and rows per device."""
        self._devices = jax.local_devices()
        self.batch = rows * len(self._devices)
        self.width = clip.config.projection_dim
        graph, state = nnx.split(clip)
        mean, std = np.float32(processing.mean), np.float32(processing.std)

        def images(state, pixels: UInt8[Array, "b s s 3"]) -> Float[Array, "b d"]:
            pixels = (pixels.astype(jnp.float32) / 255 - mean) / std
            return _unit_norm(nnx.merge(graph, state).encode_image(pixels))

        def texts(state, tokens: Int[Array, "b t"]) -> Float[Array, "b d"]:
            return _unit_norm(nnx.merge(graph, state).encode_text(tokens))

        copies = np.arange(len(self._devices))  # pmap wants something to map over
        copy = jax.pmap(lambda _, state: state, in_axes=(0, None), devices=self._devices)
        self._state = copy(copies, state)
        self._images = jax.pmap(images, devices=self._devices)
        self._texts = jax.pmap(texts, devices=self._devices)

    def images(self, pixels: UInt8[np.ndarray, "b s s 3"]) -> Array:
        """Unit-norm float16 embeddings of at most one batch of pixels, not waited for."""
        return self._one_batch(self._images, pixels)

    def texts(self, tokens: Int[np.ndarray, "n t"]) -> Float16[np.ndarray, "n d"]:
        """Unit-norm float16 embeddings of any number of texts."""
        batches = [tokens[i : i + self.batch] for i in range(0, len(tokens), self.batch)]
        parts = [np.asarray(self._one_batch(self._texts, b))[: len(b)] for b in batches]
        return np.concatenate(parts)

    def _one_batch(self, function: Callable, rows: np.ndarray) -> Array:
        missing = self.batch - len(rows)
        padded = np.pad(rows, [(0, missing)] + [(0, 0)] * (rows.ndim - 1))
        split = padded.reshape(len(self._devices), -1, *rows.shape[1:])
        embeddings = function(self._state, split)
        return embeddings.reshape(self.batch, -1)


def embed_shards(
    encoder: Encoder,
    corpus: Corpus,
    shards: Sequence[int],
    processing: ImageProcessing,
    on_images: Callable[[int], None] = lambda count: None,
) -> Iterator[tuple[int, EmbeddedShard]]:
    """Embeds the images of some shards, one after the other.

    Args:
        encoder: the CLIP model.
        corpus: a TFDS image-text corpus.
        shards: which of its shards.
        processing: how the model wants its images.
        on_images: called with the number of images just embedded.

    Yields:
        The number of each shard and what is in it.

    Raises:
        UserError: a shard's file is damaged (a damaged *image* is not an error).
    """
    batches = image_batches(corpus, shards, processing, encoder.batch).as_numpy_iterator()
    embedded = _one_ahead(encoder, batches)
    for shard in shards:
        count = -(-corpus.shard_lengths[shard] // encoder.batch)
        try:
            parts = [_no_images(encoder.width)]  # all that there is of an empty shard
            for batch, embeddings in itertools.islice(embedded, count):
                readable = batch["readable"]
                embeddings = np.asarray(embeddings)[: len(readable)]
                batch["embeddings"] = np.where(readable[:, None], embeddings, np.float16(0))
                parts.append(batch)
                on_images(len(readable))
        except tf.errors.OpError as error:
            raise damaged_file(corpus, shard, error) from None
        yield shard, _joined(parts)


def _no_images(width: int) -> dict:
    return {
        "key": [],
        "caption_concepts": [],
        "readable": np.zeros(0, bool),
        "embeddings": np.zeros((0, width), np.float16),
    }


def _joined(batches: Sequence[dict]) -> EmbeddedShard:
    rows = [row for batch in batches for row in batch["caption_concepts"]]
    return EmbeddedShard(
        embeddings=np.concatenate([batch["embeddings"] for batch in batches]),
        readable=np.concatenate([batch["readable"] for batch in batches]),
        keys=Ragged.from_bytes(key for batch in batches for key in batch["key"]),
        concepts=Ragged.from_lists([row[row >= 0] for row in rows], np.int32),
    )


def embed_concepts(
    encoder: Encoder, tokenize: Tokenize, concepts: Sequence[str], prompt: str
) -> Float16[np.ndarray, "g d"]:
    """Unit-norm text embeddings of `prompt.format(concept)`; `tokenize` gives their token ids."""
    return encoder.texts(tokenize([prompt.format(concept) for concept in concepts]))


def parameters_hash(clip: CLIP | Siglip) -> str:
    """SHA-256 of all parameters, the same however the checkpoint is packed."""
    digest = hashlib.sha256()
    leaves, _ = jax.tree_util.tree_flatten_with_path(nnx.to_pure_dict(nnx.state(clip)))
    for path, leaf in sorted(leaves, key=lambda item: jax.tree_util.keystr(item[0])):
        digest.update(jax.tree_util.keystr(path).encode())
        digest.update(np.ascontiguousarray(leaf))
    return digest.hexdigest()


def _one_ahead(encoder: Encoder, batches: Iterator[dict]) -> Iterator[tuple[dict, Array]]:
    """Batches with their embeddings, the next batch dispatched before the last is waited for."""
    waiting = None
    while True:
        try:
            batch = next(batches, None)
        except tf.errors.OpError:
            if waiting:
                yield waiting  # the error is not this batch's
            raise
        dispatched = (batch, encoder.images(batch.pop("pixels"))) if batch else None
        if waiting:
            yield waiting
        if not dispatched:
            return
        waiting = dispatched


def _unit_norm(x: Float[Array, "b d"]) -> Float16[Array, "b d"]:
    return (x / jnp.linalg.norm(x, axis=-1, keepdims=True)).astype(jnp.float16)
