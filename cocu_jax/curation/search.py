"""Exact nearest neighbours by inner product, streamed over an index of any size.

The index is cut into tiles of equal size and each local device walks its own contiguous run of
tiles, keeping a running top-L per query; the devices' results are merged at the end. Which device
computes a tile changes nothing: tile and query blocks have the same shapes whatever the number of
devices, so the scores have the same bits.

`jax.lax.top_k` over a full row of scores costs as much as the matrix product on CPUs, so the row is
first reduced to the maxima of groups of columns. The L best columns lie within the L groups of
largest maximum, hence only those groups are ranked, and the result is exact.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float16, Int

_GROUP = 64  # columns per group; measured best of 32, 64 and 128 with tiles of 2,500 to 20,000

ReadRows = Callable[[int, int], np.ndarray]


@dataclasses.dataclass(frozen=True)
class SearchSettings:
    """How the product queries x index is cut up, and whether it is ranked exactly.

    Attributes:
        neighbours: L, how many rows of the index each query gets.
        query_rows: queries per product.
        tile_rows: index rows per product; rounded up to a multiple of the group size.
        recall: 1.0 ranks exactly; less uses `jax.lax.approx_max_k` with this recall target, which
            pays on TPUs (other devices compute it exactly).
    """

    neighbours: int = 8
    query_rows: int = 1024
    tile_rows: int = 5120
    recall: float = 1.0


def search(
    queries: Sequence[Float16[np.ndarray, "n d"]],
    read_index: ReadRows,
    index_rows: int,
    settings: SearchSettings,
    devices: list[jax.Device] | None = None,
    on_blocks: Callable[[int], None] = lambda count: None,
) -> list[Int[np.ndarray, "n l"]]:
    """The index rows of largest inner product with each query, best first; ties: lower row first.

    Args:
        queries: unit-norm query embeddings in parts. A product never spans two parts, so the result
            of a part has the same bits whatever it is searched with.
        read_index: `read_index(start, stop)` gives those rows of the index, float16; called once
            per tile, so the index may live in memory-mapped files. Rows of zeros are never found.
        index_rows: number of rows of the index.
        settings: sizes; see `SearchSettings`.
        devices: where to compute; all local devices by default.
        on_blocks: called with the number of products just dispatched; `products` gives the total.

    Returns:
        Row numbers of each part, -1 where the index has fewer than L rows.
    """
    devices = devices or jax.local_devices()
    parts = [_query_blocks(part, settings.query_rows) for part in queries]
    blocks = [block for part in parts for block in part]
    on_device = [[jax.device_put(block, device) for block in blocks] for device in devices]
    best = [
        [jax.device_put(_no_rows(len(block), settings.neighbours), device) for block in blocks]
        for device in devices
    ]
    for device, start, tile in _tiles(read_index, index_rows, settings.tile_rows, len(devices)):
        jax.block_until_ready(best[device])  # at most one tile waits on a device
        tile = jax.device_put(tile, devices[device])
        for b, block in enumerate(on_device[device]):
            best[device][b] = _search_tile(
                best[device][b], block, tile, start, recall=settings.recall
            )
        on_blocks(len(blocks))
    merged = iter([_merge([of_device[b] for of_device in best]) for b in range(len(blocks))])
    return [
        np.concatenate([next(merged) for _ in part])[: len(rows)]
        for part, rows in zip(parts, queries, strict=True)
    ]


def products(lengths: Sequence[int], index_rows: int, settings: SearchSettings) -> int:
    """How many query-block x tile products `search` computes for parts of these lengths."""
    blocks = sum(-(-n // _block_rows(n, settings.query_rows)) for n in lengths)
    return blocks * _tile_count(index_rows, settings.tile_rows)


def _tile_count(index_rows: int, tile_rows: int) -> int:
    """How many tiles an index has: at least eight, so that a host's devices share small ones."""
    return max(1, min(8, -(-index_rows // _GROUP)), -(-index_rows // tile_rows))


def _tiles(
    read_index: ReadRows, index_rows: int, tile_rows: int, devices: int
) -> Iterator[tuple[int, int, np.ndarray]]:
    """(device, first row, padded rows) of every tile, the devices taking turns."""
    count = _tile_count(index_rows, tile_rows)
    rows = -(-index_rows // (count * _GROUP)) * _GROUP
    runs = np.array_split(np.arange(count), devices)
    for turn in range(len(runs[0])):
        for device, run in enumerate(runs):
            if turn < len(run):
                start = int(run[turn]) * rows
                stop = min(start + rows, index_rows)
                if start < stop:
                    yield device, start, _padded(read_index(start, stop), rows)


def _query_blocks(queries: np.ndarray, query_rows: int) -> list[np.ndarray]:
    """The queries in blocks of one size, the last padded."""
    rows = _block_rows(len(queries), query_rows)
    starts = range(0, len(queries), rows)
    return [_padded(queries[start : start + rows], rows) for start in starts]


def _block_rows(queries: int, query_rows: int) -> int:
    """Rows per block: fewer for small parts, in steps that keep compilations few."""
    return min(query_rows, -(-queries // 128) * 128)


def _padded(block: np.ndarray, rows: int) -> np.ndarray:
    return np.pad(block, ((0, rows - len(block)), (0, 0))) if len(block) < rows else block


def _no_rows(queries: int, neighbours: int) -> tuple[np.ndarray, np.ndarray]:
    shape = (queries, neighbours)
    return np.full(shape, -1, np.int32), np.full(shape, -np.inf, np.float32)


@partial(jax.jit, static_argnames="recall", donate_argnums=0)
def _search_tile(
    best: tuple[Int[Array, "q l"], Float[Array, "q l"]],
    queries: Float[Array, "q d"],
    tile: Float[Array, "t d"],
    start: Int[Array, ""],
    recall: float,
) -> tuple[Int[Array, "q l"], Float[Array, "q l"]]:
    """`best` updated with a tile of later rows; float32 products of the float16 values."""
    rows, scores = best
    products = jnp.dot(
        queries.astype(jnp.float32), tile.astype(jnp.float32).T, precision=jax.lax.Precision.HIGHEST
    )
    products = jnp.where((tile != 0).any(1), products, -jnp.inf)
    found_scores, found = _top(products, min(rows.shape[1], tile.shape[0]), recall)
    found_rows = jnp.where(jnp.isneginf(found_scores), -1, start + found)
    scores = jnp.concatenate([scores, found_scores], axis=1)  # earlier rows first: they win ties
    rows = jnp.concatenate([rows, found_rows], axis=1)
    scores, position = jax.lax.top_k(scores, best[0].shape[1])
    return jnp.take_along_axis(rows, position, axis=1), scores


def _top(
    products: Float[Array, "q t"], count: int, recall: float
) -> tuple[Float[Array, "q k"], Int[Array, "q k"]]:
    """`jax.lax.top_k` of each row: values and columns, ties in favour of the lower column."""
    if recall < 1.0:
        return jax.lax.approx_max_k(products, count, recall_target=recall)
    queries, columns = products.shape
    if columns // _GROUP <= count:
        return jax.lax.top_k(products, count)
    grouped = products.reshape(queries, columns // _GROUP, _GROUP)
    _, groups = jax.lax.top_k(grouped.max(-1), count)
    groups = jnp.sort(groups, axis=-1)  # column order, so that ties below keep favouring the lower
    candidates = jnp.take_along_axis(grouped, groups[:, :, None], axis=1).reshape(queries, -1)
    values, position = jax.lax.top_k(candidates, count)
    group = jnp.take_along_axis(groups, position // _GROUP, axis=1)
    return values, group * _GROUP + position % _GROUP


def _merge(parts: list[tuple[Array, Array]]) -> Int[np.ndarray, "q l"]:
    """Joins the devices' results, given in index order, for one block of queries."""
    rows, scores = (np.concatenate([np.asarray(p[i]) for p in parts], axis=1) for i in (0, 1))
    best = np.argsort(-scores, axis=1, kind="stable")[:, : parts[0][0].shape[1]]
    return np.take_along_axis(rows, best, axis=1)
