"""Batches for pre-training. The batch of a step is a function of (corpora, config, seed, step).

The pipeline has no state to save: started at any step, on any number of processes that divides the
lanes, its batches are bit-identical to those of an uninterrupted run. `order` computes the position
in the data, `draws` the random numbers.

The stages in each process are: lanes of raw records -> texts, for many examples at once -> images,
one by one on all cores -> batches. No Python code runs per example.
"""

import math
from collections.abc import Callable, Iterator

import ml_collections
import numpy as np
import tensorflow as tf
from absl import logging

from cocu_jax.errors import UserError
from cocu_jax.input.config import InputConfig, input_config
from cocu_jax.input.corpus import open_corpus
from cocu_jax.input.image_transform import ImageTransform
from cocu_jax.input.mixture import Mixture, mix_corpora
from cocu_jax.input.offsets import open_offsets
from cocu_jax.input.order import Order
from cocu_jax.input.sources import Source, open_source
from cocu_jax.input.text_builder import TextBuilder, UndecodedExamples, make_text_builder
from cocu_jax.input.unbatch import unbatch

_TEXTS_AT_ONCE = 64
_DAMAGED = "damaged"

Batches = Iterator[dict[str, np.ndarray]]


def train_batches(
    data: ml_collections.ConfigDict,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    with_keys: bool = False,
) -> Batches:
    """This process's part of the global batches from `start_step` on, without end.

    Process p of P gets the examples `p B / P` to `(p + 1) B / P` of a global batch of B. An image
    that cannot be decoded is replaced by a black one, with a warning that gives its key.

    Args:
        data: the fields of `InputConfig`.
        batch_size: number of examples B of the global batch.
        seed: seed of order, concepts, templates and augmentation.
        start_step: step of the first batch.
        process_index: index of this process.
        process_count: number of processes that share every batch; it must divide the lanes.
        with_keys: whether batches contain the keys of the examples.

    Returns:
        Batches of read-only arrays, with b = B / P:
            image: uint8 [b, S, S, 3], for `augment.device_augment`.
            caption: int32 [b, caption_length].
            noise: uint32 [b, 2], the random key of everything that the device draws for an example.
            prompts: int32 [b, prompts, prompt_length], unless `concepts="none"`; all zeros for a
                prompt that is replaced by the caption.
            key: bytes [b], with `with_keys`.

    Raises:
        UserError: the config or its data cannot be used.
    """
    config = input_config(data)
    sources = tuple(open_source(entry, config.concepts) for entry in config.corpora)
    lanes = batch_lanes(config.lanes, batch_size, process_count)
    mixture = _mixture(
        config, sources, seed, lanes, batch_size // lanes, (process_index, process_count)
    )
    build_texts = make_text_builder(config, sources, seed)
    transform = ImageTransform(config.augment, config.image_size, tuple(config.crop_area))
    own = mixture.lanes // process_count
    first = process_index * own

    def batches_from(step: int, tolerant: bool) -> Batches:
        records = _records(mixture, range(first, first + own), step, batch_size // mixture.lanes)
        examples = _examples(records, build_texts, transform, tolerant)
        share = batch_size // process_count
        return examples.batch(share, drop_remainder=True).prefetch(2).as_numpy_iterator()

    return _without_keys(_tolerate_damage(batches_from, start_step), with_keys)


def count_examples(data: ml_collections.ConfigDict) -> int:
    """Number of examples of an epoch, which is that of all corpora together.

    Raises:
        UserError: a corpus cannot be opened.
    """
    entries = input_config(data).corpora
    return sum(open_corpus(entry.directory, entry.split).num_examples for entry in entries)


def batch_lanes(lanes: int, batch_size: int, process_count: int) -> int:
    """The number of lanes that a batch is read from: the gcd of `data.lanes` and the batch size.

    Raises:
        UserError: the number of processes does not divide the batch size or this number of lanes.
    """
    if batch_size % process_count:
        raise UserError(
            f"config.batch_size={batch_size}: it must be a multiple of the number of processes, "
            f"{process_count}"
        )
    common = math.gcd(lanes, batch_size)
    if common % process_count:
        raise UserError(
            f"config.data.lanes={lanes}: {process_count} processes cannot share the {common} lanes "
            f"of a batch of {batch_size}; set it to {math.lcm(lanes, process_count)}"
        )
    return common


def _mixture(
    config: InputConfig,
    sources: tuple[Source, ...],
    seed: int,
    lanes: int,
    per_batch: int,
    process: tuple[int, int],
) -> Mixture:
    for source in sources:
        if source.corpus.num_examples < lanes:
            enough = max(n for n in range(1, source.corpus.num_examples + 1) if lanes % n == 0)
            raise UserError(
                f"{source.corpus.directory}: {source.corpus.num_examples} examples are too few for "
                f"config.data.lanes={config.lanes}; set it to {enough}"
            )
    orders = tuple(
        Order(
            corpus=source.corpus,
            offsets=open_offsets(source.corpus, *process),
            annotations=source.annotations,
            annotation_offsets=source.annotations and open_offsets(source.annotations, *process),
            seed=seed,
            lanes=lanes,
            per_batch=per_batch,
            window=config.window,
        )
        for source in sources
    )
    return mix_corpora(orders, tuple(entry.weight for entry in config.corpora))


def _records(mixture: Mixture, lanes: range, step: int, per_batch: int) -> tf.data.Dataset:
    """Raw records of some lanes, from `step` on: `per_batch` records of each lane in turn."""
    done = tf.constant(step * per_batch, tf.int64)
    return tf.data.Dataset.range(lanes.start, lanes.stop).interleave(
        lambda lane: mixture.read(lane, done),
        cycle_length=len(lanes),
        block_length=per_batch,
        num_parallel_calls=len(lanes),
        deterministic=True,
    )


def _examples(
    records: tf.data.Dataset, build_texts: TextBuilder, transform: ImageTransform, tolerant: bool
) -> tf.data.Dataset:
    """Complete examples; with `tolerant`, undecodable images become black ones and are marked."""

    def without_images(*records):
        # The draws are batched, because one by one they take a tenth of the time of the images.
        example: UndecodedExamples = build_texts(*records)
        return example.encoded, transform.draw(example.stream), example.fields

    def finish(encoded, draws, fields):
        return fields | {"image": transform(encoded, draws)}

    def finish_or_blank(encoded, draws, fields):
        good = tf.data.Dataset.from_tensors((encoded, draws, fields)).map(finish).ignore_errors()
        blank = fields | {"image": transform.blank()}
        return (
            good.map(lambda example: example | {_DAMAGED: False})
            .concatenate(tf.data.Dataset.from_tensors(blank | {_DAMAGED: True}))
            .take(1)
        )

    parallel = dict(num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    examples = unbatch(records.batch(_TEXTS_AT_ONCE).map(without_images, **parallel))
    if tolerant:
        return examples.interleave(finish_or_blank, **parallel)
    return examples.map(finish, **parallel)


def _tolerate_damage(batches_from: Callable[[int, bool], Batches], step: int) -> Batches:
    """Batches from `step` on; a batch that fails is read again by the tolerant pipeline.

    The tolerant pipeline takes twice the time, so it is used for one batch only, and after each
    further failure for twice as many batches as before.
    """
    tolerant_for, patience = 0, 1
    batches = batches_from(step, False)
    while True:
        try:
            batch = next(batches)
        except tf.errors.OpError as error:
            if tolerant_for or not isinstance(error, tf.errors.InvalidArgumentError):
                reason = error.message.splitlines()[0]
                raise UserError(f"config.data.corpora: cannot be read ({reason})") from None
            tolerant_for, patience = patience, 2 * patience
            batches = batches_from(step, True)
            continue
        for key in batch["key"][batch.pop(_DAMAGED, np.zeros(0, int))]:
            logging.warning("image %s: cannot be decoded, replaced by black", key.decode())
        yield batch
        step += 1
        if tolerant_for:
            tolerant_for -= 1
            if not tolerant_for:
                batches = batches_from(step, False)


def _without_keys(batches: Batches, with_keys: bool) -> Batches:
    for batch in batches:
        if not with_keys:
            del batch["key"]
        yield batch
