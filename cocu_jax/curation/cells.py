"""Cells of an embedding space: k-means of a sample, and the cells that rows lie in.

A row lies in the cell of the nearest centroid, which for rows of one norm is the one of largest
x c - |c|^2 / 2 ("affinity" here). Products go through `products.inner_products`; every block of
rows has the same shape, so that its bits depend on nothing but the block and the centroids.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float16, Int

from cocu_jax.curation.products import inner_products

_ROWS = 1024  # of a block
_PORTION = 2**17  # rows that are with the devices at a time
ROUNDS = 6
SAMPLE_PER_CELL = 48


def find_cells(
    sample: Float16[np.ndarray, "m d"],
    count: int,
    seed: int,
    on_round: Callable[[], None] = lambda: None,
) -> Float16[np.ndarray, "c d"]:
    """Centroids of Lloyd's k-means, computed on one device, neighbours near one another.

    Args:
        sample: rows, those of zeros are left out; fewer cells where there are fewer rows.
        count: c.
        seed: of the rows that the centroids start from.
        on_round: called after each round.
    """
    sample = sample[(sample != 0).any(1)]
    first = np.random.default_rng(seed).permutation(len(sample))[: max(1, count)]
    centroids = (
        sample[np.sort(first)] if len(sample) else np.zeros((1, sample.shape[1]), np.float16)
    )
    blocks = jnp.stack(_blocks(sample, _ROWS)) if len(sample) else jnp.zeros((0, 1, 1), np.float16)
    with jax.default_device(jax.local_devices()[0]):
        for _ in range(ROUNDS if len(sample) else 0):
            centroids = jax.block_until_ready(_refined(blocks, centroids))
            on_round()
    centroids = np.asarray(centroids)
    return centroids[_near_to_near(centroids.astype(np.float32))]


def nearest_cell(
    rows: Float16[np.ndarray, "n d"],
    centroids: Float16[np.ndarray, "c d"],
    devices: Sequence[jax.Device],
) -> Int[np.ndarray, "n"]:
    """The cell that each row lies in."""
    found = on_devices(_nearest, _blocks(rows, _ROWS), centroids, devices)
    return np.concatenate([*found, np.zeros(0, np.int32)])[: len(rows)]


def cells_within(
    rows: Float16[np.ndarray, "n d"],
    centroids: Float16[np.ndarray, "c d"],
    gap: float,
    devices: Sequence[jax.Device],
) -> tuple[Int[np.ndarray, "p"], Int[np.ndarray, "p"]]:
    """Pairs (row, cell) whose affinity is below the row's largest by no more than `gap`.

    Devices answer with bits, of which few are set.
    """
    pairs, shared = [], (centroids, np.float32(gap))
    for start in range(0, len(rows), _PORTION):
        part = rows[start : start + _PORTION]
        bits = np.concatenate(on_devices(_bits_within, _blocks(part, _ROWS), shared, devices))
        words = bits[: len(part)].view(np.uint64)
        row, word = np.nonzero(words)
        bits = words[row, word].view(np.uint8).reshape(-1, 8)
        place, bit = np.nonzero(np.unpackbits(bits, axis=1, bitorder="little"))
        pairs.append((start + row[place], 64 * word[place] + bit))
    row, cell = (np.concatenate([*column, np.zeros(0)]) for column in zip(*pairs, strict=True))
    return row.astype(np.int32), cell.astype(np.int32)


def gaps_to_cells(
    rows: Float16[np.ndarray, "n d"],
    centroids: Float16[np.ndarray, "c d"],
    devices: Sequence[jax.Device],
) -> Float[np.ndarray, "n c"]:
    """By how much the affinity of each row to each cell is below its largest."""
    return np.concatenate(on_devices(_gaps, _blocks(rows, _ROWS), centroids, devices))[: len(rows)]


def on_devices(function, blocks: list[np.ndarray], shared, devices: Sequence[jax.Device]) -> list:
    """`function(block, shared)` of equal blocks, one on each device at a time, in their order."""
    run, found = _mapped(function, tuple(devices)), []
    for start in range(0, len(blocks), len(devices)):
        part = blocks[start : start + len(devices)]
        padded = part + [np.zeros_like(part[0])] * (len(devices) - len(part))
        found.append((run(np.stack(padded), shared), len(part)))
    return [np.asarray(result)[i] for result, count in found for i in range(count)]


@functools.lru_cache
def _mapped(function, devices: tuple[jax.Device, ...]):
    return jax.pmap(function, in_axes=(0, None), devices=devices)


def _blocks(rows: np.ndarray, size: int) -> list[np.ndarray]:
    """Blocks of equal size, the last filled with zeros."""
    parts = [rows[start : start + size] for start in range(0, len(rows), size)]
    if parts and len(parts[-1]) < size:
        parts[-1] = np.pad(parts[-1], ((0, size - len(parts[-1])), (0, 0)))
    return parts


def _affinities(rows: Float16[Array, "n d"], centroids: Float16[Array, "c d"]) -> Array:
    return inner_products(rows, centroids) - (centroids.astype(jnp.float32) ** 2).sum(1) / 2


def _gaps(rows: Float16[Array, "n d"], centroids: Float16[Array, "c d"]) -> Float[Array, "n c"]:
    affinities = _affinities(rows, centroids)
    return affinities.max(1, keepdims=True) - affinities


def _nearest(rows: Float16[Array, "n d"], centroids: Float16[Array, "c d"]) -> Int[Array, "n"]:
    affinities = _affinities(rows, centroids)
    largest = affinities == affinities.max(1, keepdims=True)
    cells = jnp.arange(affinities.shape[1], dtype=jnp.int32)
    return jnp.where(largest, cells, len(cells)).min(1)  # a third of argmax's time on CPUs


def _bits_within(rows: Float16[Array, "n d"], shared: tuple[Array, Array]) -> Array:
    """Bit c % 8 of byte c // 8 of a row says whether cell c is within the gap."""
    centroids, gap = shared
    near = _gaps(rows, centroids) <= gap
    near = jnp.pad(near, ((0, 0), (0, -near.shape[1] % 64)))
    return jnp.packbits(near, axis=1, bitorder="little")


@jax.jit
def _refined(blocks: Float16[Array, "k n d"], centroids: Float16[Array, "c d"]) -> Array:
    """One round of Lloyd's; a cell without rows stays where it is."""

    def add(sums, rows):
        labels = _nearest(rows, centroids)
        found = jax.lax.platform_dependent(
            rows, labels, _there(rows), cpu=_scattered, default=_multiplied
        )
        return jax.tree.map(jnp.add, sums, found), None

    def _scattered(rows, labels, there):
        weighted = jnp.where(there[:, None], rows.astype(jnp.float32), 0)
        sums = jax.ops.segment_sum(weighted, labels, len(centroids))
        return sums, jax.ops.segment_sum(there.astype(jnp.float32), labels, len(centroids))

    def _multiplied(rows, labels, there):  # a scatter on GPUs adds in any order
        members = (labels == jnp.arange(len(centroids))[:, None]) & there
        sums = inner_products(members.astype(jnp.float16), rows.T)
        return sums, members.sum(1).astype(jnp.float32)

    zeros = jnp.zeros(centroids.shape, jnp.float32), jnp.zeros(len(centroids), jnp.float32)
    (sums, counts), _ = jax.lax.scan(add, zeros, blocks)
    means = sums / jnp.maximum(counts, 1)[:, None]
    return jnp.where(counts[:, None] > 0, means.astype(jnp.float16), centroids)


def _there(rows: Array) -> Bool[Array, "n"]:
    return (rows != 0).any(1)


def _near_to_near(centroids: Float[np.ndarray, "c d"]) -> Int[np.ndarray, "c"]:
    """An order in which near centroids are near: halves along the main axis, again and again."""
    parts = [np.arange(len(centroids))]
    while max(map(len, parts)) > 1:
        parts = [half for part in parts for half in _halves(centroids, part)]
    return np.concatenate(parts)


def _halves(centroids: np.ndarray, part: np.ndarray) -> list[np.ndarray]:
    if len(part) == 1:
        return [part]
    centred = centroids[part] - centroids[part].mean(0)
    axis = centred[np.argmax((centred**2).sum(1))]
    for _ in range(10):  # power iterations; any axis would do
        axis = centred.T @ (centred @ axis)
        axis /= max(np.linalg.norm(axis), 1e-30)
    order = np.argsort(centred @ axis, kind="stable")
    return [part[order[: len(part) // 2]], part[order[len(part) // 2 :]]]
