"""What curation costs an image, and millions of them: `python -m benchmarks.curation_costs`.

Measured on this machine: reading (256 x 256 JPEGs to 224 x 224 pixels), embedding (ViT-B/32),
searching, annotating and writing. Computed from that: hours and gigabytes for known corpora on
known hardware. Decoding and annotating are spread over the host's cores; writing takes as long on
every host as it does here, on one. Rates of accelerators, each with its reason, are the constants
below. One JSON object per line.
"""

import argparse
import dataclasses
import math
import os
import pathlib
import tempfile
import time
from collections.abc import Callable

import numpy as np
import tensorflow_datasets as tfds
from absl import logging
from etils import epath
from flax import nnx

from benchmarks.curation import CAPACITY, NEIGHBOURS, clip_like_corpus
from benchmarks.figures import print_figure
from benchmarks.input import photographs, write
from cocu_jax.curation.annotate import Annotator
from cocu_jax.curation.cell_search import SAMPLE
from cocu_jax.curation.cells import ROUNDS, SAMPLE_PER_CELL
from cocu_jax.curation.embed import Encoder
from cocu_jax.curation.images import image_batches
from cocu_jax.curation.search import SearchSettings, search
from cocu_jax.curation.storage.annotations import parquet_shard, tfrecord_shard
from cocu_jax.curation.storage.index import Index, shard_arrays
from cocu_jax.curation.storage.shard_files import write_arrays
from cocu_jax.input.corpus import open_corpus
from cocu_jax.models.clip import CLIP, CLIPConfig
from cocu_jax.models.weights.image_processing import ImageProcessing

CORPORA = {"CC3M": 2_751_755, "CC12M": 9_716_186, "400M": 400_000_000}
ENCODER_FLOP = 8.8e9  # of one image in ViT-B/32
WIDTH = 512
# Shares of peak rates. CLIP embedding as published reaches 7 to 16% of an A100's; plain products of
# large blocks 40%; streams through device memory 80%.
ENCODE_REACHED, MULTIPLY_REACHED, STREAM_REACHED = 0.12, 0.4, 0.8
# Share of the index that a query is compared with for a recall of 0.95 (among 500,000 rows of
# `clip_vectors`, see `curation_scale`), and what blocks that are not full add.
PROBED, PADDED = 0.005, 1.3
DISK = 1e9  # bytes per second that a host reads and writes with
HASH = 0.54e9  # bytes per second that a core verifies finished files with
START = 120.0  # seconds to start, open, and compile


@dataclasses.dataclass(frozen=True)
class Machine:
    """Hardware and its peak rates.

    Attributes:
        hosts: computers, one process each.
        cores: of all hosts together.
        encode: FLOP/s of bfloat16 products, all chips together.
        multiply: FLOP/s of the search's products.
        memory: bytes per second of device memory, all chips together.
        pair_bytes: of device memory that a product of two rows and its ranking move, in the exact
            search and in the clustered one.
        search_rows: `config.search_rows`.
    """

    hosts: int
    cores: int
    encode: float
    multiply: float
    memory: float
    pair_bytes: tuple[float, float]
    search_rows: int = 2**24


# H100 SXM: 989 TFLOP/s in bfloat16 and float16. v5e: 197 in bfloat16, and a product of float16
# rows takes four. Bytes: the programs compiled for v5e (an exact tile of 1,024 x 65,536; what the
# clustered search takes more for more rows of a cell); on a GPU a product is written, read and
# ranked. A TPU host's virtual CPU counts as half a core.
MACHINES = {
    "one H100, 16 cores": Machine(1, 16, 989e12, 989e12, 3.35e12, (12, 12)),
    "v5e-8": Machine(1, 112 // 2, 8 * 197e12, 8 * 197e12 / 4, 8 * 0.82e12, (56, 42)),
}

COST_UNITS = {"multiply": "FLOP/s", "bytes_kept": "bytes"}  # the others are seconds


@dataclasses.dataclass(frozen=True)
class Costs:
    """Measured here.

    Attributes:
        read: processor seconds per image.
        encode: seconds per image, all cores.
        multiply: FLOP/s of the whole search, all cores.
        annotate: seconds per image, all cores.
        write: seconds per image.
        bytes_kept: bytes per image of embeddings, annotations and Parquet.
    """

    read: float
    encode: float
    multiply: float
    annotate: float
    write: float
    bytes_kept: float


def main() -> None:
    """Prints measured costs, then computed hours."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--photographs", type=int, default=1024)
    arguments = parser.parse_args()
    logging.set_verbosity(logging.ERROR)
    costs = Costs(
        read=read_cost(arguments.photographs),
        encode=encode_cost(),
        **search_and_write_costs(arguments.images),
    )
    for name, value in dataclasses.asdict(costs).items():
        print_figure(f"measured_{name}", value, COST_UNITS.get(name, "s"), better="lower")
    for corpus, images in CORPORA.items():
        stages = hours_here(costs, images)
        print_computed(corpus, "these cores", stages | disk(costs, images))
        for name, machine in MACHINES.items():
            print_computed(corpus, name, hours(costs, images, machine))


def print_computed(corpus: str, machine: str, figures: dict[str, float]) -> None:
    """Prints what a corpus would cost on a machine; the unit ends each figure's name."""
    for name, value in figures.items():
        unit = name.rsplit("_", 1)[-1]
        print_figure(f"computed/{corpus}/{machine}/{name}", value, unit, better="lower")


def read_cost(count: int) -> float:
    """Processor seconds per image of reading, decoding and resizing."""
    features = tfds.features
    declared = {
        "key": features.Text(),
        "image": features.Image(),
        "caption_concepts": features.Tensor(shape=(None,), dtype=np.int32),
    }
    jpegs = photographs(count)
    examples = (
        {"key": f"{i}", "image": jpeg, "caption_concepts": [1]} for i, jpeg in enumerate(jpegs)
    )
    with tempfile.TemporaryDirectory() as folder:
        write(epath.Path(folder) / "corpus", declared, examples, {"gallery": ("a", "b")})
        corpus = open_corpus(f"{folder}/corpus", "train")
        seconds = []
        for _ in range(3):
            start = time.process_time()
            for _ in image_batches(corpus, [0], ImageProcessing(224), 128).as_numpy_iterator():
                pass
            seconds.append(time.process_time() - start)
    return min(seconds) / count


def encode_cost(batch: int = 32) -> float:
    """Seconds per image of ViT-B/32 in float32."""
    encoder = Encoder(CLIP(CLIPConfig(), rngs=nnx.Rngs(0)), ImageProcessing(224), batch)
    pixels = np.zeros((encoder.batch, 224, 224, 3), np.uint8)
    return _seconds(lambda: np.asarray(encoder.images(pixels))) / len(pixels)


def search_and_write_costs(images: int) -> dict[str, float]:
    """The costs of all that follows the embeddings."""
    shard, texts = clip_like_corpus(images, 2_000)
    queries = shard.embeddings
    gallery = [f"concept {i}" for i in range(len(texts))]
    keys = [b"%08d" % i for i in range(images)]
    annotator = Annotator(texts, CAPACITY, clusters=True, seed=0)
    with tempfile.TemporaryDirectory() as folder:
        file = epath.Path(folder) / "0.safetensors"
        write_arrays(file, shard_arrays(shard, texts), {})
        index = Index([file], [images])
        settings = SearchSettings(NEIGHBOURS)
        (found,) = search([queries], index.embeddings, images, settings)
        kept = {}

        def annotate():
            kept["entries"] = index.entries(found.reshape(-1))
            kept["found"] = annotator.annotate(kept["entries"], NEIGHBOURS, queries, 0)

        def write_files():
            near_keys = kept["entries"].keys
            near = [
                [near_keys.bytes(i * NEIGHBOURS + j) for j in range(NEIGHBOURS)]
                for i in range(images)
            ]
            records, _ = tfrecord_shard(keys, kept["found"], near)
            table = parquet_shard(keys, kept["found"], near, gallery)
            for number, content in enumerate((records, table)):
                pathlib.Path(folder, f"written {number}").write_bytes(content)

        searching = _seconds(lambda: search([queries], index.embeddings, images, settings))
        annotating, writing = _seconds(annotate), _seconds(write_files)
        size = sum(path.stat().st_size for path in pathlib.Path(folder).iterdir())
    return {
        "multiply": 2 * WIDTH * images**2 / searching,
        "annotate": annotating / images,
        "write": writing / images,
        "bytes_kept": size / images,
    }


def hours(costs: Costs, images: int, machine: Machine) -> dict[str, float]:
    """Hours per stage on other hardware."""
    passes = -(-images // (machine.hosts * machine.search_rows))
    embed = max(
        images * costs.read / machine.cores,
        images * ENCODER_FLOP / (ENCODE_REACHED * machine.encode),
    )
    products = 2 * WIDTH / (MULTIPLY_REACHED * machine.multiply)
    exact, clustered = (
        max(products, moved / (STREAM_REACHED * machine.memory)) for moved in machine.pair_bytes
    )
    stream = passes * images * 2 * WIDTH / DISK
    by_cells = PROBED * PADDED * images**2 * clustered
    # k-means of a sample; every row is assigned, as a query as well; another sample meets all rows.
    cells = 2 * math.isqrt(images)
    assign = (ROUNDS * 2 * SAMPLE_PER_CELL * cells**2 + 3 * images * cells) * clustered
    sample = max(SAMPLE * images * exact, images * 2 * WIDTH / DISK)
    # Every row is read, written with its checksum, and read as a query.
    sort = images * 2 * WIDTH * (3 / DISK + 1 / HASH) / machine.hosts
    annotate = images * costs.annotate * os.cpu_count() / machine.cores
    finish = annotate + images * costs.write / machine.hosts
    verify = images * costs.bytes_kept / HASH / machine.hosts
    searches = {
        "exact": max(images**2 * exact, stream),
        "clustered": assign + sample + sort + max(by_cells, stream),
    }
    found = {}
    for name, look in searches.items():
        given = START + verify + look + finish
        found[f"{name}/search_hours"] = _in_hours(look)
        found[f"{name}/embeddings_at_hand_hours"] = _in_hours(given)
        found[f"{name}/all_hours"] = _in_hours(given + embed)
    rest = {"embed": embed, "annotate_and_write": finish, "verify_and_start": verify + START}
    return found | {f"{stage}_hours": _in_hours(seconds) for stage, seconds in rest.items()}


def hours_here(costs: Costs, images: int) -> dict[str, float]:
    """Hours per stage on the machine that the costs were measured on."""
    embed = images * (costs.read / os.cpu_count() + costs.encode)
    look = 2 * WIDTH * images**2 / costs.multiply
    return _hours(embed, look, images * (costs.annotate + costs.write))


def disk(costs: Costs, images: int) -> dict[str, float]:
    """Gigabytes of what is kept."""
    return {"disk_gigabytes": round(images * costs.bytes_kept / 1e9, 1)}


def _hours(embed: float, search: float, rest: float) -> dict[str, float]:
    stages = {"embed": embed, "search": search, "annotate_and_write": rest}
    stages["all"] = sum(stages.values())
    return {f"{stage}_hours": _in_hours(seconds) for stage, seconds in stages.items()}


def _in_hours(seconds: float) -> float:
    return float(f"{seconds / 3600:.3g}")


def _seconds(run: Callable[[], object], rounds: int = 3) -> float:
    """The least of some rounds after one to warm up."""
    seconds = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])


if __name__ == "__main__":
    main()
