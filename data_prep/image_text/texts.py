"""Texts out of the bytes and values that raw files hold."""

import codecs
import json
from collections.abc import Sequence
from typing import Any

from data_prep.image_text.formats import CAPTION_COLUMNS, LARGE_TEXT, Reading

NO_TEXT = "caption is no text"
NOT_UTF8 = "text is not UTF-8; save it as UTF-8"

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# Fields of objects that stand where a text is expected, e.g. COCO's `sentences` of {tokens, raw}.
_TEXT_FIELDS = ("raw", *CAPTION_COLUMNS)


def byte_order_mark(start: bytes) -> str | None:
    """The encoding that a text's byte order mark tells, or None."""
    return next((name for mark, name in _MARKS if start.startswith(mark)), None)


def decode_text(encoded: bytes) -> str | None:
    """The text of UTF-8, of UTF-16 and UTF-32 with a byte order mark, and of Western Windows.

    Bytes that are no UTF-8 are taken for Windows-1252, of which Latin-1 is a part, where that gives
    mostly ASCII. Returns None otherwise: other encodings cannot be told from each other.
    """
    try:
        text = encoded.decode(byte_order_mark(encoded) or "utf-8")
    except UnicodeDecodeError:
        return _western(encoded)
    return None if "\0" in text else text


def captions_in(value: Any) -> tuple[list[str], list[str]]:
    """Captions in a value of a table, a list or a JSON object.

    Args:
        value: a text, bytes, an object with a text in one of the usual fields, or several of these.

    Returns:
        Captions, and a reason for each one that is no text. Nothing at all for None.
    """
    if value is None:
        return [], []
    if isinstance(value, str):
        return ([value], []) if _is_encodable(value) else ([], [NO_TEXT])
    if isinstance(value, bytes):
        text = decode_text(value)
        return ([], [NOT_UTF8]) if text is None else ([text], [])
    if isinstance(value, dict):
        fields = [value[name] for name in _TEXT_FIELDS if value.get(name) is not None]
        return captions_in(fields[0]) if fields else ([], [NO_TEXT])
    if isinstance(value, list | tuple):
        parts = [captions_in(part) for part in value]
        return _joined(parts)
    return [], [NO_TEXT]


def captions_in_fields(fields: dict, names: Sequence[str], every: bool) -> tuple[list, list]:
    """`captions_in` of some fields: of every one, or of the first that holds a caption."""
    found = [captions_in(fields[name]) for name in names if name in fields]
    return _joined(found) if every else _first(found)


def captions_in_json(encoded: bytes, names: Sequence[str], every: bool) -> tuple[list, list]:
    """`captions_in_fields` of an encoded JSON object; nothing if it is something else."""
    text = decode_text(encoded)
    if text is None:
        return [], [NOT_UTF8]
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError):
        return [], []
    return captions_in_fields(fields, names, every) if isinstance(fields, dict) else ([], [])


def captions_in_parts(
    parts: dict[str, bytes | None], reading: Reading
) -> tuple[list[str], list[str]]:
    """Captions in the text files of one example: of the first that holds one.

    Args:
        parts: ending, in order of preference -> content, None if it is too large.
        reading: which fields of `json` hold captions; where columns are named, all files count.
    """
    every = bool(reading.caption_column)
    found = []
    for ending, content in parts.items():
        if content is None:
            found.append(([], [LARGE_TEXT]))
        elif ending == "json":
            found.append(captions_in_json(content, reading.captions, every))
        else:
            found.append(captions_in(content))
    return _joined(found) if every else _first(found)


def key_in(value: Any) -> str:
    """A key as text; "" for what is none, such as NaN."""
    if isinstance(value, bytes):
        value = decode_text(value)
    if isinstance(value, float) and value.is_integer():  # pandas makes integers with gaps floats
        value = int(value)
    return str(value) if isinstance(value, int | str) and _is_encodable(str(value)) else ""


def _first(parts: list[tuple[list, list]]) -> tuple[list, list]:
    """The first part with a caption that is not blank; without one, the first fault."""
    filled = (part for part in parts if any(map(str.strip, part[0])))
    return next(filled, None) or next((part for part in parts if part[0] or part[1]), ([], []))


def _joined(parts: list[tuple[list, list]]) -> tuple[list, list]:
    texts, faults = zip(*parts, strict=True) if parts else ((), ())
    return [text for part in texts for text in part], [why for part in faults for why in part]


def _is_encodable(text: str) -> bool:
    """JSON can hold halves of surrogate pairs, which no file can."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _western(encoded: bytes) -> str | None:
    try:
        text = encoded.decode("cp1252")
    except UnicodeDecodeError:
        return None
    foreign = sum(not character.isascii() for character in text)
    return text if 4 * foreign <= len(text) and "\0" not in text else None
