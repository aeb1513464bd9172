"""Samples of the report come from the corpus as they are, and curation is measured on disk."""

import dataclasses

import ml_collections
import numpy as np
import pytest
from flax import nnx

from cocu_jax.curation.annotate import Annotations
from cocu_jax.curation.storage.annotations import metadata_files, shard_name, tfrecord_shard
from cocu_jax.demo.curation_quality import measure_curation
from cocu_jax.demo.samples import curation_samples, sampled_prompts, segmentation_samples
from cocu_jax.errors import UserError
from cocu_jax.input.corpus import Corpus, open_corpus, read_shard
from cocu_jax.input.pipeline import train_batches
from cocu_jax.models.groupvit import GroupViT, GroupViTConfig
from cocu_jax.models.text import TextConfig
from cocu_jax.models.tokenizer import Tokenizer
from data_prep.scenes.prepare import ScenesConfig, prepare_scenes
from eval.protocol import Protocol

TINY = ScenesConfig(
    image_size=32,
    clip_scenes=8,
    pretrain_scenes=24,
    selection_scenes=8,
    validation_scenes=8,
    shards=2,
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> str:
    return prepare_scenes(TINY, str(tmp_path_factory.mktemp("scenes")))


def annotate(corpus: Corpus, directory, omit_stuff: bool) -> str:
    """An oracle's annotations: the true concepts, then one that is wrong; the next two scenes."""
    examples = [list(read_shard(corpus, s).as_numpy_iterator()) for s in range(corpus.num_shards)]
    keys = [example["key"] for shard in examples for example in shard]
    stuff = {corpus.metadata["gallery"].index(name) for name in corpus.metadata["stuff"]}
    row, lengths, size = 0, [], 0
    directory.mkdir()
    for number, shard in enumerate(examples):
        concepts = np.full((len(shard), 6), -1)
        for i, example in enumerate(shard):
            true = [c for c in example["concepts"] if not (omit_stuff and c in stuff)]
            concepts[i, : len(true) + 1] = [*true, 99]
        found = (concepts >= 0).sum(1)
        scores = np.where(concepts >= 0, np.linspace(2, 1, 6), 0)
        near = [[keys[(row + i + k) % len(keys)] for k in range(3)] for i in range(len(shard))]
        annotations = Annotations(concepts, scores, np.full_like(concepts, -1), found)
        data, count = tfrecord_shard([e["key"] for e in shard], annotations, near)
        (directory / shard_name(corpus.split, number, len(examples))).write_bytes(data)
        lengths.append(len(shard))
        row, size = row + len(shard), size + count
    facts = {"gallery": corpus.metadata["gallery"], "corpus": corpus.fingerprint}
    for name, content in metadata_files(corpus.split, lengths, size, facts).items():
        (directory / name).write_bytes(content)
    return str(directory)


def test_annotations_on_disk_are_measured_against_the_true_concepts(dataset, tmp_path):
    corpus = open_corpus(dataset, "pretrain")
    quality = measure_curation(dataset, annotate(corpus, tmp_path / "all", False), top=4)
    assert quality["curated"]["recall"] == 1.0
    assert quality["curated"]["precision"] == quality["curated"]["precision_bound"] < 1.0
    assert quality["caption"]["precision"] == 1.0
    quality = measure_curation(dataset, annotate(corpus, tmp_path / "things", True), top=4)
    assert quality["curated"]["recall_stuff"] == 0.0
    assert quality["curated"]["recall_things"] == 1.0


def test_annotations_of_another_corpus_are_refused(dataset, tmp_path):
    smaller = dataclasses.replace(TINY, pretrain_scenes=16)
    other = open_corpus(prepare_scenes(smaller, str(tmp_path)), "pretrain")
    with pytest.raises(UserError, match="the annotations are not of"):
        measure_curation(dataset, annotate(other, tmp_path / "annotations", False))


def test_curation_samples_show_the_corpus_and_its_annotations(dataset, tmp_path):
    corpus = open_corpus(dataset, "pretrain")
    examples = [e for s in range(2) for e in read_shard(corpus, s).as_numpy_iterator()]
    samples = curation_samples(corpus, annotate(corpus, tmp_path / "all", False), count=4)
    for sample, row in zip(samples, (0, 7, 15, 23), strict=True):
        example = examples[row]
        near = [examples[(row + k) % 24] for k in (1, 2)]  # itself is left out
        assert sample.image == example["image"]
        assert sample.caption == example["caption"].decode()
        assert sample.neighbours == tuple((e["image"], e["caption"].decode()) for e in near)
        assert [concept.in_scene for concept in sample.concepts] == [True] * len(sample.shown) + [
            False
        ]
        named = [concept.name for concept in sample.concepts if concept.in_caption]
        assert sorted(named) == sorted(
            corpus.metadata["gallery"][i] for i in example["caption_concepts"]
        )


def test_sampled_prompts_are_those_that_training_reads(dataset, tmp_path):
    corpus = open_corpus(dataset, "pretrain")
    annotations = annotate(corpus, tmp_path / "all", False)
    entry = dict(directory=dataset, split="pretrain", annotations=annotations)
    data = ml_collections.ConfigDict(
        dict(corpora=(entry,), concepts="cluster", augment="none", image_size=32)
    )
    first = next(read_shard(corpus, 0).as_numpy_iterator())["key"]
    batches = train_batches(data, batch_size=8, seed=5, with_keys=True)
    read = [  # three batches are an epoch; every example is in each of them once
        Tokenizer().decode(prompt)
        for batch in (next(batches) for _ in range(6))
        for key, prompts in zip(batch["key"], batch["prompts"], strict=True)
        if key == first
        for prompt in prompts
    ]
    assert sum(sampled_prompts(data, seed=5, epochs=2), []) == read
    assert len(read) == 6 and len(set(read)) > 3


def test_segmentation_samples_are_the_first_scenes(dataset):
    config = GroupViTConfig(
        image_size=32,
        patch_size=8,
        width=8,
        heads=1,
        depths=(1, 0, 0),
        groups=(4, 2),
        projection_hidden=8,
        projection_dim=8,
        text=TextConfig(width=8, heads=1, layers=1),
    )
    model = GroupViT(config, rngs=nnx.Rngs(0))
    corpus = open_corpus(dataset, "validation")
    protocol = Protocol(crop=32, stride=32, resize_long_short=None)
    samples = segmentation_samples({"caption": model, "cocu": model}, corpus, protocol, count=3)
    examples = read_shard(corpus, 0, decode_images=True).take(3).as_numpy_iterator()
    for sample, example in zip(samples, examples, strict=True):
        assert (sample.image == example["image"]).all()
        assert (sample.truth == example["segmentation"][..., 0]).all()
        assert (sample.labels["caption"] == sample.labels["cocu"]).all()
        assert sample.labels["cocu"].shape == sample.groups["cocu"].shape == (32, 32)
        for group in np.unique(sample.groups["cocu"]):  # one window: a group has one name
            assert len(np.unique(sample.labels["cocu"][sample.groups["cocu"] == group])) == 1
    windows = dataclasses.replace(protocol, stride=16, resize_long_short=(64, 64))
    for sample, one in zip(
        segmentation_samples({"cocu": model}, corpus, windows, count=3), samples, strict=True
    ):  # nine windows: the groups are still those of the whole scene
        assert sample.labels["cocu"].shape == (32, 32)
        assert (sample.groups["cocu"] == one.groups["cocu"]).all()
