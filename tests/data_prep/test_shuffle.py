"""A global shuffle: the same examples in another order, whoever does the work and however often."""

import collections
import itertools
import os
import random
import shutil
import signal
import sys
import time

import numpy as np
import pytest
import raw_corpora as raw
import tensorflow as tf
from prepared_corpora import GALLERY, examples, prepare, report, start_and_kill
from scipy import stats
from test_last_phase import FileOperations, Killed, contents

from cocu_jax.errors import UserError
from cocu_jax.input.corpus import open_corpus
from cocu_jax.stopping import Stopped
from data_prep.image_text import shuffle
from data_prep.image_text.images import ImageRecipe
from data_prep.image_text.prepare import Preparation, prepare_image_text
from data_prep.image_text.units import Recipe, UnitPreparer

FILES, PAIRS, SHARDS = 10, 40, 12
NUMBER = FILES * PAIRS


def recipe(seed: int | None) -> Recipe:
    return Recipe(ImageRecipe(), GALLERY, shuffle_seed=seed)


@pytest.fixture(scope="module", autouse=True)
def small_shards():
    with pytest.MonkeyPatch.context() as patch:
        record = len(raw.picture(0)) + 120
        patch.setattr(shuffle, "_SHARD_BYTES", NUMBER * record // SHARDS)
        yield


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Ten tars, each of which begins with the last pair of the one before."""
    folder = tmp_path_factory.mktemp("raw")
    for file in range(FILES):
        first = file * PAIRS
        raw.webdataset(folder / f"{file:02d}.tar", range(max(0, first - 1), first + PAIRS))
    return folder


@pytest.fixture(scope="module")
def shuffled(sources, tmp_path_factory):
    return prepare(tmp_path_factory.mktemp("0"), sources / "*.tar", recipe=recipe(0))


def numbers(directory: str) -> np.ndarray:
    records = tf.data.TFRecordDataset(open_corpus(directory, "train").shard_files)
    found = map(tf.train.Example.FromString, records.as_numpy_iterator())
    return np.array([int(e.features.feature["key"].bytes_list.value[0]) for e in found])


def test_examples_are_those_of_the_sources_and_repeated_keys_are_counted(
    sources, shuffled, tmp_path
):
    in_order = prepare(tmp_path, sources / "*.tar", recipe=recipe(None))
    assert numbers(in_order).tolist() == list(range(NUMBER))
    by_key = sorted(examples(shuffled), key=lambda example: example["key"])
    for ours, theirs in zip(by_key, examples(in_order), strict=True):
        assert ours.keys() == theirs.keys()
        assert all(np.array_equal(ours[name], theirs[name]) for name in ours)
    assert report(shuffled) == report(in_order)
    assert report(shuffled)["dropped"] == {"duplicate key": FILES - 1}
    place = f"{sources}/01.tar: {PAIRS - 1:09d}"
    assert report(shuffled)["first dropped"] == {"duplicate key": place}


def test_neighbours_in_a_source_are_not_neighbours_in_the_output(shuffled):
    order = numbers(shuffled)
    adjacent = np.abs(np.diff(order)) == 1
    assert adjacent.sum() < 12  # 2 of 400 by chance, 399 in the order of the sources
    assert abs(stats.spearmanr(order, np.arange(NUMBER)).statistic) < 0.2
    position = np.argsort(order)
    distance = np.abs(np.diff(position))  # of neighbours in a source, as of two random places
    assert distance.mean() == pytest.approx(NUMBER / 3, rel=0.15)


def test_shards_are_of_one_length_and_every_source_is_in_a_slice_of_the_dataset(shuffled):
    lengths = open_corpus(shuffled, "train").shard_lengths
    assert len(lengths) > 5 and sum(lengths) == NUMBER
    assert max(lengths) - min(lengths) <= 1
    tenth = collections.Counter((numbers(shuffled)[: NUMBER // 10] // PAIRS).tolist())
    counts = [tenth[file] for file in range(FILES)]
    assert stats.chisquare(counts).pvalue > 1e-3


def test_order_is_a_function_of_the_seed_and_not_of_the_sources_order(sources, shuffled, tmp_path):
    names = [sources / f"{file:02d}.tar" for file in reversed(range(FILES))]
    reversed_sources = prepare(tmp_path / "reversed", *names, recipe=recipe(0))
    assert np.array_equal(numbers(reversed_sources), numbers(shuffled))
    other = numbers(prepare(tmp_path / "1", sources / "*.tar", recipe=recipe(1)))
    assert sorted(other) == sorted(numbers(shuffled))
    assert (other == numbers(shuffled)).sum() < 10
    with pytest.raises(UserError, match="is there already, prepared with another --seed"):
        prepare(tmp_path / "1", sources / "*.tar", recipe=recipe(0))
    with pytest.raises(UserError, match="is there already, prepared with another --order"):
        prepare(tmp_path / "1", sources / "*.tar", recipe=recipe(None))


def test_a_kill_before_any_file_operation_of_the_shuffle_loses_nothing(
    sources, shuffled, tmp_path, monkeypatch
):
    """The same command gives the same bytes and prepares no unit again."""
    write, operations, expected = shuffle.write_shard, FileOperations(), contents(shuffled)
    for step in itertools.count():
        shards = []

        def killed(*arguments, shards=shards, step=step):
            shards.append(arguments)
            with operations.watched(step if len(shards) == 4 else float("inf")):
                write(*arguments)

        monkeypatch.setattr(shuffle, "write_shard", killed)
        try:
            directory = prepare(tmp_path / str(step), sources / "*.tar", recipe=recipe(0))
        except UserError as stopped:
            assert isinstance(stopped.__cause__, Killed)
            monkeypatch.setattr(shuffle, "write_shard", write)
            monkeypatch.setattr(UnitPreparer, "prepare", None)
            directory = prepare(tmp_path / str(step), sources / "*.tar", recipe=recipe(0))
            monkeypatch.undo()
            assert contents(directory) == expected
            continue
        assert contents(directory) == expected
        break
    assert step >= 2


@pytest.mark.slow  # starts the command ten times
def test_processes_killed_while_they_shuffle(sources, shuffled, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("data_prep.image_text.prepare.assemble", interrupted)
        prepare(tmp_path / "prepared", sources / "*.tar", recipe=recipe(0))
    draw, kills, begun, expected = random.Random(0), 0, 0, contents(shuffled)
    for number in range(10):
        folder = tmp_path / str(number)
        shutil.copytree(tmp_path / "prepared", folder)
        arguments = [str(folder), f"{sources}/*.tar", str(shuffle._SHARD_BYTES)]
        command = [sys.executable, "-c", _SCRIPT, *arguments]
        kills += start_and_kill(command, draw.uniform(0.02, 0.3))
        begun += any(folder.rglob("*tfrecord-0*"))
        assert contents(prepare(folder, sources / "*.tar", recipe=recipe(0))) == expected
        assert not list(folder.rglob("*unfinished*"))
    assert kills > 3 and begun > 2


_SCRIPT = """
import sys
sys.path.insert(0, "tests/data_prep")
import pathlib
import prepared_corpora, test_shuffle
from data_prep.image_text import shuffle
shuffle._SHARD_BYTES = int(sys.argv[3])
print("go", flush=True)
prepared_corpora.prepare(pathlib.Path(sys.argv[1]), sys.argv[2], recipe=test_shuffle.recipe(0))
"""


def test_ctrl_c_between_shards_keeps_them(sources, shuffled, tmp_path, monkeypatch):
    write, made = shuffle.write_shard, []

    def then_ctrl_c(*arguments):
        write(*arguments)
        made.append(arguments[-1])
        if len(made) == 3:
            os.kill(os.getpid(), signal.SIGINT)
            end = time.monotonic() + 10
            while not os.path.exists(f"{arguments[0]}/stop") and time.monotonic() < end:
                time.sleep(0.05)  # until the request has been passed on

    monkeypatch.setattr(shuffle, "write_shard", then_ctrl_c)
    with pytest.raises(Stopped, match="stopped after 3 of .* shards; run the same command"):
        prepare(tmp_path, sources / "*.tar", recipe=recipe(0))
    directory = prepare(tmp_path, sources / "*.tar", recipe=recipe(0))
    assert len(made) == len(set(made)) == open_corpus(directory, "train").num_shards
    assert contents(directory) == contents(shuffled)


def test_unit_that_was_cut_is_named(tmp_path, monkeypatch, sources):
    write = shuffle.write_shard

    def cut(scratch, *arguments):
        with open(f"{scratch}/unit-00003.tfrecord", "rb+") as file:
            file.truncate(1000)
        write(scratch, *arguments)

    monkeypatch.setattr(shuffle, "write_shard", cut)
    with pytest.raises(UserError, match=r"unit-00003.tfrecord: is cut; remove .*unfinished"):
        prepare(tmp_path, sources / "*.tar", recipe=recipe(0))


@pytest.mark.parametrize("seed", [0, None])
def test_bucket_gets_the_bytes_of_a_disk_and_each_shard_once(
    sources, bucket, tmp_path, monkeypatch, seed
):
    """Nothing there is renamed as a whole, and a stopped run goes on."""
    local = prepare(tmp_path, sources / "*.tar", recipe=recipe(seed))
    preparation = Preparation(recipe=recipe(seed), sources=(f"{sources}/*.tar",))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("data_prep.image_text.prepare.assemble", interrupted)
        prepare_image_text("custom", preparation, "gs://bucket/tfds")
    with monkeypatch.context() as patch:
        patch.setattr(UnitPreparer, "prepare", None)
        directory = prepare_image_text("custom", preparation, "gs://bucket/tfds")
    assert directory == "gs://bucket/tfds/image_text/custom/1.0.0"
    assert contents(bucket.folder / "tfds/image_text/custom/1.0.0") == contents(local)
    assert not list(bucket.folder.rglob("*unit-*"))
    written = [name for name in bucket.written if "image_text-train" in name]
    assert len(written) == len(set(written))


def interrupted(*_):
    raise KeyboardInterrupt
