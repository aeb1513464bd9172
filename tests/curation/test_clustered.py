import jax
import numpy as np
import pytest

from cocu_jax.curation.cells import find_cells, shares, two_nearest_cells
from cocu_jax.curation.clustered import ClusteredSettings, query_blocks, search_cells
from cocu_jax.curation.shard_files import write_arrays
from cocu_jax.curation.sorted_rows import Run, SortedRows, run_arrays

ROWS, WIDTH, CELLS = 1_500, 24, 11
SETTINGS = ClusteredSettings(6, tile_rows=320, chunk_rows=512)


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
def table(embeddings, centroids, tmp_path_factory):
    """The rows by cell, and the two nearest cells of each row."""
    first, second = two_nearest_cells(embeddings, centroids, jax.local_devices()[:3])
    return sorted_rows(tmp_path_factory.mktemp("runs"), embeddings, first), first, second


def blocks_of(embeddings, table):
    """Query blocks of all rows by cell, their row numbers, and their cells."""
    rows, first, second = table
    queries, numbers = rows.cells(0, CELLS)
    members, cells = query_blocks(first[numbers], second[numbers], 128)
    blocks = np.where(members[..., None] >= 0, queries[members], np.float16(0))
    return blocks, np.where(members >= 0, numbers[members], -1), cells


def truth(embeddings, allowed, count):
    """Rows by float32 product, then number, among those that a query may look at."""
    scores = embeddings.astype(np.float32) @ embeddings.astype(np.float32).T
    scores = np.where(allowed & (embeddings != 0).any(1), scores, -np.inf)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :count]
    return np.where(np.isneginf(np.take_along_axis(scores, order, 1)), -1, order), scores


def test_rows_lie_in_the_cell_of_the_nearest_centroid(embeddings, centroids, table):
    assert centroids.shape == (CELLS, WIDTH)
    wide, centres = embeddings.astype(np.float64), centroids.astype(np.float64)
    distances = ((wide[:, None] - centres) ** 2).sum(-1)
    _, first, second = table
    there = (embeddings != 0).any(1)
    two = np.sort(distances[there], axis=1)[:, :2]
    rows = np.arange(ROWS)[there]
    np.testing.assert_allclose(distances[rows, first[there]], two[:, 0], atol=1e-5)
    np.testing.assert_allclose(distances[rows, second[there]], two[:, 1], atol=1e-5)


def test_kmeans_comes_close_to_the_oracle(embeddings, centroids):
    cluster = pytest.importorskip("sklearn.cluster")
    there = embeddings[(embeddings != 0).any(1)].astype(np.float64)
    ours = ((there[:, None] - centroids.astype(np.float64)) ** 2).sum(-1).min(1).sum()
    theirs = cluster.KMeans(CELLS, init="random", n_init=1, random_state=0).fit(there).inertia_
    assert ours < 1.1 * theirs


def test_cells_hold_every_readable_row_once_in_row_order(embeddings, table):
    rows, first, _ = table
    there = np.flatnonzero((embeddings != 0).any(1))
    found, numbers = rows.cells(0, CELLS)
    np.testing.assert_array_equal(numbers, there[np.argsort(first[there], kind="stable")])
    np.testing.assert_array_equal(found, embeddings[numbers])
    some, of_some = rows.cells(3, 6)
    np.testing.assert_array_equal(of_some, numbers[np.isin(first[numbers], [3, 4, 5])])
    np.testing.assert_array_equal(some, embeddings[of_some])
    positions = rows.positions(250, 1_300)  # of three runs
    assert (positions[there[(there >= 250) & (there < 1_300)] - 250] >= 0).all()
    asked = np.flatnonzero(positions >= 0)
    np.testing.assert_array_equal(numbers[positions[asked]], 250 + asked)
    assert not embeddings[250 + np.flatnonzero(positions < 0)].any()


def test_blocks_hold_the_same_rows_with_gaps(embeddings, table):
    rows = table[0]
    total = int(rows.block_starts[-1])
    pieces = [rows.blocks(start, min(start + 7, total), 8) for start in range(0, total, 7)]
    numbers = np.concatenate([numbers.reshape(-1) for _, numbers in pieces])
    found = np.concatenate([part.reshape(-1, WIDTH) for part, _ in pieces])
    np.testing.assert_array_equal(numbers[numbers >= 0], rows.cells(0, CELLS)[1])
    np.testing.assert_array_equal(found[numbers >= 0], embeddings[numbers[numbers >= 0]])
    assert not found[numbers < 0].any()


@pytest.mark.parametrize("devices", [1, 3])
def test_search_is_exact_within_the_probed_cells(embeddings, table, devices):
    """Half of the cells, drawn for every block; equal rows in the order of their numbers."""
    rows, first, _ = table
    queries, numbers, cells = blocks_of(embeddings, table)
    probed = np.random.default_rng(1).random((len(cells), CELLS)) < 0.5
    found = search_cells(queries, np.nonzero(probed), rows, SETTINGS, jax.local_devices()[:devices])
    block = np.zeros(ROWS, int)
    block[numbers[numbers >= 0]] = np.nonzero(numbers >= 0)[0]
    allowed = probed[block[:, None], first[None, :]]
    expected, scores = truth(embeddings, allowed, 6)
    ours = np.full((ROWS, 6), -1)
    ours[numbers[numbers >= 0]] = found[numbers >= 0]
    there = (embeddings != 0).any(1)
    wrong = np.argwhere(there[:, None] & (ours != expected))
    for row, place in wrong:  # only where float32 sums of another order say otherwise
        a, b = ours[row, place], expected[row, place]
        assert a >= 0 and b >= 0 and abs(scores[row, a] - scores[row, b]) < 1e-6
    assert len(wrong) < 20
    twins = np.flatnonzero((embeddings[700:900] == embeddings[5]).all(1))
    assert len(twins) > 3


def test_all_cells_give_the_same_whatever_the_sizes(embeddings, table):
    queries, _, cells = blocks_of(embeddings, table)
    probes = np.nonzero(np.ones((len(cells), CELLS), bool))
    results = [
        search_cells(queries, probes, table[0], ClusteredSettings(6, 320, chunk), devices)
        for chunk, devices in ((64, None), (512, jax.local_devices()[:1]), (10_000, None))
    ]
    for other in results[1:]:
        np.testing.assert_array_equal(results[0], other)


def test_shares_of_a_block_are_the_mean_softmax(embeddings, centroids, table):
    queries, numbers, _ = blocks_of(embeddings, table)
    found = shares(queries, centroids, 0.1, jax.local_devices()[:2])
    wide, centres = queries.astype(np.float64), centroids.astype(np.float64)
    weights = np.exp((wide @ centres.T - (centres**2).sum(1) / 2) / 0.1)
    weights /= weights.sum(-1, keepdims=True)
    expected = [w[n >= 0].mean(0) for w, n in zip(weights, numbers, strict=True)]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-7)
