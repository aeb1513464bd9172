"""Batches for pre-training. The batch of a step is a function of (corpora, config, seed, step).

Nothing about the pipeline has to be saved: start it at any step, on any number of processes that
divides the lanes, and it goes on with the very bits of a run that was never stopped. `order` says
how that place is found, `draws` where randomness comes from.

Per process: lanes of raw records -> texts of many examples at once -> pictures, one by one on all
cores -> batches. No Python runs per example.
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
from cocu_jax.input.mixture import Mixture, mix_corpora
from cocu_jax.input.offsets import open_offsets
from cocu_jax.input.order import Order
from cocu_jax.input.pictures import Pictures
from cocu_jax.input.rows import rows_of
from cocu_jax.input.sources import Source, open_source
from cocu_jax.input.texts import Examples, Texts, make_texts

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
    """This process's rows of the global batches from `start_step` on, without end.

    The rows of process p of P are rows `p B / P` to `(p + 1) B / P` of the global batch. An image
    that cannot be decoded is replaced by a black one, with a warning that names it.

    Args:
        data: the fields of `InputConfig`.
        batch_size: rows B of the global batch.
        seed: of order, concepts, templates and augmentation.
        start_step: step of the first batch.
        process_index: this process.
        process_count: processes that share every batch; it must divide the lanes.
        with_keys: also give the examples' keys.

    Returns:
        Batches of read-only arrays: `image` uint8 [b, S, S, 3] (for `augment.device_augment`),
        `caption` int32 [b, caption_length], `noise` uint32 [b, 2] (the random key of whatever the
        device draws for a row), unless `concepts="none"` `prompts` int32
        [b, prompts, prompt_length] (all zeros where the caption stands in for one), and on request
        `key` bytes [b].

    Raises:
        UserError: the config or the data it names cannot be used.
    """
    config = input_config(data)
    sources = tuple(open_source(entry, config.concepts) for entry in config.corpora)
    lanes = batch_lanes(config.lanes, batch_size, process_count)
    mixture = _mixture(
        config, sources, seed, lanes, batch_size // lanes, (process_index, process_count)
    )
    texts = make_texts(config, sources, seed)
    pictures = Pictures(config.augment, config.image_size, tuple(config.crop_area))
    own = mixture.lanes // process_count
    first = process_index * own

    def batches_from(step: int, tolerant: bool) -> Batches:
        records = _records(mixture, range(first, first + own), step, batch_size // mixture.lanes)
        examples = _examples(records, texts, pictures, tolerant)
        rows = batch_size // process_count
        return examples.batch(rows, drop_remainder=True).prefetch(2).as_numpy_iterator()

    return _without_keys(_tolerate_damage(batches_from, start_step), with_keys)


def count_examples(data: ml_collections.ConfigDict) -> int:
    """Examples of one epoch: of all corpora together.

    Raises:
        UserError: a corpus cannot be opened.
    """
    entries = input_config(data).corpora
    return sum(open_corpus(entry.directory, entry.split).num_examples for entry in entries)


def batch_lanes(lanes: int, batch_size: int, process_count: int) -> int:
    """The lanes that a batch is dealt from: as many of `data.lanes` as divide its rows.

    Raises:
        UserError: the processes cannot share them equally.
    """
    if batch_size % process_count:
        raise UserError(
            f"config.batch_size={batch_size}: it must be a multiple of {process_count}, the number "
            "of processes"
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
    rows: int,
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
            rows=rows,
            window=config.window,
        )
        for source in sources
    )
    return mix_corpora(orders, tuple(entry.weight for entry in config.corpora))


def _records(mixture: Mixture, lanes: range, step: int, rows: int) -> tf.data.Dataset:
    """Raw records of some lanes: `rows` of each in turn, from their place at `step` on."""
    done = tf.constant(step * rows, tf.int64)
    return tf.data.Dataset.range(lanes.start, lanes.stop).interleave(
        lambda lane: mixture.read(lane, done),
        cycle_length=len(lanes),
        block_length=rows,
        num_parallel_calls=len(lanes),
        deterministic=True,
    )


def _examples(
    records: tf.data.Dataset, texts: Texts, pictures: Pictures, tolerant: bool
) -> tf.data.Dataset:
    """Finished examples; with `tolerant`, black pictures, marked, instead of an error."""

    def without_pictures(*records):
        # Draws of many examples at once: one by one they cost a tenth of the pictures.
        example: Examples = texts(*records)
        return example.encoded, pictures.draw(example.stream), example.rows

    def finish(encoded, draws, row):
        return row | {"image": pictures(encoded, draws)}

    def finish_or_blank(encoded, draws, row):
        good = tf.data.Dataset.from_tensors((encoded, draws, row)).map(finish).ignore_errors()
        blank = row | {"image": pictures.blank()}
        return (
            good.map(lambda row: row | {_DAMAGED: False})
            .concatenate(tf.data.Dataset.from_tensors(blank | {_DAMAGED: True}))
            .take(1)
        )

    parallel = dict(num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    examples = rows_of(records.batch(_TEXTS_AT_ONCE).map(without_pictures, **parallel))
    if tolerant:
        return examples.interleave(finish_or_blank, **parallel)
    return examples.map(finish, **parallel)


def _tolerate_damage(batches_from: Callable[[int, bool], Batches], step: int) -> Batches:
    """Batches from `step` on; those with damaged images are made again with black ones.

    The tolerant pipeline takes twice the time, so it is left after one batch; after two, four …
    batches if damage is met again.
    """
    tolerant_for, patience = 0, 1
    batches = batches_from(step, False)
    while True:
        try:
            batch = next(batches)
        except tf.errors.OpError as error:
            if tolerant_for or not isinstance(error, tf.errors.InvalidArgumentError):
                raise UserError(f"reading data.corpora: {error.message.splitlines()[0]}") from None
            tolerant_for, patience = patience, 2 * patience
            batches = batches_from(step, True)
            continue
        for key in batch["key"][batch.pop(_DAMAGED, np.zeros(0, int))]:
            logging.warning("image %s: cannot be decoded, a black one is used", key.decode())
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
