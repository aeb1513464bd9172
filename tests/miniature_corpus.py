"""Writes small TFDS image-text corpora and annotation sidecars of the layout the pipeline reads."""

import io

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from PIL import Image

from cocu_jax.input.corpus import open_corpus
from cocu_jax.models.tokenizer import Tokenizer

F = tfds.features
GALLERY = ("cat", "dog", "fire engine", "tree", "sea lion")
SIZE = 24
# Uneven shards, one of them smaller than a window, fewer of them than lanes.
LENGTHS = (13, 7, 1, 20, 10)


def picture(index, height=SIZE, width=SIZE):
    """Smooth and different for every index, so that JPEG keeps it recognisable."""
    noise = np.random.default_rng(index).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(noise).resize((width, height), Image.BICUBIC))


def encode(pixels, kind="JPEG"):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **({"quality": 95} if kind == "JPEG" else {}))
    return buffer.getvalue()


def write_corpus(directory, lengths, name="mini", images=None, drop=()):
    """Split `train`; shard i has lengths[i] examples; the key of example i is f"{name}{i:04d}"."""
    features = {
        "key": F.Text(),
        "image": F.Text() if images else F.Image(),
        "caption": F.Text(),
        "caption_tokens": F.Tensor(shape=(None,), dtype=np.int32),
        "caption_concepts": F.Tensor(shape=(None,), dtype=np.int32),
    }
    features = F.FeaturesDict({k: v for k, v in features.items() if k not in drop})
    tokenizer = Tokenizer()
    examples = []
    for i in range(sum(lengths)):
        example = {
            "key": f"{name}{i:04d}",
            "image": images[i] if images else encode(picture(i), "PNG" if i % 4 == 0 else "JPEG"),
            "caption": caption(i),
            "caption_tokens": [49406, *tokenizer.encode(caption(i)), 49407],
            "caption_concepts": np.arange(i % 5, dtype=np.int32),
        }
        examples.append({k: v for k, v in example.items() if k in features})
    return _write(directory, name, features, lengths, examples, {"gallery": list(GALLERY)})


def caption(index):
    return f"picture number {index} of a dog"


def write_annotations(directory, corpus_directory, lengths=None, name="mini", **metadata):
    """Example i has i % 5 concepts, in clusters when there are more than two."""
    corpus = open_corpus(corpus_directory, "train")
    features = F.FeaturesDict(
        {
            "key": F.Text(),
            "concepts": F.Tensor(shape=(None,), dtype=np.int32),
            "scores": F.Tensor(shape=(None,), dtype=np.float32),
            "clusters": F.Tensor(shape=(None,), dtype=np.int32),
            "neighbours": F.Tensor(shape=(None,), dtype=np.object_),
        }
    )
    examples = []
    for i in range(corpus.num_examples):
        count = i % 5
        clusters = np.arange(count) % 2 if count > 2 else np.full(count, -1)
        examples.append(
            {
                "key": f"{name}{i:04d}",
                "concepts": (np.arange(count, dtype=np.int32) + i) % 5,
                "scores": np.linspace(2, 1, count, dtype=np.float32),
                "clusters": clusters.astype(np.int32),
                "neighbours": np.array([b"x"], object),
            }
        )
    metadata = {"gallery": list(GALLERY), "corpus": corpus.fingerprint} | metadata
    lengths = lengths or corpus.shard_lengths
    return _write(directory, "annotations", features, lengths, examples, metadata)


def _write(directory, name, features, lengths, examples, metadata):
    folder = directory / name / "1.0.0"
    folder.mkdir(parents=True)
    info = tfds.core.DatasetInfo(
        builder=tfds.core.dataset_info.DatasetIdentity(
            name=name, version="1.0.0", data_dir=str(folder), module_name="miniature"
        ),
        features=features,
        metadata=tfds.core.MetadataDict(metadata),
    )
    files = tfds.core.ShardedFileTemplate(
        data_dir=folder, dataset_name=name, split="train", filetype_suffix="tfrecord"
    )
    split = tfds.core.SplitInfo(
        name="train", shard_lengths=list(lengths), num_bytes=0, filename_template=files
    )
    info.set_splits(tfds.core.splits.SplitDict([split]))
    start = 0
    for path, length in zip(info.splits["train"].filepaths, lengths, strict=True):
        with tf.io.TFRecordWriter(str(path)) as writer:
            for example in examples[start : start + length]:
                writer.write(features.serialize_example(example))
        start += length
    info.write_to_directory(folder)
    return str(folder)
