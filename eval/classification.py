"""Zero-shot classification: the class whose text feature is most similar to the image feature."""

import collections
import dataclasses
import functools
from collections.abc import Callable, Iterator

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
from cocu_jax.input.corpus import Corpus, parse_example
from cocu_jax.input.resampling import resize_and_cut
from cocu_jax.models.clip import CLIP
from cocu_jax.models.losses import normalize
from cocu_jax.models.tokenizer import Tokenizer
from cocu_jax.models.weights.image_processing import ImageProcessing
from cocu_jax.progress import progress_bar
from cocu_jax.stopping import Stopped
from eval.class_embeddings import embed_classes
from eval.images import own_records, report_damage
from eval.partial import PartialCounts
from eval.segmenter import local_mesh, replicate

_TOP = 5
_AGAIN = "run the same command again"


@dataclasses.dataclass(frozen=True)
class ClassificationResult:
    """Top-1 and top-5 accuracy.

    Attributes:
        top1: share of images whose true class scores best, 0..1.
        top5: share of images whose true class is among the best five, 0..1.
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
    stop: Callable[[int], bool] | None = None,
    partial: PartialCounts | None = None,
) -> ClassificationResult:
    """Evaluates a model on a classification dataset, on all devices of all processes.

    Args:
        model: a GroupViT or a CLIP.
        corpus: the dataset, see `data_prep.imagenet`.
        processing: image size, mean and deviation of the model. Images are resized and cropped as
            published, see `prepare_image`.
        tokenizer: the tokenizer.
        templates: one of `protocol.TEMPLATE_SETS`.
        images_per_device: batch size of each device.
        limit: evaluate only the first `limit` images.
        title: title of the progress bar.
        stop: called with the number of images just finished; returns whether to stop. All
            processes call it for the same total number of images, so that they can agree on where
            to stop (`cocu_jax.agreement`).
        partial: stores intermediate counts, and loads those of an interrupted run; None: neither.

    Raises:
        UserError: the dataset has no labels, or an image cannot be read.
        Stopped: `stop` returned True.
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
    class_embeddings = embed_classes(
        nnx.merge(graphdef, state),
        classes,
        templates,
        tokenizer,
        unit_prompts=isinstance(model, CLIP),
    )
    statistics = np.array([processing.mean, processing.std], np.float32) * 255
    class_embeddings, statistics = replicate((class_embeddings, statistics), mesh)
    batch_size = images_per_device * mesh.size
    index, processes = jax.process_index(), jax.process_count()
    num_images = min(corpus.num_examples, limit or corpus.num_examples)
    counts = _Counts(num_images, partial)
    # Every process reports this many images to `stop`, even if its own share is one fewer.
    largest_share, own_share = (len(range(first, num_images, processes)) for first in (0, index))
    skip, reported = np.flatnonzero(counts.done), 0
    with progress_bar(title, own_share, "images", done=len(skip)) as bar:
        batches = _read_batches(corpus, processing, batch_size, index, processes, limit, skip)
        for *batch, positions in batches:
            images, labels = jax.device_put(batch, NamedSharding(mesh, P("data")))
            hits = _count_hits(
                state, class_embeddings, statistics, images, labels, graphdef=graphdef
            )
            counts.add(hits, positions)
            reported += len(positions)
            bar.update(len(positions))
            if stop and stop(len(positions)):
                raise Stopped(f"{title}: stopped after {counts.save()} images; {_AGAIN}")
    if processes > 1 and stop and stop(largest_share - reported):
        raise Stopped(f"{title}: stopped after {counts.save()} images; {_AGAIN}")
    counts.save()
    sums = np.array([*counts.hits, counts.done.sum()], np.int32)
    if processes > 1:
        sums = np.asarray(multihost_utils.process_allgather(sums)).sum(0)
    top1, top5, images = (int(number) for number in sums)
    return ClassificationResult(top1 / max(images, 1), top5 / max(images, 1), images)


class _Counts:
    """Sums the hits of this process, and saves the sums.

    Args:
        images: number of images that all processes evaluate together.
        partial: stores the sums; None: they are not stored.
    """

    def __init__(self, images: int, partial: PartialCounts | None):
        self.hits, self.done = np.zeros(2, np.int64), np.zeros(images, bool)
        if partial:
            self.hits, self.done = partial.load((2,), images)
        self._partial, self._waiting = partial, collections.deque()

    def add(self, hits: Int[Array, "2"], positions: Int[np.ndarray, "n"]) -> None:
        """Adds a batch, without waiting for the devices to compute it."""
        self._waiting.append((hits, positions))
        if len(self._waiting) > 2:
            self._collect_one()
            if self._partial:
                self._partial.save(self.hits, self.done)

    def save(self) -> int:
        """Waits for all batches and saves the sums; returns the number of images."""
        while self._waiting:
            self._collect_one()
        if self._partial:
            self._partial.save(self.hits, self.done, at_once=True)
        return int(self.done.sum())

    def _collect_one(self) -> None:
        hits, positions = self._waiting.popleft()
        self.hits += np.asarray(hits)
        self.done[positions] = True


@functools.partial(jax.jit, static_argnames="graphdef")
def _count_hits(
    state: nnx.State,
    class_embeddings: Float[Array, "c p"],
    statistics: Float[Array, "2 3"],
    images: UInt8[Array, "b s s 3"],
    labels: Int[Array, "b"],
    *,
    graphdef: nnx.GraphDef,
) -> Int[Array, "2"]:
    """Numbers of images with a top-1 and with a top-5 hit; images with label -1 are padding."""
    model = nnx.merge(graphdef, state)
    pixels = (images.astype(jnp.float32) - statistics[0]) / statistics[1]
    encoded = model.encode_image(pixels)
    feature = normalize(encoded if isinstance(model, CLIP) else encoded.feature)
    with jax.default_matmul_precision("highest"):
        similarity = feature @ class_embeddings.T
    _, best = jax.lax.top_k(similarity, min(_TOP, class_embeddings.shape[0]))
    hits = best == labels[:, None]
    return jnp.stack([hits[:, 0].sum(), hits.any(1).sum()])


def _read_batches(
    corpus: Corpus,
    processing: ImageProcessing,
    batch_size: int,
    index: int,
    processes: int,
    limit: int | None,
    skip: Int[np.ndarray, "n"],
) -> Iterator[tuple[np.ndarray, ...]]:
    """Images [b, s, s, 3] and labels [b] of this process, and their positions in the corpus.

    The last batch is padded with images of label -1, which have no position.
    """
    records = own_records(corpus, index, processes, limit, skip)

    def decode(position, record):
        example = parse_example(corpus.features, record, decode_images=True)
        return prepare_image(example["image"], processing.size), example["label"], position

    examples = records.map(decode, num_parallel_calls=tf.data.AUTOTUNE)
    batches = examples.batch(batch_size).prefetch(tf.data.AUTOTUNE)
    for images, labels, positions in report_damage(batches.as_numpy_iterator(), corpus):
        missing = batch_size - len(labels)
        images = np.pad(images, ((0, missing), *((0, 0),) * 3))
        yield images, np.pad(labels, (0, missing), constant_values=-1), positions


def prepare_image(image: UInt8[tf.Tensor, "h w 3"], size: int) -> UInt8[tf.Tensor, "s s 3"]:
    """Resizes an image and crops the centre, as published, with the rounding of torchvision.

    For a model of 224 pixels, the short side becomes 256 (bilinear, with anti-aliasing); for other
    models, it is in proportion. The long side is rounded down. A margin that ends in half a pixel
    is rounded to the even number.

    Args:
        image: the image.
        size: side s of the square input of the model.
    """
    shape = tf.cast(tf.shape(image)[:2], tf.int64)
    resized = size * 256 // 224 * shape // tf.reduce_min(shape)
    corner = tf.cast(tf.round((resized - size) / 2), tf.int64)
    return resize_and_cut(image, resized, corner, size, "bilinear")
