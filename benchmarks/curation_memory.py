"""Peak memory of curation as its corpora grow tenfold: `python -m benchmarks.curation_memory`.

The embeddings are synthetic and written as finished shards, so that a run goes straight to the
search. Once the index grows under the same queries, once the curated corpus grows over the same
index. Each run is a process of its own, measured by its largest resident set, mapped files
included.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile

import ml_collections
import numpy as np
import tensorflow_datasets as tfds
from absl import logging
from flax import nnx
from tensorflow_datasets.core import dataset_info

from benchmarks.figures import print_figure
from cocu_jax.curation.embed import EmbeddedShard
from cocu_jax.curation.job import curate
from cocu_jax.curation.plan import make_plan
from cocu_jax.curation.ragged import Ragged
from cocu_jax.curation.storage.index import shard_arrays
from cocu_jax.curation.storage.shard_files import write_arrays
from cocu_jax.models.clip import CLIP, CLIPConfig
from cocu_jax.models.text import TextConfig
from cocu_jax.models.weights.huggingface import save_clip
from configs.curate import get_config

WIDTH = 64  # of the embeddings
GALLERY = [f"concept {i}" for i in range(2_000)]
SHARD_ROWS = 2_500
FIXED_ROWS = 10_000  # of the corpus that does not grow


def main() -> None:
    """Prints a JSON line per run, and one per growth."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", type=int, default=50_000)
    parser.add_argument("--large", type=int, default=500_000)
    parser.add_argument("--grows", nargs="+", default=["index", "corpus"])
    parser.add_argument("--run", nargs=2, metavar=("CONFIG", "WORKDIR"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    logging.set_verbosity(logging.ERROR)
    if arguments.run:
        return _run(*arguments.run)
    with tempfile.TemporaryDirectory() as folder:
        small, large, fixed = (
            bare_corpus(folder, rows) for rows in (arguments.small, arguments.large, FIXED_ROWS)
        )
        text = TextConfig(width=32, heads=2, layers=1)
        model = CLIPConfig(32, 16, 32, 1, 2, projection_dim=WIDTH, text=text)
        save_clip(CLIP(model, rngs=nnx.Rngs(0)), f"{folder}/clip")
        peaks = {}
        for grows, runs in {
            "index": ((fixed, small), (fixed, large)),
            "corpus": ((small, fixed), (large, fixed)),
        }.items():
            if grows not in arguments.grows:
                continue
            for size, (corpus, index) in zip(("small", "large"), runs, strict=True):
                peaks[size] = _peak_of_run(folder, f"{grows}_{size}", corpus, index)
                rows = getattr(arguments, size)
                print_figure(f"peak_memory_{grows}_{rows}", peaks[size], "GB", better="lower")
            growth = peaks["large"] / peaks["small"]
            print_figure(f"peak_memory_growth_{grows}", growth, "x", 1.1, "lower")


def _peak_of_run(folder: str, name: str, corpus: str, index: str) -> float:
    """Gigabytes that curating a corpus with an index takes."""
    config = get_config()
    config.corpus.directory = corpus
    config.index = ({"directory": index, "split": "train"},)
    config.clip = f"{folder}/clip"
    config.embeddings = f"{folder}/embeddings"
    config.search_rows = 16_384
    config.page_images = 0  # there are no images
    workdir = f"{folder}/{name}"
    _write_embeddings(config, workdir)
    command = [sys.executable, "-m", "benchmarks.curation_memory", "--run", config.to_json()]
    done = subprocess.run([*command, workdir], check=True, stdout=subprocess.PIPE)
    return float(done.stdout)


def _run(config: str, workdir: str) -> None:
    curate(ml_collections.ConfigDict(json.loads(config)), workdir)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9)


def bare_corpus(folder: str, rows: int) -> str:
    """The metadata of an image-text dataset, without its records; returns its directory."""
    features, directory = tfds.features, f"{folder}/corpus_{rows}/1.0.0"
    os.makedirs(directory)
    identity = dataset_info.DatasetIdentity(
        name=f"corpus_{rows}", version="1.0.0", data_dir=directory, module_name=""
    )
    info = tfds.core.DatasetInfo(
        builder=identity,
        features=features.FeaturesDict(
            {
                "key": features.Text(),
                "image": features.Image(),
                "caption": features.Text(),
                "caption_concepts": features.Tensor(shape=(None,), dtype=np.int32),
            }
        ),
        metadata=tfds.core.MetadataDict(gallery=GALLERY),
    )
    info.set_file_format("tfrecord")
    template = tfds.core.ShardedFileTemplate(
        data_dir=directory, dataset_name=identity.name, split="train", filetype_suffix="tfrecord"
    )
    lengths = [SHARD_ROWS] * (rows // SHARD_ROWS)
    split = tfds.core.SplitInfo(
        name="train", shard_lengths=lengths, num_bytes=0, filename_template=template
    )
    info.set_splits(tfds.core.splits.SplitDict([split]))
    info.write_to_directory(directory)
    return directory


def _write_embeddings(config: ml_collections.ConfigDict, workdir: str) -> None:
    """Finished shards of random unit vectors and captions of up to five concepts."""
    plan = make_plan(config, workdir)
    for corpus, shard in plan.embedding_shards(own=True):
        if plan.embedding_file(corpus, shard).exists():
            continue
        rng = np.random.default_rng([corpus.num_shards, shard])
        rows = corpus.shard_lengths[shard]
        concepts = [rng.integers(len(GALLERY), size=n) for n in rng.integers(6, size=rows)]
        embedded = EmbeddedShard(
            embeddings=_unit(rng.normal(size=(rows, WIDTH))),
            readable=np.ones(rows, bool),
            keys=Ragged.from_bytes(b"%d-%06d" % (shard, row) for row in range(rows)),
            concepts=Ragged.from_lists([list(dict.fromkeys(c)) for c in concepts], np.int32),
        )
        texts = _unit(rng.normal(size=(len(GALLERY), WIDTH)))
        file, identity = plan.embedding_file(corpus, shard), plan.embedding_identity(corpus, shard)
        write_arrays(file, shard_arrays(embedded, texts), identity)


def _unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)


if __name__ == "__main__":
    main()
