"""A tiny image-text dataset and a tiny CLIP checkpoint, and the curation job run on them."""

import contextlib
import io
import json

import numpy as np
import tensorflow_datasets as tfds
from flax import nnx
from PIL import Image

from cocu_jax.curation import job
from cocu_jax.input.corpus import read_shard
from cocu_jax.models.clip import CLIP, CLIPConfig
from cocu_jax.models.text import TextConfig
from cocu_jax.models.weights.huggingface import save_clip
from configs.curate import get_config

GALLERY = ["cat", "cattle", "tree", "street", "car", "red car", "dog", "sky", "sea", "boat"]


class TinyImageText(tfds.core.GeneratorBasedBuilder):
    """Examples given to the constructor, in their order."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, examples, gallery=GALLERY, **kwargs):
        self.examples, self.gallery = examples, gallery
        super().__init__(**kwargs)

    def _info(self):
        features = tfds.features
        return tfds.core.DatasetInfo(
            builder=self,
            features=features.FeaturesDict(
                {
                    "key": features.Text(),
                    "image": features.Image(),
                    "caption": features.Text(),
                    "caption_tokens": features.Tensor(shape=(None,), dtype=np.int32),
                    "caption_concepts": features.Tensor(shape=(None,), dtype=np.int32),
                }
            ),
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(gallery=list(self.gallery)),
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        yield from enumerate(self.examples)


def encoded(pixels, kind="JPEG", mode="RGB", **options):
    """Bytes of an image file."""
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, kind, **options)
    return file.getvalue()


def example(number, image=None, caption="a caption", concepts=None):
    """One example; random pixels and concepts that depend on its number unless given."""
    rng = np.random.default_rng(number)
    if image is None:
        image = encoded(rng.integers(256, size=(20 + number % 7, 24, 3), dtype=np.uint8))
    if concepts is None:
        concepts = rng.choice(len(GALLERY), rng.integers(0, 4), replace=False).tolist()
    return {
        "key": f"key-{number}",
        "image": image,
        "caption": caption,
        "caption_tokens": [49406, 49407],
        "caption_concepts": concepts,
    }


def write_corpus(folder, examples, shards=4, gallery=GALLERY, empty=None):
    """Prepares the dataset, perhaps with one more shard, `empty`; returns its directory."""
    with contextlib.redirect_stdout(io.StringIO()):
        builder = TinyImageText(data_dir=str(folder), examples=examples, gallery=gallery)
        sharded = tfds.download.DownloadConfig(num_shards=shards)
        builder.download_and_prepare(download_config=sharded)
    if empty is not None:
        _insert_empty_shard(builder.data_path, empty)
    return str(builder.data_path)


def _insert_empty_shard(root, number):
    """As other tools than ours leave one where nothing of a source is kept."""
    file = root / "dataset_info.json"
    info = json.loads(file.read_text())
    lengths = info["splits"][0]["shardLengths"]
    lengths.insert(number, "0")
    file.write_text(json.dumps(info))
    for place, path in reversed(list(enumerate(sorted(root.glob("*.tfrecord*"))))):
        stem = path.name.rpartition("-of-")[0].rpartition("-")[0]
        place += place >= number
        path.rename(root / f"{stem}-{place:05d}-of-{len(lengths):05d}")
    (root / f"{stem}-{number:05d}-of-{len(lengths):05d}").write_bytes(b"")


def write_clip(folder, seed=0):
    """A CLIP of random weights; returns its folder."""
    text = TextConfig(width=32, heads=2, layers=1)
    config = CLIPConfig(
        image_size=16, patch_size=8, vision_width=32, vision_layers=1, vision_heads=2,
        projection_dim=24, text=text,
    )  # fmt: skip
    save_clip(CLIP(config, rngs=nnx.Rngs(seed)), str(folder))
    return str(folder)


def curate(fields, workdir, **changes):
    """Runs the job with flattened config fields; returns its summary."""
    config = get_config()
    config.update_from_flattened_dict({**fields, **changes})
    return job.curate(config, str(workdir))


def examples_of(corpus):
    """All examples of a dataset, in their order."""
    shards = range(corpus.num_shards)
    return [e for shard in shards for e in read_shard(corpus, shard).as_numpy_iterator()]
