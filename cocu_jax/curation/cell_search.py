"""The clustered search of a curation run: its files, its shares of work, and how well it finds.

    EMBEDDINGS/<what made them>/cells/<index, number, seed>/centroids.safetensors
    …/cells/<…>/<corpus>/00012-<its shards>.safetensors     rows of some shards, sorted by cell
    WORKDIR/neighbours/probing.safetensors                  which cells are looked in, and a sample
    WORKDIR/neighbours/00003.safetensors                    neighbours of the queries of some cells

Processes own every n-th file of each kind, and the first one those of which there is one.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Sequence

import jax
import numpy as np
from etils import epath
from jaxtyping import Float16, Int

from cocu_jax.curation.cells import (
    SAMPLE_PER_CELL,
    find_cells,
    shares,
    spread,
    two_nearest_cells,
)
from cocu_jax.curation.clustered import ClusteredSettings, query_blocks, search_cells
from cocu_jax.curation.index import Index
from cocu_jax.curation.plan import Plan
from cocu_jax.curation.search import SearchSettings, search
from cocu_jax.curation.shard_files import has_its_size, is_complete, write_arrays
from cocu_jax.curation.sorted_rows import RUN_ROWS, Run, SortedRows, run_arrays
from cocu_jax.curation.waiting import names_in, wait_for
from cocu_jax.input.corpus import Corpus
from cocu_jax.progress import progress_bar
from cocu_jax.stopping import Stopped, StopRequest

_SAMPLED_BLOCKS, _SAMPLED_ROWS = 256, 8  # blocks of queries, and queries of each
_TEMPERATURES = (1 / 64, 1 / 32, 1 / 16, 1 / 8)  # tried, as shares of `cells.spread`
_MARGIN = 0.1  # of the share that may be missed, for what a sample cannot tell


@dataclasses.dataclass(frozen=True)
class Probing:
    """Which cells a block of queries looks in: its own and all with a large share of it.

    Attributes:
        temperature: of the shares, see `cells.shares`.
        threshold: the smallest share.
    """

    temperature: float
    threshold: float

    def pairs(
        self,
        blocks: Float16[np.ndarray, "k q d"],
        own: Int[np.ndarray, "k"],
        centroids: Float16[np.ndarray, "c d"],
    ) -> tuple[np.ndarray, np.ndarray]:
        """(block, cell) of all looks, in ascending order."""
        found = []
        for start in range(0, len(blocks), 1024):
            part = slice(start, start + 1024)
            large = shares(blocks[part], centroids, self.temperature, jax.local_devices())
            large = large >= self.threshold
            large[np.arange(len(large)), own[part]] = True
            block, cell = np.nonzero(large)
            found.append((start + block, cell))
        return tuple(np.concatenate(column) for column in zip(*found, strict=True))


@dataclasses.dataclass(frozen=True)
class CellTable:
    """Centroids, and the rows of the index and of the queries by cell."""

    centroids: Float16[np.ndarray, "c d"]
    index: SortedRows
    queries: SortedRows
    block_rows: int

    def query_blocks(
        self, first: int, last: int
    ) -> tuple[np.ndarray, Int[np.ndarray, "k q"], Int[np.ndarray, "k"]]:
        """Blocks of the queries of some cells: embeddings, places among them, cells."""
        rows, _ = self.queries.cells(first, last)
        _, second = two_nearest_cells(rows, self.centroids, jax.local_devices())
        cells = np.repeat(np.arange(first, last), self.queries.sizes[first:last])
        members, own = query_blocks(cells, second, self.block_rows)
        return np.where(members[..., None] >= 0, rows[members], np.float16(0)), members, own


@dataclasses.dataclass(frozen=True)
class Neighbours:
    """What a clustered search has found, in the files of its units.

    Attributes:
        queries: rows of the corpus by cell.
        files: of the units.
        starts: the first query of each unit, plus the total at the end.
        count: L.
        recall: share of the true neighbours found, measured on a sample.
        open_file: maps a file's arrays.
    """

    queries: SortedRows
    files: list[epath.Path]
    starts: Int[np.ndarray, "u1"]
    count: int
    recall: float
    open_file: Callable[[epath.Path], dict[str, np.ndarray]]

    def of_rows(self, ranges: Sequence[tuple[int, int]]) -> list[Int[np.ndarray, "n l"]]:
        """Index rows found for some ranges of the corpus's rows, -1 for none."""
        places = [self.queries.positions(*bounds) for bounds in ranges]
        found = _found_at(
            self.files, self.starts, np.concatenate(places), self.count, self.open_file
        )
        return np.split(found, np.cumsum([len(part) for part in places])[:-1])


def search_by_cells(plan: Plan, index: Index, stop: StopRequest) -> Neighbours:
    """Finds the neighbours of all images of the corpus, this process's share of them itself.

    Args:
        plan: the run; all embeddings are there.
        index: the index.
        stop: heard several times a second; finished files are kept.
    """
    table = _sorted_table(plan, index, stop)
    probing, sample = _probing(plan, index, table, stop)
    units = _units(table.queries.sizes, plan.config.search_rows)
    files = [plan.workdir / "neighbours" / f"{i:05d}.safetensors" for i in range(len(units))]
    identities = [
        {"made_from": plan.identity, "cells": f"{first}-{last}", "probing": sample["sha256"]}
        for first, last in units
    ]
    own = [i for i in range(len(units)) if plan.share.owns(i)]
    missing = [i for i in own if not is_complete(files[i], identities[i])]
    settings = ClusteredSettings(plan.config.neighbours)
    sizes = [int(table.queries.sizes[first:last].sum()) for first, last in units]
    total, left = (sum(sizes[i] for i in part) for part in (own, missing))
    with progress_bar("Search images", total, "images", done=total - left) as bar:
        for i in missing:
            found = _search_unit(table, units[i], probing, settings, stop)
            write_arrays(files[i], {"neighbours": found}, identities[i])
            bar.update(sizes[i])
    _wait_for_files(dict(zip(files, identities, strict=True)), "Wait for neighbours", stop)
    starts = np.append(table.queries.starts[[first for first, _ in units]], sum(sizes))
    found = _found_at(files, starts, sample["places"], plan.config.neighbours, plan.open_arrays)
    recall = _recall(sample["truth"], found)
    return Neighbours(
        table.queries, files, starts, plan.config.neighbours, recall, plan.open_arrays
    )


def _sorted_table(plan: Plan, index: Index, stop: StopRequest) -> CellTable:
    """Centroids and sorted rows, from their files or made."""
    config = plan.config
    count = config.cells or 2 * math.isqrt(len(index))
    made_from = {
        "index": [corpus.fingerprint for corpus in plan.index],
        "cells": count,
        "seed": config.seed,
        "rows": RUN_ROWS,
    }
    name = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()[:16]
    root = plan.embeddings / "cells" / name
    identity = {**plan.concepts_identity, "cells": name}
    file = root / "centroids.safetensors"
    if plan.share.first and not is_complete(file, identity):
        rng = np.random.default_rng(config.seed)
        size = min(len(index), SAMPLE_PER_CELL * count)
        rows = np.sort(rng.choice(len(index), size, replace=False))
        write_arrays(
            file, {"centroids": find_cells(index.take(rows), count, config.seed)}, identity
        )
    _wait_for_files({file: identity}, "Wait for cells", stop)
    centroids = np.array(plan.open_arrays(file)["centroids"])
    in_index, in_corpus = _runs(plan, root, plan.index), _runs(plan, root, (plan.corpus,))
    sources = {run.file: source for run, source in in_index + in_corpus}
    identities = {file: {**identity, "file": file.name} for file in sources}
    for i, (file, (corpus, shards)) in enumerate(sources.items()):
        if plan.share.owns(i) and not is_complete(file, identities[file]):
            files = [plan.embedding_file(corpus, shard) for shard in shards]
            rows = np.concatenate([plan.open_arrays(path)["embeddings"] for path in files])
            cells, _ = two_nearest_cells(rows, centroids, jax.local_devices())
            write_arrays(file, run_arrays(rows, cells, len(centroids)), identities[file])
            _check_stop(stop)
    _wait_for_files(identities, "Wait for sorted embeddings", stop)
    queries = SortedRows([run for run, _ in in_corpus], plan.open_arrays)
    return CellTable(
        centroids,
        SortedRows([run for run, _ in in_index], plan.open_arrays),
        queries,
        _block_rows(int(queries.sizes.sum()), len(centroids)),
    )


def _runs(
    plan: Plan, root: epath.Path, corpora: Sequence[Corpus]
) -> list[tuple[Run, tuple[Corpus, list[int]]]]:
    """Runs of some corpora, one after the other, with their shards; shards are never split."""
    runs, row = [], 0
    for corpus in corpora:
        group, rows = [], 0
        for shard, length in enumerate(corpus.shard_lengths):
            if group and rows + length > RUN_ROWS:
                runs.append((_run(plan, root, corpus, group, row, rows), (corpus, group)))
                row, group, rows = row + rows, [], 0
            group.append(shard)
            rows += length
        if group:
            runs.append((_run(plan, root, corpus, group, row, rows), (corpus, group)))
            row += rows
    return runs


def _run(
    plan: Plan, root: epath.Path, corpus: Corpus, shards: list[int], row: int, rows: int
) -> Run:
    """A run of shards; named by the embedding files, which parts of a corpus share with it."""
    first = plan.embedding_file(corpus, shards[0])
    names = "".join(plan.embedding_file(corpus, shard).name for shard in shards)
    name = f"{first.stem}-{hashlib.sha256(names.encode()).hexdigest()[:16]}.safetensors"
    return Run(root / first.parent.name / name, row, rows)


def _block_rows(queries: int, cells: int) -> int:
    """Queries per block: about half a cell, a power of two."""
    return 2 ** min(10, max(6, round(math.log2(max(1, queries / cells / 2)))))


def _probing(plan: Plan, index: Index, table: CellTable, stop: StopRequest) -> tuple[Probing, dict]:
    """How many cells are looked in, and a sample that the result is measured with."""
    file = plan.workdir / "neighbours" / "probing.safetensors"
    identity = {"made_from": plan.identity}
    if plan.share.first and not is_complete(file, identity):
        write_arrays(file, _choose_probing(plan, index, table, stop), identity)
    _wait_for_files({file: identity}, "Wait for a sample", stop)
    sample = {name: np.array(array) for name, array in plan.open_arrays(file).items()}
    probing = Probing(float(sample["temperature"][0]), float(sample["threshold"][0]))
    sample["sha256"] = hashlib.sha256(b"".join(a.tobytes() for a in sample.values())).hexdigest()
    return probing, sample


def _choose_probing(
    plan: Plan, index: Index, table: CellTable, stop: StopRequest
) -> dict[str, np.ndarray]:
    """The looks that find `config.cell_recall` of the neighbours of half of a sample.

    The sample is some queries of some blocks, and their true neighbours are found by the exact
    search. Every other block is left out of the choice, for the result to be measured with.
    """
    places, embeddings, block_of, blocks = _sample(plan, table)
    config = plan.config
    if not len(places):  # no image could be read
        empty = np.zeros((0, config.neighbours), np.int32)
        return _probing_arrays(1.0, 0.0, places, empty)

    def on_blocks(_: int) -> None:
        _check_stop(stop)

    settings = SearchSettings(config.neighbours, tile_rows=config.tile_rows)
    (truth,) = search([embeddings], index.embeddings, len(index), settings, on_blocks=on_blocks)
    rows = index.take(np.maximum(truth, 0).reshape(-1))
    cells, _ = two_nearest_cells(rows, table.centroids, jax.local_devices())
    chosen = block_of % 2 == 0
    there = (truth >= 0)[chosen]
    if not there.any():
        return _probing_arrays(1.0, 0.0, places, truth)
    best = (math.inf, 1.0, 0.0)
    for share in _TEMPERATURES:
        temperature = share * spread(embeddings[:256], table.centroids)
        found = shares(blocks, table.centroids, temperature, jax.local_devices())
        needed = found[block_of[:, None], cells.reshape(truth.shape)][chosen][there]
        missed = int((1 - config.cell_recall) * (1 - _MARGIN) * len(needed))
        threshold = float(np.sort(needed)[missed])
        cost = float(((found >= threshold) * table.index.sizes).sum())
        best = min(best, (cost, temperature, threshold))
    return _probing_arrays(*best[1:], places[~chosen], truth[~chosen])


def _sample(plan: Plan, table: CellTable) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Some queries of some blocks: places by cell, embeddings, numbers of blocks; the blocks."""
    total = int(table.queries.starts[-1])
    rng = np.random.default_rng([plan.config.seed, 1])
    drawn = np.sort(rng.choice(total, min(total, _SAMPLED_BLOCKS), replace=False))
    cell_of = np.searchsorted(table.queries.starts, drawn, side="right") - 1
    places, embeddings, numbers, blocks = [], [], [], []
    for cell in np.unique(cell_of):
        start = int(table.queries.starts[cell])
        rows, members, _ = table.query_blocks(cell, cell + 1)
        asked = np.isin(members, drawn[cell_of == cell] - start).any(1)
        for block, of_block in zip(rows[asked], members[asked], strict=True):
            queries = np.flatnonzero(of_block >= 0)
            queries = rng.choice(queries, min(len(queries), _SAMPLED_ROWS), replace=False)
            places.append(start + of_block[queries])
            embeddings.append(block[queries])
            numbers.append(np.full(len(queries), len(blocks)))
            blocks.append(block)
    if not blocks:
        return np.zeros(0, np.int64), np.zeros((0, 1)), np.zeros(0, np.int64), np.zeros((0, 1, 1))
    return (*map(np.concatenate, (places, embeddings, numbers)), np.stack(blocks))


def _probing_arrays(
    temperature: float, threshold: float, places: np.ndarray, truth: np.ndarray
) -> dict[str, np.ndarray]:
    return {
        "temperature": np.float32([temperature]),
        "threshold": np.float32([threshold]),
        "places": places.astype(np.int64),
        "truth": truth,
    }


def _units(sizes: Int[np.ndarray, "c"], most: int) -> list[tuple[int, int]]:
    """Ranges of cells that are searched together: as many as have at most so many queries."""
    units, first, rows = [], 0, 0
    for cell, size in enumerate(sizes.tolist()):
        if cell > first and rows + size > most:
            units.append((first, cell))
            first, rows = cell, 0
        rows += size
    return [*units, (first, len(sizes))]


def _search_unit(
    table: CellTable,
    unit: tuple[int, int],
    probing: Probing,
    settings: ClusteredSettings,
    stop: StopRequest,
) -> Int[np.ndarray, "n l"]:
    """Neighbours of the queries of some cells, in their order by cell."""
    blocks, members, own = table.query_blocks(*unit)
    found = np.full((int(table.queries.sizes[slice(*unit)].sum()), settings.neighbours), -1)
    found = found.astype(np.int32)
    if len(blocks):
        pairs = probing.pairs(blocks, own, table.centroids)
        near = search_cells(
            blocks, pairs, table.index, settings, on_rows=lambda _: _check_stop(stop)
        )
        found[members[members >= 0]] = near[members >= 0]
    return found


def _found_at(
    files: Sequence[epath.Path],
    starts: np.ndarray,
    places: np.ndarray,
    count: int,
    open_file: Callable[[epath.Path], dict[str, np.ndarray]],
) -> Int[np.ndarray, "n l"]:
    """What was found for queries at some places by cell; each file is mapped once."""
    found = np.full((len(places), count), -1, np.int32)
    unit = np.searchsorted(starts, places, side="right") - 1
    order = np.argsort(unit, kind="stable")
    for here in np.split(order, np.flatnonzero(np.diff(unit[order])) + 1):
        if len(here) and unit[here[0]] >= 0:
            neighbours = open_file(files[unit[here[0]]])["neighbours"]
            found[here] = neighbours[places[here] - starts[unit[here[0]]]]
    return found


def _recall(truth: Int[np.ndarray, "n l"], found: Int[np.ndarray, "n l"]) -> float:
    hits = (truth[:, :, None] == found[:, None, :]).any(-1) & (truth >= 0)
    return round(float(hits.sum() / max(1, (truth >= 0).sum())), 5)


def _wait_for_files(files: dict[epath.Path, dict[str, str]], title: str, stop: StopRequest) -> None:
    def look() -> set[epath.Path]:
        listed = {folder: names_in(folder) for folder in {file.parent for file in files}}
        return {file for file in files if file.name in listed[file.parent]}

    def is_there(file: epath.Path) -> bool:
        return has_its_size(file, files[file])

    wait_for(list(files), look, is_there, title, stop)


def _check_stop(stop: StopRequest) -> None:
    if stop.requested:
        raise Stopped(
            "stopped while searching; finished cells are kept, run the same command to go on"
        )
