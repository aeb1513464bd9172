"""The curated concepts of a corpus, kept beside it and joined by key."""

from cocu_jax.errors import UserError
from cocu_jax.input.corpus import Corpus, open_corpus

ANNOTATION_FEATURES = ("key", "concepts", "scores", "clusters")


def open_annotations(directory: str, corpus: Corpus) -> Corpus:
    """Opens the sidecar of a corpus and checks that it was made from this very corpus.

    Both are read side by side, so their shards must agree; that the keys agree too is checked
    example by example while reading.

    Raises:
        UserError: no sidecar, or the sidecar of other data.
    """
    remedy = "curate this corpus again, or fix data.corpora[...].annotations"
    annotations = open_corpus(directory, corpus.split)
    made_from = annotations.metadata.get("corpus")
    if made_from != corpus.fingerprint:
        raise UserError(
            f"{annotations.directory}: made from corpus {made_from}, but {corpus.directory} "
            f"({corpus.split}) is {corpus.fingerprint}; {remedy}"
        )
    if annotations.shard_lengths != corpus.shard_lengths:
        raise UserError(
            f"{annotations.directory}: its {annotations.num_shards} shards do not have the sizes of "
            f"the {corpus.num_shards} of {corpus.directory}; {remedy}"
        )
    missing = [name for name in ANNOTATION_FEATURES if name not in annotations.features]
    if missing or "gallery" not in annotations.metadata:
        raise UserError(
            f"{annotations.directory}: no annotations, {', '.join(missing) or 'gallery'} missing; {remedy}"
        )
    return annotations
