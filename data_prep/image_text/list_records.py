"""Records of the lists that people have: CSV, TSV, JSON lines, COCO's and Karpathy's JSON."""

import io
import itertools
import json
import os
import re
import zlib
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from etils import epath

from cocu_jax.errors import UserError
from data_prep.image_text.formats import (
    CAPTION_COLUMNS,
    KEY_COLUMNS,
    PATH_COLUMNS,
    Dropped,
    Reading,
)
from data_prep.image_text.list_lines import SEPARATORS, Line, read_lines, split_fields, unpacked
from data_prep.image_text.texts import (
    NOT_UTF8,
    captions_in,
    captions_in_fields,
    decode_text,
    key_in,
)

LIST_ENDINGS = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".txt", ".token")
LIST_ENDINGS += tuple(f"{ending}.gz" for ending in LIST_ENDINGS)
_JSON_LINES = (".jsonl", ".ndjson")
_NO_LINE = "line is no text (UTF-8 is) or over 1 MiB"
_NO_OBJECT = "line is no JSON object"
_OTHER_SPLIT = "not of a split that --only_splits names"
_WIDTH = "other number of fields than the header; quote fields that hold the separator"
# A column of links, or, in a list without header, a link.
_LINK = re.compile(r"\burls?\b|_url\b|https?://", re.IGNORECASE)
_EXCELS_LINE = re.compile(r'"?sep=.?"?', re.IGNORECASE)  # tells Excel the separator
# Flickr8k.token.txt and results_20130124.token: no header, NAME#NUMBER, tab, caption.
_TOKEN_LINE = re.compile(r"(\S.*\.\w{3,4})#\d+\t")


class Record(NamedTuple):
    """One row of a list: an image's path and captions of it.

    Attributes:
        path: as it stands in the list; "" if there is none.
        key: as it stands in the list, or the path.
        captions: the captions.
        faults: a reason for each further caption that is no text.
        place: file and line.
        split: the split it belongs to; "" if the list does not tell.
    """

    path: str
    key: str
    captions: list[str]
    faults: list[str]
    place: str
    split: str = ""


def read_list(path: epath.Path, reading: Reading) -> Iterator[Record | Dropped]:
    """Records of a list in its order, whatever its kind.

    The kind is told by the first line, or by what the JSON holds, rather than by the file's name.

    Raises:
        UserError: the list names no images or no captions.
    """
    for record in _records_of(path, reading):
        if (
            reading.only_splits
            and isinstance(record, Record)
            and record.split not in reading.only_splits
        ):
            pairs = max(1, len(record.captions) + len(record.faults))
            record = Dropped(_OTHER_SPLIT, f"{record.place} ({record.split or 'no split'})", pairs)
        yield record


def _records_of(path: epath.Path, reading: Reading) -> Iterator[Record | Dropped]:
    try:
        ending = os.path.splitext(path.name.lower().removesuffix(".gz"))[1]
        if ending == ".json":
            yield from _document(path, reading)
            return
        lines = read_lines(path)
        if not (first := next(lines, None)):
            return
        lines = itertools.chain([first], lines)
        if ending in _JSON_LINES:
            yield from _objects(path, _json_lines(path, lines), reading)
        elif _TOKEN_LINE.match(first[1] or ""):
            yield from _token_lines(path, lines)
        else:
            yield from _table(path, lines, reading)
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: cannot be read ({reason})") from None


def _table(path: epath.Path, lines: Iterator[Line], reading: Reading) -> Iterator[Record | Dropped]:
    """A list with named columns."""
    _, header = next(lines)
    if _EXCELS_LINE.fullmatch(header or ""):
        _, header = next(lines, (0, ""))
    if not header:
        raise UserError(f"{path}: no text in its first line; it must name the columns, in UTF-8")
    if "\r" in header:
        raise UserError(f"{path}: its lines end as on old Macs; save it with the usual line ends")
    separator = _separator(header, reading)
    names = _columns(header, separator, reading)
    _require_columns(path, names, reading)
    rows = split_fields(lines, separator, len(names))
    yield from _records(path, _named(names, rows), reading)


def _named(names: list[str], rows: Iterable) -> Iterator[tuple[int, dict | str]]:
    for number, fields in rows:
        if fields is None:
            yield number, _NO_LINE
        elif len(fields) != len(names):
            yield number, _WIDTH
        else:
            yield number, dict(zip(names, fields, strict=True))


def _separator(header: str, reading: Reading) -> str:
    """The one by which the header names an image and a caption, or else the most columns."""

    def score(separator: str) -> tuple[bool, int]:
        names = set(_columns(header, separator, reading))
        both = names & set(_paths(reading)) and names & set(reading.captions)
        return bool(both), len(names)

    return max(SEPARATORS, key=score)


def _columns(header: str, separator: str, reading: Reading) -> list[str]:
    """Names of columns; the usual ones, which are in small letters, may be in others."""
    named = (*reading.image_column, *reading.caption_column, reading.key_column)
    usual = (*PATH_COLUMNS, *CAPTION_COLUMNS, *KEY_COLUMNS, "split")
    names = [name.strip().strip('"').strip() for name in header.split(separator)]
    return [
        small if name not in named and (small := name.lower()) in usual else name for name in names
    ]


def _json_lines(path: epath.Path, lines: Iterator[Line]) -> Iterator[tuple[int, dict | str]]:
    for number, line in lines:
        if line is None:
            yield number, _NO_LINE
        elif line.strip():
            yield number, _parsed(line)


def _parsed(line: str) -> dict | str:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError):
        return _NO_OBJECT
    return fields if isinstance(fields, dict) else _NO_OBJECT


def _objects(
    path: epath.Path, rows: Iterator[tuple[int, dict | str]], reading: Reading
) -> Iterator[Record | Dropped]:
    """Records of objects, of which the first must have what is needed."""
    first = next(rows, None)
    if first is None:
        return
    number, fields = first
    if isinstance(fields, str):
        raise UserError(f"{path}: line {number}: {fields}; correct or remove it")
    _require_columns(path, list(fields), reading)
    yield from _records(path, itertools.chain([first], rows), reading)


def _records(
    path: epath.Path, rows: Iterable[tuple[int, dict | str]], reading: Reading
) -> Iterator[Record | Dropped]:
    for number, fields in rows:
        if isinstance(fields, str):
            yield Dropped(fields, f"{path}: line {number}")
        else:
            yield _record(path, number, fields, reading)


def _record(path: epath.Path, number: int, fields: dict, reading: Reading) -> Record:
    image = next((fields[name] for name in _paths(reading) if fields.get(name)), "")
    image = _with_slashes(image) if isinstance(image, str) else ""
    names = (reading.key_column,) if reading.key_column else KEY_COLUMNS
    key = next((key_in(fields[name]) for name in names if fields.get(name) not in (None, "")), None)
    texts, faults = captions_in_fields(fields, reading.captions, bool(reading.caption_column))
    split, place = key_in(fields.get("split")), f"{path}: line {number}"
    return Record(image, image if key is None else key, texts, faults, place, split)


def _with_slashes(path: str) -> str:
    """A path of a list that was written on Windows, as other systems name it."""
    return path if "/" in path else path.replace("\\", "/")


def _token_lines(path: epath.Path, lines: Iterator[Line]) -> Iterator[Record | Dropped]:
    for number, line in lines:
        place = f"{path}: line {number}"
        if line is None or not (found := _TOKEN_LINE.match(line)):
            if line is None or line.strip():
                yield Dropped(_NO_LINE if line is None else _WIDTH, place)
            continue
        yield Record(found[1], found[1], [line[found.end() :]], [], place)


def _document(path: epath.Path, reading: Reading) -> Iterator[Record | Dropped]:
    """One JSON document: COCO's captions, Karpathy's splits, or an array of objects."""
    text = decode_text(unpacked(io.BytesIO(path.read_bytes())).read())
    if text is None:
        raise UserError(f"{path}: {NOT_UTF8}")
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        lines = read_lines(path)  # JSON lines are called .json, too
        yield from _objects(path, _json_lines(path, lines), reading)
        return
    if isinstance(content, list):
        rows = ((i, row if isinstance(row, dict) else _NO_OBJECT) for i, row in enumerate(content))
        yield from _objects(path, rows, reading)
    elif isinstance(content, dict) and _are_objects(content.get("images")):
        if _are_objects(content.get("annotations")):
            yield from _coco(path, content)
        else:
            yield from _karpathy(path, content["images"])
    elif isinstance(content, dict) and content.keys() & set(_paths(reading)):
        yield from _objects(path, iter([(1, content)]), reading)  # JSON lines, one of them
    else:
        raise UserError(
            f"{path}: neither COCO's captions nor Karpathy's splits nor an array of objects; "
            "give a list with named columns"
        )


def _coco(path: epath.Path, content: dict) -> Iterator[Record | Dropped]:
    """`captions_*.json`: an annotation a caption, in no order."""
    files = {image.get("id"): image.get("file_name") for image in content["images"]}
    captioned = set()
    for number, annotation in enumerate(content["annotations"]):
        place = f"{path}: annotation {number}"
        image = annotation.get("image_id")
        name = key_in(files.get(image) if isinstance(image, int | str) else None)
        captioned.add(name)
        texts, faults = captions_in(annotation.get("caption"))
        yield Record(name, name, texts, faults, place)
    for name in files.values():
        if name not in captioned:
            yield Record(key_in(name), key_in(name), [], [], f"{path}: {name}")


def _karpathy(path: epath.Path, images: list[dict]) -> Iterator[Record]:
    """`dataset_flickr8k.json`, `dataset_coco.json` …: an image with its sentences."""
    for number, image in enumerate(images):
        parts = [key_in(image.get(field)) for field in ("filepath", "filename")]
        name = "/".join(filter(None, parts))
        texts, faults = captions_in(image.get("sentences"))
        split = key_in(image.get("split"))
        yield Record(name, name, texts, faults, f"{path}: image {number}", split)


def _are_objects(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(v, dict) for v in value)


def _paths(reading: Reading) -> tuple[str, ...]:
    return reading.image_column or PATH_COLUMNS


def is_link(text: str) -> bool:
    """Whether a name or a value of a list is that of links."""
    return bool(_LINK.search(text))


def list_of_links(path: epath.Path) -> UserError:
    """The error for a list whose images are still on the web."""
    return UserError(
        f"{path}: a list of links instead of files; fetch the images first, e.g. by "
        "img2dataset, and name what it wrote as the source"
    )


def _require_columns(path: epath.Path, columns: list[str], reading: Reading) -> None:
    needed = {"image_column": _paths(reading), "caption_column": reading.captions}
    for flag, names in needed.items():
        if not set(names) & set(columns):
            if any(map(is_link, columns)):
                raise list_of_links(path)
            raise UserError(
                f"{path}: no column {' or '.join(names)} among: {', '.join(columns[:8])}; "
                f"name it in the first line, or give its name with --{flag}"
            )
