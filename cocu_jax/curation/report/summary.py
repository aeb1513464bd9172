"""What a curation run found, per shard and in all, for people to read."""

import itertools
import json
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Int

from cocu_jax.curation.annotate import Annotations
from cocu_jax.curation.ragged import Ragged

_SHOWN = 20


def shard_counts(annotations: Annotations, captions: Ragged, gallery_size: int) -> dict:
    """Counts of one shard, ready for JSON; counts of all shards add up, see `add_counts`.

    Args:
        annotations: of the shard's images.
        captions: concepts of their captions.
        gallery_size: number of concepts.
    """
    capacity = annotations.concepts.shape[1]
    rows, columns = np.nonzero(annotations.concepts >= 0)
    found = rows * gallery_size + annotations.concepts[rows, columns]
    captioned = np.repeat(np.arange(len(captions.lengths)), captions.lengths)
    added = np.setdiff1d(found, captioned * gallery_size + captions.values) % gallery_size
    sizes = np.minimum(annotations.found, capacity)
    return {
        "images": len(sizes),
        "without_caption_concepts": int((captions.lengths == 0).sum()),
        "without_concepts": int((sizes == 0).sum()),
        "truncated_archives": int((annotations.found > capacity).sum()),
        "archive_sizes": np.bincount(sizes, minlength=capacity + 1).tolist(),
        "concept_counts": np.bincount(found % gallery_size, minlength=gallery_size).tolist(),
        "added_counts": np.bincount(added, minlength=gallery_size).tolist(),
    }


def add_counts(sums: dict[str, Int[np.ndarray, "..."]], counts: Mapping) -> None:
    """Adds a shard's counts to the sums, which are empty before the first shard."""
    for field, value in counts.items():
        sums[field] = sums.get(field, 0) + np.array(value)


def summarise(
    counts: Mapping, unreadable: Sequence[str], unreadable_count: int, gallery: Sequence[str]
) -> dict:
    """The summary as JSON fields.

    Args:
        counts: sums over all shards.
        unreadable: keys of the first images that could not be embedded.
        unreadable_count: how many could not.
        gallery: names of the concepts.
    """
    images = max(int(counts["images"]), 1)
    sizes, added = counts["archive_sizes"], counts["added_counts"]
    return {
        "images": int(counts["images"]),
        "unreadable_count": unreadable_count,
        "unreadable_images": list(unreadable),
        "share_without_caption_concepts": int(counts["without_caption_concepts"]) / images,
        "share_without_concepts": int(counts["without_concepts"]) / images,
        "truncated_archives": int(counts["truncated_archives"]),
        "mean_concepts_per_image": float((sizes * np.arange(len(sizes))).sum() / images),
        "mean_added_per_image": float(added.sum() / images),
        "concepts_per_image": {str(n): int(sizes[n]) for n in np.flatnonzero(sizes)},
        "most_frequent": _top(counts["concept_counts"], gallery),
        "most_added": _top(added, gallery),
    }


def as_text(summary: dict) -> str:
    """The summary as lines for a terminal."""
    images, unreadable = summary["images"], summary["unreadable_images"]
    lines = [
        f"images                     {images:,}",
        f"unreadable images          {summary['unreadable_count']:,}",
        f"captions without concepts  {summary['share_without_caption_concepts']:.1%}",
        f"images without concepts    {summary['share_without_concepts']:.1%}",
        f"concepts per image         {summary['mean_concepts_per_image']:.2f}",
        f"  not in the caption       {summary['mean_added_per_image']:.2f}",
        f"archives cut to capacity   {summary['truncated_archives']:,}",
        "",
        "images by number of concepts",
        *_bars(summary["concepts_per_image"]),
        "",
        "most frequent              most added",
    ]
    frequent, added = (
        [f"{concept:<18}{count:>7,}" for concept, count in summary[name].items()]
        for name in ("most_frequent", "most_added")
    )
    pairs = itertools.zip_longest(frequent, added, fillvalue="")
    lines += [f"{left:<25}  {right}".rstrip() for left, right in pairs]
    lines += ["", *(f"unreadable: {json.dumps(key)}" for key in unreadable)]
    more = summary["unreadable_count"] - len(unreadable)
    lines += [f"and {more:,} more; reports/ names them all"] if more else []
    return "\n".join(lines).rstrip() + "\n"


def _bars(histogram: dict[str, int]) -> list[str]:
    largest = max(histogram.values(), default=1)
    return [f"{n:>5} {'#' * -(-40 * count // largest)} {count:,}" for n, count in histogram.items()]


def _top(counts: Int[np.ndarray, "g"], gallery: Sequence[str]) -> dict[str, int]:
    order = np.argsort(-counts, kind="stable")[:_SHOWN]
    return {gallery[i]: int(counts[i]) for i in order if counts[i]}
