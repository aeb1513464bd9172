"""One unit of a raw corpus becomes one TFRecord shard, with a report of what was dropped."""

import dataclasses
import io
import itertools
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from etils import epath

from cocu_jax.errors import UserError
from cocu_jax.input.images import UnreadableImage
from cocu_jax.models.tokenizer import Tokenizer
from data_prep.gallery.concepts import ConceptExtractor
from data_prep.gallery.gallery import Gallery
from data_prep.gallery.nouns import NounFinder
from data_prep.image_text.captions import clean_caption, count_words
from data_prep.image_text.formats import NO_CAPTION, Dropped, RawExample, Reading
from data_prep.image_text.images import ImageRecipe, prepare_image
from data_prep.image_text.readers import DamagedUnit, Unit, read_unit
from data_prep.image_text.records import (
    INDEX,
    bring,
    copy_records,
    framed_sizes,
    hash_key,
    local_file,
    starts_of,
    unit_files,
    writing,
)
from data_prep.image_text.reports import UnitReport

_MIN_WORDS = 2
_MAX_LETTERS = 1 << 16
# Pillow reads HEIC only with a plug-in.
_HEIF = tuple(b"ftyp" + brand for brand in (b"heic", b"heix", b"mif1", b"msf1", b"hevc"))


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What is done to every pair.

    Attributes:
        image: how images are stored.
        gallery: the concepts to look for in captions.
        qualify_keys: put the unit's name before every key, for corpora whose keys start anew in
            every file.
        nouns: look for all nouns in captions, too.
        reading: names of columns, and other things that raw files do not tell themselves.
        shuffle_seed: of the order of all examples; None keeps the order of the sources.
    """

    image: ImageRecipe
    gallery: Gallery
    qualify_keys: bool = False
    nouns: bool = False
    reading: Reading = Reading()
    shuffle_seed: int | None = None

    @property
    def settings(self) -> dict:
        """What a dataset's metadata say about how it was prepared."""
        image = dataclasses.asdict(self.image)
        if self.image.resize == "none":
            del image["size"]
        rest = {"qualify_keys": self.qualify_keys, "nouns": self.nouns}
        if self.shuffle_seed is None:
            rest["order"] = "source"
        else:
            rest |= {"order": "shuffled", "seed": self.shuffle_seed}
        usual, reading = dataclasses.asdict(Reading()), dataclasses.asdict(self.reading)
        rest |= {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in reading.items()
            if value != usual[name]
        }
        return image | rest | {"gallery": list(self.gallery.concepts)}


def features(nouns: bool = False) -> tfds.features.FeaturesDict:
    """Features of every image-text dataset; `caption_nouns` only with `nouns`.

    `caption` holds all captions of the image, a line each, and `caption_tokens` their tokens one
    after the other, each caption with its start and end; `caption_lengths` tells how many tokens
    each has. Concepts and nouns are those of all captions, in the order in which they come first.
    """
    numbers = ["caption_tokens", "caption_lengths", "caption_concepts"] + ["caption_nouns"] * nouns
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
        """Writes `target`.tfrecord, .npy (its index) and, as the sign that all is done, .json.

        Each appears whole, so that two workers may prepare a unit at once. Does nothing if they are
        there. For a shuffle the examples lie in the order of their keys' hashes.

        Raises:
            UserError: the unit's file is not there: that is no damage, and other machines may have
                it.
        """
        shard, index_file, report_file = unit_files(target)
        if report_file.exists() and shard.exists():
            return
        if not epath.Path(unit.path).exists():
            raise UserError(f"{unit.path}: is gone, or cannot be reached from this machine")
        report = UnitReport(unit.path)
        with local_file(shard) as aside:
            index = self._write(unit, report, aside)
            if self._recipe.shuffle_seed is not None:
                order = np.argsort(index["key"])
                sizes = framed_sizes(index["length"])
                with open(aside, "rb") as records, writing(shard) as file:
                    copy_records(records, file, starts_of(sizes)[order], sizes[order])
                index = index[order]
            else:
                bring(aside, shard)
        with writing(index_file) as file:
            np.save(file, index)
        report.save(report_file)

    def _write(self, unit: Unit, report: UnitReport, path: str) -> np.ndarray:
        """Writes a unit's examples in their order; returns their index."""
        seen: set[int] = set()
        rows: list[tuple[int, int, int]] = []
        with tf.io.TFRecordWriter(path) as writer:
            for key_hash, example in self._examples(unit, report, seen):
                record = _same_everywhere(self._features.serialize_example(example))
                writer.write(record)
                rows.append((key_hash, len(record), len(example["caption_lengths"])))
                report.kept += 1
                report.captions += rows[-1][2]
                report.bytes += len(record)
        return np.array(rows, INDEX)

    def _examples(
        self, unit: Unit, report: UnitReport, seen: set[int]
    ) -> Iterator[tuple[int, dict]]:
        """Hash of the key, and the example; hashes go into `seen`."""
        found = read_unit(unit, self._recipe.reading)
        while True:
            try:
                raw = next(found)
            except StopIteration:
                return
            except DamagedUnit as damage:
                report.damage = str(damage)
                return
            if isinstance(raw, Dropped):
                report.drop(raw.reason, raw.place, raw.count)
                continue
            key = raw.key
            if self._recipe.qualify_keys:
                key = f"{epath.Path(unit.path).name.split('.')[0]}/{key}"
            key_hash = hash_key(key, self._recipe.shuffle_seed or 0)
            captions = _captions(raw, report, key_hash in seen)
            if captions and (image := self._image(raw, report, len(captions))):
                seen.add(key_hash)
                image = io.BytesIO(image)
                yield key_hash, {"key": key, "image": image} | self._texts(captions)

    def _image(self, raw: RawExample, report: UnitReport, captions: int) -> bytes | None:
        if raw.image is None:
            report.drop(raw.no_image, raw.place, captions)
            return None
        try:
            return prepare_image(raw.image, self._recipe.image)
        except UnreadableImage:
            is_heif = raw.image[4:12] in _HEIF
            report.drop(
                "HEIC image; convert it" if is_heif else "undecodable image", raw.place, captions
            )
            return None

    def _texts(self, captions: list[str]) -> dict:
        tokens = [self._tokenizer.sequence(caption) for caption in captions]
        concepts = itertools.chain.from_iterable(map(self._extract, captions))
        texts = {
            "caption": "\n".join(captions),
            "caption_tokens": np.array([*itertools.chain(*tokens)], np.int32),
            "caption_lengths": np.array([*map(len, tokens)], np.int32),
            "caption_concepts": np.array([*dict.fromkeys(concepts)], np.int32),
        }
        if self._find_nouns:
            texts["caption_nouns"] = self._nouns(captions, tokens)
        return texts

    def _nouns(self, captions: list[str], tokens: list[list[int]]) -> np.ndarray:
        """Spans of all captions in their joined tokens, the same noun only once."""
        spans: dict[tuple[int, ...], tuple[int, int]] = {}
        offset = 0
        for caption, own in zip(captions, tokens, strict=True):
            found = self._find_nouns(caption, own)
            for start, length in zip(found[::2], found[1::2], strict=True):
                spans.setdefault(tuple(own[start : start + length]), (offset + start, length))
            offset += len(own)
        return np.array([*itertools.chain(*spans.values())], np.int32)


def _same_everywhere(record: bytes) -> bytes:
    """The same example in an order of its features that does not differ between processes."""
    return tf.train.Example.FromString(record).SerializeToString(deterministic=True)


def unit_preparer(recipe: Recipe) -> Callable[[Unit, str], None]:
    """The function that workers prepare units with."""
    preparer = UnitPreparer(recipe)
    return lambda unit, target: preparer.prepare(unit, epath.Path(target))


def _captions(raw: RawExample, report: UnitReport, is_known: bool) -> list[str]:
    """The captions that can be used, cleaned; what is wrong with the others is counted."""
    if is_known or not raw.key:
        reason = "no key" if not raw.key else "duplicate key"
        report.drop(reason, raw.place, max(1, len(raw.captions) + len(raw.faults)))
        return []
    if not raw.captions and not raw.faults:
        report.drop(NO_CAPTION, raw.place)
    for fault in raw.faults:
        report.drop(fault, raw.place)
    kept: dict[str, None] = {}
    for text in raw.captions:
        caption = clean_caption(text) if len(text) <= _MAX_LETTERS else None
        if caption is None:
            report.drop(f"caption over {_MAX_LETTERS:,} letters", raw.place)
        elif count_words(caption) < _MIN_WORDS:
            report.drop("caption under two words", raw.place)
        elif caption in kept:
            report.drop("repeated caption", raw.place)
        else:
            kept[caption] = None
    return list(kept)
