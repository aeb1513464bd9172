"""Exact search by inner product, as curation searches a corpus."""

import functools
import time
from collections.abc import Callable

import jax
import numpy as np
import torch

from benchmarks.accelerator.measure import card, torch_device, wait_for_torch
from benchmarks.figures import print_figure
from cocu_jax.curation.search import SearchSettings, search
from cocu_jax.training.hardware import chip_of

_WIDTH, _NEIGHBOURS = 512, 8
# Query and index rows of a product: of a CPU's size, and larger, for fewer calls.
_SIZES = {"ours": (1024, 5120), "ours, large tiles": (8192, 65_536)}


@card()
def nearest(tiny: bool) -> None:
    """Queries/s of ours and of torch's `topk(q @ x.T)`, and the share of the peak that this is."""
    rows, queries = (4096, 256) if tiny else (1_000_000, 131_072)
    index = _unit_vectors(rows)
    wanted = index[:queries]
    results = {}
    for name, (query_rows, tile_rows) in _SIZES.items():
        settings = SearchSettings(_NEIGHBOURS, query_rows, tile_rows)
        run = functools.partial(_ours, index, wanted, settings)
        results[name] = _timed(name, run, rows, queries, tiny)
    results["torch"] = _timed(
        "torch", functools.partial(_torchs, index, wanted), rows, queries, tiny
    )
    found = results["torch"]
    for name in _SIZES:
        same = (results[name][:, :, None] == found[:, None, :]).any(-1).mean()
        print_figure(f"search: neighbours of {name} that torch finds", same, "share")


def _unit_vectors(rows: int) -> np.ndarray:
    vectors = np.random.default_rng(0).standard_normal((rows, _WIDTH), np.float32)
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)


def _timed(
    name: str, run: Callable[[], np.ndarray], rows: int, queries: int, tiny: bool
) -> np.ndarray:
    """Twice, for the first compiles; the index goes to the card within the time."""
    for _ in range(2 - tiny):
        start = time.perf_counter()
        found = run()
        seconds = time.perf_counter() - start
    print_figure(f"search: {name}", queries / seconds, "queries/s")
    if chip := chip_of(jax.devices()[0].device_kind):
        used = 2 * rows * queries * _WIDTH / chip.flops / seconds
        print_figure(f"search: {name}, share of the peak", 100 * used, "%", goal=50)
    return found


def _ours(index: np.ndarray, queries: np.ndarray, settings: SearchSettings) -> np.ndarray:
    (found,) = search([queries], lambda a, b: index[a:b], len(index), settings, jax.devices()[:1])
    return found


@torch.inference_mode()
def _torchs(index: np.ndarray, queries: np.ndarray, block: int = 2048) -> np.ndarray:
    placed = torch.from_numpy(index).to(torch_device())
    found = [
        torch.topk(part.to(torch_device()) @ placed.T, _NEIGHBOURS).indices
        for part in torch.from_numpy(queries).split(block)
    ]
    wait_for_torch(None)
    return torch.cat(found).cpu().numpy()
