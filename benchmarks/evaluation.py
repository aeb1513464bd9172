"""Zero-shot segmentation against the per-image torch oracle: `python -m benchmarks.evaluation`.

Both do the same work on the same cores in the same run: GroupViT-S in float32 on decoded, resized
images, up to the confusion matrix. They take turns, the median counts. One JSON line per figure.

`--memory` evaluates a dataset of VOC's size instead (a narrow model, so that it takes minutes) and
reports the largest memory of the process.
"""

import argparse
import json
import resource
import statistics
import tempfile
import time

import numpy as np
from transformers import GroupViTModel

from benchmarks.segmentation_oracle import PerImageSegmenter  # torch before TensorFlow

import jax  # isort: skip
import tensorflow as tf
import tensorflow_datasets as tfds
from flax import nnx

from cocu_jax.input.corpus import Corpus
from cocu_jax.models.groupvit import GroupViT, GroupViTConfig
from cocu_jax.models.tokenizer import Tokenizer
from cocu_jax.models.weights.huggingface import save_groupvit
from eval.batches import LabelledImage, batch_images
from eval.benchmarks import get_benchmark
from eval.segmentation import evaluate_segmentation
from eval.segmenter import Segmenter, make_segmenter

# Benchmark -> original sizes of the images to evaluate.
_SIZES = {
    "voc": [(375, 500), (500, 375), (333, 500), (375, 500)],
    "imagenet_s_300": [(375, 500), (500, 375), (480, 640), (375, 500)],
    "ade20k": [(512, 683), (683, 512)],
    "coco_stuff": [(480, 640), (640, 480)],
    "cityscapes": [(1024, 2048)],
}


def main() -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--benchmarks", nargs="+", default=list(_SIZES), choices=list(_SIZES))
    parser.add_argument("--memory", action="store_true")
    options = parser.parse_args()
    if options.memory:
        return measure_memory()
    model, theirs = make_models()
    for name in options.benchmarks:
        race(name, model, theirs, options.repeats)


def make_models() -> tuple[GroupViT, GroupViTModel]:
    """GroupViT-S, and the same in transformers; weights large enough for groups to differ."""
    config = GroupViTConfig(dense_init_std=0.05, assign_init_std=0.1, group_token_init_std=1.0)
    model = GroupViT(config, rngs=nnx.Rngs(0))
    with tempfile.TemporaryDirectory() as folder:
        save_groupvit(model, f"{folder}/groupvit")
        return model, GroupViTModel.from_pretrained(f"{folder}/groupvit")


def race(name: str, model: GroupViT, theirs: GroupViTModel, repeats: int) -> None:
    """Times one benchmark's images both ways and compares the labels."""
    benchmark = get_benchmark(name)
    protocol, classes = benchmark.protocol, len(benchmark.classes)
    named = benchmark.classes[1:] if protocol.has_background else benchmark.classes
    tokens = Tokenizer()([f"a photo of a {name}." for name in named])
    oracle = PerImageSegmenter(theirs, tokens, protocol.crop, protocol.stride, protocol.bg_thresh)
    segmenter = make_segmenter(model, benchmark.classes, protocol, Tokenizer())
    rng = np.random.default_rng(0)
    images = []
    for number, size in enumerate(_SIZES[name]):
        blocks = rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)
        resized = tf.image.resize(blocks, protocol.resized(*size)).numpy().astype(np.uint8)
        labels = rng.integers(0, classes, size, dtype=np.uint16)
        images.append(LabelledImage(str(number), resized, labels))

    def run_oracle() -> np.ndarray:
        matrix = np.zeros(classes * classes, np.int64)
        for image in images:
            labels = oracle(image.image, image.labels.shape)
            matrix += np.bincount(
                (image.labels.astype(np.int64) * classes + labels).reshape(-1), minlength=classes**2
            )
        return matrix.reshape(classes, classes)

    seconds = {"ours": [], "oracle": [], "model": []}
    ours, expected = count_images(segmenter, images), run_oracle()  # compiles and warms up
    for _ in range(repeats):
        seconds["ours"].append(timed(count_images, segmenter, images))
        seconds["model"].append(timed(read_images_only, segmenter, images))
        seconds["oracle"].append(timed(run_oracle))
    median = {key: statistics.median(values) for key, values in seconds.items()}
    emit(f"evaluation/{name}/images_per_second", len(images) / median["ours"], "images/s")
    emit(f"evaluation/{name}/speedup_over_torch", median["oracle"] / median["ours"], "ratio", 2.0)
    outside = 1 - median["model"] / median["ours"]
    emit(f"evaluation/{name}/share_outside_model", outside, "share", better="lower")
    differing = np.abs(ours - expected).sum() / 2 / expected.sum()
    emit(f"evaluation/{name}/differing_counts", differing, "share", 0.001, better="lower")


def count_images(segmenter: Segmenter, images: list[LabelledImage]) -> np.ndarray:
    """The whole evaluation of images in memory."""
    batches = batch_images(iter(images), segmenter.protocol, segmenter.rows)
    return sum(np.asarray(segmenter.count(batch, segmenter.read(batch))) for batch in batches)[0]


def read_images_only(segmenter: Segmenter, images: list[LabelledImage]) -> None:
    """Only the model's program, on all windows."""
    for batch in batch_images(iter(images), segmenter.protocol, segmenter.rows):
        jax.block_until_ready(segmenter.read(batch))


def timed(function, *arguments) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - start


def measure_memory() -> None:
    """Evaluates 1,449 generated images of VOC's sizes."""
    benchmark = get_benchmark("voc")
    config = GroupViTConfig(width=48, heads=2, depths=(1, 1, 1), projection_hidden=64)
    model = GroupViT(config, rngs=nnx.Rngs(0))
    features = tfds.features.FeaturesDict(
        {
            "key": tfds.features.Text(),
            "image": tfds.features.Image(encoding_format="jpeg"),
            "segmentation": tfds.features.Image(shape=(None, None, 1), encoding_format="png"),
        }
    )
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        file = f"{folder}/validation.tfrecord"
        with tf.io.TFRecordWriter(file) as writer:
            for number in range(benchmark.split_size):
                size = (375, 500) if number % 4 else (500, 375 - number % 50)
                example = {
                    "key": str(number),
                    "image": rng.integers(0, 255, (*size, 3), dtype=np.uint8),
                    "segmentation": rng.integers(0, 21, (*size, 1), dtype=np.uint8),
                }
                encoded = features.encode_example(example)
                writer.write(features.serialize_example(encoded))
        metadata = {"classes": benchmark.classes, "has_background": True, "ignore_label": 255}
        sizes = (benchmark.split_size,)
        corpus = Corpus(folder, "validation", features, metadata, (file,), sizes, "generated")
        start = time.perf_counter()
        result = evaluate_segmentation(model, corpus, benchmark.protocol, Tokenizer())
        seconds = time.perf_counter() - start
    assert result.images == benchmark.split_size
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    emit("evaluation/voc_sized_peak_memory", peak, "GiB", 4.0, better="lower")
    emit("evaluation/voc_sized_narrow_model", result.images / seconds, "images/s")


def emit(
    metric: str, value: float, unit: str, goal: float | None = None, better: str = "higher"
) -> None:
    """One JSON line."""
    line = {"metric": metric, "value": round(float(value), 6), "unit": unit}
    print(json.dumps(line | {"goal": goal, "better": better}), flush=True)


if __name__ == "__main__":
    main()
