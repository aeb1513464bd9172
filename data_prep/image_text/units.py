"""One unit of a raw corpus becomes one TFRecord shard, with a report of what was dropped."""

import dataclasses
import hashlib
import io
import json
from collections.abc import Iterator

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from etils import epath

from cocu_jax.models.tokenizer import EOT, SOT, Tokenizer
from data_prep.gallery.concepts import ConceptExtractor
from data_prep.gallery.gallery import Gallery
from data_prep.gallery.nouns import NounFinder
from data_prep.image_text.captions import clean_caption, count_words
from data_prep.image_text.images import ImageRecipe, UndecodableImage, prepare_image
from data_prep.image_text.readers import DamagedUnit, RawPair, Unit, read_unit

_CONTEXT_LENGTH = 77
_MIN_WORDS = 2


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What is done to every pair.

    Attributes:
        image: how images are stored.
        gallery: the concepts to look for in captions.
        qualify_keys: put the unit's name before every key, for corpora whose keys start anew in
            every file.
        nouns: look for all nouns in captions, too.
    """

    image: ImageRecipe
    gallery: Gallery
    qualify_keys: bool = False
    nouns: bool = False

    @property
    def settings(self) -> dict:
        """What a dataset's metadata say about how it was prepared."""
        image = dataclasses.asdict(self.image)
        if self.image.resize == "none":
            del image["size"]
        rest = {"qualify_keys": self.qualify_keys, "nouns": self.nouns}
        return image | rest | {"gallery": list(self.gallery.concepts)}


@dataclasses.dataclass
class UnitReport:
    """What became of a unit's pairs.

    Attributes:
        unit: its file.
        kept: number of examples written.
        bytes: their size.
        dropped: number of pairs dropped, by reason.
        damage: why the rest of the unit could not be read, or "".
    """

    unit: str
    kept: int = 0
    bytes: int = 0
    dropped: dict[str, int] = dataclasses.field(default_factory=dict)
    damage: str = ""

    @classmethod
    def load(cls, path: epath.Path) -> "UnitReport":
        """Reads what `save` wrote."""
        return cls(**json.loads(path.read_text()))

    def drop(self, reason: str) -> None:
        """Counts one pair."""
        self.dropped[reason] = self.dropped.get(reason, 0) + 1

    def save(self, path: epath.Path) -> None:
        """Writes the report as JSON."""
        path.write_text(json.dumps(dataclasses.asdict(self)))


def features(nouns: bool = False) -> tfds.features.FeaturesDict:
    """Features of every image-text dataset; `caption_nouns` only with `nouns`."""
    numbers = ["caption_tokens", "caption_concepts"] + ["caption_nouns"] * nouns
    return tfds.features.FeaturesDict(
        {
            "key": tfds.features.Text(),
            "image": tfds.features.Image(encoding_format="jpeg"),
            "caption": tfds.features.Text(),
        }
        | {name: tfds.features.Tensor(shape=(None,), dtype=np.int32) for name in numbers}
    )


class UnitPreparer:
    """Prepares units; made once in every worker, because it learns frequent words as it goes."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._features = features(recipe.nouns)
        self._tokenizer = Tokenizer()
        self._extract = ConceptExtractor(recipe.gallery)
        self._find_nouns = NounFinder(self._tokenizer) if recipe.nouns else None

    def prepare(self, unit: Unit, target: epath.Path) -> None:
        """Writes `target`.tfrecord, .keys.npy and, as the sign that all is done, .json.

        Does nothing if they are there.
        """
        shard, keys, report = shard_files(target)
        if report.exists() and shard.exists():
            return
        result = UnitReport(unit.path)
        seen: dict[int, None] = {}
        with tf.io.TFRecordWriter(str(shard)) as writer:
            for example in self._examples(unit, result, seen):
                record = self._features.serialize_example(example)
                writer.write(record)
                result.kept += 1
                result.bytes += len(record)
        with keys.open("wb") as file:
            np.save(file, np.fromiter(seen, np.uint64, len(seen)))
        result.save(report)

    def _examples(self, unit: Unit, report: UnitReport, seen: dict[int, None]) -> Iterator[dict]:
        pairs = read_unit(unit)
        while True:
            try:
                pair = next(pairs)
            except StopIteration:
                return
            except DamagedUnit as damage:
                report.damage = str(damage)
                return
            key = pair.key
            if self._recipe.qualify_keys:
                key = f"{epath.Path(unit.path).name.split('.')[0]}/{key}"
            key_hash = hash_key(key)
            caption = clean_caption(pair.caption or "")
            if reason := _reason_to_drop(pair, caption, key_hash in seen):
                report.drop(reason)
                continue
            try:
                image = prepare_image(pair.image, self._recipe.image)
            except UndecodableImage:
                report.drop("undecodable image")
                continue
            seen[key_hash] = None
            yield {"key": key, "image": io.BytesIO(image)} | self._texts(caption)

    def _texts(self, caption: str) -> dict:
        tokens = [SOT, *self._tokenizer.encode(caption)[: _CONTEXT_LENGTH - 2], EOT]
        texts = {
            "caption": caption,
            "caption_tokens": np.array(tokens, np.int32),
            "caption_concepts": np.array(self._extract(caption), np.int32),
        }
        if self._find_nouns:
            texts["caption_nouns"] = np.array(self._find_nouns(caption, tokens), np.int32)
        return texts


def shard_files(target: epath.Path) -> tuple[epath.Path, epath.Path, epath.Path]:
    """Files of a unit: examples, hashes of their keys, report."""
    return tuple(target.parent / f"{target.name}.{end}" for end in ("tfrecord", "keys.npy", "json"))


def hash_key(key: str) -> int:
    """64 bits of a key: the chance that any two of 15 million keys meet is one in 160,000."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")


def _reason_to_drop(pair: RawPair, caption: str, is_known: bool) -> str | None:
    if is_known:
        return "duplicate key"
    if not pair.key:
        return "no key"
    if pair.caption is None:
        return "no caption"
    if count_words(caption) < _MIN_WORDS:
        return "caption under two words"
    if not pair.image:
        return "no image"
    return None
