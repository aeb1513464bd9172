"""The result on disk: a TFDS dataset beside the corpus, and Parquet files for everyone else.

The dataset has the corpus's split name, and the same number and order of shards and of examples.
"""

import os
import tempfile
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import tensorflow as tf
import tensorflow_datasets as tfds
from etils import epath
from tensorflow_datasets.core import dataset_info

from cocu_jax.curation.annotate import Annotations

DATASET = "concept_annotations"
VERSION = "1.0.0"


def annotation_features() -> tfds.features.FeaturesDict:
    """Features of the sidecar dataset."""
    features = tfds.features
    return features.FeaturesDict(
        {
            "key": features.Text(),
            "concepts": features.Tensor(shape=(None,), dtype=np.int32),
            "scores": features.Tensor(shape=(None,), dtype=np.float32),
            "clusters": features.Tensor(shape=(None,), dtype=np.int32),
            "neighbours": features.Tensor(shape=(None,), dtype=np.str_),
        }
    )


def tfrecord_shard(
    keys: Sequence[bytes], annotations: Annotations, neighbours: Sequence[Sequence[bytes]]
) -> tuple[bytes, int]:
    """A shard as the bytes of a TFRecord file, and the number of bytes of its examples.

    Args:
        keys: of the images.
        annotations: of the images.
        neighbours: keys retrieved for each image.
    """
    sizes = np.minimum(annotations.found, annotations.concepts.shape[1])
    examples = []
    for row, (key, size) in enumerate(zip(keys, sizes, strict=True)):
        features = {
            "key": _bytes([key]),
            "concepts": _integers(annotations.concepts[row, :size]),
            "scores": _floats(annotations.scores[row, :size]),
            "clusters": _integers(annotations.clusters[row, :size]),
            "neighbours": _bytes(neighbours[row]),
        }
        example = tf.train.Example(features=tf.train.Features(feature=features))
        examples.append(example.SerializeToString(deterministic=True))
    return _tfrecord_file(examples), sum(map(len, examples))


def parquet_shard(
    keys: Sequence[bytes],
    annotations: Annotations,
    neighbours: Sequence[Sequence[bytes]],
    gallery: Sequence[str],
) -> bytes:
    """A shard as the bytes of a Parquet file, with concepts by name as well as by id."""
    width = annotations.concepts.shape[1]
    sizes = np.minimum(annotations.found, width)
    offsets = pa.array(np.concatenate([[0], np.cumsum(sizes)]), pa.int32())
    used = np.arange(width) < sizes[:, None]
    ids = annotations.concepts[used]
    columns = {
        "key": pa.array(keys, pa.binary()).cast(pa.string()),
        "concepts": pa.ListArray.from_arrays(offsets, pa.array(gallery).take(pa.array(ids))),
        "concept_ids": pa.ListArray.from_arrays(offsets, pa.array(ids)),
        "scores": pa.ListArray.from_arrays(offsets, pa.array(annotations.scores[used])),
        "clusters": pa.ListArray.from_arrays(offsets, pa.array(annotations.clusters[used])),
        "neighbours": pa.array(neighbours, pa.list_(pa.binary())).cast(pa.list_(pa.string())),
    }
    sink = pa.BufferOutputStream()
    pyarrow.parquet.write_table(pa.table(columns), sink, compression="zstd")
    return sink.getvalue().to_pybytes()


def shard_name(split: str, shard: int, shards: int) -> str:
    """File name of a TFRecord shard, as TFDS expects it."""
    return f"{DATASET}-{split}.tfrecord-{shard:05d}-of-{shards:05d}"


def metadata_files(
    split: str, shard_lengths: Sequence[int], num_bytes: int, provenance: Mapping
) -> dict[str, bytes]:
    """The files that make finished shards a TFDS dataset, by name, the one that counts last.

    Args:
        split: its name.
        shard_lengths: examples per shard.
        num_bytes: of all examples.
        provenance: JSON fields that say what the annotations belong to.
    """
    with tempfile.TemporaryDirectory() as folder:
        identity = dataset_info.DatasetIdentity(
            name=DATASET, version=VERSION, data_dir=folder, module_name=""
        )
        info = tfds.core.DatasetInfo(
            builder=identity,
            features=annotation_features(),
            description="Ranked visual concepts of an image-text corpus, joined to it by key.",
            metadata=tfds.core.MetadataDict(provenance),
        )
        info.set_file_format("tfrecord")
        template = tfds.core.ShardedFileTemplate(
            data_dir=folder, dataset_name=DATASET, split=split, filetype_suffix="tfrecord"
        )
        split_info = tfds.core.SplitInfo(
            name=split,
            shard_lengths=list(shard_lengths),
            num_bytes=num_bytes,
            filename_template=template,
        )
        info.set_splits(tfds.core.splits.SplitDict([split_info]))
        info.write_to_directory(folder)
        names = sorted(os.listdir(folder), key=lambda name: name == "dataset_info.json")
        return {name: (epath.Path(folder) / name).read_bytes() for name in names}


def _tfrecord_file(examples: Sequence[bytes]) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "shard.tfrecord")
        with tf.io.TFRecordWriter(path) as writer:
            for example in examples:
                writer.write(example)
        with open(path, "rb") as file:
            return file.read()


def _integers(values: np.ndarray) -> tf.train.Feature:
    return tf.train.Feature(int64_list=tf.train.Int64List(value=values.tolist()))


def _floats(values: np.ndarray) -> tf.train.Feature:
    return tf.train.Feature(float_list=tf.train.FloatList(value=values.tolist()))


def _bytes(values: Sequence[bytes]) -> tf.train.Feature:
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=values))
