"""Zero-shot classification: which class's text is nearest to the image."""

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
from eval.images import name_damage, own_records
from eval.partial import PartialCounts
from eval.segmenter import local_mesh, replicate

_TOP = 5
_AGAIN = "run the same command again"


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
    stop: Callable[[int], bool] | None = None,
    partial: PartialCounts | None = None,
) -> ClassificationResult:
    """Evaluates a model on a classification dataset, on all devices of all processes.

    Args:
        model: a GroupViT or a CLIP.
        corpus: the dataset, see `data_prep.imagenet`.
        processing: for the model's size, mean and deviation; images are prepared as published, see
            `prepare_image`.
        tokenizer: the tokenizer.
        templates: "simple", "subset" or "full".
        images_per_device: batch size of each device.
        limit: only the first so many images.
        title: of the progress bar.
        stop: (images) -> whether to stop, asked with the number of images just finished. Several
            processes ask for the same number in all, so that they can agree on where to stop
            (`cocu_jax.agreement`).
        partial: where counts are kept now and then, and taken up again; None keeps none.

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
    texts = embed_classes(
        nnx.merge(graphdef, state),
        classes,
        templates,
        tokenizer,
        unit_prompts=isinstance(model, CLIP),
    )
    statistics = np.array([processing.mean, processing.std], np.float32) * 255
    texts, statistics = replicate((texts, statistics), mesh)
    rows = images_per_device * mesh.size
    index, processes = jax.process_index(), jax.process_count()
    images_in_all = min(corpus.num_examples, limit or corpus.num_examples)
    counts = _Counts(images_in_all, partial)
    share, mine = (len(range(first, images_in_all, processes)) for first in (0, index))
    skip, asked = np.flatnonzero(counts.done), 0
    with progress_bar(title, mine, "images", done=len(skip)) as bar:
        batches = _read_batches(corpus, processing, rows, index, processes, limit, skip)
        for *batch, places in batches:
            images, labels = jax.device_put(batch, NamedSharding(mesh, P("data")))
            hits = _count_hits(state, texts, statistics, images, labels, graphdef=graphdef)
            counts.add(hits, places)
            asked += len(places)
            bar.update(len(places))
            if stop and stop(len(places)):
                raise Stopped(f"{title}: stopped after {counts.keep()} images; {_AGAIN}")
    if processes > 1 and stop and stop(share - asked):
        raise Stopped(f"{title}: stopped after {counts.keep()} images; {_AGAIN}")
    counts.keep()
    sums = np.array([*counts.hits, counts.done.sum()], np.int32)
    if processes > 1:
        sums = np.asarray(multihost_utils.process_allgather(sums)).sum(0)
    first, among, images = (int(number) for number in sums)
    return ClassificationResult(first / max(images, 1), among / max(images, 1), images)


class _Counts:
    """Hits of this process: on their way from the devices, added up, kept.

    Args:
        images: images of the corpus that are evaluated, by all processes.
        partial: where they are kept; None keeps nothing.
    """

    def __init__(self, images: int, partial: PartialCounts | None):
        self.hits, self.done = np.zeros(2, np.int64), np.zeros(images, bool)
        if partial:
            self.hits, self.done = partial.load((2,), images)
        self._partial, self._waiting = partial, collections.deque()

    def add(self, hits: Int[Array, "2"], places: Int[np.ndarray, "n"]) -> None:
        """Adds a batch; the host prepares the next ones while the devices work."""
        self._waiting.append((hits, places))
        if len(self._waiting) > 2:
            self._take_one()
            if self._partial:
                self._partial.save(self.hits, self.done)

    def keep(self) -> int:
        """Waits for all batches and saves them; returns the number of images."""
        while self._waiting:
            self._take_one()
        if self._partial:
            self._partial.save(self.hits, self.done, at_once=True)
        return int(self.done.sum())

    def _take_one(self) -> None:
        hits, places = self._waiting.popleft()
        self.hits += np.asarray(hits)
        self.done[places] = True


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
    encoded = model.encode_image(pixels)
    feature = normalize(encoded if isinstance(model, CLIP) else encoded.feature)
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
    skip: Int[np.ndarray, "n"],
) -> Iterator[tuple[np.ndarray, ...]]:
    """This process's images and labels, and the images' places in the corpus.

    The last batch's images [b, s, s, 3] and labels [b] are filled up, with label -1.
    """
    records = own_records(corpus, index, processes, limit, skip)

    def decode(place, record):
        example = parse_example(corpus.features, record, decode_images=True)
        return prepare_image(example["image"], processing.size), example["label"], place

    examples = records.map(decode, num_parallel_calls=tf.data.AUTOTUNE)
    batches = examples.batch(rows).prefetch(tf.data.AUTOTUNE)
    for images, labels, places in name_damage(batches.as_numpy_iterator(), corpus):
        missing = rows - len(labels)
        images = np.pad(images, ((0, missing), *((0, 0),) * 3))
        yield images, np.pad(labels, (0, missing), constant_values=-1), places


def prepare_image(image: UInt8[tf.Tensor, "h w 3"], size: int) -> UInt8[tf.Tensor, "s s 3"]:
    """Resizes and cuts out the centre, as published and as torchvision rounds.

    The short side becomes 256 where the model sees 224 (bilinear, smoothed), and in proportion for
    other models. Sides are cut down to whole pixels; half a pixel of the margin goes to the even
    number.

    Args:
        image: the image.
        size: side s of the square that the model sees.
    """
    shape = tf.cast(tf.shape(image)[:2], tf.int64)
    resized = size * 256 // 224 * shape // tf.reduce_min(shape)
    corner = tf.cast(tf.round((resized - size) / 2), tf.int64)
    return resize_and_cut(image, resized, corner, size, "bilinear")
