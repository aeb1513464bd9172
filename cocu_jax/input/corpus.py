"""Opens one split of a TFDS dataset, as a list of shards that are read in a fixed order."""

import dataclasses
import hashlib
import json

import tensorflow as tf
import tensorflow_datasets as tfds
from etils import epath

from cocu_jax.errors import UserError
from cocu_jax.input import image_graph


@dataclasses.dataclass(frozen=True)
class Corpus:
    """One split of one TFDS dataset (TFRecord files) on local disk or in a bucket.

    Attributes:
        directory: the dataset's versioned directory, which contains `dataset_info.json`.
        split: name of the split.
        features: the TFDS feature specification.
        metadata: metadata of the dataset (gallery, class names …).
        shard_files: path of every shard, in order.
        shard_lengths: number of examples of every shard.
        fingerprint: hash of name, version, features and shard sizes. It is the same for copies in
            different places.
        part_of: fingerprint of the whole split, if this is a part of one (see `corpus_part`).
        part: indices of its shards in the whole split; empty for the whole split.
    """

    directory: str
    split: str
    features: tfds.features.FeaturesDict
    metadata: dict
    shard_files: tuple[str, ...]
    shard_lengths: tuple[int, ...]
    fingerprint: str
    part_of: str = ""
    part: tuple[int, ...] = ()

    @property
    def num_examples(self) -> int:
        """Number of examples of all shards."""
        return sum(self.shard_lengths)

    @property
    def num_shards(self) -> int:
        """Number of shards."""
        return len(self.shard_files)

    def in_whole(self, shard: int) -> tuple[str, int]:
        """(fingerprint of the whole split, index of the shard in it)."""
        return (self.part_of, self.part[shard]) if self.part else (self.fingerprint, shard)


def open_corpus(directory: str, split: str) -> Corpus:
    """Opens a prepared dataset.

    Args:
        directory: its versioned directory, e.g. `gs://bucket/tfds/image_text/cc3m/1.0.0`, or the
            parent directory if there is exactly one version in it.
        split: name of the split.

    Raises:
        UserError: there is no dataset, or it has no such split.
    """
    root = _versioned_directory(epath.Path(directory))
    builder = tfds.builder_from_directory(root)
    if split not in builder.info.splits:
        known = ", ".join(sorted(builder.info.splits)) or "none"
        raise UserError(f"{root}: no split named {split!r}; it has: {known}")
    info = builder.info.splits[split]
    identity = {
        "name": builder.info.full_name,
        "split": split,
        "features": builder.info.features.to_json(),
        "shard_lengths": list(info.shard_lengths),
        "num_bytes": info.num_bytes,
    }
    return Corpus(
        directory=str(root),
        split=split,
        features=builder.info.features,
        metadata=dict(builder.info.metadata or {}),
        shard_files=tuple(str(path) for path in info.filepaths),
        shard_lengths=tuple(info.shard_lengths),
        fingerprint=hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16],
    )


def read_shard(
    corpus: Corpus, shard: int, skip: int = 0, decode_images: bool = False
) -> tf.data.Dataset:
    """Examples of one shard in file order.

    Args:
        corpus: the opened corpus.
        shard: index of the shard.
        skip: number of examples to skip, without parsing them.
        decode_images: whether to decode images and masks. Otherwise they remain encoded, so that
            the caller can handle damaged images.
    """
    records = tf.data.TFRecordDataset(corpus.shard_files[shard]).skip(skip)
    return records.map(
        lambda record: parse_example(corpus.features, record, decode_images),
        num_parallel_calls=tf.data.AUTOTUNE,
        deterministic=True,
    )


def parse_example(
    features: tfds.features.FeaturesDict, record: tf.Tensor, decode_images: bool
) -> dict[str, tf.Tensor]:
    """Parses a serialised example.

    Args:
        features: feature specification of the corpus.
        record: a scalar string.
        decode_images: whether to decode images of three channels to upright RGB pixels, uint8
            [h, w, 3], and images of one channel, which are masks, to their unchanged values.
            Otherwise both remain encoded.
    """
    images = {
        name: kind for name, kind in features.items() if isinstance(kind, tfds.features.Image)
    }
    encoded = {name: tfds.decode.SkipDecoding() for name in images}
    example = features.deserialize_example(record, decoders=encoded)
    if decode_images:
        for name, kind in images.items():
            is_mask = kind.shape[-1] == 1
            decode = kind.decode_example if is_mask else image_graph.decode
            example[name] = decode(example[name])
    return example


def _versioned_directory(root: epath.Path) -> epath.Path:
    if (root / "dataset_info.json").exists():
        return root
    below = (
        [p for p in root.iterdir() if (p / "dataset_info.json").exists()] if root.is_dir() else []
    )
    if len(below) == 1:
        return below[0]
    raise UserError(f"no TFDS dataset at {root}; prepare it first, see: python -m data_prep --help")
