"""Opens the corpora of a run with their annotations, and checks that each pair belongs together."""

import dataclasses

from cocu_jax.errors import UserError
from cocu_jax.input.config import CorpusConfig
from cocu_jax.input.corpus import Corpus, open_corpus

_IMAGE_TEXT_FEATURES = ("key", "image", "caption_tokens")
_ANNOTATION_FEATURES = ("key", "concepts", "scores", "clusters")
# The feature of a corpus that contains a caption's concepts, for the modes without annotations.
CAPTION_FEATURES = {"caption": "caption_concepts", "nouns": "caption_nouns"}


@dataclasses.dataclass(frozen=True)
class Source:
    """A corpus to train on.

    Attributes:
        corpus: images and captions.
        annotations: dataset with the ranked concepts of every image, or None.
        gallery: names of the concept ids; empty without concepts.
    """

    corpus: Corpus
    annotations: Corpus | None
    gallery: tuple[str, ...]


def open_source(entry: CorpusConfig, concepts: str) -> Source:
    """Opens one entry of `data.corpora`.

    Args:
        entry: the entry; for "cluster" and "top" its `annotations` must be set.
        concepts: how concepts are chosen, see `InputConfig`.

    Raises:
        UserError: corpus or annotations are missing or empty, or lack a feature that `concepts`
            needs.
    """
    corpus = open_corpus(entry.directory, entry.split)
    if not corpus.num_examples:
        raise UserError(
            f"{corpus.directory}: no examples in its split {entry.split!r}; prepare it again, or "
            "take it out of config.data.corpora"
        )
    _require(corpus, _IMAGE_TEXT_FEATURES, "not an image-text dataset")
    annotations = None
    if concepts in CAPTION_FEATURES:
        _require(
            corpus,
            [CAPTION_FEATURES[concepts]],
            f"which data.concepts={concepts!r} needs",
            "image_text --nouns …" if concepts == "nouns" else "--help",
        )
    elif concepts != "none":
        annotations = _annotations(entry, concepts, corpus)
    if concepts in ("none", "nouns"):
        return Source(corpus, None, ())
    gallery = (annotations or corpus).metadata.get("gallery")
    if not gallery:
        raise UserError(
            f"{corpus.directory}: its metadata contains no gallery; prepare the corpus again"
        )
    return Source(corpus, annotations, tuple(gallery))


def open_annotations(directory: str, corpus: Corpus) -> Corpus:
    """Opens the annotations of a corpus and checks that they were made from this corpus.

    Annotations and corpus are read in parallel, so their shards must have the same lengths. Equal
    keys are checked for every example while reading.

    Raises:
        UserError: there are no annotations, or they belong to other data.
    """
    annotations = open_corpus(directory, corpus.split)
    made_from = annotations.metadata.get("corpus")
    remedy = "curate this corpus, or give the directory of its own annotations"
    if made_from != corpus.fingerprint:
        raise UserError(
            f"{annotations.directory}: annotations of corpus {made_from}, but {corpus.directory} "
            f"({corpus.split}) is {corpus.fingerprint}; {remedy}"
        )
    if annotations.shard_lengths != corpus.shard_lengths:
        raise UserError(
            f"{annotations.directory}: its {annotations.num_shards} shards do not have the sizes "
            f"of the {corpus.num_shards} of {corpus.directory}; {remedy}"
        )
    _require(annotations, _ANNOTATION_FEATURES, "not concept annotations")
    return annotations


def _annotations(entry: CorpusConfig, concepts: str, corpus: Corpus) -> Corpus:
    if not entry.annotations:
        raise UserError(
            f"{corpus.directory}: data.concepts={concepts!r} needs its annotations; "
            "curate it (configs/curate.py) and set data.corpora[...].annotations to the result"
        )
    return open_annotations(entry.annotations, corpus)


def _require(corpus: Corpus, features, meaning: str, command: str = "--help") -> None:
    for name in features:
        if name not in corpus.features:
            raise UserError(
                f"{corpus.directory}: has no feature {name!r}, {meaning}; "
                f"prepare it with: python -m data_prep {command}"
            )
