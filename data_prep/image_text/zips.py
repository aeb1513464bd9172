"""Reading zips: pairs of images and captions, or YFCC100M's photos."""

import contextlib
import posixpath
import sqlite3
import zipfile
from collections.abc import Iterator

from etils import epath

from cocu_jax.errors import UserError
from data_prep.image_text.formats import (
    IMAGE_ENDINGS,
    LARGE_IMAGE,
    MAX_IMAGE_BYTES,
    TEXT_ENDINGS,
    Dropped,
    RawExample,
    Reading,
)
from data_prep.image_text.pairing import Pairing

_NOT_LISTED = "photo without caption in YFCC's table, or not in the subset"
_NO_PHOTO = "no photo by its ending"
_SAYS_UTF8 = 0x800  # bit of a member's flags
_WINDOWS = 0  # as the system on which a member was packed


def read_zip(path: str, captions: str, reading: Reading) -> Iterator[RawExample | Dropped]:
    """Examples of a zip in the memory of one; members that make no example are counted.

    Args:
        path: the zip.
        captions: the SQLite file with YFCC's captions; "" if they are members of the zip.
        reading: see `Reading`.

    Raises:
        OSError, zipfile.BadZipFile: after what can be read.
    """
    try:
        with epath.Path(path).open("rb") as file, zipfile.ZipFile(file) as members:
            if captions:
                yield from _photos(members, path, captions)
            else:
                yield from _pairs(members, path, reading)
    except RuntimeError as error:  # encrypted, or an unknown compression
        raise zipfile.BadZipFile(str(error)) from None


def check_zip(path: str, reading: Reading) -> None:
    """Refuses a zip that holds no captions.

    Raises:
        UserError: no member's ending is that of a caption, or the zip cannot be read.
    """
    endings = (*TEXT_ENDINGS, "json", *map(str.lower, reading.caption_column))
    try:
        with epath.Path(path).open("rb") as file, zipfile.ZipFile(file) as members:
            names = [_name(member) for member in members.infolist()]
    except (OSError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    if not any(name.lower().endswith(tuple(f".{ending}" for ending in endings)) for name in names):
        raise UserError(
            f"{path}: no captions ({', '.join(endings)}) beside the images; for YFCC100M's zips, "
            "give its table with --yfcc yfcc100m_dataset"
        )


def _pairs(members: zipfile.ZipFile, path: str, reading: Reading) -> Iterator[RawExample | Dropped]:
    """Images with .txt or .json beside them, in the order of their names."""
    pairing = Pairing(path, reading)
    named = [(_name(member), member) for member in members.infolist()]
    for name, member in sorted(named, key=lambda pair: pair[0]):
        if not name.endswith("/"):
            read = lambda member=member: members.read(member)  # noqa: E731
            yield from pairing.add(name, member.file_size, read)
    yield from pairing.finish()


def _photos(members: zipfile.ZipFile, path: str, captions: str) -> Iterator[RawExample | Dropped]:
    """Photos named by id or hash; a photo without caption is not of the subset."""
    with contextlib.closing(sqlite3.connect(f"file:{captions}?mode=ro", uri=True)) as table:
        for member in members.infolist():
            name = _name(member)
            if name.endswith("/"):
                continue
            place = f"{path}: {name}"
            stem, _, ending = posixpath.basename(name).partition(".")
            query = "SELECT id, caption FROM captions WHERE id = ?1 OR hash = ?1"
            if ending.lower() not in IMAGE_ENDINGS:
                yield Dropped(_NO_PHOTO, place)
            elif not (row := table.execute(query, (stem,)).fetchone()):
                yield Dropped(_NOT_LISTED, place)
            elif member.file_size > MAX_IMAGE_BYTES:
                yield Dropped(LARGE_IMAGE, place)
            else:
                yield RawExample(row[0], members.read(member), (row[1],), place)


def _name(member: zipfile.ZipInfo) -> str:
    """A member's name with slashes between folders.

    Archives of older Windows programs have backslashes there, and those of macOS have names in
    UTF-8 without saying so, which `zipfile` takes for code page 437.
    """
    name = member.filename
    if not member.flag_bits & _SAYS_UTF8:
        with contextlib.suppress(UnicodeError):
            name = name.encode("cp437").decode()
    return name.replace("\\", "/") if member.create_system == _WINDOWS else name
