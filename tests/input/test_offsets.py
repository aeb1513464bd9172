"""Places of records in TFRecord files: found once, kept, shared, and checked."""

import dataclasses
import pathlib

import numpy as np
import pytest
import tensorflow as tf
from miniature_corpus import write_corpus

from cocu_jax.errors import UserError
from cocu_jax.input.corpus import open_corpus
from cocu_jax.input.offsets import GRID, open_offsets


@pytest.fixture
def corpus(tmp_path):
    return open_corpus(write_corpus(tmp_path, (3, 20, 0, 17), images=[b"image"] * 40), "train")


def places_by_hand(corpus):
    """From the records as TensorFlow reads them: data and 16 bytes of frame each."""
    places = []
    for file in corpus.shard_files:
        sizes = [len(record) + 16 for record in tf.data.TFRecordDataset(file).as_numpy_iterator()]
        places.append((np.cumsum([0, *sizes])[:-1])[::GRID])
    return places


def test_places_are_those_of_every_fourth_record(corpus):
    offsets, expected = open_offsets(corpus), places_by_hand(corpus)
    np.testing.assert_array_equal(offsets.bytes, np.concatenate(expected))
    np.testing.assert_array_equal(offsets.first, np.cumsum([0, *map(len, expected)])[:-1])
    kept = sorted((pathlib.Path(corpus.directory) / "offsets").iterdir())
    times = [file.stat().st_mtime_ns for file in kept]
    assert len(kept) == 4
    again = open_offsets(corpus, process_index=1, process_count=2)
    np.testing.assert_array_equal(again.bytes, offsets.bytes)
    assert [file.stat().st_mtime_ns for file in kept] == times  # nothing is found twice
    kept[1].write_bytes(b"damaged")
    np.testing.assert_array_equal(open_offsets(corpus).bytes, offsets.bytes)


def test_directory_that_cannot_be_written_is_no_hindrance(corpus, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (pathlib.Path(corpus.directory) / "offsets").write_text("in the way")
    expected = np.concatenate(places_by_hand(corpus))
    np.testing.assert_array_equal(open_offsets(corpus).bytes, expected)
    assert len(list((tmp_path / "home").rglob("*.npy"))) == 4


@pytest.mark.parametrize(("change", "message"), [(-1, "has more than the 19"), (1, "fewer than")])
def test_shard_with_another_number_of_records_is_refused(corpus, change, message):
    lengths = list(corpus.shard_lengths)
    lengths[1] += change
    with pytest.raises(UserError, match=message):
        open_offsets(dataclasses.replace(corpus, shard_lengths=tuple(lengths)))


def test_truncated_shard_is_refused(corpus):
    file = pathlib.Path(corpus.shard_files[3])
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(UserError, match="damaged, or has fewer than the 17 records"):
        open_offsets(corpus)
