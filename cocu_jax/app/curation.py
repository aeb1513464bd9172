"""Pages of a finished curation: images with their captions, neighbours and concepts."""

import dataclasses
import json
import re

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet
from etils import epath

from cocu_jax.curation.report.examples_page import STYLE, Place, article, read_places
from cocu_jax.errors import UserError
from cocu_jax.input.corpus import Corpus, open_corpus
from cocu_jax.stopping import StopRequest

PAGE_SIZE = 6  # images per page
_NEIGHBOURS = 6  # neighbours shown per image
_COLUMNS = ["concept_ids", "scores", "clusters", "neighbours"]


@dataclasses.dataclass(frozen=True)
class Curation:
    """A curation's work directory and the corpus that it annotates.

    Attributes:
        corpus: the image-text dataset.
        parts: the annotations, one Parquet file per shard.
        gallery: names of the concepts, by number.
    """

    corpus: Corpus
    parts: tuple[epath.Path, ...]
    gallery: tuple[str, ...]

    @classmethod
    def open(cls, directory: str) -> "Curation":
        """Opens a work directory of `configs/curate.py`.

        Raises:
            UserError: there is no finished curation, it has no Parquet files, or its corpus has
                been moved or changed.
        """
        workdir = epath.Path(directory)
        try:
            config = json.loads((workdir / "config.json").read_text())["corpus"]
        except (OSError, ValueError, KeyError, TypeError):
            raise UserError(
                f"{directory}: not the work directory of a curation; give the --workdir of "
                "a finished run of configs/curate.py"
            ) from None
        corpus = open_corpus(config["directory"], config["split"])
        annotations = open_corpus(str(workdir / "annotations"), config["split"])
        if annotations.metadata.get("corpus") != corpus.fingerprint:
            raise UserError(
                f"{directory}: the corpus {corpus.directory} has changed since; curate it again"
            )
        count = corpus.num_shards
        names = [f"part-{shard:05d}-of-{count:05d}.parquet" for shard in range(count)]
        parts = tuple(workdir / "parquet" / name for name in names)
        if missing := [part for part in parts if not part.exists()]:
            raise UserError(f"{missing[0]}: no such file; curate with --config.parquet=True")
        return cls(corpus, parts, tuple(annotations.metadata["gallery"]))

    def find(self, concept: str, start: int) -> list[int]:
        """Finds images that have a concept.

        Args:
            concept: name in the gallery, in any case; empty: all images.
            start: first position in the corpus to search.

        Returns:
            Positions in the corpus, in order: at most `PAGE_SIZE`, and one more if there are more.

        Raises:
            UserError: the gallery has no such concept.
        """
        wanted = self._number(concept) if concept.strip() else None
        positions, first = [], 0
        for part, length in zip(self.parts, self.corpus.shard_lengths, strict=True):
            if first + length > start and wanted is None:
                positions += range(max(start, first), min(first + length, start + PAGE_SIZE + 1))
            elif first + length > start:
                ids = _read(part, ["concept_ids"])["concept_ids"].combine_chunks()
                has = pc.equal(pc.list_flatten(ids), wanted).to_numpy(zero_copy_only=False)
                found = np.unique(pc.list_parent_indices(ids).to_numpy()[has]) + first
                positions += found[found >= start].tolist()
            if len(positions) > PAGE_SIZE:
                break
            first += length
        return positions[: PAGE_SIZE + 1]

    def page(self, positions: list[int]) -> str:
        """The images at these positions of the corpus, as HTML."""
        anchors = [self._place(position) for position in positions]
        annotations = [self._annotation(place) for place in anchors]
        near = [note["neighbours"][:_NEIGHBOURS] for note in annotations]
        places = self._places_of({key for keys in near for key in keys})
        shown = [[places[key] for key in keys if key in places] for keys in near]
        wanted = (place for anchor, some in zip(anchors, shown, strict=True)
                  for place in (anchor, *some))  # fmt: skip
        examples = read_places(wanted, StopRequest())
        articles = []
        for anchor, some, note in zip(anchors, shown, annotations, strict=True):
            neighbours = [examples[_name(place)] for place in some]
            more = len(note["neighbours"]) - len(some)
            articles.append(article(self.gallery, examples[_name(anchor)], neighbours, more, note))
        style = re.sub(r"body \{[^}]*\}", "", STYLE)
        return f'<style>{style}</style><div class="curation">{"".join(articles)}</div>'

    def _number(self, concept: str) -> int:
        name = " ".join(concept.casefold().split())
        for number, other in enumerate(self.gallery):
            if other.casefold() == name:
                return number
        similar = [other for other in self.gallery if name in other.casefold()][:5]
        hint = f"; similar: {', '.join(similar)}" if similar else ""
        raise UserError(f"The gallery has no concept {name[:60]!r}{hint}")

    def _place(self, position: int) -> Place:
        row = position
        for shard, length in enumerate(self.corpus.shard_lengths):
            if row < length:
                return self.corpus, shard, row
            row -= length
        raise IndexError(position)

    def _annotation(self, place: Place) -> dict:
        _, shard, row = place
        record = _read(self.parts[shard], _COLUMNS).slice(row, 1).to_pylist()[0]
        arrays = {"concepts": record["concept_ids"]} | {n: record[n] for n in _COLUMNS[1:3]}
        return {n: np.array(v) for n, v in arrays.items()} | {"neighbours": record["neighbours"]}

    def _places_of(self, keys: set[str]) -> dict[str, Place]:
        """Places of the keys that are in the corpus; neighbours may come from another corpus."""
        places, wanted = {}, pa.array(sorted(keys), pa.string())
        for shard, part in enumerate(self.parts):
            if len(places) == len(keys):
                break
            own = _read(part, ["key"])["key"]
            for row in np.flatnonzero(pc.is_in(own, wanted).to_numpy()).tolist():
                places[own[row].as_py()] = self.corpus, shard, row
        return places


def _read(part: epath.Path, columns: list[str]) -> pa.Table:
    with part.open("rb") as file:
        return pa.parquet.read_table(file, columns=columns)


def _name(place: Place) -> tuple[str, int, int]:
    corpus, shard, row = place
    return corpus.fingerprint, shard, row
