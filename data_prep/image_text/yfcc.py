"""Captions of YFCC100M, from its table into an SQLite file that workers look photos up in."""

import bz2
import itertools
import sqlite3
import urllib.parse
from collections.abc import Iterator

import numpy as np
from etils import epath

from cocu_jax.errors import UserError
from cocu_jax.progress import progress
from data_prep.image_text.texts import decode_text

# Columns of photo id, hash, title and description by the number of columns: with line number and
# hash as the dataset is handed out now, and without as it was first.
_LAYOUTS = {25: (1, 2, 8, 9), 23: (0, None, 6, 7)}
_BATCH = 10_000


def write_captions(table: str, subset: str, target: epath.Path) -> epath.Path:
    """Writes photo id, hash and caption ("title. description") of all photos that have a caption.

    Args:
        table: `yfcc100m_dataset` (tab-separated, no header, also `.bz2`), texts URL-quoted.
        subset: `yfcc100m_subset_data.tsv` (line number, photo id, hash) to keep only its photos, or
            "" for all.
        target: the SQLite file; kept if it is there.

    Raises:
        UserError: a file is missing or has other columns, or `target` is in a bucket.
    """
    if "://" in str(target):
        raise UserError(f"{target}: YFCC's zips need a --data_dir on a disk that all workers share")
    if target.exists():
        return target
    wanted = _subset_ids(subset) if subset else None
    unfinished = target.with_suffix(".unfinished")
    unfinished.unlink(missing_ok=True)
    with sqlite3.connect(unfinished) as captions:
        captions.execute("PRAGMA journal_mode = OFF")
        captions.execute("CREATE TABLE captions (id TEXT PRIMARY KEY, hash TEXT, caption TEXT)")
        rows = progress(_rows(table, wanted), "YFCC captions", None, "photos")
        while batch := list(itertools.islice(rows, _BATCH)):
            captions.executemany("INSERT OR IGNORE INTO captions VALUES (?, ?, ?)", batch)
        captions.execute("CREATE INDEX by_hash ON captions (hash)")
    captions.close()
    return unfinished.rename(target)


def _rows(table: str, wanted: np.ndarray | None) -> Iterator[tuple[str, str | None, str]]:
    for fields in _lines(table):
        if len(fields) not in _LAYOUTS:
            raise UserError(f"{table}: {len(fields)} columns, YFCC100M's table has 25 or 23")
        photo, digest, title, description = _LAYOUTS[len(fields)]
        if wanted is not None and not _contains(wanted, fields[photo]):
            continue
        texts = [_unquoted(fields[place]) for place in (title, description)]
        if caption := ". ".join(text.rstrip(".") for text in texts if text):
            yield fields[photo], None if digest is None else fields[digest], caption


def _unquoted(field: str) -> str:
    """The text of a URL-quoted field; "" for what is none."""
    quoted = field.replace("+", " ").encode("utf-8", "surrogateescape")
    return (decode_text(urllib.parse.unquote_to_bytes(quoted)) or "").strip()


def _subset_ids(subset: str) -> np.ndarray:
    """Sorted photo ids: 8 bytes a photo, however long the list is."""
    try:
        ids = np.fromiter((int(fields[1]) for fields in _lines(subset)), np.int64)
    except (ValueError, IndexError):
        raise UserError(
            f"{subset}: not three columns of line number, photo id, hash; "
            "give yfcc100m_subset_data.tsv"
        ) from None
    ids.sort()
    return ids


def _contains(ids: np.ndarray, photo: str) -> bool:
    number = int(photo) if photo.isdigit() else -1
    place = ids.searchsorted(number)
    return place < len(ids) and ids[place] == number


def _lines(path: str) -> Iterator[list[str]]:
    try:
        with epath.Path(path).expanduser().open("rb") as file:
            lines = bz2.BZ2File(file) if path.endswith(".bz2") else file
            for line in lines:
                yield line.decode("utf-8", "surrogateescape").rstrip("\r\n").split("\t")
    except (OSError, EOFError) as error:  # EOFError: of a .bz2 that was cut
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: cannot be read ({reason})") from None
