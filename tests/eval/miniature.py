"""A small GroupViT whose groups and names vary, and small datasets on disk."""

import io
import pathlib

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from drawn_weights import draw_weights
from PIL import Image, ImageOps

from cocu_jax.input.corpus import Corpus
from cocu_jax.models.groupvit import GroupViT, GroupViTConfig
from cocu_jax.models.text import TextConfig
from eval.protocol import Protocol

CLASSES = (
    "background", "car", "tree", "sky", "grass", "dog", "house", "sand", "snow", "water",
)  # fmt: skip


WITH_BACKGROUND = Protocol(32, 16, (150, 40), True, 0.07)
WITHOUT_BACKGROUND = Protocol(32, 16, None)


def make_model(image_size: int = 32, seed: int = 0) -> GroupViT:
    """A GroupViT that puts patches in different groups, unlike usual initial weights."""
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
    )
    return draw_weights(lambda keys: GroupViT(config, rngs=keys), seed)


def encode_photos(images: list[np.ndarray]) -> list[bytes]:
    """JPEG files with subsampled colours, with EXIF rotation, in grey, and in CMYK."""
    files = []
    for number, image in enumerate(images):
        picture, settings = Image.fromarray(image), {}
        if number % 4 == 1:
            picture = picture.transpose(Image.Transpose.ROTATE_90)
            settings["exif"] = Image.Exif()
            settings["exif"][0x0112] = 6  # to be turned back
        elif number % 4:
            picture = picture.convert({2: "L", 3: "CMYK"}[number % 4])
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=85, **settings)
        files.append(buffer.getvalue())
    return files


def decode_photo(encoded: bytes) -> np.ndarray:
    """Decodes RGB pixels with Pillow."""
    return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(encoded))).convert("RGB"))


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


def resize_exactly(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes bilinearly without anti-aliasing, half-pixel centres, in float64; not rounded."""
    for axis in (0, 1):
        centre = (np.arange(size[axis]) + 0.5) * image.shape[axis] / size[axis] - 0.5
        centre = np.clip(centre, 0, image.shape[axis] - 1)
        low = np.floor(centre).astype(int)
        high = np.minimum(low + 1, image.shape[axis] - 1)
        share = np.expand_dims(centre - low, [i for i in range(image.ndim) if i != axis])
        image = image.take(low, axis) * (1 - share) + image.take(high, axis) * share
    return image


def write_corpus(
    folder: pathlib.Path,
    pairs: list[tuple[np.ndarray | bytes, np.ndarray]],
    classes: tuple[str, ...],
    has_background: bool,
    shards: int = 2,
) -> Corpus:
    """Writes images (pixels, or files) and masks as TFRecords, without the metadata of TFDS."""
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
