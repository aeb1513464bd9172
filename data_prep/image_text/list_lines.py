"""Lines and fields of text files, as people's tools write them."""

import collections
import csv
import gzip
import io
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from typing import BinaryIO

from etils import epath

from data_prep.image_text.formats import MAX_TEXT_BYTES
from data_prep.image_text.texts import byte_order_mark, decode_text

SEPARATORS = "\t,|;"

_LONGEST_FIELD = 1 << 17  # of the csv module
_MOST_LINES = 100  # of one quoted field
_GZIP = b"\x1f\x8b"

Line = tuple[int, str | None]


def read_lines(path: epath.Path) -> Iterator[Line]:
    """Number, from 1, and text of every line without its end; None for what is no text.

    Reads UTF-8, UTF-16 and UTF-32 with a byte order mark, and line by line Windows-1252. A line
    over `MAX_TEXT_BYTES` is None, too. Files packed with gzip are unpacked.

    Raises:
        OSError, EOFError, zlib.error: the file cannot be read.
    """
    with path.open("rb") as remote, tempfile.TemporaryFile() as local:
        file = remote
        if "://" in str(path):  # files in buckets cannot read a line up to a limit
            shutil.copyfileobj(remote, local)
            local.seek(0)
            file = local
        file = unpacked(file)
        encoding = byte_order_mark(file.read(4))
        file.seek(0)
        if encoding in (None, "utf-8-sig"):
            yield from _byte_lines(file)
            return
        lines = io.TextIOWrapper(file, encoding, errors="strict", newline=None)
        try:
            for number, line in enumerate(lines, 1):
                yield number, line.rstrip("\n")
        except UnicodeDecodeError:
            yield number + 1, None


def unpacked(file: BinaryIO) -> BinaryIO:
    """The content of a file: what is packed in it if it is packed with gzip, whatever its name."""
    packed = file.read(len(_GZIP)) == _GZIP
    file.seek(0)
    return gzip.GzipFile(fileobj=file) if packed else file


def split_fields(
    lines: Iterator[Line], separator: str, width: int
) -> Iterator[tuple[int, list[str] | None]]:
    """Line number and fields of every record; None for what is no text.

    Quotes are undone as `csv` does it where they make sense, over several lines, too. Where they do
    not (an inch mark, a quotation at the start of a caption), they are part of the text.

    Args:
        lines: as `read_lines` yields them.
        separator: between fields.
        width: number of columns of the header; a quoted record must have as many.
    """
    waiting: collections.deque[Line] = collections.deque()
    while True:
        number, line = waiting.popleft() if waiting else next(lines, (0, None))
        if not number:
            return
        if line is None:
            yield number, None
            continue
        if not line.strip():
            continue
        plain = line.split(separator)
        if not any(field.startswith('"') for field in plain):
            yield number, plain
            continue
        following: list[Line] = []
        quoted = _quoted(line, separator)
        while quoted is None and len(following) < _MOST_LINES:
            follower = waiting.popleft() if waiting else next(lines, (0, None))
            if not follower[0]:
                break
            following.append(follower)
            if follower[1] is None or len(line) > _LONGEST_FIELD:
                break
            line = f"{line}\n{follower[1]}"
            quoted = _quoted(line, separator)
        if quoted is not None and (len(quoted) == width or len(plain) != width):
            yield number, quoted
        else:
            waiting.extendleft(reversed(following))
            yield number, plain


def _byte_lines(file: BinaryIO) -> Iterator[Line]:
    number = 0
    while line := file.readline(MAX_TEXT_BYTES):
        number += 1
        whole = line.endswith(b"\n") or len(line) < MAX_TEXT_BYTES
        while not whole:
            rest = file.readline(MAX_TEXT_BYTES)
            whole = rest.endswith(b"\n") or len(rest) < MAX_TEXT_BYTES
            line = None
        text = None if line is None else decode_text(line)
        if text is not None and number == 1:
            text = text.removeprefix("\ufeff")
        yield number, None if text is None else text.rstrip("\r\n")


def _quoted(text: str, separator: str) -> Sequence[str] | None:
    """Fields of a whole record with quotes; None if a quote is still open or nothing fits."""
    if text.count('"') % 2:
        return None
    try:
        rows = list(csv.reader([text], delimiter=separator, strict=True))
    except csv.Error:
        return None
    return rows[0] if len(rows) == 1 else None
