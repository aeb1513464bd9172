"""Lists of paths and captions (CSV, TSV, JSON lines) and folders, cut into units of rows."""

import csv
import itertools
import json
import os
from collections.abc import Iterable, Iterator

from etils import epath

from cocu_jax.errors import UserError
from data_prep.image_text.readers import CAPTION_FIELDS, IMAGE_ENDINGS, caption_of_json

LIST_ENDINGS = (".csv", ".tsv", ".jsonl")
_IMAGE_FIELDS = (
    "path",
    "image",
    "image_path",
    "filepath",
    "file_path",
    "file",
    "filename",
    "file_name",
)
_KEY_FIELDS = ("key", "id", "image_id")
_UNIT_ROWS = 5_000


def write_list_rows(path: epath.Path, scratch: epath.Path, start: int) -> Iterator[epath.Path]:
    """Cuts a list with a header into files of rows; relative paths start at the list's folder.

    Args:
        path: the list.
        scratch: where the files go.
        start: number of the first file.

    Raises:
        UserError: the list names no image or no caption, or a line cannot be read.
    """

    def rows() -> Iterator[dict]:
        with path.open("r") as file:
            lines = (line.removeprefix("\ufeff") for line in file)
            for number, fields in enumerate(_records(path, lines)):
                image, caption = _field(path, fields, _IMAGE_FIELDS), None
                if any(name in fields for name in CAPTION_FIELDS):
                    caption = _field(path, fields, CAPTION_FIELDS)
                elif not number:
                    raise _missing(path, fields, CAPTION_FIELDS)
                named = [name for name in _KEY_FIELDS if fields.get(name) not in (None, "")]
                key = str(fields[named[0]]) if named else str(image)
                yield {"key": key, "path": os.fspath(path.parent / str(image)), "caption": caption}

    return _write_rows(rows(), scratch, start)


def write_folder_rows(folder: epath.Path, scratch: epath.Path, start: int) -> Iterator[epath.Path]:
    """Cuts a folder of images, each with a `.txt` or `.json` beside it, into files of rows.

    Raises:
        UserError: the folder holds no image.
    """

    def rows() -> Iterator[dict]:
        for path in _walk(folder):
            if path.suffix.lower().removeprefix(".") in IMAGE_ENDINGS:
                key = path.relative_to(folder).with_suffix("").as_posix()
                yield {"key": key, "path": os.fspath(path), "caption": _caption_beside(path)}

    files = list(_write_rows(rows(), scratch, start))
    if not files:
        raise UserError(
            f"{folder}: no tars, TFRecords, Parquet files, zips or images in this folder"
        )
    return iter(files)


def _walk(folder: epath.Path) -> Iterator[epath.Path]:
    """All files below, in an order that does not depend on the file system."""
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            yield from _walk(path)
        else:
            yield path


def _caption_beside(image: epath.Path) -> str | None:
    try:
        return image.with_suffix(".txt").read_bytes().decode("utf-8", "replace")
    except OSError:
        pass
    try:
        return caption_of_json(image.with_suffix(".json").read_bytes())
    except OSError:
        return None


def _records(path: epath.Path, file: Iterable[str]) -> Iterator[dict]:
    if path.suffix.lower() == ".jsonl":
        for number, line in enumerate(file, 1):
            try:
                fields = json.loads(line) if line.strip() else None
            except ValueError:
                fields = line
            if not isinstance(fields, dict | None):
                raise UserError(f"{path}: line {number} is no JSON object; correct or remove it")
            if fields is not None:
                yield fields
        return
    quoting = (
        {} if path.suffix.lower() == ".csv" else {"delimiter": "\t", "quoting": csv.QUOTE_NONE}
    )
    try:
        yield from csv.DictReader(file, **quoting)
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); save it as UTF-8 text") from None


def _field(path: epath.Path, fields: dict, names: tuple[str, ...]) -> str | None:
    for name in names:
        if name in fields:
            return fields[name]
    raise _missing(path, fields, names)


def _missing(path: epath.Path, fields: dict, names: tuple[str, ...]) -> UserError:
    has = ", ".join(str(name) for name in itertools.islice(fields, 8))
    return UserError(
        f"{path}: no column {' or '.join(names)} among: {has}; name it in the first line"
    )


def _write_rows(rows: Iterator[dict], scratch: epath.Path, start: int) -> Iterator[epath.Path]:
    for number in itertools.count(start):
        part = list(itertools.islice(rows, _UNIT_ROWS))
        if not part:
            return
        target = scratch / f"rows-{number:05d}.jsonl"
        target.write_text("".join(f"{json.dumps(row)}\n" for row in part))
        yield target
