"""Reading pairs of image and caption out of one unit of a raw corpus, one pair at a time."""

import contextlib
import dataclasses
import json
import posixpath
import sqlite3
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq
import tensorflow as tf
from etils import epath

IMAGE_ENDINGS = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff")
CAPTION_FIELDS = ("caption", "text", "title", "sentence")
_TEXT_ENDINGS = ("txt", "text", "caption", "json")
_DAMAGES = (OSError, EOFError, zlib.error, struct.error, pa.ArrowException, tf.errors.OpError)
_DAMAGES += (tarfile.TarError, zipfile.BadZipFile)
_TAR_BUFFER = 1 << 20
_PARQUET_ROWS = 256


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


@dataclasses.dataclass(frozen=True)
class RawPair:
    """One pair as found; what was not found is None."""

    key: str
    image: bytes | None
    caption: str | None


class DamagedUnit(Exception):
    """A unit ends before its end: the rest of it cannot be read."""


def read_unit(unit: Unit) -> Iterator[RawPair]:
    """Pairs of a unit in file order, in the memory of a few of them.

    Raises:
        DamagedUnit: after the pairs that can be read.
    """
    readers = {
        "tar": _read_tar,
        "tfrecord": _read_tfrecord,
        "parquet": _read_parquet,
        "zip": _read_zip,
        "rows": _read_rows,
    }
    try:
        yield from readers[unit.kind](unit)
    except _DAMAGES as error:
        reason = str(error).strip() or type(error).__name__
        raise DamagedUnit(f"{unit.path}: {reason.splitlines()[0]}") from None


def _read_tar(unit: Unit) -> Iterator[RawPair]:
    """WebDataset: neighbouring members whose names are the same up to the first dot."""
    key, parts, damage = None, {}, None
    try:
        for name, content in _tar_members(unit.path):
            folder, file = posixpath.split(name)
            stem, _, ending = file.partition(".")
            if (member_key := posixpath.join(folder, stem).removeprefix("./")) != key:
                if parts:
                    yield _from_parts(key, parts)
                key, parts = member_key, {}
            parts[ending.lower()] = content
    except _DAMAGES as error:
        damage = error
    if parts:
        yield _from_parts(key, parts)
    if damage:
        raise damage


def _tar_members(path: str) -> Iterator[tuple[str, bytes]]:
    """Name and content of the members that are images or captions."""
    with (
        epath.Path(path).open("rb") as file,
        tarfile.open(
            fileobj=file, mode=_tar_mode(path, file), bufsize=_TAR_BUFFER, tarinfo=_Header
        ) as members,
    ):
        for member in members:
            ending = posixpath.basename(member.name).partition(".")[2].lower()
            if member.isfile() and ending in (*IMAGE_ENDINGS, *_TEXT_ENDINGS):
                yield member.name, members.extractfile(member).read()


def _tar_mode(path: str, file: BinaryIO) -> str:
    """`r:` seeks in plain local tars, four times faster; `r|*` streams compressed and far ones."""
    if "://" in path:
        return "r|*"
    magic = file.read(262)[257:]
    file.seek(0)
    return "r:" if magic == b"ustar" else "r|*"


class _Header(tarfile.TarInfo):
    """A header that tells where a tar ends from where it was cut off or overwritten.

    `tarfile` takes all three for the end.
    """

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> "_Header":
        try:
            return super().fromtarfile(tarfile_)
        except tarfile.EOFHeaderError:
            if tarfile_.fileobj.read(_TAR_BUFFER).strip(b"\0"):
                raise tarfile.ReadError(
                    "goes on after its end mark, as tars do that were joined; split it"
                ) from None
            raise
        except tarfile.EmptyHeaderError:
            raise tarfile.ReadError(
                "no end mark after the last member; the tar may have been cut off there"
            ) from None
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"damaged header ({error})") from None


def _from_parts(key: str, parts: dict[str, bytes]) -> RawPair:
    image = next((parts[ending] for ending in IMAGE_ENDINGS if ending in parts), None)
    texts = [parts[ending] for ending in _TEXT_ENDINGS[:-1] if ending in parts]
    if texts:
        return RawPair(key, image, texts[0].decode("utf-8", "replace"))
    return RawPair(key, image, caption_of_json(parts.get("json")))


def caption_of_json(encoded: bytes | None) -> str | None:
    """The caption in a JSON object, under one of its usual names."""
    try:
        fields = json.loads(encoded) if encoded else None
    except ValueError:
        return None
    values = [fields.get(name) for name in CAPTION_FIELDS] if isinstance(fields, dict) else []
    return next((value for value in values if isinstance(value, str)), None)


def _read_tfrecord(unit: Unit) -> Iterator[RawPair]:
    """img2dataset's `--output_format tfrecord`."""
    for record in tf.data.TFRecordDataset(unit.path).as_numpy_iterator():
        feature = tf.train.Example.FromString(record).features.feature
        fields = {
            name: feature[name].bytes_list.value[0]
            for name in ("key", *IMAGE_ENDINGS, *CAPTION_FIELDS)
            if name in feature and feature[name].bytes_list.value
        }
        yield _from_fields(fields)


def _read_parquet(unit: Unit) -> Iterator[RawPair]:
    """img2dataset's `--output_format parquet`."""
    with epath.Path(unit.path).open("rb") as file, pq.ParquetFile(file) as table:
        wanted = {"key", *IMAGE_ENDINGS, *CAPTION_FIELDS}
        columns = [name for name in table.schema_arrow.names if name in wanted]
        for batch in table.iter_batches(_PARQUET_ROWS, columns=columns):
            for fields in batch.to_pylist():
                yield _from_fields(fields)


def _from_fields(fields: dict[str, str | bytes | None]) -> RawPair:
    images = [fields[ending] for ending in IMAGE_ENDINGS if fields.get(ending)]
    texts = [fields[name] for name in CAPTION_FIELDS if fields.get(name)]
    return RawPair(_text(fields.get("key") or ""), next(iter(images), None), _text(*texts[:1]))


def _text(value: str | bytes | None = None) -> str | None:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _read_zip(unit: Unit) -> Iterator[RawPair]:
    """YFCC100M: images named by photo id or hash; a photo without caption is not of the subset."""
    with (
        contextlib.closing(sqlite3.connect(f"file:{unit.captions}?mode=ro", uri=True)) as captions,
        epath.Path(unit.path).open("rb") as file,
        zipfile.ZipFile(file) as members,
    ):
        for member in members.infolist():
            stem, _, ending = posixpath.basename(member.filename).partition(".")
            if member.is_dir() or ending.lower() not in IMAGE_ENDINGS:
                continue
            query = "SELECT id, caption FROM captions WHERE id = ?1 OR hash = ?1"
            if row := captions.execute(query, (stem,)).fetchone():
                yield RawPair(row[0], members.read(member), row[1])


def _read_rows(unit: Unit) -> Iterator[RawPair]:
    """Lines written by `data_prep.image_text.lists`."""
    with epath.Path(unit.path).open("r") as lines:
        for line in lines:
            row = json.loads(line)
            try:
                image = epath.Path(row["path"]).read_bytes()
            except OSError:
                image = None
            yield RawPair(row["key"], image, row["caption"])
