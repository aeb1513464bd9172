"""The batch of a step depends neither on where the run started nor on the number of processes."""

import collections
import itertools
import pathlib

import numpy as np
import pytest
import tensorflow as tf
from miniature_corpus import LENGTHS, write_corpus

from cocu_jax.input.corpus import open_corpus
from cocu_jax.input.order import Order
from cocu_jax.input.pipeline import count_examples, train_batches

EXAMPLES = sum(LENGTHS)


def take(batches, count):
    return list(itertools.islice(batches, count))


def same(left, right):
    assert left.keys() == right.keys()
    for name in left:
        np.testing.assert_array_equal(left[name], right[name])


def keys_of_lane(order, lane, done, count):
    """(epoch, key) of the next `count` examples of a lane."""
    parse = {"key": tf.io.FixedLenFeature([], tf.string)}
    records = order.read(tf.constant(lane, tf.int64), tf.constant(done, tf.int64)).take(count)
    return [
        (int(epoch), tf.io.parse_single_example(record, parse)["key"].numpy().decode())
        for epoch, record, _ in records
    ]


@pytest.fixture(scope="module")
def order(corpus_directory):
    return Order(open_corpus(corpus_directory, "train"), None, seed=3, lanes=8, window=4)


def test_batches_are_equal_for_one_two_and_four_processes(data):
    data.augment = "full"
    whole = take(train_batches(data, 16, seed=1, start_step=2, with_keys=True), 3)
    for count in (2, 4):
        parts = [
            take(train_batches(data, 16, 1, 2, index, count, with_keys=True), 3)
            for index in range(count)
        ]
        for step, batch in enumerate(whole):
            rows = [part[step] for part in parts]
            same(batch, {name: np.concatenate([row[name] for row in rows]) for name in batch})


def test_starting_at_any_step_gives_the_batches_of_a_straight_run(data):
    straight = take(train_batches(data, 8, seed=1, with_keys=True), 25)  # almost four epochs
    for step in (5, 13, 24):
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
    for lane in range(order.lanes):
        share = (lane + 1) * EXAMPLES // order.lanes - lane * EXAMPLES // order.lanes
        for epoch, key in keys_of_lane(order, lane, done=0, count=3 * share):
            epochs[epoch].append(key)
    assert sorted(epochs) == [0, 1, 2]
    for keys in epochs.values():
        assert sorted(keys) == [f"mini{i:04d}" for i in range(EXAMPLES)]
    assert len({tuple(keys) for keys in epochs.values()}) == 3


def test_a_lane_goes_on_from_any_place(order):
    straight = keys_of_lane(order, 5, done=0, count=30)
    for done in (1, 3, 4, 6, 7, 15, 29):  # inside and at the ends of windows and epochs
        assert keys_of_lane(order, 5, done, 1) == straight[done : done + 1]


def test_seeking_reads_no_shard_that_lies_before(tmp_path):
    directory = write_corpus(tmp_path, (9, 9, 9))
    order = Order(open_corpus(directory, "train"), None, seed=0, lanes=1, window=3)
    straight = keys_of_lane(order, 0, done=0, count=27)
    first_shard = int(straight[0][1].removeprefix("mini")) // 9
    pathlib.Path(order.corpus.shard_files[first_shard]).write_bytes(b"not a record file")
    assert keys_of_lane(order, 0, 9, 18) == straight[9:]
    with pytest.raises(tf.errors.DataLossError):
        keys_of_lane(order, 0, 8, 1)


def test_neighbours_in_a_file_are_not_neighbours_in_a_lane(tmp_path):
    directory = write_corpus(tmp_path, (200,))
    order = Order(open_corpus(directory, "train"), None, seed=0, lanes=1, window=50)
    places = [int(key.removeprefix("mini")) for _, key in keys_of_lane(order, 0, 0, 200)]
    windows = np.reshape(places, (4, 50))
    for start, window in zip((0, 50, 100, 150), windows, strict=True):
        assert sorted(window) == list(range(start, start + 50))
        assert abs(np.corrcoef(window, np.arange(50))[0, 1]) < 0.3  # 2 standard deviations
    assert np.mean(np.abs(np.diff(windows, axis=1)) == 1) < 0.12  # 0.04 by chance


def test_an_epoch_is_all_examples_of_all_corpora(data):
    assert count_examples(data) == EXAMPLES
    data.corpora = data.corpora * 2
    assert count_examples(data) == 2 * EXAMPLES
