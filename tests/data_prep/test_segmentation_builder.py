"""Official files -> TFDS -> corpus."""

import argparse

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from cocu_jax.errors import UserError
from cocu_jax.input.corpus import open_corpus, read_shard
from data_prep.segmentation.prepare import add_arguments, prepare_segmentation, run
from eval.benchmarks import get_benchmark


@pytest.fixture
def imagenet_s(tmp_path):
    """Three images, ids above 255 among them."""
    rng = np.random.default_rng(0)
    masks = {}
    for number in range(3):
        key = f"ILSVRC2012_val_0000000{number}"
        pixels = rng.integers(0, 255, (10 + number, 14, 3), dtype=np.uint8)
        ids = rng.choice([0, 1, 256, 300, 1000], pixels.shape[:2])
        colours = np.stack([ids % 256, ids // 256, 0 * ids], -1).astype(np.uint8)
        for folder, array, ending in (
            ("validation", pixels, "JPEG"),
            ("validation-segmentation", colours, "png"),
        ):
            path = tmp_path / "ImageNetS300" / folder / "n01440764" / f"{key}.{ending}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(path)
        masks[key] = ids
    return tmp_path, masks


def test_a_prepared_benchmark_is_a_corpus_with_its_classes_and_masks(imagenet_s):
    root, masks = imagenet_s
    directory = prepare_segmentation("imagenet_s_300", str(root), str(root / "tfds"))
    corpus = open_corpus(directory, "validation")
    assert tuple(corpus.metadata["classes"]) == get_benchmark("imagenet_s_300").classes
    assert corpus.metadata["has_background"] is True
    examples = [
        example
        for shard in range(corpus.num_shards)
        for example in read_shard(corpus, shard, decode_images=True).as_numpy_iterator()
    ]
    assert [example["key"].decode() for example in examples] == list(masks)
    for example, ids in zip(examples, masks.values(), strict=True):
        expected = np.where(ids == 1000, corpus.metadata["ignore_label"], ids)
        np.testing.assert_array_equal(example["segmentation"][..., 0], expected)
        assert example["image"].shape == (*ids.shape, 3)


def test_preparing_again_keeps_what_is_there_and_tfds_reads_it_too(imagenet_s):
    root, masks = imagenet_s
    first = prepare_segmentation("imagenet_s_300", str(root), str(root / "tfds"))
    assert prepare_segmentation("imagenet_s_300", str(root), str(root / "tfds")) == first
    builder = tfds.builder_from_directory(first)
    assert builder.info.splits["validation"].num_examples == len(masks)


def test_the_command_tells_that_images_are_missing(imagenet_s, capsys):
    root, _ = imagenet_s
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    flags = f"--benchmark imagenet_s_300 --root {root} --data_dir {root}/tfds"
    run(parser.parse_args(flags.split()))
    directory, count = capsys.readouterr().out.splitlines()
    assert directory.endswith("segmentation/imagenet_s_300/1.1.0")
    assert count == "3 images; the official split has 4,097, is --root complete?"


def test_a_failed_preparation_leaves_no_dataset(imagenet_s):
    root, masks = imagenet_s
    last = root / "ImageNetS300/validation-segmentation/n01440764" / f"{list(masks)[-1]}.png"
    last.unlink()
    with pytest.raises(UserError, match=last.name):
        prepare_segmentation("imagenet_s_300", str(root), str(root / "tfds"))
    with pytest.raises(UserError, match="no TFDS dataset"):
        open_corpus(str(root / "tfds/segmentation/imagenet_s_300"), "validation")


def test_a_missing_root_is_one_line(tmp_path):
    with pytest.raises(UserError, match="no directory"):
        prepare_segmentation("voc", str(tmp_path / "nowhere"), str(tmp_path / "tfds"))
