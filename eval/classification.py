"""Zero-shot classification: which class's text is nearest to the image."""

import dataclasses
import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import tensorflow as tf
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int, UInt8

from cocu_jax.errors import UserError
from cocu_jax.input.corpus import Corpus
from cocu_jax.models.losses import normalize
from cocu_jax.models.tokenizer import Tokenizer
from cocu_jax.models.weights.image_processing import ImageProcessing
from cocu_jax.progress import progress_bar
from cocu_jax.stopping import Stopped, StopRequest
from eval.class_embeddings import embed_classes
from eval.segmenter import local_mesh, replicate

_TOP = 5


@dataclasses.dataclass(frozen=True)
class ClassificationResult:
    """How often the true class was first, or among the first five.

    Attributes:
        top1: share of images, 0..1.
        top5: share of images, 0..1.
        images: number of images.
    """

    top1: float
    top5: float
    images: int


def evaluate_classification(
    model: nnx.Module,
    corpus: Corpus,
    processing: ImageProcessing,
    tokenizer: Tokenizer,
    *,
    templates: str = "subset",
    images_per_device: int = 32,
    limit: int | None = None,
    title: str = "Zero-shot classification",
    stop: StopRequest | None = None,
) -> ClassificationResult:
    """Evaluates a GroupViT on a classification dataset, on all devices of all processes.

    Args:
        model: the model.
        corpus: the dataset, see `data_prep.imagenet`.
        processing: how images are prepared; pixels outside the centre square are cut off.
        tokenizer: the tokenizer.
        templates: "simple", "subset" or "full".
        images_per_device: batch size of each device.
        limit: only the first so many images.
        title: of the progress bar.
        stop: asks between batches whether to stop.

    Raises:
        UserError: the dataset has no labels.
        Stopped: on request.
    """
    if "label" not in corpus.features or "classes" not in corpus.metadata:
        raise UserError(
            f"{corpus.directory}: not a classification dataset; "
            "prepare one with: python -m data_prep imagenet --help"
        )
    mesh = local_mesh()
    graphdef, state = nnx.split(model)
    state = replicate(state, mesh)
    classes = tuple(corpus.metadata["classes"])
    texts = embed_classes(nnx.merge(graphdef, state), classes, templates, tokenizer)
    statistics = np.array([processing.mean, processing.std], np.float32) * 255
    texts, statistics = replicate((texts, statistics), mesh)
    rows = images_per_device * mesh.size
    index, processes = jax.process_index(), jax.process_count()
    counts, done = np.zeros(2, np.int64), 0
    mine = len(range(index, min(corpus.num_examples, limit or corpus.num_examples), processes))
    with progress_bar(title, mine, "images") as bar:
        for batch in _read_batches(corpus, processing, rows, index, processes, limit):
            if stop and stop.requested:
                raise Stopped(f"{title}: stopped after {done} images; run the same command again")
            images, labels = jax.device_put(batch, NamedSharding(mesh, P("data")))
            hits = _count_hits(state, texts, statistics, images, labels, graphdef=graphdef)
            counts += np.asarray(hits)
            members = int((batch[1] >= 0).sum())
            done += members
            bar.update(members)
    sums = np.array([*counts, done], np.int32)
    if processes > 1:
        sums = np.asarray(multihost_utils.process_allgather(sums)).sum(0)
    first, among, images = (int(number) for number in sums)
    return ClassificationResult(first / max(images, 1), among / max(images, 1), images)


@functools.partial(jax.jit, static_argnames="graphdef")
def _count_hits(
    state: nnx.State,
    texts: Float[Array, "c p"],
    statistics: Float[Array, "2 3"],
    images: UInt8[Array, "b s s 3"],
    labels: Int[Array, "b"],
    *,
    graphdef: nnx.GraphDef,
) -> Int[Array, "2"]:
    """Images whose class is first, and among the first five; rows of label -1 count nothing."""
    model = nnx.merge(graphdef, state)
    pixels = (images.astype(jnp.float32) - statistics[0]) / statistics[1]
    feature = normalize(model.encode_image(pixels).feature)
    with jax.default_matmul_precision("highest"):
        similarity = feature @ texts.T
    _, best = jax.lax.top_k(similarity, min(_TOP, texts.shape[0]))
    hits = best == labels[:, None]
    return jnp.stack([hits[:, 0].sum(), hits.any(1).sum()])


def _read_batches(
    corpus: Corpus,
    processing: ImageProcessing,
    rows: int,
    index: int,
    processes: int,
    limit: int | None,
) -> Iterator[tuple[UInt8[np.ndarray, "b s s 3"], Int[np.ndarray, "b"]]]:
    """This process's images and labels; the last batch is filled up with label -1."""
    records = tf.data.TFRecordDataset(list(corpus.shard_files))
    records = records.take(limit or -1).shard(processes, index)

    def decode(record):
        example = corpus.features.deserialize_example(record)
        return prepare_image(example["image"], processing), example["label"]

    examples = records.map(decode, num_parallel_calls=tf.data.AUTOTUNE)
    batches = examples.batch(rows).prefetch(tf.data.AUTOTUNE)
    for images, labels in batches.as_numpy_iterator():
        missing = rows - len(labels)
        images = np.pad(images, ((0, missing), *((0, 0),) * 3))
        yield images, np.pad(labels, (0, missing), constant_values=-1)


def prepare_image(image: tf.Tensor, processing: ImageProcessing) -> tf.Tensor:
    """Resizes (smoothing, as Pillow does) and cuts out the centre, uint8."""
    size = processing.size
    height, width = tf.unstack(tf.cast(tf.shape(image)[:2], tf.float64))
    if processing.keep_aspect:
        scale = size / tf.minimum(height, width)
        target = tf.stack([tf.maximum(side * scale, size) for side in (height, width)])
        target = tf.cast(target, tf.int32)
    else:
        target = tf.constant([size, size])
    resized = tf.image.resize(image, target, processing.resample, antialias=True)
    top, left = tf.unstack((target - size) // 2)
    cut = resized[top : top + size, left : left + size]
    cut.set_shape((size, size, 3))
    return tf.cast(tf.clip_by_value(tf.round(cut), 0, 255), tf.uint8)
