"""Units of rows: what lists and folders are cut into, and how a worker reads them."""

import itertools
import json
from collections.abc import Iterable, Iterator

from etils import epath

from data_prep.image_text.formats import (
    LARGE_IMAGE,
    LARGE_TEXT,
    MAX_IMAGE_BYTES,
    MAX_TEXT_BYTES,
    NO_IMAGE,
    Dropped,
    RawExample,
    Reading,
)
from data_prep.image_text.texts import captions_in_parts

_UNIT_ROWS = 5_000


def write_rows(rows: Iterable[dict], scratch: epath.Path, start: int) -> Iterator[epath.Path]:
    """Cuts rows into files of JSON lines, numbered from `start`.

    A row has `place` and either `dropped`, a reason, and `count` (1 if it is absent), or `path` of
    the image (None if there is none) and `key`, and `captions` or `beside`, ending -> path of the
    text.
    """
    rows = iter(rows)
    for number in itertools.count(start):
        part = list(itertools.islice(rows, _UNIT_ROWS))
        if not part:
            return
        target = scratch / f"rows-{number:05d}.jsonl"
        target.write_text("".join(f"{json.dumps(row)}\n" for row in part))
        yield target


def read_rows(path: str, reading: Reading) -> Iterator[RawExample | Dropped]:
    """The examples of a file that `write_rows` wrote."""
    with epath.Path(path).open("r") as lines:
        for line in lines:
            row = json.loads(line)
            if "dropped" in row:
                yield Dropped(row["dropped"], row["place"], row.get("count", 1))
                continue
            captions, faults = row.get("captions"), []
            if "beside" in row:
                captions, faults = _captions_beside(row["beside"], reading)
                if row["path"] is None and not (captions or faults):
                    continue  # a file of metadata
            image, why = None, NO_IMAGE
            if row["path"] is not None:
                image, why = read_file(row["path"], MAX_IMAGE_BYTES, LARGE_IMAGE)
            yield RawExample(row["key"], image, tuple(captions), row["place"], tuple(faults), why)


def read_file(path: str, limit: int, too_large: str) -> tuple[bytes | None, str]:
    """A file's bytes, or None and the reason why not."""
    try:
        file = epath.Path(path)
        if file.stat().length > limit:
            return None, too_large
        return file.read_bytes(), ""
    except FileNotFoundError:
        return None, NO_IMAGE
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        return None, f"cannot be read ({getattr(error, 'strerror', None) or error})"


def _captions_beside(paths: dict[str, str], reading: Reading) -> tuple[list[str], list[str]]:
    parts, faults = {}, []
    for ending, path in paths.items():
        content, why = read_file(path, MAX_TEXT_BYTES, LARGE_TEXT)
        if content is None:
            faults.append(why)
        else:
            parts[ending] = content
    texts, more = captions_in_parts(parts, reading)
    return texts, more if texts else [*faults, *more]
