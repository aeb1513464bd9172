"""How good curated concepts are, where the true ones are known."""

from collections.abc import Collection, Sequence

import numpy as np
from jaxtyping import Bool, Int

from cocu_jax.errors import UserError
from cocu_jax.input.corpus import Corpus, open_corpus, read_shard

Concepts = Sequence[Sequence[int]]  # ids of every image


def curation_quality(
    curated: Concepts, true: Concepts, captioned: Concepts, stuff: Collection[int], top: int = 3
) -> dict[str, dict[str, float]]:
    """Precision and recall of the best curated concepts and of the captions alone.

    Every (image, concept) pair counts once, so images with many concepts weigh more. "Omitted" are
    true concepts that the image's caption does not name.

    Args:
        curated: ranked concepts of every image.
        true: what every image shows.
        captioned: what its caption names.
        stuff: ids of the concepts that are backgrounds; the others are things.
        top: how many of the ranked concepts count.

    Returns:
        `"curated"` and `"caption"`, each with `precision`, `recall`, `recall_things`,
        `recall_stuff`, `recall_omitted`, `recall_omitted_stuff`, and the best `precision` that a
        list of this length can have, `precision_bound`. `"omitted"`: the share of true `things` and
        of true `stuff` that captions leave out. All in [0, 1]; NaN where nothing could be counted.
    """
    largest = max(
        (int(np.max(row)) for rows in (curated, true, captioned) for row in rows if len(row)),
        default=0,
    )
    shown, named = (_pairs(rows, largest) for rows in (true, captioned))
    best = _pairs([row[:top] for row in curated], largest)
    is_stuff = np.isin(shown % (largest + 1), list(stuff))
    omitted = ~np.isin(shown, named)
    return {
        "curated": _scores(best, shown, is_stuff, omitted, largest),
        "caption": _scores(named, shown, is_stuff, omitted, largest),
        "omitted": {"things": _share(omitted[~is_stuff]), "stuff": _share(omitted[is_stuff])},
    }


def measure_curation(dataset: str, annotations: str, split: str = "pretrain", top: int = 3) -> dict:
    """`curation_quality` of annotations on disk.

    Args:
        dataset: directory of an image-text corpus that knows its true concepts, such as the scenes.
        annotations: directory of its concept annotations.
        split: which split was curated.
        top: how many of the ranked concepts count.

    Raises:
        UserError: the annotations belong to another corpus.
    """
    corpus, sidecar = open_corpus(dataset, split), open_corpus(annotations, split)
    true, captioned, keys = _columns(corpus, "concepts", "caption_concepts", "key")
    curated, curated_keys = _columns(sidecar, "concepts", "key")
    if keys != curated_keys:
        raise UserError(
            f"{sidecar.directory}: the annotations are not of {corpus.directory}, split {split}; "
            "curate that split first"
        )
    gallery = corpus.metadata["gallery"]
    stuff = [gallery.index(name) for name in corpus.metadata["stuff"]]
    return curation_quality(curated, true, captioned, stuff, top)


def _columns(corpus: Corpus, *names: str) -> list[list]:
    columns = [[] for _ in names]
    for shard in range(corpus.num_shards):
        for example in read_shard(corpus, shard).as_numpy_iterator():
            for column, name in zip(columns, names, strict=True):
                column.append(example[name])
    return columns


def _pairs(rows: Concepts, largest: int) -> Int[np.ndarray, "p"]:
    """Every (image, concept) pair as one number: image * (largest + 1) + concept."""
    lengths = [len(row) for row in rows]
    images = np.repeat(np.arange(len(rows)), lengths)
    concepts = np.concatenate([np.asarray(row, np.int64) for row in rows]) if rows else images
    return np.unique(images * (largest + 1) + concepts)


def _scores(
    proposed: Int[np.ndarray, "p"],
    shown: Int[np.ndarray, "t"],
    is_stuff: Bool[np.ndarray, "t"],
    omitted: Bool[np.ndarray, "t"],
    largest: int,
) -> dict[str, float]:
    found = np.isin(shown, proposed)
    images = max(proposed.max(initial=0), shown.max(initial=0)) // (largest + 1) + 1
    lengths, possible = (
        np.bincount(p // (largest + 1), minlength=images) for p in (proposed, shown)
    )
    return {
        "precision": _share(np.isin(proposed, shown)),
        "precision_bound": float(np.minimum(lengths, possible).sum() / max(lengths.sum(), 1)),
        "recall": _share(found),
        "recall_things": _share(found[~is_stuff]),
        "recall_stuff": _share(found[is_stuff]),
        "recall_omitted": _share(found[omitted]),
        "recall_omitted_stuff": _share(found[omitted & is_stuff]),
    }


def _share(hits: Bool[np.ndarray, "n"]) -> float:
    return float(np.mean(hits)) if len(hits) else float("nan")
