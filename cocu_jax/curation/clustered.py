"""Nearest neighbours among the rows of the cells that a query looks in.

Every query has cells of its own, and the work is done cell by cell: the queries that look in a
cell, gathered in blocks, against tiles of its rows, which are dense products. Rows of the index
come from disk in chunks of cells, each once per call; a chunk is on every device, and every device
has some of the queries. All products have one shape, and what a query finds does not depend on
where, when and with which others it is compared.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Float16, Int

from cocu_jax.curation.products import inner_products
from cocu_jax.curation.ragged import item_positions, starts_of
from cocu_jax.curation.search import SearchState, top
from cocu_jax.curation.sorted_rows import BLOCK_ROWS, SortedRows

_TASKS, _PRODUCTS = 256, 4096  # of a device in a turn, at most


@dataclasses.dataclass(frozen=True)
class ClusteredSettings:
    """How the work is cut up.

    Attributes:
        neighbours: L, how many rows of the index each query gets.
        query_rows: queries per product.
        tile_rows: index rows per product; rounded up to a multiple of `BLOCK_ROWS`.
        chunk_rows: index rows that are on the devices at a time; twice as many are in memory.
    """

    neighbours: int = 8
    query_rows: int = 256
    tile_rows: int = 256
    chunk_rows: int = 2**17

    @property
    def tile(self) -> int:
        """Blocks of a tile."""
        return -(-self.tile_rows // BLOCK_ROWS)


def search_cells(
    queries: Float16[np.ndarray, "n d"],
    looks: tuple[Int[np.ndarray, "p"], Int[np.ndarray, "p"]],
    index: SortedRows,
    settings: ClusteredSettings,
    devices: Sequence[jax.Device] | None = None,
    on_turn: Callable[[float, Callable[[], SearchState]], None] = lambda share, state: None,
    state: SearchState | None = None,
) -> Int[np.ndarray, "n l"]:
    """The rows of largest inner product in the cells that each query looks in.

    Args:
        queries: unit-norm embeddings; where neighbours have neighbouring cells, less is read.
        looks: pairs (query, cell).
        index: the rows by cell.
        settings: sizes.
        devices: where to compute; all local devices by default.
        on_turn: called after each turn with the share of the work that is done, and with a function
            that gives the state.
        state: where to go on, of a search with the same arguments on as many devices.

    Returns:
        Row numbers, best first, -1 where fewer than L rows were met. Of equal products the lower
        row comes first; of equal ones for the last place that of the lower cell is taken.
    """
    devices = tuple(devices or jax.local_devices())
    run = _runner(devices, settings.tile * BLOCK_ROWS)
    deal = _Deal.of(len(queries), settings.query_rows, len(devices))
    placed = _put(deal.dealt(queries), devices)
    if state is None:
        shape = len(devices), deal.own, settings.neighbours
        state = SearchState(0, np.full(shape, -1, np.int32), np.full(shape, -np.inf, np.float32))
    best = _put((state.rows, state.scores), devices)
    for chunk, turns in _chunks(looks, index, settings, deal, state.turn):
        chunk = jax.tree.map(lambda x: np.broadcast_to(x, (len(devices), *x.shape)), chunk)
        chunk = _put(chunk, devices)
        for turn, share, tasks in turns:
            best = run(best, placed, chunk, tasks)
            jax.block_until_ready(best)
            on_turn(share, functools.partial(_state, turn, best))
    rows, scores = (deal.joined(np.asarray(part))[: len(queries)] for part in best)
    return np.take_along_axis(rows, np.lexsort((rows, -scores), axis=1), 1)


def _state(turn: int, best: tuple[Array, Array]) -> SearchState:
    return SearchState(turn, *map(np.asarray, best))


@dataclasses.dataclass(frozen=True)
class _Deal:
    """Which queries each device has: every n-th block; behind them is room for no query.

    Attributes:
        devices: how many there are.
        block: queries of a block.
        own: queries of a device; the last is none.
    """

    devices: int
    block: int
    own: int

    @classmethod
    def of(cls, queries: int, block: int, devices: int) -> "_Deal":
        """The number of blocks comes in steps: fewer compilations."""
        blocks = -(-queries // (block * devices)) + 1
        step = max(1, 2 ** (blocks.bit_length() - 3))
        return cls(devices, block, -(-blocks // step) * step * block)

    def place(self, query: Int[np.ndarray, "p"]) -> tuple[np.ndarray, np.ndarray]:
        """(device, number there) of queries."""
        block = query // self.block
        return block % self.devices, block // self.devices * self.block + query % self.block

    def dealt(self, queries: Float16[np.ndarray, "n d"]) -> Float16[np.ndarray, "devices own d"]:
        """Each device's queries, and zeros."""
        padded = np.zeros((self.devices * self.own, queries.shape[1]), np.float16)
        padded[: len(queries)] = queries
        blocks = padded.reshape(-1, self.devices, self.block, queries.shape[1]).swapaxes(0, 1)
        return blocks.reshape(self.devices, self.own, -1)

    def joined(self, dealt: np.ndarray) -> np.ndarray:
        """What belongs to the queries, in their order, and to no query."""
        blocks = dealt.reshape(self.devices, -1, self.block, dealt.shape[-1]).swapaxes(0, 1)
        return blocks.reshape(-1, dealt.shape[-1])


def _chunks(
    looks: tuple[np.ndarray, np.ndarray],
    index: SortedRows,
    settings: ClusteredSettings,
    deal: _Deal,
    done: int,
) -> Iterator[tuple[tuple[np.ndarray, np.ndarray], Iterator]]:
    """The chunks that anyone looks in, each with its turns after turn `done`.

    The next is read while one is worked on.
    """
    query, cell = looks
    query = query[np.argsort(cell, kind="stable")]
    asking = np.bincount(cell, minlength=len(index.sizes))
    cells = np.flatnonzero((asking > 0) & (index.sizes > 0))
    first_look, asking = starts_of(asking)[cells], asking[cells]
    starts = starts_of(-(-index.sizes[cells] // BLOCK_ROWS))
    total, work, worked, turn = int(starts[-1]), int(np.diff(starts) @ asking), 0, 0
    room = max(1, min(-(-settings.chunk_rows // BLOCK_ROWS), total))
    with ThreadPoolExecutor(1) as reader:
        ahead = None
        for low in range(0, total, room):
            high = min(low + room, total)
            bounds = np.searchsorted(starts, low, "right") - 1, np.searchsorted(starts, high)
            here = slice(*bounds)
            ends = np.clip(starts[bounds[0] : bounds[1] + 1], low, high) - low
            asked = query[item_positions(first_look[here], asking[here])]
            tasks = _tasks(asked, asking[here], ends, deal)
            most = max(len(first) for _, first, _ in tasks)
            step = _PRODUCTS // -(-int(np.diff(ends).max()) // settings.tile)
            step = max(1, min(_TASKS, step))
            share = worked / work, int(np.diff(ends) @ asking[here]) / work
            turns = _turns(tasks, range(0, most, step), turn, share, done)
            worked += int(np.diff(ends) @ asking[here])
            turn += -(-most // step)
            if turn <= done:
                continue
            rows = reader.submit(
                index.blocks, cells[here], low - starts[bounds[0]], ends[-1], room + settings.tile
            )
            if ahead is not None:
                yield ahead[0].result(), ahead[1]
            ahead = rows, turns
        if ahead is not None:
            yield ahead[0].result(), ahead[1]


def _tasks(
    queries: Int[np.ndarray, "p"],
    asking: Int[np.ndarray, "c"],
    ends: Int[np.ndarray, "c1"],
    deal: _Deal,
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """What is compared on a chunk, per device: queries [k, q], first index block [k], how many [k].

    Args:
        queries: that look in the chunk's cells, cell after cell.
        asking: how many do in each.
        ends: where each cell begins, in index blocks, and the last one ends.
        deal: which device has which query.
    """
    tasks = []
    cell = np.repeat(np.arange(len(asking)), asking)
    device, number = deal.place(queries)
    for mine in (device == own for own in range(deal.devices)):
        mine_asking = np.bincount(cell[mine], minlength=len(asking))
        count = -(-mine_asking // deal.block)
        blocks = np.full(count.sum() * deal.block, deal.own - 1, np.int32)
        blocks[item_positions(starts_of(count)[:-1] * deal.block, mine_asking)] = number[mine]
        first, many = (np.repeat(x, count).astype(np.int32) for x in (ends[:-1], np.diff(ends)))
        tasks.append((blocks.reshape(-1, deal.block), first, many))
    return tasks


def _turns(
    tasks: list[tuple[np.ndarray, np.ndarray, np.ndarray]],
    starts: range,
    turn: int,
    share: tuple[float, float],
    done: int,
) -> Iterator[tuple[int, float, tuple[np.ndarray, ...]]]:
    """(number, share of all work done after it, tasks) of a chunk's turns, `turn` being before.

    Args:
        tasks: of each device.
        starts: the first task of each turn.
        turn: how many turns were before.
        share: of all work, before this chunk and in it.
        done: how many turns are left out.
    """
    for number, start in enumerate(starts, start=turn + 1):
        if number <= done:
            continue
        parts = [[a[start : start + starts.step] for a in of_device] for of_device in tasks]
        count = np.array([len(first) for _, first, _ in parts], np.int32)
        padded = (
            np.stack([np.pad(a, ((0, _TASKS - len(a)), (0, 0))[: a.ndim]) for a in column])
            for column in zip(*parts, strict=True)
        )
        after = share[0] + share[1] * min(1, (start + starts.step) / starts.stop)
        yield number, after, (*padded, count)


@functools.lru_cache
def _runner(devices: tuple[jax.Device, ...], tile_rows: int) -> Callable:
    run = functools.partial(_run_tasks, tile_rows=tile_rows)
    return jax.pmap(run, devices=devices, donate_argnums=0)


def _run_tasks(
    best: tuple[Int[Array, "k l"], Float[Array, "k l"]],
    queries: Float16[Array, "k d"],
    chunk: tuple[Float16[Array, "r d"], Int[Array, "r"]],
    tasks: tuple[Int[Array, "n q"], Int[Array, "n"], Int[Array, "n"], Int[Array, ""]],
    tile_rows: int,
) -> tuple[Int[Array, "k l"], Float[Array, "k l"]]:
    """`best` updated with the first tasks, as many as the last part of `tasks` says."""
    numbers, first, blocks, count = tasks
    places = jnp.arange(tile_rows)

    def compare(t: Int[Array, ""], near: tuple, own: Array, start: Array, length: Array) -> tuple:
        tile, rows = (
            jax.lax.dynamic_slice_in_dim(part, start + t * tile_rows, tile_rows) for part in chunk
        )
        there = (rows >= 0) & (places < length - t * tile_rows)
        products = jnp.where(there, inner_products(own, tile), -jnp.inf)
        scores, found = top(products, min(near[0].shape[1], tile_rows))
        found = jnp.where(jnp.isneginf(scores), -1, rows[found])
        # Lower cells and rows were met before and come first: they win ties.
        found, scores = (
            jnp.concatenate(pair, 1) for pair in zip(near, (found, scores), strict=True)
        )
        scores, place = jax.lax.top_k(scores, near[0].shape[1])
        return jnp.take_along_axis(found, place, axis=1), scores

    def run(i: Int[Array, ""], best: tuple) -> tuple:
        start, length = first[i] * BLOCK_ROWS, blocks[i] * BLOCK_ROWS
        look = functools.partial(compare, own=queries[numbers[i]], start=start, length=length)
        near = tuple(part[numbers[i]] for part in best)
        near = jax.lax.fori_loop(0, -(-length // tile_rows), look, near)
        return tuple(part.at[numbers[i]].set(found) for part, found in zip(best, near, strict=True))

    return jax.lax.fori_loop(0, count, run, best)


def _put(arrays, devices: tuple[jax.Device, ...]):
    """Arrays with their leading axis over the devices."""
    sharding = NamedSharding(Mesh(np.array(devices), ("device",)), PartitionSpec("device"))
    return jax.device_put(arrays, sharding)
