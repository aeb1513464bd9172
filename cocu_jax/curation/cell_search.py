"""The clustered search of a curation run: its files, its shares of work, and how well it finds.

    EMBEDDINGS/<what made them>/cells/<index, number, seed>/centroids.safetensors
    …/cells/<…>/<corpus>/00012-<its shards>.safetensors     rows of some shards, sorted by cell
    WORKDIR/neighbours/sample.safetensors                   how far queries look, and a sample
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
    cells_within,
    find_cells,
    gaps_to_cells,
    nearest_cell,
)
from cocu_jax.curation.clustered import ClusteredSettings, search_cells
from cocu_jax.curation.plan import Plan
from cocu_jax.curation.search import SearchState, search, settings_for
from cocu_jax.curation.sorted_rows import Run, SortedRows, run_arrays, run_rows
from cocu_jax.curation.storage.index import Index
from cocu_jax.curation.storage.saved_search import SavedSearch
from cocu_jax.curation.storage.shard_files import has_its_size, is_complete, write_arrays
from cocu_jax.curation.storage.waiting import names_in, wait_for
from cocu_jax.input.corpus import Corpus
from cocu_jax.progress import progress_bar
from cocu_jax.stopping import Stopped, StopRequest

SAMPLE = 2048  # queries; half choose how far is looked, half measure what is found
_MARGIN = 0.1  # of the share that may be missed, for what a sample cannot tell
_QUERIES, _TILES = (64, 1024), (128, 2048)  # bounds on queries and on index rows per product


@dataclasses.dataclass(frozen=True)
class CellTable:
    """Centroids, and the rows of the index and of the queries by cell."""

    centroids: Float16[np.ndarray, "c d"]
    index: SortedRows
    queries: SortedRows


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
        rows = [np.arange(*bounds) for bounds in ranges]
        found = self.of(np.concatenate(rows))
        return np.split(found, np.cumsum([len(part) for part in rows])[:-1])

    def of(self, rows: Int[np.ndarray, "n"]) -> Int[np.ndarray, "n l"]:
        """Index rows found for rows of the corpus, -1 for none. Maps each file once."""
        places = self.queries.positions(rows)
        found = np.full((len(rows), self.count), -1, np.int32)
        unit = np.searchsorted(self.starts, places, side="right") - 1
        order = np.argsort(unit, kind="stable")
        for here in np.split(order, np.flatnonzero(np.diff(unit[order])) + 1):
            if len(here) and unit[here[0]] >= 0:
                neighbours = self.open_file(self.files[unit[here[0]]])["neighbours"]
                found[here] = neighbours[places[here] - self.starts[unit[here[0]]]]
        return found


def search_by_cells(plan: Plan, index: Index, stop: StopRequest) -> Neighbours:
    """Finds the neighbours of all images of the corpus, this process's share of them itself.

    Args:
        plan: the run; all embeddings are there.
        index: the index.
        stop: heard every few seconds; finished files and what is found for the next are kept.
    """
    table = _sorted_table(plan, index, stop)
    gap, sample = _gap_and_sample(plan, index, table, stop)
    units = _units(table.queries.sizes, plan.config.search_rows)
    files = [plan.workdir / "neighbours" / f"{i:05d}.safetensors" for i in range(len(units))]
    identities = [
        {"made_from": plan.identity, "cells": f"{first}-{last}", "sample": sample["sha256"]}
        for first, last in units
    ]
    own = [i for i in range(len(units)) if plan.share.owns(i)]
    missing = [i for i in own if not is_complete(files[i], identities[i])]
    settings = _settings(plan, table)
    sizes = [int(table.queries.sizes[first:last].sum()) for first, last in units]
    total, left = (sum(sizes[i] for i in part) for part in (own, missing))
    with progress_bar("Search images", total, "images", done=total - left) as bar:
        for i in missing:
            saved = SavedSearch(plan, f"cells-{i:05d}", {**identities[i], "sizes": str(settings)})
            on_turn = _turn_of_unit(saved, sizes[i], bar.update, stop)
            found = _search_unit(table, units[i], gap, settings, on_turn, saved.state())
            write_arrays(files[i], {"neighbours": found}, identities[i])
            saved.remove()
    _wait_for_files(dict(zip(files, identities, strict=True)), "Wait for neighbours", stop)
    starts = np.append(table.queries.starts[[first for first, _ in units]], sum(sizes))
    open_file, count = plan.open_arrays, plan.config.neighbours
    found = Neighbours(table.queries, files, starts, count, 0.0, open_file)
    return dataclasses.replace(found, recall=_recall(sample["truth"], found.of(sample["rows"])))


def _sorted_table(plan: Plan, index: Index, stop: StopRequest) -> CellTable:
    """Centroids and sorted rows, from their files or made."""
    config = plan.config
    count = config.cells or 2 * math.isqrt(len(index))
    made_from = {
        "index": [corpus.fingerprint for corpus in plan.index],
        "cells": count,
        "seed": config.seed,
        "rows": run_rows(len(index)),
    }
    name = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()[:16]
    root = plan.embeddings / "cells" / name
    identity = {**plan.concepts_identity, "cells": name}
    file = root / "centroids.safetensors"
    if plan.share.first and not is_complete(file, identity):
        rng = np.random.default_rng(config.seed)
        size = min(len(index), SAMPLE_PER_CELL * count)
        rows = np.sort(rng.choice(len(index), size, replace=False))
        sample = index.take(rows)
        centroids = find_cells(sample, count, config.seed, lambda: _check_stop(stop))
        write_arrays(file, {"centroids": centroids}, identity)
    _wait_for_files({file: identity}, "Wait for cells", stop)
    centroids = np.array(plan.open_arrays(file)["centroids"])
    in_index, in_corpus = (
        _runs(plan, root, corpora, made_from["rows"]) for corpora in (plan.index, (plan.corpus,))
    )
    sources = {run.file: source for run, source in in_index + in_corpus}
    identities = {file: {**identity, "file": file.name} for file in sources}
    for i, (file, (corpus, shards)) in enumerate(sources.items()):
        if plan.share.owns(i) and not is_complete(file, identities[file]):
            files = [plan.embedding_file(corpus, shard) for shard in shards]
            rows = np.concatenate([plan.open_arrays(path)["embeddings"] for path in files])
            cells = nearest_cell(rows, centroids, jax.local_devices())
            write_arrays(file, run_arrays(rows, cells, len(centroids)), identities[file])
            _check_stop(stop)
    _wait_for_files(identities, "Wait for sorted embeddings", stop)
    tables = (
        SortedRows([run for run, _ in runs], plan.open_arrays) for runs in (in_index, in_corpus)
    )
    return CellTable(centroids, *tables)


def _runs(
    plan: Plan, root: epath.Path, corpora: Sequence[Corpus], most: int
) -> list[tuple[Run, tuple[Corpus, list[int]]]]:
    """Runs of some corpora, one after the other, with their shards; shards are never split."""
    runs, row = [], 0
    for corpus in corpora:
        group, rows = [], 0
        for shard, length in enumerate(corpus.shard_lengths):
            if group and rows + length > most:
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


def _settings(plan: Plan, table: CellTable) -> ClusteredSettings:
    """Products of about half the cell that a row lies in, whatever the unit they belong to."""
    sizes = table.index.sizes
    half = max(1.0, float((sizes**2).sum() / max(1, sizes.sum()) / 2))
    power = 2 ** round(math.log2(half))
    queries, tile = (int(np.clip(power, *bounds)) for bounds in (_QUERIES, _TILES))
    return ClusteredSettings(plan.config.neighbours, queries, tile, run_rows(int(sizes.sum())))


def _gap_and_sample(
    plan: Plan, index: Index, table: CellTable, stop: StopRequest
) -> tuple[float, dict]:
    """How far queries look, and a sample that the result is measured with.

    A query looks in the cells whose affinity is below the largest by no more than that.
    """
    file = plan.workdir / "neighbours" / "sample.safetensors"
    identity = {"made_from": plan.identity}
    if plan.share.first and not is_complete(file, identity):
        write_arrays(file, _chosen_gap(plan, index, table, stop), identity)
    _wait_for_files({file: identity}, "Wait for a sample", stop)
    sample = {name: np.array(array) for name, array in plan.open_arrays(file).items()}
    sample["sha256"] = hashlib.sha256(b"".join(a.tobytes() for a in sample.values())).hexdigest()
    return float(sample["gap"][0]), sample


def _chosen_gap(
    plan: Plan, index: Index, table: CellTable, stop: StopRequest
) -> dict[str, np.ndarray]:
    """The looks that find `config.cell_recall` of the neighbours of half of a sample of queries.

    Their true neighbours are found by the exact search. The other half is left out of the choice,
    for the result to be measured with.
    """
    rows, queries = _sample(plan)
    config, devices = plan.config, jax.local_devices()
    if not len(rows):  # no image could be read
        return _sample_arrays(0.0, rows, np.zeros((0, config.neighbours), np.int32))
    settings = settings_for(config.neighbours, config.tile_rows)
    saved = SavedSearch(plan, "sample", {"sizes": str(settings)})
    (truth,) = search(
        [queries], index.embeddings, len(index), settings,
        on_turn=lambda state: saved.offer_or_stop(state, stop), state=saved.state(),
    )  # fmt: skip
    saved.remove()
    there = truth >= 0
    cells = np.zeros(truth.shape, np.int64)
    cells[there] = nearest_cell(index.take(truth[there]), table.centroids, devices)
    gaps = gaps_to_cells(queries, table.centroids, devices)
    chosen = np.arange(len(rows)) % 2 == 0
    needed = np.sort(np.take_along_axis(gaps, cells, 1)[chosen][there[chosen]])
    missed = int((1 - config.cell_recall) * (1 - _MARGIN) * len(needed))
    gap = float(needed[len(needed) - 1 - missed]) if len(needed) else 0.0
    return _sample_arrays(gap, rows[~chosen], truth[~chosen])


def _sample(plan: Plan) -> tuple[Int[np.ndarray, "n"], Float16[np.ndarray, "n d"]]:
    """Some readable rows of the corpus, and their embeddings."""
    lengths = plan.corpus.shard_lengths
    files = [plan.embedding_file(plan.corpus, shard) for shard in range(len(lengths))]
    corpus = Index(files, lengths, plan.open_arrays)
    rng = np.random.default_rng([plan.config.seed, 1])
    rows = np.sort(rng.choice(len(corpus), min(len(corpus), SAMPLE), replace=False))
    embeddings = corpus.take(rows)
    readable = (embeddings != 0).any(1)
    return rows[readable], embeddings[readable]


def _sample_arrays(gap: float, rows: np.ndarray, truth: np.ndarray) -> dict[str, np.ndarray]:
    return {"gap": np.float32([gap]), "rows": rows.astype(np.int64), "truth": truth}


def _units(sizes: Int[np.ndarray, "c"], most: int) -> list[tuple[int, int]]:
    """Ranges of cells that are searched together: as many as have at most so many queries."""
    units, first, rows = [], 0, 0
    for cell, size in enumerate(sizes.tolist()):
        if cell > first and rows + size > most:
            units.append((first, cell))
            first, rows = cell, 0
        rows += size
    return [*units, (first, len(sizes))]


def _turn_of_unit(
    saved: SavedSearch, queries: int, on_images: Callable[[int], None], stop: StopRequest
) -> Callable[[float, Callable[[], SearchState]], None]:
    """Shows what a turn has done, saves it from time to time, and stops on request."""
    shown = 0

    def on_turn(share: float, state: Callable[[], SearchState]) -> None:
        nonlocal shown
        on_images(int(share * queries) - shown)
        shown = int(share * queries)
        saved.offer_or_stop(state, stop)

    return on_turn


def _search_unit(
    table: CellTable,
    unit: tuple[int, int],
    gap: float,
    settings: ClusteredSettings,
    on_turn: Callable[[float, Callable[[], SearchState]], None],
    state: SearchState | None,
) -> Int[np.ndarray, "n l"]:
    """Neighbours of the queries of some cells, in their order by cell."""
    queries, _ = table.queries.cells(*unit)
    if not len(queries):
        return np.zeros((0, settings.neighbours), np.int32)
    looks = cells_within(queries, table.centroids, gap, jax.local_devices())
    return search_cells(queries, looks, table.index, settings, on_turn=on_turn, state=state)


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
            "stopped while searching; finished cells are kept, run the same command to continue"
        )
