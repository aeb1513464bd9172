import jax
import numpy as np
import pytest

from cocu_jax.curation.search import SearchSettings, products, search


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)


def truth(queries, index, count):
    """Full sort of the whole product; float64 products of float16 values are exact enough."""
    scores = queries.astype(np.float64) @ index.astype(np.float64).T
    return np.argsort(-scores, axis=1, kind="stable")[:, :count]


def run(queries, index, settings, devices=None):
    return search(
        queries, lambda start, stop: index[start:stop], len(index), settings, devices=devices
    )


@pytest.mark.parametrize("devices", [1, 3, 8])
def test_search_equals_a_full_sort_on_any_number_of_devices(devices):
    rng = np.random.default_rng(0)
    index = unit(rng.normal(size=(2_500, 64)))
    settings = SearchSettings(8, query_rows=256, tile_rows=192)
    (found,) = run([index[:700]], index, settings, jax.local_devices()[:devices])
    np.testing.assert_array_equal(found, truth(index[:700], index, 8))


def test_equal_products_are_found_in_row_order():
    rng = np.random.default_rng(1)
    some = unit(rng.normal(size=(5, 64)))
    index = some[rng.integers(5, size=1_000)]  # every row is one of five: ties everywhere
    (found,) = run([some], index, SearchSettings(12, tile_rows=128))
    rows = [np.flatnonzero((index == query).all(1))[:12] for query in some]
    np.testing.assert_array_equal(found, rows)


def test_more_neighbours_than_rows_leaves_minus_one():
    index = unit(np.random.default_rng(2).normal(size=(5, 16)))
    (found,) = run([index], index, SearchSettings(8))
    np.testing.assert_array_equal(found[:, :5], truth(index, index, 5))
    assert (found[:, 5:] == -1).all()


def test_rows_of_zeros_are_never_found():
    index = unit(np.random.default_rng(3).normal(size=(300, 16)))
    index[::2] = 0
    (found,) = run([-index[1:2]], index, SearchSettings(150))  # the query dislikes what is near it
    assert sorted(found[0]) == list(range(1, 300, 2))


def test_a_part_has_the_same_result_whatever_it_is_searched_with():
    rng = np.random.default_rng(4)
    index, queries = unit(rng.normal(size=(900, 32))), unit(rng.normal(size=(500, 32)))
    parts = [queries[:130], queries[:0], queries[130:131], queries[131:]]
    settings = SearchSettings(4, query_rows=128)
    together = run(parts, index, settings)
    for part, found in zip(parts, together, strict=True):
        np.testing.assert_array_equal(found, run([part], index, settings)[0])
        assert found.shape == (len(part), 4)


def test_progress_adds_up_to_the_announced_number_of_products():
    index = unit(np.random.default_rng(5).normal(size=(1_000, 16)))
    settings, counts = SearchSettings(2, query_rows=128, tile_rows=64), []
    search(
        [index[:300], index[:5]], lambda a, b: index[a:b], 1_000, settings, on_blocks=counts.append
    )
    assert sum(counts) == products([300, 5], 1_000, settings, jax.local_device_count())


@pytest.mark.parametrize("done", [1, 3])
def test_a_search_goes_on_from_any_turn(done):
    rng = np.random.default_rng(8)
    index = unit(rng.normal(size=(1_000, 16)))
    parts = [index[:300], index[:5]]
    settings, states = SearchSettings(6, query_rows=128, tile_rows=64), []
    devices = jax.local_devices()[:3]

    def searched(**options):
        reads = []

        def read(start, stop):
            reads.append(start)
            return index[start:stop]

        return search(parts, read, 1_000, settings, devices, **options), reads

    whole, reads = searched(on_turn=lambda state: states.append(state()))
    resumed, reads_left = searched(state=states[done - 1])
    assert len(states) == 6 and states[done - 1].turn == done
    assert set(reads_left) | set(reads) == set(reads) and len(reads_left) == len(reads) - 3 * done
    for found, expected in zip(resumed, whole, strict=True):
        np.testing.assert_array_equal(found, expected)
        np.testing.assert_array_equal(found, truth(index[: len(found)], index, 6))


def test_approximate_search_bins_columns_as_its_target_asks(monkeypatch):
    """TPUs alone approximate; elsewhere the operator is exact, so the target itself is looked at.

    A target that is lost on the way would give TPUs another recall than the config asks for.
    """
    asked, operator = [], jax.lax.approx_max_k

    def watched(products, count, recall_target):
        asked.append((count, recall_target))
        return operator(products, count, recall_target=recall_target)

    monkeypatch.setattr(jax.lax, "approx_max_k", watched)
    index = unit(np.random.default_rng(6).normal(size=(2_000, 32)))
    for recall in (0.83, 0.97):
        (found,) = run([index], index, SearchSettings(7, recall=recall))
        hits = (truth(index, index, 7)[:, :, None] == found[:, None, :]).any(-1)
        assert hits.mean() == 1  # exact on CPUs
        assert asked and set(asked) == {(7, recall)}
        asked.clear()
    run([index], index, SearchSettings(6, recall=1.0))
    assert not asked
