"""What does not fit is refused in one line that says what to do; damaged images are survived."""

import pathlib

import numpy as np
import pytest
from miniature_corpus import SIZE, encode, picture, write_annotations, write_corpus
from ml_collections import ConfigDict

from cocu_jax.errors import UserError
from cocu_jax.input.pipeline import train_batches


def with_corpus(data, **fields):
    data.corpora = (ConfigDict(dict(split="train") | fields),)
    return data


def refused(data, message, batch=8, **processes):
    with pytest.raises(UserError, match=message) as caught:
        next(train_batches(data, batch, seed=0, **processes))
    assert "\n" not in str(caught.value)


def test_annotations_of_another_corpus(data, tmp_path, corpus_directory):
    other = write_annotations(tmp_path, corpus_directory, corpus="0123456789abcdef")
    refused(
        with_corpus(data, directory=corpus_directory, annotations=other),
        "annotations of corpus 0123456789abcdef",
    )


def test_annotations_in_other_shards(data, tmp_path, corpus_directory):
    other = write_annotations(tmp_path, corpus_directory, lengths=(26, 25))
    refused(
        with_corpus(data, directory=corpus_directory, annotations=other), "2 shards do not have"
    )


def test_annotations_with_other_keys(data, tmp_path, corpus_directory):
    other = write_annotations(tmp_path, corpus_directory, name="else")
    refused(
        with_corpus(data, directory=corpus_directory, annotations=other),
        "keys of annotations and images differ",
    )


def test_missing_annotations_or_features(data, tmp_path, corpus_directory):
    refused(with_corpus(data, directory=corpus_directory), "needs its annotations")
    data.concepts = "nouns"
    refused(data, "no feature 'caption_nouns', .* data_prep image_text --nouns")
    empty = write_corpus(tmp_path / "empty", (0,))
    refused(with_corpus(data, directory=empty), "no examples in its split 'train'")
    bare = write_corpus(tmp_path, (8,), drop=("caption_tokens",))
    refused(with_corpus(data, directory=bare), "not an image-text dataset")


def test_settings_that_do_not_fit(data):
    refused(data, "it must be a multiple of the number of processes, 3", process_count=3)
    refused(data, "3 processes cannot share the 8 lanes .*set it to 24", batch=24, process_count=3)
    data.lanes = 64
    refused(data, "51 examples are too few for config.data.lanes=64; set it to 32", batch=64)
    data.lanes = 8
    data.augment = "everything"
    refused(data, "data.augment='everything': it must be 'none', 'crop' or 'full'")
    data.augment = "none"
    data.colour_jitter = 0.4
    refused(data, "data.colour_jitter: there is no such field")


def test_a_truncated_record_file(data, tmp_path):
    directory = write_corpus(tmp_path, (16,))
    (shard,) = pathlib.Path(directory).glob("*.tfrecord*")
    shard.write_bytes(shard.read_bytes()[:-1000])
    data.concepts = "none"
    data.lanes = 1
    refused(with_corpus(data, directory=directory), "damaged, or has fewer than the 16 records")


def test_damaged_images_become_black_and_nothing_else_changes(data, tmp_path):
    """Three of the second batch's images are damaged; the fourth is of the next epoch."""
    files = [encode(picture(i)) for i in range(24)]
    data.concepts = data.augment = "none"

    def four_batches(name):
        directory = str(tmp_path / name / "mini" / "1.0.0")
        batches = train_batches(with_corpus(data, directory=directory), 8, seed=0, with_keys=True)
        return [next(batches) for _ in range(4)]

    write_corpus(tmp_path / "good", (24,), images=files)
    whole = four_batches("good")
    damaged = [int(key.decode().removeprefix("mini")) for key in whole[1]["key"][:3]]
    contents = b"no image", b"\xff\xd8\xff and no more", files[damaged[2]][:300]
    for index, content in zip(damaged, contents, strict=True):
        files[index] = content
    write_corpus(tmp_path / "bad", (24,), images=files)
    survived = four_batches("bad")
    for want, got in zip(whole, survived, strict=True):
        np.testing.assert_array_equal(want["key"], got["key"])
        np.testing.assert_array_equal(want["caption"], got["caption"])
        for key, expected, image in zip(got["key"], want["image"], got["image"], strict=True):
            black = int(key.decode().removeprefix("mini")) in damaged
            np.testing.assert_array_equal(image, 0 * expected if black else expected)
            assert expected.any()


def test_plain_resize_keeps_the_picture(data):
    data.augment = "none"
    data.image_size = SIZE
    batch = next(train_batches(data, 8, seed=0, with_keys=True))
    for key, image in zip(batch["key"], batch["image"], strict=True):
        index = int(key.decode().removeprefix("mini"))
        np.testing.assert_allclose(image, picture(index), atol=0 if index % 4 == 0 else 40)
