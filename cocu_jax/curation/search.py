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
import functools
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Float16, Int

from cocu_jax.curation.products import inner_products

_GROUP = 64  # columns per group; measured best of 32, 64 and 128 with tiles of 2,500 to 20,000

# Queries and index rows of a product: on CPUs products that stay in the cache, elsewhere products
# that keep the device busy. On an H100 the large ones are 3.7 times as fast as those for CPUs.
_PRODUCT_ROWS = {"cpu": (1024, 5120)}
_LARGE_PRODUCT = (8192, 65_536)

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


def settings_for(
    neighbours: int, tile_rows: int = 0, recall: float = 1.0, platform: str = ""
) -> SearchSettings:
    """Settings with products of a size that suits the devices.

    Args:
        neighbours: see `SearchSettings`.
        tile_rows: see `SearchSettings`; 0: chosen by platform.
        recall: see `SearchSettings`.
        platform: JAX's name of it; that of the default devices if empty.
    """
    query_rows, rows = _PRODUCT_ROWS.get(platform or jax.default_backend(), _LARGE_PRODUCT)
    return SearchSettings(neighbours, query_rows, tile_rows or rows, recall)


@dataclasses.dataclass(frozen=True)
class SearchState:
    """An exact search part of the way through: what was found in the first `turn` turns.

    Attributes:
        turn: how many turns are done, in each of which every device searches a tile.
        rows: what each device has found for each query of each block so far.
        scores: their products.
    """

    turn: int
    rows: Int[np.ndarray, "devices q l"]
    scores: Float[np.ndarray, "devices q l"]


def search(
    queries: Sequence[Float16[np.ndarray, "n d"]],
    read_index: ReadRows,
    index_rows: int,
    settings: SearchSettings,
    devices: Sequence[jax.Device] | None = None,
    on_blocks: Callable[[int], None] = lambda count: None,
    on_turn: Callable[[Callable[[], SearchState]], None] = lambda state: None,
    state: SearchState | None = None,
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
        on_turn: called after each turn with a function that waits for it and gives the state.
        state: where to go on, of a search with the same arguments on as many devices.

    Returns:
        Row numbers of each part, -1 where the index has fewer than L rows.
    """
    devices = tuple(devices or jax.local_devices())
    search_tiles = _on_devices(devices, settings.recall)
    parts = [_query_blocks(part, settings.query_rows) for part in queries]
    blocks = [_on_each(block, devices) for part in parts for block in part]
    best = [_on_each(_no_rows(block.shape[1], settings.neighbours), devices) for block in blocks]
    if state is not None:
        best = [_split(part, devices) for part in _blocks_of(state, blocks)]
    source = read_index, index_rows, settings.tile_rows, len(devices), queries[0].shape[1]
    first = 0 if state is None else state.turn
    on_blocks(first * len(blocks) * len(devices))
    turns = _turns(*source, first) if blocks else ()  # none where all parts are empty
    for turn, (starts, tiles) in enumerate(turns, start=first + 1):
        placed = _split((tiles, starts), devices)  # copied, as they were read, during the last turn
        jax.block_until_ready(best)  # so that no more tiles than these wait on the devices
        for b, block in enumerate(blocks):
            best[b] = search_tiles(best[b], block, *placed)
        on_blocks(len(blocks) * len(devices))
        on_turn(functools.partial(_state, turn, best))
    merged, (nothing, _) = map(_merge, best), _no_rows(0, settings.neighbours)
    return [
        np.concatenate([nothing, *(next(merged) for _ in part)])[: len(rows)]
        for part, rows in zip(parts, queries, strict=True)
    ]


def _state(turn: int, best: list[tuple[Array, Array]]) -> SearchState:
    rows, scores = (
        np.concatenate(list(map(np.asarray, part)), 1) for part in zip(*best, strict=True)
    )
    return SearchState(turn, rows, scores)


def _blocks_of(state: SearchState, blocks: list[Array]) -> list[tuple[np.ndarray, np.ndarray]]:
    """The state's (rows, scores) of each block of queries."""
    ends = np.cumsum([block.shape[1] for block in blocks])[:-1]
    return list(zip(np.split(state.rows, ends, 1), np.split(state.scores, ends, 1), strict=True))


def products(
    lengths: Sequence[int], index_rows: int, settings: SearchSettings, devices: int
) -> int:
    """How many query-block x tile products `search` computes for parts of these lengths."""
    blocks = sum(-(-n // _block_rows(n, settings.query_rows)) for n in lengths)
    turns = -(-_tile_count(index_rows, settings.tile_rows) // devices)
    return blocks * turns * devices


def _tile_count(index_rows: int, tile_rows: int) -> int:
    """How many tiles an index has: at least eight, so that a host's devices share small ones."""
    return max(1, min(8, -(-index_rows // _GROUP)), -(-index_rows // tile_rows))


def _turns(
    read_index: ReadRows, index_rows: int, tile_rows: int, devices: int, width: int, first: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(first row [devices], rows [devices, t, d]) of the tiles that are searched side by side.

    Each device gets a contiguous run of the index; the first turns are left out. What lies beyond
    the index's end are rows of zeros, which match nothing.
    """
    count = _tile_count(index_rows, tile_rows)
    rows = -(-index_rows // (count * _GROUP)) * _GROUP
    run = -(-count // devices)

    def read_tile(start: int) -> np.ndarray:
        stop = min(start + rows, index_rows)
        found = read_index(start, stop) if start < stop else np.zeros((0, width), np.float16)
        return _padded(found, rows)

    for turn in range(first, run):
        starts = [(device * run + turn) * rows for device in range(devices)]
        yield np.array(starts, np.int32), np.stack([read_tile(start) for start in starts])


def _query_blocks(queries: np.ndarray, query_rows: int) -> list[np.ndarray]:
    """The queries in blocks of one size, the last padded."""
    rows = _block_rows(len(queries), query_rows)
    starts = range(0, len(queries), rows)
    return [_padded(queries[start : start + rows], rows) for start in starts]


def _block_rows(queries: int, query_rows: int) -> int:
    """Rows per block: fewer for small parts, in steps that keep compilations few."""
    return min(query_rows, max(1, -(-queries // 128)) * 128)


def _padded(block: np.ndarray, rows: int) -> np.ndarray:
    return np.pad(block, ((0, rows - len(block)), (0, 0))) if len(block) < rows else block


def _no_rows(queries: int, neighbours: int) -> tuple[np.ndarray, np.ndarray]:
    shape = (queries, neighbours)
    return np.full(shape, -1, np.int32), np.full(shape, -np.inf, np.float32)


@functools.lru_cache
def _on_devices(devices: tuple[jax.Device, ...], recall: float) -> Callable:
    """`_search_tile` for a tile per device; kept, so that it compiles once."""
    search_tile = functools.partial(_search_tile, recall=recall)
    return jax.pmap(search_tile, devices=devices, donate_argnums=0)


def _on_each(arrays, devices: tuple[jax.Device, ...]):
    """A copy of the arrays on each device, with a leading device axis."""
    copies = jax.tree.map(lambda x: np.broadcast_to(x, (len(devices), *x.shape)), arrays)
    return _split(copies, devices)


def _split(arrays, devices: tuple[jax.Device, ...]):
    """The arrays with their leading axis over the devices."""
    sharding = NamedSharding(Mesh(np.array(devices), ("device",)), PartitionSpec("device"))
    return jax.device_put(arrays, sharding)


def _search_tile(
    best: tuple[Int[Array, "q l"], Float[Array, "q l"]],
    queries: Float16[Array, "q d"],
    tile: Float16[Array, "t d"],
    start: Int[Array, ""],
    recall: float,
) -> tuple[Int[Array, "q l"], Float[Array, "q l"]]:
    """`best` updated with a tile of later rows; float32 products of the float16 values."""
    rows, scores = best
    products = inner_products(queries, tile)
    products = jnp.where((tile != 0).any(1), products, -jnp.inf)
    found_scores, found = top(products, min(rows.shape[1], tile.shape[0]), recall)
    found_rows = jnp.where(jnp.isneginf(found_scores), -1, start + found)
    scores = jnp.concatenate([scores, found_scores], axis=1)  # earlier rows first: they win ties
    rows = jnp.concatenate([rows, found_rows], axis=1)
    scores, position = jax.lax.top_k(scores, best[0].shape[1])
    return jnp.take_along_axis(rows, position, axis=1), scores


def top(
    products: Float[Array, "q t"], count: int, recall: float = 1.0
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


def _merge(best: tuple[Array, Array]) -> Int[np.ndarray, "q l"]:
    """Joins the devices' results, which are in index order, for one block of queries."""
    rows, scores = (np.concatenate(np.asarray(part), axis=1) for part in best)
    order = np.argsort(-scores, axis=1, kind="stable")[:, : best[0].shape[2]]
    return np.take_along_axis(rows, order, axis=1)
