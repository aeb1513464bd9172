"""Images per second of the training input: `python -m benchmarks.input`.

A corpus of 256 x 256 JPEGs is written and read through the whole pipeline (records, annotations
joined by key, cluster-guided concepts, prompts, crops, RandAugment, batches), in turns with the
least that any input must do: decode a random part of the same JPEGs and resize it to bytes. What
the accurate DCT costs is timed on whole JPEGs, in turns with TensorFlow's fast one. Shares are
medians over rounds of rate over rate; rates per core are images per second of processor time, so
that other work on the machine does not count. One JSON line per figure.
"""

import argparse
import io
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import ml_collections
import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from absl import logging
from etils import epath
from PIL import Image

from benchmarks.figures import print_figure
from cocu_jax.input import image_graph
from cocu_jax.input.corpus import open_corpus
from cocu_jax.input.crop import NUM_DRAWS, crop_window, random_crop
from cocu_jax.input.pipeline import train_batches
from cocu_jax.models.tokenizer import Tokenizer

# As in real corpora, a virtual reader has many windows to an epoch: there are few of them here. The
# images of the small benchmark appear in several shards.
SHARDS, RECORDS_PER_SHARD, LANES = 64, 128, 16
SIZE, STORED = 224, 256
AREA = (0.08, 1.0)
GALLERY = tuple(
    f"{colour} {thing}" for colour in ("red", "blue") for thing in ("car", "cat", "sky")
)
# v5e needs this many images per second and chip at 40% of its peak, 33 GFLOP an image.
V5E_IMAGES_PER_SECOND = 0.4 * 197e12 / 33e9


class Rate(NamedTuple):
    """Images per second of wall-clock time and of processor time."""

    wall: float
    core: float


def main() -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=30, help="batches per round")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    logging.set_verbosity(logging.ERROR)
    tf.config.set_visible_devices([], "GPU")
    with tempfile.TemporaryDirectory() as folder:
        jpegs = photographs(options.images)
        write_dataset(epath.Path(folder), jpegs)
        contestants = {
            "bare": bare(jpegs, options.batch),
            "crop": pipeline(folder, options.batch, "crop"),
            "full": pipeline(folder, options.batch, "full"),
        }
        rates = race(contestants, options)
        report(rates)
        resume(folder, options.batch)
        decoding(jpegs)


def decoding(jpegs: list[bytes]) -> None:
    """Processor time of a JPEG, one by one: whole, a part of half its area, and the whole crop.

    Whole by each DCT and by our reader; the part by our reader, which decodes two pixels around it,
    and without those. Every figure contains the time of the pipeline itself ("nothing").
    """
    draws = tf.constant(np.random.default_rng(0).random(NUM_DRAWS), tf.float32)
    side = round(STORED * 0.5**0.5)
    half = [(STORED - side) // 2] * 2 + [side] * 2

    def by_dct(method: str) -> Callable[[tf.Tensor], tf.Tensor]:
        return lambda jpeg: tf.io.decode_jpeg(jpeg, channels=3, dct_method=method)

    contestants = {
        "nothing": lambda jpeg: tf.zeros([1, 1, 3], tf.uint8),
        "fast_dct": by_dct("INTEGER_FAST"),
        "accurate_dct": by_dct("INTEGER_ACCURATE"),
        "reader": image_graph.decode,
        "part_by_reader": lambda jpeg: image_graph.decode(jpeg, lambda *_: tf.constant(half)),
        "part_without_rim": lambda jpeg: tf.image.decode_and_crop_jpeg(
            jpeg, half, channels=3, dct_method="INTEGER_ACCURATE"
        ),
        "crop": lambda jpeg: random_crop(jpeg, draws, SIZE, AREA),
    }
    times = {name: [] for name in contestants}
    iterators = {name: iter(one_by_one(jpegs, decode)) for name, decode in contestants.items()}
    for pixels in iterators.values():
        next(pixels)  # traces
    wait_until_idle()
    for _ in range(5):
        for name, pixels in iterators.items():
            started = time.process_time()
            next(pixels)
            times[name].append((time.process_time() - started) / len(jpegs))
    for name, measured in times.items():
        value = 1e6 * statistics.median(measured)
        print_figure(f"input/decode/{name}", value, "us/image", better="lower")


def one_by_one(jpegs: list[bytes], decode: Callable[[tf.Tensor], tf.Tensor]) -> tf.data.Dataset:
    """One pixel of every image, all in one batch; nothing is done in advance."""
    options = tf.data.Options()
    options.threading.private_threadpool_size = 1
    options.threading.max_intra_op_parallelism = 1
    options.experimental_optimization.apply_default_optimizations = False
    options.autotune.enabled = False
    pixels = (
        tf.data.Dataset.from_tensor_slices(jpegs)
        .repeat()
        .map(lambda jpeg: tf.reduce_max(decode(jpeg)[0, 0]))
    )
    return pixels.batch(len(jpegs)).with_options(options)


def photographs(count: int) -> list[bytes]:
    """JPEGs of 15 to 30 kB, as photographs of this size have: smooth areas, edges and grain."""
    rng = np.random.default_rng(0)
    files = []
    for _ in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8))
        pixels = np.asarray(coarse.resize((STORED, STORED), Image.BICUBIC), np.float32)
        pixels += rng.normal(0, 6, pixels.shape)
        buffer = io.BytesIO()
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
        files.append(buffer.getvalue())
    return files


def write_dataset(folder: epath.Path, jpegs: list[bytes]) -> None:
    """The corpus, and annotations of 8 concepts in 4 clusters each."""
    features = tfds.features
    tokens = [49406, *Tokenizer().encode("a photo of a red car under a blue sky"), 49407]
    ids = features.Tensor(shape=(None,), dtype=np.int32)
    count = SHARDS * RECORDS_PER_SHARD
    examples = (
        {"key": f"{i:06d}", "image": jpegs[i % len(jpegs)], "caption_tokens": tokens}
        for i in range(count)
    )
    write(
        folder / "corpus",
        {"key": features.Text(), "image": features.Image(), "caption_tokens": ids},
        examples,
        {"gallery": GALLERY},
    )
    scores = features.Tensor(shape=(None,), dtype=np.float32)
    annotation = {
        "concepts": np.arange(8, dtype=np.int32) % len(GALLERY),
        "scores": np.linspace(2, 1, 8, dtype=np.float32),
        "clusters": np.arange(8, dtype=np.int32) // 2,
    }
    fingerprint = open_corpus(str(folder / "corpus"), "train").fingerprint
    write(
        folder / "annotations",
        {"key": features.Text(), "concepts": ids, "scores": scores, "clusters": ids},
        ({"key": f"{i:06d}"} | annotation for i in range(count)),
        {"gallery": GALLERY, "corpus": fingerprint},
    )


def write(folder: epath.Path, features: dict, examples: Iterator[dict], metadata: dict) -> None:
    """One TFDS dataset with a split `train`, in the given order."""
    info = tfds.core.DatasetInfo(
        builder=tfds.core.dataset_info.DatasetIdentity(
            name=folder.name, version="1.0.0", data_dir=str(folder), module_name="benchmark"
        ),
        features=tfds.features.FeaturesDict(features),
        metadata=tfds.core.MetadataDict(metadata),
    )
    folder.mkdir()
    writer = tfds.core.SequentialWriter(info, max_examples_per_shard=RECORDS_PER_SHARD)
    writer.initialize_splits(["train"])
    for example in examples:
        writer.add_examples({"train": [example]})
    writer.close_all()


def bare(jpegs: list[bytes], batch: int) -> Iterator:
    """Decodes a random part and resizes it, with windows drawn beforehand; nothing else."""
    rng = np.random.default_rng(0)
    draws = rng.random((len(jpegs), NUM_DRAWS - 1), np.float32)
    windows = tf.map_fn(lambda row: crop_window(STORED, STORED, row, AREA), draws, tf.int32)

    def decode(jpeg, window):
        part = tf.image.decode_and_crop_jpeg(
            jpeg, window, channels=3, dct_method="INTEGER_ACCURATE"
        )
        resized = tf.image.resize(tf.cast(part, tf.float32), [SIZE, SIZE])
        return tf.cast(resized + 0.5, tf.uint8)

    source = tf.data.Dataset.from_tensor_slices((jpegs, windows)).repeat()
    images = source.map(decode, num_parallel_calls=tf.data.AUTOTUNE)
    return images.batch(batch).prefetch(2).as_numpy_iterator()


def pipeline(folder: str, batch: int, augment: str, start_step: int = 0) -> Iterator:
    """The whole input of one process."""
    corpus = dict(directory=f"{folder}/corpus", split="train", annotations=f"{folder}/annotations")
    data = ml_collections.ConfigDict(
        dict(corpora=(corpus,), concepts="cluster", augment=augment, image_size=SIZE, lanes=LANES)
    )
    return train_batches(data, batch, seed=0, start_step=start_step)


def race(contestants: dict[str, Iterator], options) -> dict[str, list[Rate]]:
    """Rates of every contestant, in turns."""
    rates = {name: [] for name in contestants}
    for batches in contestants.values():
        next(batches)  # traces and compiles
    for _ in range(options.rounds):
        for name, batches in contestants.items():
            rates[name].append(timed(batches, options.steps, options.batch))
    return rates


def timed(batches: Iterator, steps: int, batch: int) -> Rate:
    """Rate of `steps` batches, once other contestants' buffers are full and its own are empty."""
    wait_until_idle()
    for _ in range(16):
        next(batches)
    wall, core = time.perf_counter(), time.process_time()
    for _ in range(steps):
        next(batches)
    images = steps * batch
    return Rate(images / (time.perf_counter() - wall), images / (time.process_time() - core))


def wait_until_idle() -> None:
    """Returns when the threads of this process have stopped working."""
    used = -math.inf
    while time.process_time() - used > 0.01:
        used = time.process_time()
        time.sleep(0.2)


def report(rates: dict[str, list[Rate]]) -> None:
    """Rates, shares of the bare rate, and the cores that a TPU v5e chip needs."""

    def median(value: Callable[[int], float]) -> float:
        return statistics.median(value(round) for round in range(len(rates["bare"])))

    for name, measured in rates.items():
        core = median(lambda i, measured=measured: measured[i].core)
        print_figure(f"input/{name}/images_per_second_per_core", core, "images/s")
        wall = median(lambda i, measured=measured: measured[i].wall)
        print_figure(f"input/{name}/images_per_second", wall, "images/s")
        if name == "bare":
            continue
        for clock in ("wall", "core"):
            share = median(
                lambda i, measured=measured, clock=clock: (
                    getattr(measured[i], clock) / getattr(rates["bare"][i], clock)
                )
            )
            print_figure(f"input/{name}/share_of_bare_{clock}", share, "ratio", goal=0.6)
        print_figure(
            f"input/{name}/cores_per_v5e_chip",
            V5E_IMAGES_PER_SECOND / core,
            "cores",
            better="lower",
        )


def resume(folder: str, batch: int) -> None:
    """Time to the first batch of a run that starts, and of one that resumes far on."""
    for step in (0, 10**6):
        started = time.perf_counter()
        next(pipeline(folder, batch, "full", step))
        print_figure(
            f"input/first_batch_at_step_{step}", time.perf_counter() - started, "s", 10.0, "lower"
        )


if __name__ == "__main__":
    main()
