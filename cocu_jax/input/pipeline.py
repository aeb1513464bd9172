"""Batches for pre-training. The batch of a step is a function of (corpora, config, seed, step).

Nothing about the pipeline has to be saved: start it at any step, on any number of processes that
divides the lanes, and it goes on with the very bits of a run that was never stopped. `order` says
how that place is found, `draws` where randomness comes from.
"""

import dataclasses
import math
from collections.abc import Iterator

import ml_collections
import numpy as np
import tensorflow as tf

from cocu_jax.errors import UserError
from cocu_jax.input import concepts as sampling
from cocu_jax.input import crop
from cocu_jax.input.annotations import open_annotations
from cocu_jax.input.corpus import Corpus, open_corpus
from cocu_jax.input.draws import example_streams, uniforms
from cocu_jax.input.mixture import Mixture, mix_corpora
from cocu_jax.input.order import Order
from cocu_jax.input.prompts import PromptTable, prompt_table, with_ends

_TEMPLATE_DRAW, _CROP_DRAW = 1, 2
CONCEPT_SOURCES = ("cluster", "top", "caption", "none")
AUGMENTATIONS = ("none", "crop", "full")


@dataclasses.dataclass(frozen=True)
class InputConfig:
    """What a batch is made of; the fields of `config.data`.

    Attributes:
        corpora: mappings with `directory`, `split`, optional `annotations` (sidecar directory) and
            optional `weight` (relative share; by default the number of examples).
        concepts: where prompts come from: "cluster" and "top" need annotations, "caption" takes the
            gallery concepts of the caption, "none" makes no prompts.
        prompts: prompts per image.
        prompt_length: positions of a prompt. Every prompt of the gallery must fit; where a sample
            has too few concepts its caption stands in and is cut to this length, end token kept.
        caption_length: positions of a caption.
        image_size: side of the images in pixels.
        augment: "none" (resize only), "crop" (random resized crop and flip) or "full" (also
            RandAugment and random erasing).
        crop_area: smallest and largest share of the image that a crop takes.
        mean, std: normalisation, applied on the device by `augment.device_augment`.
        lanes: virtual readers of all processes together; the greatest common divisor with the batch
            size is used. More processes than that cannot share the reading.
        window: raw records per lane and corpus that are permuted among each other.
    """

    corpora: tuple
    concepts: str = "cluster"
    prompts: int = 3
    prompt_length: int = 32
    caption_length: int = 77
    image_size: int = 224
    augment: str = "full"
    crop_area: tuple[float, float] = (0.08, 1.0)
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    lanes: int = 64
    window: int = 128

    def __post_init__(self):
        if self.concepts not in CONCEPT_SOURCES:
            raise UserError(
                f"data.concepts={self.concepts!r}: choose one of {', '.join(CONCEPT_SOURCES)}"
            )
        if self.augment not in AUGMENTATIONS:
            raise UserError(
                f"data.augment={self.augment!r}: choose one of {', '.join(AUGMENTATIONS)}"
            )
        if not self.corpora:
            raise UserError("data.corpora is empty; name at least one corpus (directory and split)")


def train_batches(
    data: ml_collections.ConfigDict,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    with_keys: bool = False,
) -> Iterator[dict[str, np.ndarray]]:
    """This process's rows of the global batches from `start_step` on, without end.

    The rows of process p of P are rows `p B / P` to `(p + 1) B / P` of the global batch.

    Args:
        data: the fields of `InputConfig`.
        batch_size: rows B of the global batch.
        seed: of order, concepts, templates and augmentation.
        start_step: step of the first batch.
        process_index: this process.
        process_count: processes that share every batch; it must divide the lanes.
        with_keys: also yield the examples' keys.

    Yields:
        `image` uint8 [b, S, S, 3] (for `augment.device_augment`), `caption` int32 [b, caption_length],
        unless `concepts="none"` `prompts` int32 [b, prompts, prompt_length], and on request `key`
        bytes [b].

    Raises:
        UserError: the config or the data it names cannot be used.
    """
    config = InputConfig(**data)
    sources = tuple(_open_source(source, config) for source in config.corpora)
    lanes = math.gcd(config.lanes, batch_size)
    if lanes % process_count:
        raise UserError(
            f"batch of {batch_size} in {lanes} lanes cannot be shared by {process_count} processes; "
            "choose a batch size and data.lanes that are multiples of the number of processes"
        )
    orders = tuple(
        _order(index, source, seed, lanes, config.window) for index, source in enumerate(sources)
    )
    mixture = mix_corpora(orders, tuple(spec.get("weight") for spec in config.corpora))
    own = lanes // process_count
    records = _records(mixture, start_step, batch_size // lanes, process_index * own, own)
    examples = _examples(records, config, sources, seed, batch_size // process_count)
    return _arrays(examples, with_keys)


def count_examples(data: ml_collections.ConfigDict) -> int:
    """Examples of one epoch: of all corpora together.

    Raises:
        UserError: a corpus cannot be opened.
    """
    return sum(open_corpus(spec.directory, spec.split).num_examples for spec in data.corpora)


@dataclasses.dataclass(frozen=True)
class _Source:
    corpus: Corpus
    annotations: Corpus | None
    gallery: tuple[str, ...]


def _open_source(spec, config: InputConfig) -> _Source:
    corpus = open_corpus(spec["directory"], spec["split"])
    features = ["key", "image", "caption_tokens"]
    if config.concepts == "caption":
        features.append("caption_concepts")
    missing = [name for name in features if name not in corpus.features]
    if missing:
        raise UserError(
            f"{corpus.directory}: lacks the feature {missing[0]!r}, not an image-text dataset; "
            "prepare it with: python -m data_prep --help"
        )
    annotations = None
    if config.concepts in ("cluster", "top"):
        if not spec.get("annotations"):
            raise UserError(
                f"{corpus.directory}: data.concepts={config.concepts!r} needs its annotations; "
                "curate it and set data.corpora[...].annotations"
            )
        annotations = open_annotations(spec["annotations"], corpus)
    gallery = (annotations or corpus).metadata.get("gallery", ())
    if config.concepts != "none" and not gallery:
        raise UserError(f"{corpus.directory}: its metadata has no gallery; prepare it again")
    return _Source(corpus, annotations, tuple(gallery))


def _order(index, source: _Source, seed: int, lanes: int, window: int) -> Order:
    if source.corpus.num_examples < lanes:
        raise UserError(
            f"{source.corpus.directory}: {source.corpus.num_examples} examples are fewer than the "
            f"{lanes} lanes; set data.lanes lower"
        )
    return Order(source.corpus, source.annotations, seed + (index << 32), lanes, window)


def _records(
    mixture: Mixture, step: int, rows: int, first_lane: int, lanes: int
) -> tf.data.Dataset:
    """Raw records of this process's lanes: `rows` of each in turn."""
    done = tf.constant(step * rows, tf.int64)
    return tf.data.Dataset.range(first_lane, first_lane + lanes).interleave(
        lambda lane: mixture.read(lane, done), cycle_length=lanes, block_length=rows
    )


def _examples(
    records: tf.data.Dataset, config: InputConfig, sources, seed: int, rows: int
) -> tf.data.Dataset:
    """Batches of finished examples: texts are made for whole batches, images one by one."""
    texts = _Texts(config, sources, seed)

    def image(image, draws, rest):
        if config.augment == "none":
            return {"image": crop.whole_image(image, config.image_size), **rest}
        picture = crop.random_crop(image, draws, config.image_size, config.crop_area)
        return {"image": picture, **rest}

    return (
        records.batch(rows, drop_remainder=True)
        .map(texts, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        .unbatch()
        .map(image, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        .batch(rows, drop_remainder=True)
        .prefetch(2)
    )


def _arrays(examples: tf.data.Dataset, with_keys: bool) -> Iterator[dict[str, np.ndarray]]:
    iterator = iter(examples)
    while True:
        try:
            batch = next(iterator)
        except tf.errors.InvalidArgumentError as error:
            raise UserError(f"reading the corpora: {error.message.splitlines()[0]}") from None
        yield {name: value.numpy() for name, value in batch.items() if with_keys or name != "key"}


class _Texts:
    """Maps raw records [b] to encoded images, draws for their crops, and finished texts."""

    def __init__(self, config: InputConfig, sources, seed: int):
        self.config = config
        self.seed = seed
        self.table: PromptTable | None = None
        if config.concepts != "none":
            galleries = tuple(dict.fromkeys(source.gallery for source in sources))
            self.table = prompt_table(
                tuple(c for gallery in galleries for c in gallery), config.prompt_length
            )
            starts = dict(zip(galleries, np.cumsum([0, *map(len, galleries)]), strict=False))
            self.first_concept = np.array([starts[source.gallery] for source in sources], np.int64)

    def __call__(self, corpus, epoch, record, annotation):
        parsed = tf.io.parse_example(record, self._spec())
        stream = example_streams(self.seed, epoch, parsed["key"])
        inner = tf.cast(parsed["caption_tokens"], tf.int32)[:, 1:-1]
        rest = {"key": parsed["key"], "caption": with_ends(inner, self.config.caption_length)}
        if self.table is not None:
            chosen = self._concepts(stream, parsed, annotation)
            offset = tf.gather(self.first_concept, corpus)[:, None]
            rest["prompts"] = self.table.tokens(
                tf.where(chosen < 0, chosen, chosen + offset),
                inner,
                uniforms(stream, _TEMPLATE_DRAW, self.config.prompts),
            )
        return parsed["image"], uniforms(stream, _CROP_DRAW, crop.NUM_DRAWS), rest

    def _concepts(self, stream, parsed, annotation):
        count = self.config.prompts
        if self.config.concepts == "caption":
            return sampling.sample_caption(stream, parsed["caption_concepts"], count)
        ranked = tf.io.parse_example(
            annotation,
            {
                "key": tf.io.FixedLenFeature([], tf.string),
                "concepts": tf.io.RaggedFeature(tf.int64),
                "scores": tf.io.RaggedFeature(tf.float32),
                "clusters": tf.io.RaggedFeature(tf.int64),
            },
        )
        same = tf.debugging.assert_equal(
            ranked["key"], parsed["key"], "annotations and images disagree about the keys"
        )
        with tf.control_dependencies([same]):
            if self.config.concepts == "top":
                return sampling.sample_top(ranked["concepts"], count)
            return sampling.sample_clusters(
                stream, ranked["concepts"], ranked["scores"], ranked["clusters"], count
            )

    def _spec(self):
        spec = {
            "key": tf.io.FixedLenFeature([], tf.string),
            "image": tf.io.FixedLenFeature([], tf.string),
            "caption_tokens": tf.io.RaggedFeature(tf.int64),
        }
        if self.config.concepts == "caption":
            spec["caption_concepts"] = tf.io.RaggedFeature(tf.int64)
        return spec
