"""The curation job: embed, search, rank, cluster, write; shard by shard, resumable at any moment.

Files of a run, each complete as soon as it has its name:

    EMBEDDINGS/<what made them>/concepts.safetensors     text embeddings of the gallery
    EMBEDDINGS/<what made them>/<corpus>/00007.safetensors
    WORKDIR/neighbours/                                  of a clustered search, see `cell_search`
    WORKDIR/annotations/...tfrecord-00007-of-00064       ranked concepts
    WORKDIR/parquet/part-00007-of-00064.parquet          the same for everyone else
    WORKDIR/reports/00007.json                           checksums and counts: the shard is finished
    WORKDIR/reports/tally-00000.json                     sums of the reports of 256 shards
    WORKDIR/searches/00003.safetensors                   a search part of the way through
    WORKDIR/annotations/dataset_info.json, ...           makes the shards a TFDS dataset
    WORKDIR/summary.json, summary.txt, examples.html

Processes own shards and meet only through finished files, so one that dies and comes back simply
goes on, and the others wait for it.
"""

import dataclasses
from collections.abc import Callable, Iterator

import jax
import ml_collections
import numpy as np
from etils import epath

from cocu_jax.curation.annotate import Annotator
from cocu_jax.curation.cell_search import search_by_cells
from cocu_jax.curation.embed import EmbeddedShard, Encoder, embed_concepts, embed_shards
from cocu_jax.curation.plan import Plan, make_plan
from cocu_jax.curation.ragged import starts_of
from cocu_jax.curation.rank import substring_relation
from cocu_jax.curation.report.finish import finish
from cocu_jax.curation.search import products, search, settings_for
from cocu_jax.curation.storage.given import GivenEmbeddings
from cocu_jax.curation.storage.index import Index, shard_arrays, usable
from cocu_jax.curation.storage.saved_search import SavedSearch
from cocu_jax.curation.storage.shard_files import has_its_size, is_complete, write_arrays
from cocu_jax.curation.storage.shard_output import finished_report, write_shard
from cocu_jax.curation.storage.waiting import leave_together, names_in, wait_for
from cocu_jax.errors import UserError
from cocu_jax.input.corpus import Corpus
from cocu_jax.progress import progress_bar
from cocu_jax.stopping import Stopped, StopRequest

_RECALL_QUERIES = 1024  # that an approximate search is measured with


def curate(config: ml_collections.ConfigDict, workdir: str) -> dict | None:
    """Annotates every image of a corpus with ranked, clustered concepts.

    Args:
        config: see `configs/curate.py`.
        workdir: of this run; annotations are in its `annotations`.

    Returns:
        The summary (see `summary.summarise`) in the process that finishes the run; None in others.

    Raises:
        UserError: bad config or data, no space.
        Stopped: SIGTERM or Ctrl-C; what was finished is kept.
    """
    with StopRequest() as stop:
        plan = make_plan(config, workdir)
        concepts = _embed(plan, stop)
        _annotate(plan, concepts, stop)
        summary = finish(plan, stop) if plan.share.first else None
        leave_together(stop)
        return summary


def _embed(plan: Plan, stop: StopRequest) -> np.ndarray:
    """Embeds this process's shards, waits for the others'; returns the concepts' embeddings."""
    encoder = Encoder(plan.clip, plan.processing, plan.config.batch_size)
    if plan.share.first and not is_complete(plan.concepts_file, plan.concepts_identity):
        concepts = embed_concepts(encoder, plan.tokenize, plan.gallery, plan.config.prompt)
        if not usable(concepts).all():
            raise UserError(f"{plan.config.clip}: embeds concepts as numbers that are not finite")
        write_arrays(plan.concepts_file, {"embeddings": concepts}, plan.concepts_identity)

    def see_concepts() -> set[epath.Path]:
        return {plan.concepts_file} if plan.concepts_file.exists() else set()

    def has_concepts(path: epath.Path) -> bool:
        return is_complete(path, plan.concepts_identity)

    wait_for([plan.concepts_file], see_concepts, has_concepts, "Wait for concepts", stop)
    concepts = np.array(plan.open_arrays(plan.concepts_file)["embeddings"])
    if plan.given:
        plan.given.check_width(concepts.shape[1], plan.config.clip)
    relation = substring_relation(plan.gallery) if plan.config.match == "substring" else None
    own = list(plan.embedding_shards(own=True))
    missing = _not_embedded(plan, own, stop)
    images, left = (sum(c.shard_lengths[s] for c, s in part) for part in (own, missing))
    with progress_bar("Embed images", images, "images", done=images - left) as bar:
        for corpus in plan.corpora():
            shards = [s for c, s in missing if c is corpus]
            if plan.given:
                source = _given_shards(plan.given, corpus, shards, bar.update)
            else:
                source = embed_shards(encoder, corpus, shards, plan.processing, bar.update)
            for shard, embedded in source if shards else ():
                arrays = shard_arrays(embedded, concepts, relation)
                identity = plan.embedding_identity(corpus, shard)
                write_arrays(plan.embedding_file(corpus, shard), arrays, identity)
                _check_stop(stop, "embedding")
    _wait_for_embeddings(plan, stop)
    return concepts


def _given_shards(
    given: GivenEmbeddings, corpus: Corpus, shards: list[int], on_images: Callable[[int], None]
) -> Iterator[tuple[int, EmbeddedShard]]:
    for shard in shards:
        yield shard, given.of_shard(corpus, shard)
        on_images(corpus.shard_lengths[shard])


def _not_embedded(
    plan: Plan, shards: list[tuple[Corpus, int]], stop: StopRequest
) -> list[tuple[Corpus, int]]:
    """Which of this process's shards have no undamaged embeddings."""
    missing = []
    for shard in shards:
        _check_stop(stop, "verifying embeddings")
        if not is_complete(plan.embedding_file(*shard), plan.embedding_identity(*shard)):
            missing.append(shard)
    return missing


def _wait_for_embeddings(plan: Plan, stop: StopRequest) -> None:
    """Returns when the other processes have embedded their shards."""
    others = {(c.fingerprint, shard): c for c, shard in plan.embedding_shards(own=False)}
    folders = {c.fingerprint: plan.embedding_file(c, 0).parent for c in plan.corpora()}

    def look() -> set[tuple[str, int]]:
        listed = {name: names_in(folder) for name, folder in folders.items()}
        return {
            (name, shard)
            for (name, shard), corpus in others.items()
            if plan.embedding_file(corpus, shard).name in listed[name]
        }

    def is_there(place: tuple[str, int]) -> bool:
        shard = others[place], place[1]
        return has_its_size(plan.embedding_file(*shard), plan.embedding_identity(*shard))

    wait_for(list(others), look, is_there, "Wait for embeddings", stop)


def _annotate(plan: Plan, concepts: np.ndarray, stop: StopRequest) -> None:
    """Searches, ranks and writes this process's unfinished shards, in groups of many queries."""
    config, corpus = plan.config, plan.corpus
    files = [(other, shard) for other in plan.index for shard in range(other.num_shards)]
    index = Index(
        [plan.embedding_file(*file) for file in files],
        [other.shard_lengths[shard] for other, shard in files],
        plan.open_arrays,
    )
    annotator = Annotator(concepts, config.capacity, config.clusters, config.seed)
    starts = starts_of(corpus.shard_lengths)
    clustered = search_by_cells(plan, index, stop) if config.search == "clustered" else None
    groups = list(_groups(plan, stop))
    for number, group in enumerate(groups, start=1):
        title = f"group {number}/{len(groups)}" if len(groups) > 1 else "images"
        embedded = [plan.open_arrays(plan.embedding_file(corpus, shard)) for shard in group]
        queries = [arrays["embeddings"] for arrays in embedded]
        shards = {"shards": ",".join(map(str, group)), "tile_rows": str(config.tile_rows)}
        saved = SavedSearch(plan, f"{group[0]:05d}", shards)
        if clustered:
            found = clustered.of_rows([(int(starts[s]), int(starts[s + 1])) for s in group])
            recall = clustered.recall
        else:
            found, recall = _search(plan, index, queries, title, saved, stop)
        for arrays, rows in zip(embedded, found, strict=True):
            rows[~arrays["readable"]] = -1
        entries = index.entries(np.concatenate(found).reshape(-1))
        ends = starts_of([rows.size for rows in found])
        images = sum(map(len, queries))
        with progress_bar(f"Annotate {title}", images, "images") as bar:
            for i, (shard, arrays, rows) in enumerate(zip(group, embedded, found, strict=True)):
                _check_stop(stop, "annotating")
                near = entries.between(ends[i], ends[i + 1])
                annotations = annotator.annotate(
                    near, config.neighbours, arrays["embeddings"], int(starts[shard])
                )
                write_shard(plan, shard, arrays, annotations, rows, near, recall)
                bar.update(len(rows))
        saved.remove()


def _search(
    plan: Plan,
    index: Index,
    queries: list[np.ndarray],
    title: str,
    saved: SavedSearch,
    stop: StopRequest,
) -> tuple[list[np.ndarray], float | None]:
    """Neighbours of a group of shards, and the recall measured if the search is approximate."""
    config = plan.config
    settings = settings_for(config.neighbours, config.tile_rows, config.recall)
    lengths = [len(part) for part in queries]
    total = products(lengths, len(index), settings, jax.local_device_count())
    with progress_bar(f"Search {title}", total, "blocks") as bar:
        found = search(
            queries,
            index.embeddings,
            len(index),
            settings,
            on_blocks=bar.update,
            on_turn=lambda state: saved.offer_or_stop(state, stop),
            state=saved.state(),
        )
    largest = int(np.argmax(lengths))
    sample = queries[largest][:_RECALL_QUERIES]
    if config.recall == 1 or not len(sample):
        return found, None
    exact = dataclasses.replace(settings, recall=1.0)
    (truth,) = search([sample], index.embeddings, len(index), exact)
    hits = (truth[:, :, None] == found[largest][: len(sample), None, :]).any(-1)
    return found, float(hits.mean())


def _groups(plan: Plan, stop: StopRequest) -> Iterator[list[int]]:
    """This process's unfinished shards, as many at a time as are searched together."""
    own = filter(plan.share.owns, range(plan.corpus.num_shards))
    group, rows = [], 0
    for shard in own:
        _check_stop(stop, "verifying annotations")
        if finished_report(plan, shard, verify=True):
            continue
        length = plan.corpus.shard_lengths[shard]
        if group and rows + length > plan.config.search_rows:
            yield group
            group, rows = [], 0
        group.append(shard)
        rows += length
    if group:
        yield group


def _check_stop(stop: StopRequest, doing: str) -> None:
    if stop.requested:
        raise Stopped(
            f"stopped while {doing}; what is finished is kept, run the same command to continue"
        )
