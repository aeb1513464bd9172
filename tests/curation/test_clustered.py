import jax
import numpy as np
import pytest

from cocu_jax.curation import clustered
from cocu_jax.curation.cells import cells_within, find_cells, gaps_to_cells, nearest_cell
from cocu_jax.curation.clustered import ClusteredSettings, search_cells
from cocu_jax.curation.sorted_rows import BLOCK_ROWS, Run, SortedRows, run_arrays
from cocu_jax.curation.storage.shard_files import write_arrays

ROWS, WIDTH, CELLS = 1_500, 24, 11
SETTINGS = ClusteredSettings(6, query_rows=128, tile_rows=128, chunk_rows=512)


@pytest.fixture(scope="module")
def embeddings():
    """Rows around a few centres, some twice or more, some unreadable."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(9, WIDTH))[rng.integers(9, size=ROWS)] + rng.normal(size=(ROWS, WIDTH))
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)
    rows[700:900] = rows[rng.integers(20, size=200)]
    rows[::50] = 0
    return rows


@pytest.fixture(scope="module")
def centroids(embeddings):
    return find_cells(embeddings[::2], CELLS, seed=0)


def sorted_rows(folder, embeddings, cells, bounds=(0, 400, 1_100, ROWS)):
    runs = []
    for i, (start, stop) in enumerate(zip(bounds, bounds[1:], strict=False)):
        runs.append(Run(folder / f"{i}.safetensors", start, stop - start))
        write_arrays(
            runs[-1].file, run_arrays(embeddings[start:stop], cells[start:stop], CELLS), {}
        )
    return SortedRows(runs)


@pytest.fixture(scope="module")
def nearest(embeddings, centroids):
    """The cell of each row."""
    return nearest_cell(embeddings, centroids, jax.local_devices()[:3])


@pytest.fixture(scope="module")
def table(embeddings, nearest, tmp_path_factory):
    """The rows by cell."""
    return sorted_rows(tmp_path_factory.mktemp("runs"), embeddings, nearest)


def truth(embeddings, allowed, count):
    """Rows by float32 product, then number, among those that a query may look at."""
    scores = embeddings.astype(np.float32) @ embeddings.astype(np.float32).T
    scores = np.where(allowed & (embeddings != 0).any(1), scores, -np.inf)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :count]
    return np.where(np.isneginf(np.take_along_axis(scores, order, 1)), -1, order), scores


def test_cells_are_those_of_near_centroids(embeddings, centroids, nearest):
    assert centroids.shape == (CELLS, WIDTH)
    wide, centres = embeddings.astype(np.float64), centroids.astype(np.float64)
    distances = ((wide[:, None] - centres) ** 2).sum(-1)
    least = distances.min(1, keepdims=True)
    np.testing.assert_allclose(distances[np.arange(ROWS), nearest], least[:, 0], atol=1e-5)
    expected = (distances - least) / 2
    found = gaps_to_cells(embeddings, centroids, jax.local_devices()[:2])
    np.testing.assert_allclose(found, expected, atol=1e-5)
    for gap in (0.0, 0.05, 9.0):
        near = np.zeros((ROWS, CELLS), bool)
        near[cells_within(embeddings, centroids, gap, jax.local_devices()[:2])] = True
        sure = np.abs(expected - gap) > 1e-5
        np.testing.assert_array_equal(near[sure], (expected <= gap)[sure])
        assert near[np.arange(ROWS), nearest].all()


def test_kmeans_comes_close_to_the_oracle(embeddings, centroids):
    cluster = pytest.importorskip("sklearn.cluster")
    there = embeddings[(embeddings != 0).any(1)].astype(np.float64)
    ours = ((there[:, None] - centroids.astype(np.float64)) ** 2).sum(-1).min(1).sum()
    theirs = cluster.KMeans(CELLS, init="random", n_init=1, random_state=0).fit(there).inertia_
    assert ours < 1.1 * theirs


def test_cells_hold_every_readable_row_once_in_row_order(embeddings, nearest, table):
    first = nearest
    there = np.flatnonzero((embeddings != 0).any(1))
    found, numbers = table.cells(0, CELLS)
    np.testing.assert_array_equal(numbers, there[np.argsort(first[there], kind="stable")])
    np.testing.assert_array_equal(found, embeddings[numbers])
    some, of_some = table.cells(3, 6)
    np.testing.assert_array_equal(of_some, numbers[np.isin(first[numbers], [3, 4, 5])])
    np.testing.assert_array_equal(some, embeddings[of_some])
    rows = np.random.default_rng(3).permutation(np.arange(250, 1_300))  # of three runs
    positions = table.positions(rows)
    readable = (embeddings[rows] != 0).any(1)
    np.testing.assert_array_equal(positions >= 0, readable)
    np.testing.assert_array_equal(numbers[positions[readable]], rows[readable])


def test_blocks_hold_the_same_rows_with_gaps(embeddings, nearest, table):
    some = np.array([0, 1, 4, 5, 6, 9])
    total = sum(-(-size // BLOCK_ROWS) for size in table.sizes[some])
    pieces = [
        table.blocks(some, start, min(7, total - start), room=8) for start in range(0, total, 7)
    ]
    numbers = np.concatenate([numbers for _, numbers in pieces])
    found = np.concatenate([part for part, _ in pieces])
    _, all_numbers = table.cells(0, CELLS)
    expected = all_numbers[np.isin(nearest[all_numbers], some)]
    np.testing.assert_array_equal(numbers[numbers >= 0], expected)
    np.testing.assert_array_equal(found[numbers >= 0], embeddings[expected])
    assert not found[numbers < 0].any()
    assert {len(part) for part, _ in pieces} == {8 * BLOCK_ROWS}


@pytest.mark.parametrize("devices", [1, 3])
def test_search_is_exact_within_the_cells_of_each_query(embeddings, nearest, table, devices):
    """Half of the cells, drawn for every query; equal rows in the order of their numbers."""
    queries, numbers = table.cells(0, CELLS)
    looked = np.random.default_rng(1).random((len(queries), CELLS)) < 0.5
    looked[:, 7] = False
    looks = tuple(part[::-1] for part in np.nonzero(looked))  # in any order
    found = search_cells(queries, looks, table, SETTINGS, jax.local_devices()[:devices])
    allowed = np.zeros((ROWS, ROWS), bool)
    allowed[numbers] = looked[:, nearest]
    expected, scores = truth(embeddings, allowed, 6)
    wrong = np.argwhere(found != expected[numbers])
    for query, place in wrong:  # only where float32 sums of another order say otherwise
        a, b = found[query, place], expected[numbers[query], place]
        assert a >= 0 and b >= 0
        assert abs(scores[numbers[query], a] - scores[numbers[query], b]) < 1e-6
    assert len(wrong) < 20
    twins = np.flatnonzero((embeddings[700:900] == embeddings[5]).all(1))
    assert len(twins) > 3


def searched(table, chunk, devices, **options):
    queries, _ = table.cells(0, CELLS)
    looks = np.nonzero(np.ones((len(queries), CELLS), bool))
    settings = ClusteredSettings(6, 128, 128, chunk)
    return search_cells(queries, looks, table, settings, devices, **options)


def test_all_cells_give_the_same_whatever_the_sizes(table):
    results = [
        searched(table, chunk, devices)
        for chunk, devices in ((64, None), (512, jax.local_devices()[:1]), (10_000, None))
    ]
    for other in results[1:]:
        np.testing.assert_array_equal(results[0], other)


def test_a_search_goes_on_from_any_turn(table, monkeypatch):
    monkeypatch.setattr(clustered, "_TASKS", 5)
    states, shares, devices = [], [], jax.local_devices()[:2]

    def keep(share, state):
        shares.append(share)
        states.append(state())

    whole = searched(table, 400, devices, on_turn=keep)
    assert shares == sorted(shares) and shares[-1] == pytest.approx(1) and len(set(shares)) > 9
    assert [state.turn for state in states] == list(range(1, len(states) + 1))
    for state in (states[0], states[len(states) // 2], states[-1]):
        turns = []
        resumed = searched(
            table, 400, devices, state=state, on_turn=lambda _, s, t=turns: t.append(s().turn)
        )
        assert turns == list(range(state.turn + 1, len(states) + 1))
        np.testing.assert_array_equal(resumed, whole)
