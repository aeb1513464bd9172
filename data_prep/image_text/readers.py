"""Reading images and captions out of one unit of a raw corpus, one example at a time."""

import contextlib
import dataclasses
import posixpath
import sqlite3
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator

import pyarrow as pa
import tensorflow as tf
from etils import epath

from data_prep.image_text.formats import (
    IMAGE_ENDINGS,
    LARGE_IMAGE,
    MAX_IMAGE_BYTES,
    Dropped,
    RawExample,
    Reading,
)
from data_prep.image_text.rows import read_rows
from data_prep.image_text.tables import example_of_fields, read_table
from data_prep.image_text.tars import read_tar

_DAMAGES = (OSError, EOFError, zlib.error, struct.error, pa.ArrowException, tf.errors.OpError)
_DAMAGES += (tarfile.TarError, zipfile.BadZipFile)
_NOT_LISTED = "photo without caption in YFCC's table, or not in the subset"
_NO_PHOTO = "no photo by its ending"


@dataclasses.dataclass(frozen=True)
class Unit:
    """What one worker reads from beginning to end.

    Attributes:
        kind: `tar`, `tfrecord`, `parquet`, `zip` (YFCC) or `rows` (JSON lines of path and caption).
        path: the file.
        captions: the SQLite file with the captions, for `zip`.
    """

    kind: str
    path: str
    captions: str = ""


class DamagedUnit(Exception):
    """A unit ends before its end: the rest of it cannot be read."""


def read_unit(unit: Unit, reading: Reading) -> Iterator[RawExample | Dropped]:
    """Everything in a unit in file order, in the memory of a few examples.

    Raises:
        DamagedUnit: after the examples that can be read.
    """
    try:
        match unit.kind:
            case "tar":
                yield from read_tar(unit.path, reading)
            case "tfrecord":
                yield from _read_tfrecord(unit.path, reading)
            case "parquet":
                yield from read_table(unit.path, reading)
            case "zip":
                yield from _read_zip(unit)
            case "rows":
                yield from read_rows(unit.path, reading)
    except _DAMAGES as error:
        reason = str(error).strip() or type(error).__name__
        raise DamagedUnit(f"{unit.path}: {reason.splitlines()[0]}") from None


def _read_tfrecord(path: str, reading: Reading) -> Iterator[RawExample]:
    """img2dataset's `--output_format tfrecord`."""
    for row, record in enumerate(tf.data.TFRecordDataset(path).as_numpy_iterator()):
        feature = tf.train.Example.FromString(record).features.feature
        fields = {name: _value(feature[name]) for name in feature}
        yield example_of_fields(fields, path, row, reading)


def _value(feature: tf.train.Feature) -> bytes | int | float | list | None:
    """What a feature holds: one value, several, or nothing."""
    kind = feature.WhichOneof("kind")
    values = getattr(feature, kind).value if kind else ()
    return values[0] if len(values) == 1 else list(values) or None


def _read_zip(unit: Unit) -> Iterator[RawExample | Dropped]:
    """YFCC100M: images named by photo id or hash; a photo without caption is not of the subset."""
    with (
        contextlib.closing(sqlite3.connect(f"file:{unit.captions}?mode=ro", uri=True)) as captions,
        epath.Path(unit.path).open("rb") as file,
        zipfile.ZipFile(file) as members,
    ):
        for member in members.infolist():
            if member.is_dir():
                continue
            place = f"{unit.path}: {member.filename}"
            stem, _, ending = posixpath.basename(member.filename).partition(".")
            query = "SELECT id, caption FROM captions WHERE id = ?1 OR hash = ?1"
            if ending.lower() not in IMAGE_ENDINGS:
                yield Dropped(_NO_PHOTO, place)
            elif not (row := captions.execute(query, (stem,)).fetchone()):
                yield Dropped(_NOT_LISTED, place)
            elif member.file_size > MAX_IMAGE_BYTES:
                yield Dropped(LARGE_IMAGE, place)
            else:
                yield RawExample(row[0], members.read(member), (row[1],), place)
