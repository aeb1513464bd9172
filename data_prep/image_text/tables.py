"""Reading Parquet files of images and captions: img2dataset's and those of the hub's datasets."""

import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow.parquet as pq
from etils import epath

from cocu_jax.errors import UserError
from data_prep.image_text.formats import (
    IMAGE_COLUMNS,
    LARGE_IMAGE,
    LARGE_TEXT,
    MAX_IMAGE_BYTES,
    MAX_TEXT_BYTES,
    NO_IMAGE,
    RawExample,
    Reading,
)
from data_prep.image_text.rows import read_file
from data_prep.image_text.texts import captions_in_fields, key_in

_ROWS = 256
_BATCH_BYTES = 64 << 20
_ENDING = re.compile(r"\.(parquet|tfrecords?|tfrec)(-\d+-of-\d+)?$", re.IGNORECASE)


def read_table(path: str, reading: Reading) -> Iterator[RawExample]:
    """Rows of a Parquet file, some at a time.

    Raises:
        pyarrow.ArrowException, OSError: after the rows that can be read.
    """
    with epath.Path(path).open("rb") as file, pq.ParquetFile(file) as table:
        known = (*_image_columns(reading), *reading.captions, *_key_columns(reading))
        columns = [name for name in table.schema_arrow.names if name in known]
        row = 0
        for group in range(table.num_row_groups):
            rows = _rows_at_once(table, group)
            for batch in table.iter_batches(rows, row_groups=[group], columns=columns):
                for fields in batch.to_pylist():
                    yield example_of_fields(fields, path, row, reading)
                    row += 1


def check_table(path: str, reading: Reading) -> None:
    """Refuses a table in which no column holds images or captions.

    Raises:
        UserError: with the columns that are there.
    """
    names = table_columns(path)
    for wanted, flag in (
        (_image_columns(reading), "image_column"),
        (reading.captions, "caption_column"),
    ):
        if not set(wanted) & set(names):
            links = "; images that are only links have to be fetched first, e.g. by img2dataset"
            raise UserError(
                f"{path}: no column {' or '.join(wanted)} among: {', '.join(names)}; name it "
                f"with --{flag}{links if 'url' in map(str.lower, names) else ''}"
            )


def table_columns(path: str) -> list[str]:
    """Names of a Parquet file's columns.

    Raises:
        UserError: it is no Parquet file.
    """
    try:
        with epath.Path(path).open("rb") as file:
            return pq.read_schema(file).names
    except (OSError, ValueError) as error:  # Arrow's errors are of these classes
        raise UserError(f"{path}: not a Parquet file ({error})") from None


def holds_images(path: str, reading: Reading) -> bool:
    """Whether a table has images, not only metadata about them."""
    return bool(set(_image_columns(reading)) & set(table_columns(path)))


def example_of_fields(fields: dict, path: str, row: int, reading: Reading) -> RawExample:
    """The example in a row.

    Args:
        fields: column -> value.
        path: the table.
        row: number of the row; it makes the key where there is no column of keys.
        reading: names of the columns.
    """
    made = f"{_ENDING.sub('', os.path.basename(path))}/{row:08d}"
    keys = [fields[name] for name in _key_columns(reading) if name in fields]
    key = key_in(keys[0]) if keys else made
    texts, faults = captions_in_fields(fields, reading.captions, bool(reading.caption_column))
    short = tuple(text for text in texts if len(text) <= MAX_TEXT_BYTES)
    faults += [LARGE_TEXT] * (len(texts) - len(short))
    image, why = None, NO_IMAGE
    for name in _image_columns(reading):
        if fields.get(name) is not None:
            image, why = _image_in(fields[name], reading.images or os.path.dirname(path))
            break
    return RawExample(key, image, short, f"{path}: row {row}", tuple(faults), why)


def _image_columns(reading: Reading) -> Sequence[str]:
    return reading.image_column or IMAGE_COLUMNS


def _key_columns(reading: Reading) -> Sequence[str]:
    return (reading.key_column,) if reading.key_column else ("key", "__key__")


def _image_in(value: Any, folder: str) -> tuple[bytes | None, str]:
    """Encoded bytes of a cell: bytes, a path, or both as the hub's `{bytes, path}`."""
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, str):
        return read_file(os.path.join(folder, value), MAX_IMAGE_BYTES, LARGE_IMAGE)
    if isinstance(value, bytes) and len(value) > MAX_IMAGE_BYTES:
        return None, LARGE_IMAGE
    return (value, NO_IMAGE) if isinstance(value, bytes) else (None, NO_IMAGE)


def _rows_at_once(table: pq.ParquetFile, group: int) -> int:
    """As many rows as fit into the memory of a batch, going by the mean of the row group."""
    metadata = table.metadata.row_group(group)
    mean = max(1, metadata.total_byte_size // max(1, metadata.num_rows))
    return max(1, min(_ROWS, _BATCH_BYTES // mean))
