"""Concept archives and their text-to-vision-guided ranking (CoCu, section 3.2; method, 1.4 - 1.5).

The score of a concept c needs cos(c, image) only for neighbours whose caption has c, that is, for
every image and its *own* concepts. Those similarities are computed once per image of the index
(`own_similarities`), which leaves the anchor's similarities as the only products per anchor.
"""

import dataclasses
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from cocu_jax.curation.ragged import Ragged, item_positions, starts_of

_PAIRS = 256  # products at a time; their operands stay in a core's cache


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Archives:
    """Concept archives of a batch of anchors, in archive order.

    Attributes:
        concepts: [b, n] ids, -1 beyond the archive.
        support: [b, n] number of neighbours whose caption has the concept.
        total: [b, n] sum of these neighbours' similarities to the concept.
        largest: [b] largest such similarity over the archive, at least 0.
        found: [b] size of the archive before it was cut to n concepts.
    """

    concepts: Int[Array, "b n"]
    support: Int[Array, "b n"]
    total: Float[Array, "b n"]
    largest: Float[Array, "b"]
    found: Int[Array, "b"]


@partial(jax.jit, static_argnames="capacity")
def build_archives(
    entries: Int[Array, "b m"],
    similarities: Float[Array, "b m"],
    in_caption: Bool[Array, "b m"],
    capacity: int,
) -> Archives:
    """Builds each anchor's archive from its neighbours' concepts.

    Args:
        entries: concept ids of all neighbours of an anchor, joined in the order of neighbour rank
            and then of position in the caption; -1 where there are fewer than m.
        similarities: cosine of each entry's concept with the neighbour that brought it.
        in_caption: whether the neighbour's caption has the concept. False marks concepts that
            merely match the neighbour (`match="substring"`): they count in the means but do not
            enter the archive.
        capacity: n; an archive keeps its first n concepts.
    """
    concepts, found = _first_occurrences(jnp.where(in_caption, entries, -1), capacity)
    same = (concepts[:, :, None] == entries[:, None, :]) & (concepts >= 0)[:, :, None]
    met = jnp.where(same, similarities[:, None, :], 0.0)
    return Archives(concepts, same.sum(-1), met.sum(-1), met.max((1, 2)), found)


@jax.jit
def rank_archives(
    archives: Archives, anchors: Float[Array, "b d"], concept_embeddings: Float[Array, "g d"]
) -> tuple[Int[Array, "b n"], Float[Array, "b n"]]:
    """Scores and sorts archives.

    Args:
        archives: see `build_archives`.
        anchors: unit-norm embeddings of the anchors.
        concept_embeddings: unit-norm embeddings of the gallery.

    Returns:
        Concepts, best first, -1 beyond the archive, and their scores, 0 beyond it.
        score = g / m + l with g = cos(c, anchor), l = g / mean of R(c) and m the largest similarity
        met over the archive; ties keep archive order. A term whose denominator is 0 (no positive
        similarity at all) is 0, so that scores stay finite.
    """
    valid = archives.concepts >= 0
    to_anchor = jnp.einsum(
        "bnd,bd->bn",
        concept_embeddings[jnp.maximum(archives.concepts, 0)].astype(jnp.float32),
        anchors.astype(jnp.float32),
        precision=jax.lax.Precision.HIGHEST,
    )
    mean = (archives.total + to_anchor) / (archives.support + 1)
    largest = jnp.maximum(archives.largest, jnp.where(valid, to_anchor, 0.0).max(1))
    scores = _divide(to_anchor, largest[:, None]) + _divide(to_anchor, mean)
    return _sort_descending(archives.concepts, jnp.where(valid, scores, -jnp.inf))


def own_similarities(
    images: Float[np.ndarray, "n d"],
    concept_embeddings: Float[np.ndarray, "g d"],
    concepts: Int[np.ndarray, "e"],
    rows: Int[np.ndarray, "e"],
) -> Float[np.ndarray, "e"]:
    """cos(concepts[e], images[rows[e]]) for a list of (image, concept) pairs in image order."""
    concept_embeddings = concept_embeddings.astype(np.float32)
    similarities = np.empty(len(concepts), np.float32)
    for start in range(0, len(concepts), _PAIRS):
        part = slice(start, start + _PAIRS)
        first, last = rows[part][0], rows[part][-1]
        left = images[first : last + 1].astype(np.float32)[rows[part] - first]
        similarities[part] = np.einsum("ed,ed->e", left, concept_embeddings[concepts[part]])
    return similarities


def substring_relation(gallery: Sequence[str]) -> Ragged:
    """For each concept d, the other concepts that are substrings of d, ascending.

    The published code asks whether c occurs in the comma-joined concepts of an image. Concepts have
    no commas, so that is the same as c being a substring of one of them (`match="substring"`).
    """
    ids = {concept: i for i, concept in enumerate(gallery)}
    lists = []
    for i, concept in enumerate(gallery):
        ends = range(1, len(concept) + 1)
        pieces = {concept[start:end] for end in ends for start in range(end)}
        lists.append(sorted({ids[piece] for piece in pieces if piece in ids} - {i}))
    return Ragged.from_lists(lists, np.int32)


def matching_concepts(concepts: Ragged, relation: Ragged) -> tuple[Ragged, np.ndarray]:
    """Each image's own concepts followed by those that only match it, and which are its own.

    Args:
        concepts: concept ids of each image's caption.
        relation: for each concept the others that match an image having it.
    """
    images = len(concepts.lengths)
    gallery = len(relation.lengths)
    own_image = np.repeat(np.arange(images), concepts.lengths)
    own = own_image * gallery + concepts.values
    fan_out = relation.lengths[concepts.values]
    positions = item_positions(relation.starts[concepts.values], fan_out)
    matched = np.repeat(own_image, fan_out) * gallery + relation.values[positions]
    matched = np.setdiff1d(matched, own)
    image = np.concatenate([own_image, matched // gallery])
    order = np.argsort(image, kind="stable")
    joined = np.concatenate([concepts.values, matched % gallery])[order].astype(np.int32)
    in_caption = order < len(own)
    return Ragged(joined, starts_of(np.bincount(image, minlength=images))), in_caption


def _first_occurrences(
    entries: Int[Array, "b m"], capacity: int
) -> tuple[Int[Array, "b n"], Int[Array, "b"]]:
    """Distinct non-negative entries in order of first occurrence, and how many there are."""
    width = entries.shape[1]
    earlier = jnp.tril(jnp.ones((width, width), bool), k=-1)
    seen = ((entries[:, :, None] == entries[:, None, :]) & earlier).any(-1)
    first = ~seen & (entries >= 0)
    position = jnp.where(first, jnp.cumsum(first, axis=1) - 1, -1)
    here = position[:, None, :] == jnp.arange(capacity)[:, None]
    archive = jnp.where(here, entries[:, None, :] + 1, 0).sum(-1) - 1
    return archive.astype(jnp.int32), first.sum(-1)


def _sort_descending(
    archive: Int[Array, "b n"], scores: Float[Array, "b n"]
) -> tuple[Int[Array, "b n"], Float[Array, "b n"]]:
    """Stable sort of short rows by counting, which beats a sort network on every backend.

    -inf marks padding; it comes back as concept -1, score 0.
    """
    size = archive.shape[1]
    mine, other = scores[:, :, None], scores[:, None, :]
    earlier = jnp.tril(jnp.ones((size, size), bool), k=-1)
    place = jnp.sum((other > mine) | ((other == mine) & earlier), -1)
    lands = place[:, None, :] == jnp.arange(size)[:, None]
    concepts = jnp.where(lands, archive[:, None, :], 0).sum(-1).astype(jnp.int32)
    finite = jnp.where(archive >= 0, scores, 0.0)
    return concepts, jnp.where(lands, finite[:, None, :], 0.0).sum(-1)


def _divide(numerator: Array, denominator: Array) -> Array:
    return jnp.where(denominator == 0, 0.0, numerator / jnp.where(denominator == 0, 1, denominator))
