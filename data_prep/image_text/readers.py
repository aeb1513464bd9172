"""Reading images and captions out of one unit of a raw corpus, one example at a time."""

import dataclasses
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator

import pyarrow as pa
import tensorflow as tf

from data_prep.image_text.formats import Dropped, RawExample, Reading
from data_prep.image_text.rows import read_rows
from data_prep.image_text.tables import example_of_fields, read_table
from data_prep.image_text.tars import read_tar
from data_prep.image_text.zips import read_zip

_DAMAGES = (OSError, EOFError, zlib.error, struct.error, pa.ArrowException, tf.errors.OpError)
_DAMAGES += (tarfile.TarError, zipfile.BadZipFile)


@dataclasses.dataclass(frozen=True)
class Unit:
    """What one worker reads from beginning to end.

    Attributes:
        kind: `tar`, `tfrecord`, `parquet`, `zip` or `rows` (JSON lines of path and caption).
        path: the file.
        captions: the SQLite file with the captions of YFCC's zips; "" for zips of pairs.
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
                yield from read_zip(unit.path, unit.captions, reading)
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
