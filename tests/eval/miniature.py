"""A small GroupViT whose groups and names vary, and small datasets on disk."""

import pathlib

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from flax import nnx

from cocu_jax.input.corpus import Corpus
from cocu_jax.models.groupvit import GroupViT, GroupViTConfig
from cocu_jax.models.text import TextConfig

CLASSES = (
    "background", "car", "tree", "sky", "grass", "dog", "house", "sand", "snow", "water",
)  # fmt: skip


def make_model(image_size: int = 32, seed: int = 0) -> GroupViT:
    """Large initial weights: an untrained model with small ones puts all patches in one group."""
    config = GroupViTConfig(
        image_size=image_size,
        patch_size=8,
        width=32,
        heads=2,
        depths=(1, 1, 1),
        groups=(8, 4),
        projection_hidden=32,
        projection_dim=16,
        text=TextConfig(width=16, heads=2, layers=1),
        dense_init_std=0.3,
        assign_init_std=0.5,
        group_token_init_std=2.0,
    )
    model = GroupViT(config, rngs=nnx.Rngs(seed))
    grouping = model.image.stages[1]
    noise = np.random.default_rng(seed).normal(size=grouping.group_tokens.shape)
    grouping.group_tokens[...] = noise.astype(np.float32)
    return model


def make_images(
    sizes: list[tuple[int, int]], classes: int, seed: int = 0
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Images of coloured blocks, and labels with ignored pixels (255)."""
    rng = np.random.default_rng(seed)
    pairs = []
    for height, width in sizes:
        blocks = rng.integers(0, 255, (height // 6 + 1, width // 6 + 1, 3), dtype=np.uint8)
        image = np.kron(blocks, np.ones((6, 6, 1), np.uint8))[:height, :width]
        labels = rng.integers(0, classes, (height // 9 + 1, width // 9 + 1), dtype=np.uint8)
        labels = np.kron(labels, np.ones((9, 9), np.uint8))[:height, :width]
        labels[rng.random(labels.shape) < 0.05] = 255
        pairs.append((image, labels))
    return pairs


def write_corpus(
    folder: pathlib.Path,
    pairs: list[tuple[np.ndarray, np.ndarray]],
    classes: tuple[str, ...],
    has_background: bool,
    shards: int = 2,
) -> Corpus:
    """Stores images and masks as a segmentation dataset does, without TFDS's bookkeeping."""
    features = tfds.features.FeaturesDict(
        {
            "key": tfds.features.Text(),
            "image": tfds.features.Image(encoding_format="png"),
            "segmentation": tfds.features.Image(shape=(None, None, 1), encoding_format="png"),
        }
    )
    files, lengths = [], []
    for shard in range(shards):
        file = str(folder / f"validation-{shard}.tfrecord")
        members = list(range(shard, len(pairs), shards))
        with tf.io.TFRecordWriter(file) as writer:
            for number in members:
                image, labels = pairs[number]
                example = {
                    "key": f"{number:04d}",
                    "image": image,
                    "segmentation": labels[..., None],
                }
                encoded = features.encode_example(example)
                writer.write(features.serialize_example(encoded))
        files.append(file)
        lengths.append(len(members))
    metadata = {"classes": classes, "has_background": has_background, "ignore_label": 255}
    return Corpus(
        str(folder), "validation", features, metadata, tuple(files), tuple(lengths), "miniature"
    )
