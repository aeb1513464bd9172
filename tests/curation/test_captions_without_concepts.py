"""Captions that name no concept of the gallery, from raw files through curation into training."""

import io
import tarfile

import numpy as np
import pytest
import tensorflow as tf
from curation_corpus import GALLERY, encoded, write_clip
from ml_collections import ConfigDict

from cocu_jax.curation.job import curate
from cocu_jax.input.corpus import open_corpus, read_shard
from cocu_jax.input.pipeline import train_batches
from cocu_jax.input.unbatch import unbatch
from configs.curate import get_config
from data_prep.gallery.gallery import Gallery
from data_prep.image_text.images import ImageRecipe
from data_prep.image_text.prepare import Preparation, prepare_image_text
from data_prep.image_text.units import Recipe

# Captions of each corpus's shards, in order.
CORPORA = {
    "none in the last block": [["a dog"] * 16 + ["nothing of the kind"] * 3],
    "none at all": [
        ["一只 狗 在 海边", "кошка на дереве", "كلب في الشارع", "कुत्ता और बिल्ली"] * 4
        + ["ένας σκύλος"],
        ["several of those"],
    ],
    "one image": [["a cat"]],
    "one image and none": [["number nine"]],
}


def write_tar(path, captions, first):
    """One WebDataset shard of drawn pictures."""
    with tarfile.open(path, "w") as tar:
        for number, caption in enumerate(captions, start=first):
            pixels = np.random.default_rng(number).integers(256, size=(20, 24, 3), dtype=np.uint8)
            for ending, content in (("jpg", encoded(pixels)), ("txt", caption.encode())):
                member = tarfile.TarInfo(f"{number:05d}.{ending}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def prepared(folder, shards):
    """Captions of each shard to a corpus's directory."""
    first = 0
    for shard, captions in enumerate(shards):
        write_tar(folder / f"{shard}.tar", captions, first)
        first += len(captions)
    recipe = Recipe(ImageRecipe(), Gallery.build(GALLERY))
    sources = tuple(str(folder / f"{shard}.tar") for shard in range(len(shards)))
    return prepare_image_text("custom", Preparation(recipe=recipe, sources=sources), str(folder))


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("clip") / "tiny")


@pytest.mark.parametrize("name", CORPORA)
def test_corpus_is_prepared_and_curated(name, clip, tmp_path):
    directory = prepared(tmp_path, CORPORA[name])
    corpus = open_corpus(directory, "train")
    images = sum(map(len, CORPORA[name]))
    assert corpus.num_examples == images
    config = get_config()
    config.update_from_flattened_dict(
        {"corpus.directory": directory, "clip": clip, "batch_size": 2, "page_images": 2}
    )
    summary = curate(config, str(tmp_path / "run"))
    named = sum("dog" in text or "cat" in text for part in CORPORA[name] for text in part)
    assert summary["images"] == images
    assert summary["share_without_caption_concepts"] == pytest.approx(1 - named / images)
    annotations = open_corpus(str(tmp_path / "run" / "annotations"), "train")
    found = [
        row["concepts"].tolist()
        for shard in range(annotations.num_shards)
        for row in read_shard(annotations, shard).as_numpy_iterator()
    ]
    known = {GALLERY.index("dog"), GALLERY.index("cat")} if named else set()
    assert len(found) == images and set(sum(found, [])) <= known
    if name == "none at all":
        check_training(directory, str(tmp_path / "run" / "annotations"), images)


def check_training(directory, annotations, images):
    """Batches show every image once an epoch, whatever prompts are made of."""
    entry = ConfigDict(dict(directory=directory, split="train", annotations=annotations))
    for concepts in ("cluster", "top", "caption"):
        data = ConfigDict(
            dict(
                corpora=(entry,), concepts=concepts, prompts=2, prompt_length=24, caption_length=8,
                image_size=16, augment="none", lanes=1, window=4,
            )
        )  # fmt: skip
        batches = train_batches(data, 1, seed=0, with_keys=True)
        keys = [next(batches)["key"][0] for _ in range(images)]
        assert len(set(keys)) == images


@pytest.mark.parametrize("dtype", [tf.int32, tf.float32, tf.bool, tf.string])
@pytest.mark.parametrize("shape", [(3, 0), (0, 4), (0, 0), (3, 0, 2), (1, 0)])
def test_rows_may_have_nothing_in_them(shape, dtype):
    empty = tf.zeros(shape, dtype) if dtype != tf.string else tf.fill(shape, "")
    numbers = tf.range(shape[0])
    batches = tf.data.Dataset.from_tensors((numbers, {"empty": empty})).repeat(2)
    found = list(unbatch(batches).as_numpy_iterator())
    assert [number for number, _ in found] == 2 * list(range(shape[0]))
    assert all(row["empty"].shape == shape[1:] for _, row in found)


def test_rows_equal_those_that_unbatch_gives():
    batches = tf.data.Dataset.range(10).map(lambda i: {"a": i, "b": tf.fill([3], i)}).batch(4)
    ours, theirs = (list(d.as_numpy_iterator()) for d in (unbatch(batches), batches.unbatch()))
    assert len(ours) == len(theirs) == 10
    for mine, their in zip(ours, theirs, strict=True):
        assert mine["a"] == their["a"] and (mine["b"] == their["b"]).all()
