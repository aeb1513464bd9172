"""Cells of an embedding space: k-means of a sample, and the cells that rows lie in.

A row lies in the cell of the nearest centroid, which for rows of one norm is the one of largest
x c - |c|^2 / 2 ("affinity" here). Products go through `products.inner_products`; every block of
rows has the same shape, so that its bits depend on nothing but the block and the centroids.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float16, Int

from cocu_jax.curation.products import inner_products

_ROWS = 4096  # of a block
_ROUNDS = 6
SAMPLE_PER_CELL = 48


def find_cells(
    sample: Float16[np.ndarray, "m d"], count: int, seed: int
) -> Float16[np.ndarray, "c d"]:
    """Centroids of Lloyd's k-means, computed on one device, neighbours near one another.

    Args:
        sample: rows, those of zeros are left out; fewer cells where there are fewer rows.
        count: c.
        seed: of the rows that the centroids start from.
    """
    sample = sample[(sample != 0).any(1)]
    first = np.random.default_rng(seed).permutation(len(sample))[: max(1, count)]
    centroids = (
        sample[np.sort(first)] if len(sample) else np.zeros((1, sample.shape[1]), np.float16)
    )
    blocks = jnp.stack(_blocks(sample, _ROWS)) if len(sample) else jnp.zeros((0, 1, 1), np.float16)
    with jax.default_device(jax.local_devices()[0]):
        for _ in range(_ROUNDS if len(sample) else 0):
            centroids = _refined(blocks, centroids)
    centroids = np.asarray(centroids)
    return centroids[_near_to_near(centroids.astype(np.float32))]


def two_nearest_cells(
    rows: Float16[np.ndarray, "n d"],
    centroids: Float16[np.ndarray, "c d"],
    devices: Sequence[jax.Device],
) -> tuple[Int[np.ndarray, "n"], Int[np.ndarray, "n"]]:
    """The cell of each row and the one that is nearest but for it (the same if it is the only)."""
    cells = on_devices(_two_nearest, _blocks(rows, _ROWS), centroids, devices)
    if not cells:
        return np.zeros(0, np.int32), np.zeros(0, np.int32)
    cells = np.concatenate(cells, axis=1)[:, : len(rows)]
    return cells[0], cells[1]


def shares(
    blocks: Float16[np.ndarray, "k q d"],
    centroids: Float16[np.ndarray, "c d"],
    temperature: float,
    devices: Sequence[jax.Device],
) -> Float[np.ndarray, "k c"]:
    """How much of each block of rows points at each cell: the mean softmax of their affinities.

    Args:
        blocks: rows; those of zeros do not count.
        centroids: of the cells.
        temperature: of the softmax.
        devices: where to compute.
    """
    temperature = np.float32(temperature)
    found = on_devices(_block_shares, list(blocks), (centroids, temperature), devices)
    return np.stack(found) if found else np.zeros((0, len(centroids)), np.float32)


def spread(rows: Float16[np.ndarray, "n d"], centroids: Float16[np.ndarray, "c d"]) -> float:
    """By how much the affinity of a row to its own cell exceeds that to the mean cell."""
    wide, centres = rows.astype(np.float32), centroids.astype(np.float32)
    affinities = wide @ centres.T - (centres**2).sum(1) / 2
    return float((affinities.max(1) - affinities.mean(1)).mean())


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


def _two_nearest(rows: Float16[Array, "n d"], centroids: Float16[Array, "c d"]) -> Array:
    affinities = _affinities(rows, centroids)
    first = affinities.argmax(1)
    others = jnp.arange(len(centroids)) != first[:, None]
    second = jnp.where(others, affinities, -jnp.inf).argmax(1)
    return jnp.stack([first, second]).astype(jnp.int32)


def _block_shares(rows: Float16[Array, "q d"], shared: tuple[Array, Array]) -> Float[Array, "c"]:
    centroids, temperature = shared
    there = _there(rows)[:, None]
    weights = jax.nn.softmax(_affinities(rows, centroids) / temperature, axis=1)
    return (weights * there).sum(0) / jnp.maximum(there.sum(), 1)


@jax.jit
def _refined(blocks: Float16[Array, "k n d"], centroids: Float16[Array, "c d"]) -> Array:
    """One round of Lloyd's; a cell without rows stays where it is."""

    def add(sums, rows):
        labels = _affinities(rows, centroids).argmax(1)
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
