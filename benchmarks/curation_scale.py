"""The clustered search against the exact one and faiss: `python -m benchmarks.curation_scale`.

Vectors are `clip_vectors`, written as finished shards; the search is what the job runs: k-means,
sorting, the sample that the cells to look in are chosen with, all files written, compilation
included. It runs in a process of its own, for its memory, on a fifth of the vectors and on all. The
exact search and faiss's are timed on some queries and extrapolated; each searches the whole index.
faiss has as many lists, trained on as many vectors, and the fewest probes with no less recall.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time

import faiss
import ml_collections
import numpy as np
from absl import logging
from flax import nnx

from benchmarks.clip_vectors import clip_like_vectors
from benchmarks.curation_memory import GALLERY, SHARD_ROWS, bare_corpus
from benchmarks.figures import print_figure
from cocu_jax.curation.cell_search import search_by_cells
from cocu_jax.curation.cells import SAMPLE_PER_CELL
from cocu_jax.curation.embed import EmbeddedShard
from cocu_jax.curation.plan import Plan, make_plan
from cocu_jax.curation.ragged import Ragged
from cocu_jax.curation.search import SearchSettings, search
from cocu_jax.curation.storage.index import Index, shard_arrays
from cocu_jax.curation.storage.shard_files import write_arrays
from cocu_jax.models.clip import CLIP, CLIPConfig
from cocu_jax.models.text import TextConfig
from cocu_jax.models.weights.huggingface import save_clip
from cocu_jax.stopping import StopRequest
from configs.curate import get_config

NEIGHBOURS = 8


def main() -> None:
    """Prints one JSON line per metric."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=500_000)
    parser.add_argument("--queries", type=int, default=1_024, help="for the exact search and faiss")
    parser.add_argument("--recall", type=float, default=0.95)
    parser.add_argument("--run", nargs=2, metavar=("CONFIG", "WORKDIR"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    logging.set_verbosity(logging.ERROR)
    if arguments.run:
        return run(*arguments.run, arguments.queries)
    vectors = clip_like_vectors(arguments.rows)
    geometry(vectors[:1_541].astype(np.float32))
    with tempfile.TemporaryDirectory() as folder:
        text = TextConfig(width=32, heads=2, layers=1)
        model = CLIPConfig(32, 16, 32, 1, 2, projection_dim=vectors.shape[1], text=text)
        save_clip(CLIP(model, rngs=nnx.Rngs(0)), f"{folder}/clip")
        small = arguments.rows // 5
        children = {
            rows: clustered(folder, vectors[:rows], arguments) for rows in (small, arguments.rows)
        }
        found = np.load(f"{folder}/run_{arguments.rows}/found.npy")
    exact_seconds, truth = exact(vectors, arguments.queries)
    result = children[arguments.rows]
    recall = share_found(truth, found)
    print_figure("recall", recall, "share", arguments.recall)
    print_figure("recall_as_the_summary_tells", result["recall"], "share")
    print_figure("clustered_seconds", result["seconds"], "s", better="lower")
    print_figure("exact_seconds_extrapolated", exact_seconds, "s", better="lower")
    print_figure("faster_than_exact", exact_seconds / result["seconds"], "x", 15)
    print_figure("peak_memory_small", children[small]["memory"], "GB", better="lower")
    print_figure("peak_memory", result["memory"], "GB", better="lower")
    growth = result["memory"] / children[small]["memory"]
    print_figure("peak_memory_growth", growth, "x", 1.3, "lower")
    faiss_seconds, faiss_recall, probes = inverted_lists(vectors, truth, recall, result["cells"])
    print_figure("faiss_probes", probes, "lists")
    print_figure("faiss_recall", faiss_recall, "share")
    print_figure("faiss_seconds_extrapolated", faiss_seconds, "s", better="lower")
    print_figure("faster_than_faiss_ivfflat", faiss_seconds / result["seconds"], "x", 1.5)


def geometry(vectors: np.ndarray) -> None:
    """Prints what the vectors have in common with real ones; goals are those."""
    products = vectors @ vectors.T
    pairs = ~np.eye(len(vectors), dtype=bool)
    spectrum = np.linalg.eigvalsh(np.cov(vectors.T))[::-1]
    spectrum = spectrum.cumsum() / spectrum.sum()
    nearest = np.where(pairs, products, -1).max(1)
    print_figure("geometry/norm_of_mean", np.linalg.norm(vectors.mean(0)), "", 0.72)
    print_figure("geometry/mean_cosine", products[pairs].mean(), "", 0.52)
    print_figure("geometry/variance_of_10_axes", spectrum[9], "share", 0.37)
    print_figure("geometry/variance_of_200_axes", spectrum[199], "share", 0.91)
    for percent, goal in ((5, 0.68), (50, 0.8), (95, 0.89)):
        name = f"geometry/cosine_of_nearest_{percent}_percent"
        print_figure(name, np.percentile(nearest, percent), "", goal)


def clustered(folder: str, vectors: np.ndarray, arguments: argparse.Namespace) -> dict:
    """Runs the clustered search of all vectors among themselves in a process of its own."""
    config = get_config()
    config.corpus.directory = bare_corpus(folder, len(vectors))
    config.clip = f"{folder}/clip"
    config.neighbours = NEIGHBOURS
    config.search, config.cell_recall = "clustered", arguments.recall
    workdir = f"{folder}/run_{len(vectors)}"
    write_embeddings(make_plan(config, workdir), vectors)
    queries = min(arguments.queries, len(vectors))
    command = [sys.executable, "-m", "benchmarks.curation_scale", f"--queries={queries}", "--run"]
    done = subprocess.run([*command, config.to_json(), workdir], check=True, stdout=subprocess.PIPE)
    return json.loads(done.stdout.splitlines()[-1])


def write_embeddings(plan: Plan, vectors: np.ndarray) -> None:
    """Finished shards, without captions."""
    texts = np.zeros((len(GALLERY), vectors.shape[1]), np.float16)
    for shard, rows in enumerate(np.split(vectors, range(SHARD_ROWS, len(vectors), SHARD_ROWS))):
        embedded = EmbeddedShard(
            embeddings=rows,
            readable=np.ones(len(rows), bool),
            keys=Ragged.from_bytes(b"%d-%d" % (shard, row) for row in range(len(rows))),
            concepts=Ragged(np.zeros(0, np.int32), np.zeros(len(rows) + 1, np.int64)),
        )
        identity = plan.embedding_identity(plan.corpus, shard)
        write_arrays(
            plan.embedding_file(plan.corpus, shard), shard_arrays(embedded, texts), identity
        )


def run(config: str, workdir: str, queries: int) -> None:
    """The search itself; prints seconds, gigabytes, the recall measured, and the cells."""
    plan = make_plan(ml_collections.ConfigDict(json.loads(config)), workdir)
    shards = range(plan.corpus.num_shards)
    files = [plan.embedding_file(plan.corpus, shard) for shard in shards]
    index = Index(files, plan.corpus.shard_lengths)
    start = time.perf_counter()
    with StopRequest() as stop:
        found = search_by_cells(plan, index, stop)
    seconds = time.perf_counter() - start
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    np.save(f"{workdir}/found.npy", found.of_rows([(0, queries)])[0])
    cells = len(found.queries.sizes)
    result = {"seconds": seconds, "memory": memory, "recall": found.recall, "cells": cells}
    print(json.dumps(result))


def exact(vectors: np.ndarray, count: int) -> tuple[float, np.ndarray]:
    """Seconds for all vectors, extrapolated from the first ones; their true neighbours."""
    queries, settings = vectors[:count], SearchSettings(NEIGHBOURS)

    def read(start: int, stop: int) -> np.ndarray:
        return vectors[start:stop]

    search([queries], read, min(50_000, len(vectors)), settings)  # compiles
    start = time.perf_counter()
    (truth,) = search([queries], read, len(vectors), settings)
    return (time.perf_counter() - start) * len(vectors) / len(queries), truth


def inverted_lists(
    vectors: np.ndarray, truth: np.ndarray, recall: float, lists: int
) -> tuple[float, float, int]:
    """Seconds of faiss's IVFFlat for all vectors, its recall and its probes."""
    faiss.omp_set_num_threads(os.cpu_count())
    width, queries = vectors.shape[1], vectors[: len(truth)].astype(np.float32)
    start = time.perf_counter()
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(width), width, lists, faiss.METRIC_INNER_PRODUCT)
    index.cp.max_points_per_centroid = SAMPLE_PER_CELL
    index.train(vectors[: SAMPLE_PER_CELL * lists].astype(np.float32))
    for rows in np.array_split(vectors, -(-len(vectors) // 50_000)):
        index.add(rows.astype(np.float32))
    build, index.nprobe = time.perf_counter() - start, 4
    while share_found(truth, index.search(queries, NEIGHBOURS)[1]) < recall:
        index.nprobe += max(1, index.nprobe // 8)
    start = time.perf_counter()
    found = index.search(queries, NEIGHBOURS)[1]
    seconds = (time.perf_counter() - start) * len(vectors) / len(queries)
    return build + seconds, share_found(truth, found), index.nprobe


def share_found(truth: np.ndarray, found: np.ndarray) -> float:
    """Recall."""
    return float((truth[:, :, None] == found[:, None, :]).any(-1).mean())


if __name__ == "__main__":
    main()
