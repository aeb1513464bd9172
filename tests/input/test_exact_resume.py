"""The batch of a step depends neither on where the run started nor on the number of processes."""

import collections
import dataclasses
import itertools
import pathlib

import numpy as np
import pytest
import tensorflow as tf
from miniature_corpus import LENGTHS, write_corpus

from cocu_jax.input.corpus import open_corpus
from cocu_jax.input.offsets import open_offsets
from cocu_jax.input.order import Order
from cocu_jax.input.pipeline import count_examples, train_batches

EXAMPLES = sum(LENGTHS)


def take(batches, count):
    return list(itertools.islice(batches, count))


def same(left, right):
    assert left.keys() == right.keys()
    for name in left:
        np.testing.assert_array_equal(left[name], right[name])


def keys_of_lanes(order, parts):
    """(epoch, key) of the next `count` examples of a lane, for every (lane, done, count).

    One dataset reads them all, because opening one takes a second.
    """
    parse = {"key": tf.io.FixedLenFeature([], tf.string)}
    records = tf.data.Dataset.from_tensor_slices(tf.constant(parts, tf.int64)).flat_map(
        lambda part: order.read(part[0], part[1]).take(part[2])
    )
    found = []
    for epochs, batch, _ in records.batch(256).as_numpy_iterator():
        keys = tf.io.parse_example(batch, parse)["key"].numpy()
        found += [(int(epoch), key.decode()) for epoch, key in zip(epochs, keys, strict=True)]
    ends = np.cumsum([count for _, _, count in parts])
    assert len(found) == ends[-1]
    return [found[end - count : end] for end, (_, _, count) in zip(ends, parts, strict=True)]


def keys_of_lane(order, lane, done, count):
    return keys_of_lanes(order, [(lane, done, count)])[0]


def make_order(directory, **settings):
    corpus = open_corpus(directory, "train")
    return Order(corpus, open_offsets(corpus), None, None, **settings)


@pytest.fixture(scope="module")
def order(corpus_directory):
    return make_order(corpus_directory, seed=3, lanes=8, per_batch=1, window=4)


def test_batches_are_equal_for_one_two_and_four_processes(data):
    whole = take(train_batches(data, 16, seed=1, start_step=2, with_keys=True), 3)
    for index, count in ((1, 2), (0, 4), (2, 4)):
        part = take(train_batches(data, 16, 1, 2, index, count, with_keys=True), 3)
        own = slice(index * 16 // count, (index + 1) * 16 // count)
        for batch, expected in zip(part, whole, strict=True):
            same(batch, {name: values[own] for name, values in expected.items()})


def test_starting_at_any_step_gives_the_batches_of_a_straight_run(data):
    straight = take(train_batches(data, 8, seed=1, with_keys=True), 25)  # almost four epochs
    for step in (5, 24):
        same(straight[step], next(train_batches(data, 8, 1, step, with_keys=True)))


def test_another_seed_or_epoch_gives_other_crops_prompts_and_order(data):
    def by_key(seed):
        batches = take(train_batches(data, 8, seed=seed, with_keys=True), 20)
        rows = [{n: b[n][i] for n in b} for b in batches for i in range(8)]
        return [row["key"] for row in rows], {row["key"]: row for row in reversed(rows)}, rows

    keys, first, rows = by_key(seed=1)
    other_keys, other, _ = by_key(seed=2)
    assert keys != other_keys
    again = {row["key"]: row for row in rows}  # the last time each key was read: another epoch
    for change in (other, again):
        differ = [np.any(first[key]["image"] != change[key]["image"]) for key in change]
        assert np.mean(differ) > 0.9
        differ = [np.any(first[key]["prompts"] != change[key]["prompts"]) for key in change]
        assert 0.5 < np.mean(differ)  # samples whose three prompts are the caption stay alike


def test_every_example_is_read_once_per_epoch(order):
    epochs = collections.defaultdict(list)
    bounds = [lane * EXAMPLES // order.lanes for lane in range(order.lanes + 1)]
    three_epochs = [(lane, 0, 3 * n) for lane, n in enumerate(np.diff(bounds))]
    for epoch, key in itertools.chain(*keys_of_lanes(order, three_epochs)):
        epochs[epoch].append(key)
    assert sorted(epochs) == [0, 1, 2]
    for keys in epochs.values():
        assert sorted(keys) == [f"mini{i:04d}" for i in range(EXAMPLES)]
    assert len({tuple(keys) for keys in epochs.values()}) == 3


def test_a_lane_goes_on_from_any_place(order):
    places = (1, 3, 4, 6, 7, 15, 29)  # inside and at the ends of windows and epochs
    straight, *single = keys_of_lanes(order, [(5, 0, 30), *((5, done, 1) for done in places)])
    assert single == [straight[done : done + 1] for done in places]


def test_seeking_reads_nothing_that_lies_before_the_window(tmp_path):
    directory = write_corpus(tmp_path, (9, 9, 9))
    order = make_order(directory, seed=0, lanes=1, per_batch=1, window=6)  # windows of 9, 6, 6, 6
    straight = keys_of_lane(order, 0, done=0, count=27)
    first = straight[0][1].encode()
    for file in map(pathlib.Path, order.corpus.shard_files):
        file.write_bytes(file.read_bytes().replace(first, b"x" * len(first)))
    assert keys_of_lane(order, 0, 9, 18) == straight[9:]
    with pytest.raises(tf.errors.DataLossError):
        keys_of_lane(order, 0, 0, 1)


@pytest.fixture(scope="module")
def long_order(tmp_path_factory):
    """4,096 records in shards of which none is cut where a lane or a segment is."""
    directory = tmp_path_factory.mktemp("long")
    directory = write_corpus(directory, (1500, 7, 1089, 1500), images=[b"image"] * 4096)
    return make_order(directory, seed=0, lanes=4, per_batch=16, window=256)


def test_neighbours_of_a_file_meet_in_a_batch_no_more_often_than_by_chance(long_order):
    """At most twice as often as under a global shuffle, whatever their distance in the file."""
    records, batch, epochs = 4096, 64, 4
    meetings = collections.Counter()
    lanes = [
        [int(key.removeprefix("mini")) for _, key in lane]
        for lane in keys_of_lanes(long_order, [(i, 0, epochs * records // 4) for i in range(4)])
    ]
    batches = np.concatenate([np.reshape(lane, (-1, 16)) for lane in lanes], axis=1)
    for epoch in np.split(batches, epochs):
        np.testing.assert_array_equal(np.sort(epoch.ravel()), np.arange(records))
        place = np.empty(records, int)
        place[epoch.ravel()] = np.repeat(np.arange(records // batch), batch)
        for distance in range(1, 100):
            meetings[distance] += np.sum(place[distance:] == place[:-distance])
    by_chance = epochs * (batch - 1)  # N pairs, each with probability (B - 1) / (N - 1)
    assert meetings[1] < 2 * by_chance
    assert max(meetings.values()) < 2 * by_chance
    assert np.mean(list(meetings.values())) < 1.05 * by_chance


def test_records_of_a_bucket_are_read_in_the_same_order(long_order):
    bucket = dataclasses.replace(long_order.corpus, directory="gs://bucket/long")
    order = dataclasses.replace(long_order, corpus=bucket)  # its files are local ones
    assert keys_of_lane(order, 2, 100, 600) == keys_of_lane(long_order, 2, 100, 600)


def test_an_epoch_is_all_examples_of_all_corpora(data):
    assert count_examples(data) == EXAMPLES
    data.corpora = data.corpora * 2
    assert count_examples(data) == 2 * EXAMPLES
